//! Elementwise chains and row movement.
#![allow(clippy::inline_always)] // bodies are compiled into each instruction-set level's function
#![allow(unsafe_code)] // threads share one slice by disjoint columns

use std::ops::Range;

use super::par::{self, Shared};
use crate::isa::{mul_add, multiversion};

#[inline(always)]
fn add_body<const FMA: bool>(a: &[f32], b: &[f32], y: &mut [f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = a + b;
    }
}

#[inline(always)]
fn add_into_body<const FMA: bool>(acc: &mut [f32], x: &[f32]) {
    for (a, x) in acc.iter_mut().zip(x) {
        *a += x;
    }
}

#[inline(always)]
fn add_scaled_body<const FMA: bool>(acc: &mut [f32], x: &[f32], factor: f32) {
    for (a, x) in acc.iter_mut().zip(x) {
        *a = mul_add::<FMA>(factor, *x, *a);
    }
}

#[inline(always)]
fn scale_body<const FMA: bool>(x: &mut [f32], factor: f32) {
    for v in x {
        *v *= factor;
    }
}

#[inline(always)]
fn sum_rows_body<const FMA: bool>(dy: &[f32], width: usize, columns: Range<usize>, acc: &mut [f32]) {
    for row in dy.chunks_exact(width) {
        for (a, x) in acc.iter_mut().zip(&row[columns.clone()]) {
            *a += x;
        }
    }
}

multiversion! {
    fn add_part(a: &[f32], b: &[f32], y: &mut [f32]) = add_body, add_part_at;
    fn add_into_part(acc: &mut [f32], x: &[f32]) = add_into_body, add_into_part_at;
    fn add_scaled_part(acc: &mut [f32], x: &[f32], factor: f32) = add_scaled_body, add_scaled_part_at;
    fn scale_part(x: &mut [f32], factor: f32) = scale_body, scale_part_at;
    fn sum_rows_part(dy: &[f32], width: usize, columns: Range<usize>, acc: &mut [f32]) = sum_rows_body, sum_rows_part_at;
}

/// `y = a + b`.
pub fn add(a: &[f32], b: &[f32], y: &mut [f32]) {
    assert!(a.len() == y.len() && b.len() == y.len(), "operands of a sum have one length");
    par::rows1(y.len(), (y, 1), |i, y| add_part(&a[i.clone()], &b[i], y));
}

/// `acc += x`.
pub fn add_into(acc: &mut [f32], x: &[f32]) {
    assert_eq!(acc.len(), x.len(), "operands of a sum");
    par::rows1(x.len(), (acc, 1), |i, acc| add_into_part(acc, &x[i]));
}

/// `acc += factor * x`.
pub fn add_scaled(acc: &mut [f32], x: &[f32], factor: f32) {
    assert_eq!(acc.len(), x.len(), "operands of a sum");
    par::rows1(x.len(), (acc, 1), |i, acc| add_scaled_part(acc, &x[i], factor));
}

/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    par::rows1(x.len(), (x, 1), |_, x| scale_part(x, factor));
}

/// Sets every value.
pub fn fill(x: &mut [f32], value: f32) {
    par::rows1(x.len(), (x, 1), |_, x| x.fill(value));
}

/// `x[r] += bias` for rows of `bias.len()` values.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    let width = bias.len();
    let rows = x.len().checked_div(width).unwrap_or(0);
    par::rows1(rows, (x, width), |_, x| x.chunks_exact_mut(width).for_each(|row| add_into_part(row, bias)));
}

/// `db += sum over rows of dy`, rows in ascending order; rows have `db.len()` values.
pub fn bias_db(dy: &[f32], db: &mut [f32]) {
    let width = db.len();
    if width == 0 {
        return;
    }
    let shared = Shared::new(db);
    par::columns(dy.len() / width, width, |columns| {
        // SAFETY: each task has columns of its own.
        let part = unsafe { shared.part(columns.clone()) };
        sum_rows_part(dy, width, columns, part);
    });
}

/// `y[i] = x[rows[i]]` for rows of `width` values.
pub fn gather_rows(x: &[f32], width: usize, rows: &[u32], y: &mut [f32]) {
    assert_eq!(y.len(), rows.len() * width, "y is [{}, {width}]", rows.len());
    if width > 0 {
        par::rows1(rows.len(), (y, width), |part, y| {
            for (r, y) in rows[part].iter().zip(y.chunks_exact_mut(width)) {
                y.copy_from_slice(&x[*r as usize * width..][..width]);
            }
        });
    }
}

/// `acc[rows[i]] += x[i]`, in order of i.
pub fn scatter_add_rows(acc: &mut [f32], width: usize, x: &[f32], rows: &[u32]) {
    assert_eq!(x.len(), rows.len() * width, "x is [{}, {width}]", rows.len());
    let shared = Shared::new(acc);
    par::columns(rows.len(), width, |columns| {
        for (i, r) in rows.iter().enumerate() {
            let at = *r as usize * width;
            // SAFETY: each task has columns of its own, and uses one row's at a time.
            let part = unsafe { shared.part(at + columns.start..at + columns.end) };
            add_into_part(part, &x[i * width..][columns.clone()]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::random;
    use crate::isa::levels;

    #[test]
    fn chains_agree_with_plain_loops() {
        let n = 50_003;
        let (a, b) = (random(n, 1), random(n, 2));
        let mut y = vec![0.0; n];
        add(&a, &b, &mut y);
        assert!((0..n).all(|i| y[i] == a[i] + b[i]));
        add_into(&mut y, &a);
        assert!((0..n).all(|i| y[i] == (a[i] + b[i]) + a[i]));
        scale(&mut y, 0.5);
        assert!((0..n).all(|i| y[i] == ((a[i] + b[i]) + a[i]) * 0.5));
        fill(&mut y, 2.0);
        assert!(y.iter().all(|v| *v == 2.0));
        for isa in levels() {
            y.copy_from_slice(&a);
            add_scaled_part_at(isa, &mut y, &b, 0.3);
            assert!(
                (0..n).all(|i| (f64::from(y[i]) - f64::from(a[i]) - f64::from(0.3_f32) * f64::from(b[i])).abs() < 1e-7)
            );
        }
    }

    #[test]
    fn rows_are_gathered_and_scattered_in_order() {
        let (m, width) = (40, 130);
        let x = random(m * width, 1);
        let rows: Vec<u32> = (0..500_u32).map(|i| (i * 17 + i * i) % m as u32).collect();
        let mut y = vec![0.0; rows.len() * width];
        gather_rows(&x, width, &rows, &mut y);
        let mut want = x.clone();
        for (r, y) in rows.iter().zip(y.chunks_exact(width)) {
            let at = *r as usize * width;
            assert_eq!(y, &x[at..at + width]);
            want[at..at + width].iter_mut().zip(y).for_each(|(w, y)| *w += y);
        }
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            let mut acc = x.clone();
            pool.install(|| scatter_add_rows(&mut acc, width, &y, &rows));
            assert_eq!(acc, want);
        }
    }

    #[test]
    fn biases_are_added_and_their_gradients_do_not_depend_on_splits() {
        let (m, width) = (333, 200);
        let (dy, bias) = (random(m * width, 1), random(width, 2));
        let mut y = dy.clone();
        add_bias(&mut y, &bias);
        assert!((0..m * width).all(|i| y[i] == dy[i] + bias[i % width]));
        let mut whole = vec![0.0; width];
        bias_db(&dy, &mut whole);
        for cut in [1, 100, 332] {
            let mut parts = vec![0.0; width];
            bias_db(&dy[..cut * width], &mut parts);
            bias_db(&dy[cut * width..], &mut parts);
            assert_eq!(parts, whole);
        }
    }
}
