//! Causal grouped-query attention over segments and over cached pages, with one arithmetic for both.
//!
//! A query row meets its keys in blocks of 64 absolute positions of its sequence. Per block: scores by the matrix
//! micro-kernel, a running maximum and sum (online softmax, Milakov and Gimelshein 2018), output rescaled and extended.
//! Nothing depends on which other rows are computed alongside, so training (keys gathered from the batch) and sampling
//! (keys in pages of 64) give the same bits. No score matrix is kept; backward starts from the saved log-sum-exp
//! (as in FlashAttention, Dao et al. 2022).
//!
//! Its products are f32, or of bf16 values with f32 sums ([`Products`]); all between two products is f32.
//!
//! Any head size D goes: what the micro-kernel reads or writes 16 columns at a time (values, and in backward queries and
//! keys as rows) lies in scratch or cache rows of [`wide`] floats, zero beyond D. Columns are independent, and reductions
//! over D stop at D or go on with zeros, so padding changes no bit; for multiples of 16 (32 in bf16) there is none.
#![allow(unsafe_code)] // kernel file: disjoint parallel writes and the micro-kernel

mod backward;
mod bf16;
mod forward;
mod gather;
mod products;
mod rows;
mod weights;

pub(crate) use backward::{Saved, backward};
pub(crate) use bf16::Bf16;
pub(crate) use forward::{cached, forward};
pub(crate) use products::{F32, Products};
pub use weights::attention_weights;

use std::ops::Range;

use crate::ops::AttnShape;
use crate::panels::wide;

/// Key positions per block; the same as a cache page.
pub(crate) const BLOCK: usize = crate::kv::PAGE;

/// Which query rows one piece of work covers: segment or slot rows `rows`, the first at position `first`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queries {
    /// First row of the batch.
    pub(crate) start: usize,
    /// Number of rows.
    pub(crate) len: usize,
    /// Position of the first row.
    pub(crate) first: usize,
}

impl Queries {
    /// Cuts the rows where positions cross multiples of `every`.
    pub(crate) fn cut(self, every: usize) -> impl Iterator<Item = Self> {
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == self.len {
                return None;
            }
            let first = self.first + done;
            let len = (every - first % every).min(self.len - done);
            let piece = Self { start: self.start + done, len, first };
            done += len;
            Some(piece)
        })
    }

    /// How many keys of a block each of these (query, head) pairs sees: all, or in the queries' own block those up to the query's.
    fn seen(&self, pairs: Range<usize>, group: usize, own: bool, out: &mut [usize]) {
        for (pair, seen) in pairs.zip(out) {
            *seen = if own { (self.first + pair / group) % BLOCK + 1 } else { BLOCK };
        }
    }
}

/// The queries of one kv head in units of (query, head) pairs: pair i is query `i / group`, head `i % group`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    /// Query heads per kv head.
    pub(crate) size: usize,
    /// First query head.
    pub(crate) head: usize,
    /// D.
    pub(crate) d: usize,
    /// Width of a row of q, H * D.
    pub(crate) width: usize,
    /// H.
    pub(crate) heads: usize,
    /// Factor on the scores.
    pub(crate) scale: f32,
}

impl Group {
    pub(crate) fn new(shape: &AttnShape, kv_head: usize) -> Self {
        let size = shape.heads / shape.kv_heads;
        let (d, heads) = (shape.head_dim, shape.heads);
        Self { size, head: kv_head * size, d, width: heads * d, heads, scale: shape.scale }
    }

    /// Offset in `[N, H * D]` of pair `i`, counted from batch row `start`.
    pub(crate) fn at(&self, start: usize, i: usize) -> usize {
        (start + i / self.size) * self.width + (self.head + i % self.size) * self.d
    }

    /// Offset in `[N, H]` of pair `i`.
    pub(crate) fn stat(&self, start: usize, i: usize) -> usize {
        (start + i / self.size) * self.heads + self.head + i % self.size
    }
}

/// A pointer to a buffer that parallel workers write at disjoint places.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared(*mut f32, usize);

// SAFETY: the holders write disjoint ranges, which each `slice` call promises.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(buffer: &mut [f32]) -> Self {
        Self(buffer.as_mut_ptr(), buffer.len())
    }

    /// # Safety
    /// No other reference to `[at, at + len)` may exist while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at + len <= self.1, "attention writes inside its output");
        // SAFETY: in bounds by the assertion, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}
