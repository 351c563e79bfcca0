//! Rotary position embedding ("RoFormer", Su and others, 2021) in the Hugging Face convention: element i of a head
//! pairs with element i + D/2.
#![allow(clippy::inline_always)] // bodies are compiled into each instruction-set level's function

use super::par;
use crate::isa::multiversion;
use crate::panels::LANES;

/// All heads of one row; `sign` is 1, or -1 to rotate back.
#[inline(always)]
fn row_body<const FMA: bool>(x: &[f32], d: usize, table: &[f32], sign: f32, y: &mut [f32]) {
    let (cos, sin) = table.split_at(d / 2);
    for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
        let ((a, b), (p, q)) = (x.split_at(d / 2), y.split_at_mut(d / 2));
        // Blocks of fixed width, because half a head is shorter than the vector loop that the compiler would make.
        let (a, a_rest) = a.as_chunks::<LANES>();
        let (b, b_rest) = b.as_chunks::<LANES>();
        let (p, p_rest) = p.as_chunks_mut::<LANES>();
        let (q, q_rest) = q.as_chunks_mut::<LANES>();
        let (cos, cos_rest) = cos.as_chunks::<LANES>();
        let (sin, sin_rest) = sin.as_chunks::<LANES>();
        for (((((p, q), a), b), cos), sin) in p.iter_mut().zip(q).zip(a).zip(b).zip(cos).zip(sin) {
            let sin = sin.map(|s| s * sign);
            for l in 0..LANES {
                p[l] = a[l] * cos[l] - b[l] * sin[l];
            }
            for l in 0..LANES {
                q[l] = b[l] * cos[l] + a[l] * sin[l];
            }
        }
        for l in 0..a_rest.len() {
            let sin = sin_rest[l] * sign;
            p_rest[l] = a_rest[l] * cos_rest[l] - b_rest[l] * sin;
            q_rest[l] = b_rest[l] * cos_rest[l] + a_rest[l] * sin;
        }
    }
}

multiversion! {
    fn row(x: &[f32], d: usize, table: &[f32], sign: f32, y: &mut [f32]) = row_body, row_at;
}

/// Rotates every head of every row of `x [m, heads * d]`; `table(r)` gives row r's `[cos D/2, sin D/2]`. `inverse`
/// rotates back, which is the gradient.
pub fn rope<'t>(
    x: &[f32],
    heads: usize,
    d: usize,
    table: impl Fn(usize) -> &'t [f32] + Sync + Send,
    inverse: bool,
    y: &mut [f32],
) {
    let width = heads * d;
    if width == 0 {
        return;
    }
    let m = x.len() / width;
    assert!(x.len() == m * width && y.len() == m * width, "x and y are [{m}, {width}]");
    let sign = if inverse { -1.0 } else { 1.0 };
    par::rows1(m, (y, width), |rows, y| {
        for (r, y) in rows.zip(y.chunks_exact_mut(width)) {
            row(&x[r * width..(r + 1) * width], d, table(r), sign, y);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::{distance, random};
    use crate::isa::levels;

    fn table(position: usize, d: usize) -> Vec<f32> {
        let angle = |i: usize| position as f64 / 10_000_f64.powf(2.0 * i as f64 / d as f64);
        let half = 0..d / 2;
        half.clone().map(|i| angle(i).cos() as f32).chain(half.map(|i| angle(i).sin() as f32)).collect()
    }

    #[test]
    fn agrees_with_rotate_half() {
        for isa in levels() {
            for d in [2, 6, 16, 64, 128] {
                let (x, table) = (random(3 * d, 1), table(17, d));
                let mut y = vec![0.0; 3 * d];
                row_at(isa, &x, d, &table, 1.0, &mut y);
                let want: Vec<f64> = (0..3 * d)
                    .map(|at| {
                        let (head, i) = (at / d * d, at % d);
                        let other =
                            if i < d / 2 { -f64::from(x[head + i + d / 2]) } else { f64::from(x[head + i - d / 2]) };
                        let (cos, sin) = (f64::from(table[i % (d / 2)]), f64::from(table[d / 2 + i % (d / 2)]));
                        f64::from(x[at]) * cos + other * sin
                    })
                    .collect();
                assert!(distance(&y, &want) < 1e-6);
                // The gradient is the rotation back: it undoes the rotation.
                let mut back = vec![0.0; 3 * d];
                row_at(isa, &y, d, &table, -1.0, &mut back);
                assert!(distance(&back, &x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>()) < 1e-6);
            }
        }
    }

    #[test]
    fn rows_use_their_own_positions() {
        let (heads, d, m) = (2, 16, 900);
        let tables: Vec<Vec<f32>> = (0..m).map(|r| table(r % 50, d)).collect();
        let one = random(heads * d, 4);
        let x: Vec<f32> = one.iter().copied().cycle().take(m * heads * d).collect();
        let mut y = vec![0.0; x.len()];
        rope(&x, heads, d, |r| &tables[r], false, &mut y);
        for r in [0, 1, 49, 50, 733, 899] {
            let mut alone = vec![0.0; heads * d];
            rope(&one, heads, d, |_| &tables[r], false, &mut alone);
            assert_eq!(y[r * heads * d..][..heads * d], alone);
        }
    }
}
