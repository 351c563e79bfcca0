//! Sums in fixed orders.
#![allow(clippy::inline_always)] // bodies are compiled into each instruction-set level's function

use std::hint::black_box;

use rayon::prelude::*;

use crate::isa::multiversion;
use crate::panels::LANES;

/// Values that one f64 partial sum covers; fixed, so that the order of additions is.
const CHUNK: usize = 1 << 16;

/// Sum with 16 lane accumulators and a fixed tree over the lanes.
#[inline(always)]
pub fn lane_sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for c in chunks {
        for l in 0..LANES {
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
pub fn tree(lanes: [f32; LANES]) -> f32 {
    halved(lanes, |a, b| a + b)
}

/// Lanes brought together by halving.
#[inline(always)]
pub(crate) fn halved(lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    // What fills the lanes must not be seen together with the tree: it would be compiled for as few lanes as the tree ends with.
    let mut lanes = black_box(lanes);
    for l in 0..8 {
        lanes[l] = join(lanes[l], lanes[l + 8]);
    }
    for l in 0..4 {
        lanes[l] = join(lanes[l], lanes[l + 4]);
    }
    join(join(lanes[0], lanes[2]), join(lanes[1], lanes[3]))
}

#[inline(always)]
fn row_sum_body<const FMA: bool>(x: &[f32]) -> f32 {
    lane_sum(x)
}

/// Largest value, NaN ignored, -inf when there is none.
#[inline(always)]
pub(crate) fn lane_max(x: &[f32]) -> f32 {
    const WIDE: usize = 4 * LANES;
    let larger = |m: f32, v: f32| if v > m { v } else { m };
    let mut lanes = [f32::NEG_INFINITY; WIDE];
    let (chunks, rest) = x.as_chunks::<WIDE>();
    for c in chunks {
        for l in 0..WIDE {
            lanes[l] = larger(lanes[l], c[l]);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, v| larger(m, *v))
}

#[inline(always)]
fn max_body<const FMA: bool>(x: &[f32]) -> f32 {
    lane_max(x)
}

#[inline(always)]
fn argmax_body<const FMA: bool>(x: &[f32]) -> u32 {
    let max = lane_max(x);
    x.iter().position(|v| *v == max).unwrap_or(0) as u32
}

/// Dot product of one chunk: 16 f64 lanes, then in order of lanes.
#[inline(always)]
fn chunk_dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            lanes[l] += f64::from(a[l]) * f64::from(b[l]);
        }
    }
    for (l, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *l += f64::from(*a) * f64::from(*b);
    }
    lanes.iter().sum()
}

multiversion! {
    /// Sum of a row: 16 lane accumulators, then a tree over the lanes.
    pub fn row_sum(x: &[f32]) -> f32 = row_sum_body, row_sum_at;
    /// Largest value, NaN ignored, -inf when there is none.
    pub fn max(x: &[f32]) -> f32 = max_body, max_at;
    /// Index of the first largest value; 0 when there is none.
    pub fn argmax(x: &[f32]) -> u32 = argmax_body, argmax_at;
    fn chunk_dot(a: &[f32], b: &[f32]) -> f64 = chunk_dot_body, chunk_dot_at;
}

/// Sum of squares in f64, in fixed chunks of 64K values.
pub fn sum_sq(x: &[f32]) -> f64 {
    dot(x, x)
}

/// Dot product in f64, in fixed chunks of 64K values.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "operands of a dot product");
    if a.len() <= CHUNK {
        return chunk_dot(a, b);
    }
    let chunks = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
    let partial: Vec<f64> = chunks.map(|(a, b)| chunk_dot(a, b)).collect();
    partial.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::random;
    use crate::isa::levels;

    #[test]
    fn sums_and_extremes() {
        for isa in levels() {
            for len in [0, 1, 15, 16, 17, 63, 64, 65, 1000, 4096] {
                let x = random(len, 3);
                let want: f64 = x.iter().map(|v| f64::from(*v)).sum();
                assert!((f64::from(row_sum_at(isa, &x)) - want).abs() < 1e-5 * (len as f64).sqrt().max(1.0));
                let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(max_at(isa, &x), max);
                assert_eq!(argmax_at(isa, &x), x.iter().position(|v| *v == max).unwrap_or(0) as u32);
            }
            assert_eq!(max_at(isa, &[1.0, f32::NAN, 3.0]), 3.0);
            assert_eq!(argmax_at(isa, &[1.0, 5.0, 5.0]), 1);
        }
    }

    #[test]
    fn squares_are_summed_in_a_fixed_order() {
        let x = random(3 * CHUNK + 77, 9);
        let want: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            pool.install(|| sum_sq(&x))
        };
        assert!((run(1) - want).abs() < 1e-9 * want);
        assert!([2, 3].into_iter().all(|threads| run(threads).to_bits() == run(1).to_bits()));
        assert_eq!(
            levels()
                .iter()
                .map(|isa| chunk_dot_at(*isa, &x[..999], &x[..999]).to_bits())
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
            1
        );
    }
}
