//! Sums in fixed orders.

use crate::isa::multiversion;

/// Sum with 16 lane accumulators and a fixed tree over the lanes.
#[inline(always)]
pub fn lane_sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for c in chunks {
        for l in 0..16 {
            lanes[l] += c[l];
        }
    }
    for (l, v) in lanes.iter_mut().zip(rest) {
        *l += v;
    }
    tree(lanes)
}

/// Sum of 16 lanes by halving.
#[inline(always)]
pub fn tree(mut lanes: [f32; 16]) -> f32 {
    for width in [8, 4, 2, 1] {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
    }
    lanes[0]
}

#[inline(always)]
fn row_sum_body<const FMA: bool>(x: &[f32]) -> f32 {
    lane_sum(x)
}

#[inline(always)]
fn max_body<const FMA: bool>(x: &[f32]) -> f32 {
    x.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

multiversion! {
    /// Sum of a row: 16 lane accumulators, then a tree over the lanes.
    pub fn row_sum(x: &[f32]) -> f32 = row_sum_body, row_sum_at;
    /// Largest value; NaN when one is present.
    pub fn max(x: &[f32]) -> f32 = max_body, max_at;
}

/// Sum of squares in f64, in fixed chunks of 64K values.
pub fn sum_sq(x: &[f32]) -> f64 {
    x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum()
}

/// Dot product in f64, in fixed chunks of 64K values.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
