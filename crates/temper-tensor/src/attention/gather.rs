//! Keys and values of one sequence and one kv head, brought into blocks of 64 positions.

use std::ops::Range;

use crate::attention::{BLOCK, wide};
use crate::buf::Buf;
use crate::panels::LANES;

/// One kv head's keys and values of positions `0..len` of a sequence.
#[derive(Debug)]
pub(crate) struct Gathered {
    d: usize,
    len: usize,
    /// Keys in 16-lane panels `[T/16][D][16]`.
    key_panels: Buf,
    /// Values as rows `[T][wide(D)]`.
    values: Buf,
}

/// Where a kv head's rows lie: `[N, kv_heads * D]`, columns from `col`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns<'t> {
    pub(crate) data: &'t [f32],
    pub(crate) width: usize,
    pub(crate) col: usize,
    pub(crate) d: usize,
}

impl Columns<'_> {
    fn row(&self, r: usize) -> &[f32] {
        let at = r * self.width + self.col;
        &self.data[at..at + self.d]
    }

    /// The rows of the chain one after the other, up to `len` of them, `wide(D)` apart.
    pub(crate) fn rows_into(&self, chain: &[Range<usize>], len: usize, out: &mut [f32]) {
        let rows = chain.iter().cloned().flatten().take(len);
        for (r, out) in rows.zip(out.chunks_exact_mut(wide(self.d))) {
            out[..self.d].copy_from_slice(self.row(r));
        }
    }

    /// The rows of the chain as 16-lane panels.
    pub(crate) fn panels_into(&self, chain: &[Range<usize>], len: usize, out: &mut [f32]) {
        let rows = chain.iter().cloned().flatten().take(len);
        for (pos, r) in rows.enumerate() {
            let panel = &mut out[pos / LANES * self.d * LANES..];
            for (slot, &x) in panel[pos % LANES..].iter_mut().step_by(LANES).zip(self.row(r)) {
                *slot = x;
            }
        }
    }
}

/// Zeros for `len` positions of `width` floats in whole blocks, in a block of memory that sequences of other lengths can use too.
pub(crate) fn positions(len: usize, width: usize) -> Buf {
    Buf::zeros_in(padded(len, width), padded(len.next_power_of_two().max(4 * BLOCK), width))
}

/// Floats of a buffer that holds `len` positions of `width` floats in whole blocks.
pub(crate) fn padded(len: usize, width: usize) -> usize {
    len.div_ceil(BLOCK) * BLOCK * width
}

impl Gathered {
    /// The first `len` positions of the chain.
    pub(crate) fn new(k: Columns, v: Columns, chain: &[Range<usize>], len: usize) -> Self {
        let d = k.d;
        let zeros = |width| positions(len, width);
        let mut it = Self { d, len, key_panels: zeros(d), values: zeros(wide(d)) };
        k.panels_into(chain, len, &mut it.key_panels);
        v.rows_into(chain, len, &mut it.values);
        it
    }

    /// Key panels and value rows of block `b`.
    pub(crate) fn block(&self, b: usize) -> (&[f32], &[f32]) {
        debug_assert!(b * BLOCK < self.len);
        let range = |width| b * BLOCK * width..(b + 1) * BLOCK * width;
        (&self.key_panels[range(self.d)], &self.values[range(wide(self.d))])
    }
}
