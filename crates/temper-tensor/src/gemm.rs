//! The three products of a linear layer over panels. Every output element is one chain of fused multiply-adds in
//! ascending order of its reduction index, so bits depend neither on the number of rows nor on tiles, blocks or threads.
#![allow(unsafe_code)] // the micro-kernel takes pointers with strides

use crate::panels::{LANES, Panels};

/// `y = x w^T` (`y +=` when `acc`): `x [m, k]`, `w [n, k]`, `y [m, n]`, row-major.
pub fn linear(x: &[f32], m: usize, w: &Panels, y: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    assert_eq!((x.len(), y.len()), (m * k, m * n), "x is [{m}, {k}] and y is [{m}, {n}]");
    for r in 0..m {
        for j in 0..n {
            let mut s = if acc { y[r * n + j] } else { 0.0 };
            for i in 0..k {
                s = x[r * k + i].mul_add(w.data()[w.index(j, i)], s);
            }
            y[r * n + j] = s;
        }
    }
}

/// `dx = dy w` (`dx +=` when `acc`): `dy [m, n]`, `w [n, k]`, `dx [m, k]`.
pub fn linear_dx(dy: &[f32], m: usize, w: &Panels, dx: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    assert_eq!((dy.len(), dx.len()), (m * n, m * k), "dy is [{m}, {n}] and dx is [{m}, {k}]");
    for r in 0..m {
        for i in 0..k {
            let mut s = if acc { dx[r * k + i] } else { 0.0 };
            for j in 0..n {
                s = dy[r * n + j].mul_add(w.data()[w.index(j, i)], s);
            }
            dx[r * k + i] = s;
        }
    }
}

/// `dw += dy^T x`: `dy [m, n]`, `x [m, k]`, `dw [n, k]`, rows in ascending order.
pub fn linear_dw(dy: &[f32], x: &[f32], m: usize, dw: &mut Panels) {
    let (n, k) = (dw.n(), dw.k());
    assert_eq!((dy.len(), x.len()), (m * n, m * k), "dy is [{m}, {n}] and x is [{m}, {k}]");
    for r in 0..m {
        for j in 0..n {
            for i in 0..k {
                let at = dw.index(j, i);
                let s = dw.data()[at];
                dw.data_mut()[at] = dy[r * n + j].mul_add(x[r * k + i], s);
            }
        }
    }
}

/// The micro-kernel: `c[i][lane] (= or +=) sum over r < depth of a[i * a_row + r * a_k] * b[r * b_k + lane]` for
/// `i < rows` and 16 lanes of `b0` (and of `b1`, unless it is null), one ascending chain an element. Strides in floats.
///
/// # Safety
/// `rows <= 12`; every address that the formula names is valid, `c0` and `c1` for writing and apart from the inputs.
pub(crate) unsafe fn tile(
    rows: usize,
    depth: usize,
    a: *const f32,
    a_row: usize,
    a_k: usize,
    b0: *const f32,
    b1: *const f32,
    b_k: usize,
    c0: *mut f32,
    c1: *mut f32,
    c_row: usize,
    acc: bool,
) {
    for (b, c) in [(b0, c0), (b1, c1)] {
        if b.is_null() {
            continue;
        }
        for i in 0..rows {
            for l in 0..LANES {
                // SAFETY: the caller vouches for these addresses.
                unsafe {
                    let out = c.add(i * c_row + l);
                    let mut s = if acc { *out } else { 0.0 };
                    for r in 0..depth {
                        s = (*a.add(i * a_row + r * a_k)).mul_add(*b.add(r * b_k + l), s);
                    }
                    *out = s;
                }
            }
        }
    }
}
