//! RMS normalisation, forward and backward ("Root Mean Square Layer Normalization", Zhang and Sennrich, 2019).
#![allow(clippy::inline_always)] // bodies are compiled into each instruction-set level's function
#![allow(unsafe_code)] // threads share one vector by disjoint columns

use std::ops::Range;

use super::par::{self, Shared};
use super::reduce::tree;
use crate::isa::{mul_add, multiversion};
use crate::panels::LANES;

/// `sum of a[i] * b[i]`: 16 lanes, then a tree.
#[inline(always)]
fn lane_dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            lanes[l] = mul_add::<FMA>(a[l], b[l], lanes[l]);
        }
    }
    for (l, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *l = mul_add::<FMA>(*a, *b, *l);
    }
    tree(lanes)
}

#[inline(always)]
fn inverse<const FMA: bool>(row: &[f32], eps: f32) -> f32 {
    1.0 / (lane_dot::<FMA>(row, row) / row.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn inv_body<const FMA: bool>(x: &[f32], c: usize, eps: f32, inv: &mut [f32]) {
    for (row, inv) in x.chunks_exact(c).zip(inv) {
        *inv = inverse::<FMA>(row, eps);
    }
}

#[inline(always)]
fn norm_body<const FMA: bool>(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], inv: &mut [f32]) {
    let c = w.len();
    for ((row, out), inv) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(inv) {
        *inv = inverse::<FMA>(row, eps);
        let factor = *inv;
        for ((out, x), w) in out.iter_mut().zip(row).zip(w) {
            *out = x * factor * w;
        }
    }
}

#[inline(always)]
fn dx_body<const FMA: bool>(dy: &[f32], x: &[f32], w: &[f32], inv: &[f32], dx: &mut [f32]) {
    let c = w.len();
    let rows = dy.chunks_exact(c).zip(x.chunks_exact(c)).zip(dx.chunks_exact_mut(c));
    for (((dy, x), dx), inv) in rows.zip(inv) {
        // dx holds dy * w for a moment.
        for ((g, dy), w) in dx.iter_mut().zip(dy).zip(w) {
            *g = dy * w;
        }
        let slope = lane_dot::<FMA>(dx, x) / c as f32 * inv * inv;
        for (g, x) in dx.iter_mut().zip(x) {
            *g = inv * mul_add::<FMA>(-slope, *x, *g);
        }
    }
}

#[inline(always)]
fn dw_body<const FMA: bool>(dy: &[f32], x: &[f32], inv: &[f32], columns: Range<usize>, dw: &mut [f32], c: usize) {
    for ((dy, x), inv) in dy.chunks_exact(c).zip(x.chunks_exact(c)).zip(inv) {
        for ((dw, dy), x) in dw.iter_mut().zip(&dy[columns.clone()]).zip(&x[columns.clone()]) {
            *dw = mul_add::<FMA>(*dy, x * inv, *dw);
        }
    }
}

multiversion! {
    fn inv_rows(x: &[f32], c: usize, eps: f32, inv: &mut [f32]) = inv_body, inv_rows_at;
    fn norm_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], inv: &mut [f32]) = norm_body, norm_rows_at;
    fn dx_rows(dy: &[f32], x: &[f32], w: &[f32], inv: &[f32], dx: &mut [f32]) = dx_body, dx_rows_at;
    fn dw_columns(dy: &[f32], x: &[f32], inv: &[f32], columns: Range<usize>, dw: &mut [f32], c: usize)
        = dw_body, dw_columns_at;
}

/// `inv[r] = 1 / sqrt(mean(x[r]^2) + eps)` for the rows of `x [m, c]`, m being `inv.len()`.
pub fn rms_inv(x: &[f32], c: usize, eps: f32, inv: &mut [f32]) {
    let m = inv.len();
    assert_eq!(x.len(), m * c, "x is [{m}, {c}]");
    inv_rows(x, c, eps, inv);
}

/// `y[r] = x[r] * inv[r] * w` with `inv` as [`rms_inv`] gives it; c is `w.len()`.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], inv: &mut [f32]) {
    let (m, c) = (inv.len(), w.len());
    assert!(x.len() == m * c && y.len() == m * c, "x and y are [{m}, {c}]");
    par::rows2(m, (y, c), (inv, 1), |rows, y, inv| norm_rows(&x[rows.start * c..rows.end * c], w, eps, y, inv));
}

/// Gradient with respect to x: `dx = inv * (dy * w - x * inv^2 * mean(dy * w * x))`.
pub fn rms_norm_dx(dy: &[f32], x: &[f32], w: &[f32], inv: &[f32], dx: &mut [f32]) {
    let (m, c) = (inv.len(), w.len());
    assert!([dy.len(), x.len(), dx.len()] == [m * c; 3], "dy, x and dx are [{m}, {c}]");
    par::rows1(m, (dx, c), |rows, dx| {
        let span = rows.start * c..rows.end * c;
        dx_rows(&dy[span.clone()], &x[span], w, &inv[rows], dx);
    });
}

/// `dw += sum over rows of dy * x * inv`, rows in ascending order.
pub fn rms_norm_dw(dy: &[f32], x: &[f32], inv: &[f32], dw: &mut [f32]) {
    let (m, c) = (inv.len(), dw.len());
    assert!([dy.len(), x.len()] == [m * c; 2], "dy and x are [{m}, {c}]");
    let shared = Shared::new(dw);
    par::columns(m, c, |columns| {
        // SAFETY: each task has columns of its own.
        let part = unsafe { shared.part(columns.clone()) };
        dw_columns(dy, x, inv, columns, part, c);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::{distance, random};
    use crate::isa::levels;

    const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 576), (7, 33), (64, 16), (300, 64), (3, 1000)];
    const EPS: f32 = 1e-5;

    fn forward(x: &[f64], w: &[f64], c: usize) -> Vec<f64> {
        let row = |x: &[f64]| {
            let inv = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / c as f64 + f64::from(EPS)).sqrt();
            x.iter().zip(w).map(|(x, w)| x * inv * w).collect::<Vec<f64>>()
        };
        x.chunks_exact(c).flat_map(row).collect()
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|v| f64::from(*v)).collect()
    }

    /// Derivative of `sum(dy * forward)` by central differences in f64, for one input.
    fn difference(dy: &[f32], c: usize, x: &[f64], w: &[f64], by_x: bool) -> Vec<f64> {
        let h = 1e-5;
        let loss = |x: &[f64], w: &[f64]| forward(x, w, c).iter().zip(dy).map(|(y, d)| y * f64::from(*d)).sum::<f64>();
        let len = if by_x { x.len() } else { w.len() };
        let at = |i: usize, h: f64| {
            let (mut x, mut w) = (x.to_vec(), w.to_vec());
            if by_x {
                x[i] += h;
            } else {
                w[i] += h;
            }
            loss(&x, &w)
        };
        (0..len).map(|i| (at(i, h) - at(i, -h)) / (2.0 * h)).collect()
    }

    #[test]
    fn forward_agrees_with_f64() {
        for isa in levels() {
            for (m, c) in SHAPES {
                let (x, w) = (random(m * c, 1), random(c, 2));
                let (mut y, mut inv) = (vec![0.0; m * c], vec![0.0; m]);
                norm_rows_at(isa, &x, &w, EPS, &mut y, &mut inv);
                assert!(distance(&y, &forward(&wide(&x), &wide(&w), c)) < 1e-6);
                let mut again = vec![0.0; m];
                inv_rows_at(isa, &x, c, EPS, &mut again);
                assert_eq!(again, inv);
            }
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        for isa in levels() {
            for (m, c) in [(1, 1), (3, 33), (5, 16)] {
                let (x, w, dy) = (random(m * c, 1), random(c, 2), random(m * c, 3));
                let mut inv = vec![0.0; m];
                rms_inv(&x, c, EPS, &mut inv);
                let mut dx = vec![0.0; m * c];
                dx_rows_at(isa, &dy, &x, &w, &inv, &mut dx);
                let want = difference(&dy, c, &wide(&x), &wide(&w), true);
                let off = dx.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
                assert!(off < 2e-5, "{off} at [{m}, {c}]");
                let mut dw = vec![0.0; c];
                dw_columns_at(isa, &dy, &x, &inv, 0..c, &mut dw, c);
                assert!(distance(&dw, &difference(&dy, c, &wide(&x), &wide(&w), false)) < 1e-5);
            }
        }
    }

    #[test]
    fn neither_batch_nor_threads_nor_splits_change_bits() {
        let (m, c) = (700, 192);
        let (x, w, dy) = (random(m * c, 1), random(c, 2), random(m * c, 3));
        let run = |threads: usize, cut: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            pool.install(|| {
                let (mut y, mut inv, mut dx) = (vec![0.0; m * c], vec![0.0; m], vec![0.0; m * c]);
                let mut dw = vec![0.0; c];
                for rows in [0..cut, cut..m] {
                    let span = rows.start * c..rows.end * c;
                    rms_norm(&x[span.clone()], &w, EPS, &mut y[span.clone()], &mut inv[rows.clone()]);
                    rms_norm_dx(&dy[span.clone()], &x[span.clone()], &w, &inv[rows.clone()], &mut dx[span.clone()]);
                    rms_norm_dw(&dy[span.clone()], &x[span], &inv[rows], &mut dw);
                }
                (y, dx, dw)
            })
        };
        let one = run(1, 0);
        assert!([(1, 1), (2, 0), (2, 333), (3, 699)].into_iter().all(|(t, cut)| run(t, cut) == one));
    }
}
