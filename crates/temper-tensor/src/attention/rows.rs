//! Row kernels of attention: one row of scores at a time, 64 keys wide.
#![allow(clippy::inline_always)] // bodies are compiled into each instruction-set level's function

use crate::attention::BLOCK;
use crate::isa::{mul_add, multiversion};
use crate::kernels::math::exp;
use crate::kernels::reduce::{halved, lane_sum, tree};

const LANES: usize = 16;

/// A block of scores of one row.
type Row = [f32; BLOCK];

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// The largest value; in whatever order, it is the same.
#[inline(always)]
fn row_max(row: &Row) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in row.as_chunks::<LANES>().0 {
        for l in 0..LANES {
            lanes[l] = larger(lanes[l], chunk[l]);
        }
    }
    halved(lanes, larger)
}

/// `value` from place `seen` on.
#[inline(always)]
fn fill_unseen(row: &mut Row, seen: usize, value: f32) {
    if seen == BLOCK {
        return;
    }
    for (i, x) in row.iter_mut().enumerate() {
        *x = if i < seen { *x } else { value };
    }
}

/// All rows' maxima, then all exponentials, then all sums: what one row waits for is done for the others meanwhile.
#[inline(always)]
fn online_body<const FMA: bool>(
    scores: &mut [f32],
    seen: &[usize],
    max: &mut [f32],
    sum: &mut [f32],
    factor: &mut [f32],
) {
    let rows = &mut scores.as_chunks_mut::<BLOCK>().0[..seen.len()];
    let (max, sum, factor) = (&mut max[..seen.len()], &mut sum[..seen.len()], &mut factor[..seen.len()]);
    for (i, row) in rows.iter_mut().enumerate() {
        fill_unseen(row, seen[i], f32::NEG_INFINITY);
        let new = larger(max[i], row_max(row));
        // A power of e below the normal range takes the processor a hundred times as long, so none is made for nothing.
        factor[i] = if max[i] == f32::NEG_INFINITY { 0.0 } else { max[i] - new };
        fill_unseen(row, seen[i], new);
        max[i] = new;
    }
    for x in factor.iter_mut() {
        *x = exp::<FMA>(*x);
    }
    for (row, max) in rows.iter_mut().zip(&*max) {
        for x in row {
            *x = exp::<FMA>(*x - max);
        }
    }
    for (i, row) in rows.iter_mut().enumerate() {
        fill_unseen(row, seen[i], 0.0);
        sum[i] = mul_add::<FMA>(sum[i], factor[i], lane_sum(row));
    }
}

#[inline(always)]
fn gradients_body<const FMA: bool>(p: &mut [f32], ds: &mut [f32], seen: &[usize], lse: &[f32], delta: &[f32]) {
    let rows = p.as_chunks_mut::<BLOCK>().0.iter_mut().zip(ds.as_chunks_mut::<BLOCK>().0);
    for ((p, ds), ((seen, lse), delta)) in rows.zip(seen.iter().zip(lse).zip(delta)) {
        for (p, ds) in p.iter_mut().zip(ds.iter_mut()) {
            *p = exp::<FMA>(*p - lse);
            *ds = *p * (*ds - delta);
        }
        fill_unseen(p, *seen, 0.0);
        fill_unseen(ds, *seen, 0.0);
    }
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
    /// Turns rows of 64 scores, of which the first `seen` count, into `exp(score - max)` under the running maxima, 0 where not seen;
    /// brings the running sums up to date and gives the factors on everything summed under the old maxima.
    pub(crate) fn online_softmax(scores: &mut [f32], seen: &[usize], max: &mut [f32], sum: &mut [f32], factor: &mut [f32])
        = online_body, online_softmax_at;
    /// Turns rows of 64 scores into `p = exp(score - lse)`, and `ds` into `p * (ds - delta)`, 0 where not seen.
    pub(crate) fn score_gradients(p: &mut [f32], ds: &mut [f32], seen: &[usize], lse: &[f32], delta: &[f32])
        = gradients_body, gradients_at;
    /// Dot product of two rows: 16 lanes, then a tree.
    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body, dot_at;
    /// `to = from * factor`.
    pub(crate) fn scaled(from: &[f32], factor: f32, to: &mut [f32]) = scaled_body, scaled_at;
    /// `x *= factor`.
    pub(crate) fn scale_in_place(x: &mut [f32], factor: f32) = scale_body, scale_in_place_at;
}
