//! Generic operations on the CPU: plain loops, large ones shared out among threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::cpu::{fresh, zeros};
use crate::gemm;
use crate::kernels::{elementwise, math, reduce};
use crate::ops::{Binary, Reduce, Tensor, Unary};
use crate::panels::Panels;

/// Values per piece of parallel work.
const PIECE: usize = 1 << 14;

/// `y[i] = f(i)` for every index.
fn fill(y: &mut [f32], f: impl Fn(usize) -> f32 + Sync) {
    y.par_chunks_mut(PIECE).enumerate().for_each(|(p, y)| {
        for (i, y) in y.iter_mut().enumerate() {
            *y = f(p * PIECE + i);
        }
    });
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn unary_value(op: Unary, x: f32) -> f32 {
    match op {
        Unary::Scale(f) => x * f,
        Unary::AddScalar(c) => x + c,
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Tanh => x.tanh(),
        Unary::Sigmoid => sigmoid(x),
        Unary::LogSigmoid => x.min(0.0) - (-x.abs()).exp().ln_1p(),
        Unary::Relu => x.max(0.0),
        Unary::Square => x * x,
        Unary::Sqrt => x.sqrt(),
        Unary::Clamp(low, high) => x.max(low).min(high),
    }
}

/// Derivative at x, where y is the value.
fn unary_slope(op: Unary, x: f32, y: f32) -> f32 {
    match op {
        Unary::Scale(f) => f,
        Unary::AddScalar(_) => 1.0,
        Unary::Exp => y,
        Unary::Log => 1.0 / x,
        Unary::Tanh => 1.0 - y * y,
        Unary::Sigmoid => y * (1.0 - y),
        Unary::LogSigmoid => sigmoid(-x),
        Unary::Relu => f32::from(u8::from(x > 0.0)),
        Unary::Square => 2.0 * x,
        Unary::Sqrt => 0.5 / y,
        Unary::Clamp(low, high) => f32::from(u8::from(x >= low && x <= high)),
    }
}

pub(super) fn unary(op: Unary, x: &Tensor) -> Tensor {
    let mut y = fresh(x.rows, x.cols);
    fill(y.host_mut(), |i| unary_value(op, x.host()[i]));
    y
}

pub(super) fn unary_backward(op: Unary, dy: &Tensor, x: &Tensor, y: &Tensor) -> Tensor {
    let mut dx = fresh(x.rows, x.cols);
    fill(dx.host_mut(), |i| dy.host()[i] * unary_slope(op, x.host()[i], y.host()[i]));
    dx
}

/// Index in a tensor that is broadcast to `cols` columns.
fn broadcast_index(b: &Tensor, i: usize, cols: usize) -> usize {
    let row = if b.rows == 1 { 0 } else { i / cols };
    let col = if b.cols == 1 { 0 } else { i % cols };
    row * b.cols + col
}

pub(super) fn binary(op: Binary, a: &Tensor, b: &Tensor) -> Tensor {
    if op == Binary::Add && b.cols == a.cols && (b.rows == a.rows || b.rows == 1) {
        return added(a, b);
    }
    let mut y = fresh(a.rows, a.cols);
    fill(y.host_mut(), |i| {
        let (a, b) = (a.host()[i], b.host()[broadcast_index(b, i, a.cols)]);
        match op {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Minimum => {
                if a <= b {
                    a
                } else {
                    b
                }
            }
        }
    });
    y
}

/// Residual sums and biases, the binary operations that matter for speed.
fn added(a: &Tensor, b: &Tensor) -> Tensor {
    if b.rows == a.rows {
        let mut y = fresh(a.rows, a.cols);
        elementwise::add(a.host(), b.host(), y.host_mut());
        return y;
    }
    let mut y = a.clone();
    elementwise::add_bias(y.host_mut(), b.host());
    y
}

/// Derivatives with respect to a and b.
fn binary_slopes(op: Binary, a: f32, b: f32) -> (f32, f32) {
    match op {
        Binary::Add => (1.0, 1.0),
        Binary::Sub => (1.0, -1.0),
        Binary::Mul => (b, a),
        Binary::Div => (1.0 / b, -a / (b * b)),
        Binary::Minimum if a <= b => (1.0, 0.0),
        Binary::Minimum => (0.0, 1.0),
    }
}

pub(super) fn binary_backward(op: Binary, dy: &Tensor, a: &Tensor, b: &Tensor) -> (Tensor, Tensor) {
    let (mut da, mut db) = (fresh(a.rows, a.cols), fresh(a.rows, a.cols));
    let slopes = |i: usize| binary_slopes(op, a.host()[i], b.host()[broadcast_index(b, i, a.cols)]);
    fill(da.host_mut(), |i| dy.host()[i] * slopes(i).0);
    fill(db.host_mut(), |i| dy.host()[i] * slopes(i).1);
    (da, summed_to(db, b.shape()))
}

/// Sums what broadcasting repeated.
fn summed_to(full: Tensor, shape: (usize, usize)) -> Tensor {
    let by_rows = if shape.0 == 1 && full.rows > 1 { sum(Reduce::Rows, &full) } else { full };
    if shape.1 == 1 && by_rows.cols > 1 { sum(Reduce::Cols, &by_rows) } else { by_rows }
}

pub(super) fn sum(over: Reduce, x: &Tensor) -> Tensor {
    match over {
        Reduce::Cols => {
            let mut y = fresh(x.rows, 1);
            fill(y.host_mut(), |r| reduce::row_sum(&x.host()[r * x.cols..(r + 1) * x.cols]));
            y
        }
        Reduce::Rows => {
            let mut y = zeros(1, x.cols);
            let y_host = y.host_mut();
            for row in x.host().chunks_exact(x.cols.max(1)) {
                y_host.iter_mut().zip(row).for_each(|(y, x)| *y += x);
            }
            y
        }
        Reduce::All => {
            let mut y = fresh(1, 1);
            y.host_mut()[0] = reduce::row_sum(x.host());
            y
        }
    }
}

pub(super) fn expand(x: &Tensor, rows: usize, cols: usize) -> Tensor {
    let mut y = fresh(rows, cols);
    fill(y.host_mut(), |i| x.host()[broadcast_index(x, i, cols)]);
    y
}

pub(super) fn matmul_nt(a: &Tensor, b: &Tensor) -> Tensor {
    let mut y = fresh(a.rows, b.rows);
    gemm::linear(a.host(), a.rows, &Panels::from_rows(b.host(), b.rows, b.cols), y.host_mut(), false);
    y
}

pub(super) fn softmax(x: &Tensor, log: bool) -> Tensor {
    let mut y = x.clone();
    let cols = x.cols.max(1);
    let rows = y.host_mut().par_chunks_exact_mut(cols);
    rows.with_min_len(PIECE.div_ceil(cols)).zip(x.host().par_chunks_exact(cols)).for_each(|(y, x)| {
        let max = reduce::max(y);
        let sum = math::exp_shift_sum(y, max);
        let (shift, factor) = (max + sum.ln(), 1.0 / sum);
        for (y, x) in y.iter_mut().zip(x) {
            *y = if log { x - shift } else { *y * factor };
        }
    });
    y
}

pub(super) fn softmax_backward(dy: &Tensor, y: &Tensor, log: bool) -> Tensor {
    let mut dx = fresh(y.rows, y.cols);
    let cols = y.cols.max(1);
    let rows = dx.host_mut().chunks_exact_mut(cols).zip(dy.host().chunks_exact(cols)).zip(y.host().chunks_exact(cols));
    for ((dx, dy), y) in rows {
        if log {
            let total = reduce::row_sum(dy);
            dx.iter_mut().zip(dy).zip(y).for_each(|((dx, dy), y)| *dx = dy - y.exp() * total);
        } else {
            dx.iter_mut().zip(dy).zip(y).for_each(|((dx, dy), y)| *dx = dy * y);
            let total = reduce::row_sum(dx);
            dx.iter_mut().zip(dy).zip(y).for_each(|((dx, dy), y)| *dx = y * (dy - total));
        }
    }
    dx
}

pub(super) fn transpose(x: &Tensor) -> Tensor {
    let mut y = fresh(x.cols, x.rows);
    fill(y.host_mut(), |i| x.host()[i % x.rows * x.cols + i / x.rows]);
    y
}

pub(super) fn concat_rows(parts: &[&Tensor], cols: usize) -> Tensor {
    let mut y = fresh(parts.iter().map(|p| p.rows).sum(), cols);
    let mut at = 0;
    for part in parts {
        y.host_mut()[at..at + part.host().len()].copy_from_slice(part.host());
        at += part.host().len();
    }
    y
}

pub(super) fn slice(x: &Tensor, rows: Range<usize>, cols: Range<usize>) -> Tensor {
    let mut y = fresh(rows.len(), cols.len());
    for (r, out) in rows.zip(y.host_mut().chunks_exact_mut(cols.len().max(1))) {
        out.copy_from_slice(&x.host()[r * x.cols + cols.start..r * x.cols + cols.end]);
    }
    y
}

pub(super) fn unslice(dy: &Tensor, shape: (usize, usize), at: (usize, usize)) -> Tensor {
    let mut x = zeros(shape.0, shape.1);
    let width = x.cols;
    for (r, row) in dy.host().chunks_exact(dy.cols.max(1)).enumerate() {
        let start = (at.0 + r) * width + at.1;
        x.host_mut()[start..start + row.len()].copy_from_slice(row);
    }
    x
}
