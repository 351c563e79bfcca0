//! Row kernels of attention: one row of scores at a time, 64 keys wide.
#![allow(clippy::inline_always)] // bodies are compiled into each instruction-set level's function

use crate::isa::{mul_add, multiversion};
use crate::kernels::math::exp;
use crate::kernels::reduce::{lane_sum, tree};

const LANES: usize = 16;

#[inline(always)]
fn lane_max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in row.as_chunks::<LANES>().0 {
        for (l, x) in lanes.iter_mut().zip(chunk) {
            *l = if *x > *l { *x } else { *l };
        }
    }
    lanes.iter().fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m })
}

#[inline(always)]
fn online_body<const FMA: bool>(row: &mut [f32], seen: usize, max: &mut f32, sum: &mut f32) -> f32 {
    row[seen..].fill(f32::NEG_INFINITY);
    let block_max = lane_max(row);
    let new = if block_max > *max { block_max } else { *max };
    let factor = exp::<FMA>(*max - new);
    for x in row.iter_mut() {
        *x = exp::<FMA>(*x - new);
    }
    row[seen..].fill(0.0);
    *max = new;
    *sum = mul_add::<FMA>(*sum, factor, lane_sum(row));
    factor
}

#[inline(always)]
fn probabilities_body<const FMA: bool>(row: &mut [f32], seen: usize, lse: f32) {
    for x in row.iter_mut() {
        *x = exp::<FMA>(*x - lse);
    }
    row[seen..].fill(0.0);
}

#[inline(always)]
fn gradients_body<const FMA: bool>(p: &[f32], ds: &mut [f32], seen: usize, delta: f32) {
    for (d, p) in ds.iter_mut().zip(p) {
        *d = p * (*d - delta);
    }
    ds[seen..].fill(0.0);
}

#[inline(always)]
fn dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            lanes[l] = mul_add::<FMA>(a[l], b[l], lanes[l]);
        }
    }
    for ((a, b), lane) in a_rest.iter().zip(b_rest).zip(&mut lanes) {
        *lane = mul_add::<FMA>(*a, *b, *lane);
    }
    tree(lanes)
}

#[inline(always)]
fn scaled_body<const FMA: bool>(from: &[f32], factor: f32, to: &mut [f32]) {
    for (to, x) in to.iter_mut().zip(from) {
        *to = x * factor;
    }
}

#[inline(always)]
fn scale_body<const FMA: bool>(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

multiversion! {
    /// Turns a block of 64 scores, of which the first `seen` count, into `exp(score - max)` under the running maximum;
    /// brings the running sum up to date and returns the factor on everything summed under the old maximum.
    pub(crate) fn online_softmax_row(row: &mut [f32], seen: usize, max: &mut f32, sum: &mut f32) -> f32
        = online_body, online_softmax_row_at;
    /// Turns a block of scores into `exp(score - lse)`, 0 where not seen.
    pub(crate) fn probabilities(row: &mut [f32], seen: usize, lse: f32) = probabilities_body, probabilities_at;
    /// `ds = p * (ds - delta)`, 0 where not seen.
    pub(crate) fn score_gradients(p: &[f32], ds: &mut [f32], seen: usize, delta: f32) = gradients_body, gradients_at;
    /// Dot product of two rows: 16 lanes, then a tree.
    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body, dot_at;
    /// `to = from * factor`.
    pub(crate) fn scaled(from: &[f32], factor: f32, to: &mut [f32]) = scaled_body, scaled_at;
    /// `x *= factor`.
    pub(crate) fn scale_in_place(x: &mut [f32], factor: f32) = scale_body, scale_in_place_at;
}
