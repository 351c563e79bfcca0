//! Keys and values of one sequence and one kv head, brought into blocks of 64 positions.

use std::marker::PhantomData;
use std::ops::Range;

use crate::attention::BLOCK;
use crate::attention::products::Products;
use crate::buf::Buf;

/// One kv head's keys (as columns) and values (as rows) of the first positions of a sequence.
#[derive(Debug)]
pub(crate) struct Gathered<P> {
    d: usize,
    keys: Buf,
    values: Buf,
    products: PhantomData<P>,
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

    /// The first `len` positions of the chain in blocks of `size` floats, each written by `put(rows, D, block)`.
    fn blocks(&self, chain: &[Range<usize>], len: usize, size: usize, put: impl Fn(&[f32], usize, &mut [f32])) -> Buf {
        let mut out = zeros(len, size);
        let mut at = chain.iter().cloned().flatten().take(len);
        let mut rows = Buf::dirty(BLOCK * self.d);
        for block in out.chunks_exact_mut(size) {
            let filled: usize = rows
                .chunks_exact_mut(self.d)
                .zip(&mut at)
                .map(|(row, r)| {
                    row.copy_from_slice(self.row(r));
                    self.d
                })
                .sum();
            put(&rows[..filled], self.d, block);
        }
        out
    }

    /// These positions as columns of right operands.
    pub(crate) fn as_columns<P: Products>(&self, chain: &[Range<usize>], len: usize) -> Buf {
        self.blocks(chain, len, P::columns_len(self.d), P::put_columns)
    }

    /// These positions as rows of right operands.
    pub(crate) fn as_rows<P: Products>(&self, chain: &[Range<usize>], len: usize) -> Buf {
        self.blocks(chain, len, P::rows_len(self.d), P::put_rows)
    }
}

/// Zeros for `len` positions in blocks of `size` floats each, in a block of memory that sequences of other lengths can use too.
pub(crate) fn zeros(len: usize, size: usize) -> Buf {
    let room = len.next_power_of_two().max(4 * BLOCK);
    Buf::zeros_in(len.div_ceil(BLOCK) * size, room.div_ceil(BLOCK) * size)
}

impl<P: Products> Gathered<P> {
    /// The first `len` positions of the chain.
    pub(crate) fn new(k: Columns, v: Columns, chain: &[Range<usize>], len: usize) -> Self {
        Self { d: k.d, keys: k.as_columns::<P>(chain, len), values: v.as_rows::<P>(chain, len), products: PhantomData }
    }

    /// Keys and values of block `b`.
    pub(crate) fn block(&self, b: usize) -> (&[f32], &[f32]) {
        let range = |size| b * size..(b + 1) * size;
        (&self.keys[range(P::columns_len(self.d))], &self.values[range(P::rows_len(self.d))])
    }
}
