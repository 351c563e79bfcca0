//! What attention's products are computed with: f32, or bf16 with f32 sums.

use crate::attention::{BLOCK, wide};
use crate::gemm::{ROWS, tile};
use crate::panels::LANES;

/// One arithmetic: how operands lie, and their product. Scores, results and everything between two products are rows of f32.
///
/// Blocks of 64 positions of one kv head lie in one of two ways: as the **columns** of a right operand, which is reduced over D, and as
/// its **rows**, reduced over positions. Both are written one position at a time; what is not written is zero.
pub(crate) trait Products {
    /// (query, head) pairs of a tile forward, and backward, where they are the reduction of a partial sum.
    const TILE: usize;
    const PAIRS: usize;
    type Left<'t>: Copy;
    type Right<'t>: Copy;
    /// What the thread holds while it multiplies, such as configured tiles.
    type Unit;

    fn unit() -> Self::Unit;

    /// Floats of a block as columns, and as rows.
    fn columns_len(d: usize) -> usize;
    fn rows_len(d: usize) -> usize;
    /// Writes the D values of position `at` of a block.
    fn put_column(at: usize, values: &[f32], block: &mut [f32]);
    fn put_row(at: usize, values: &[f32], block: &mut [f32]);
    /// Writes the first positions of a block, which holds zeros, from their rows of D values.
    fn put_columns(rows: &[f32], d: usize, block: &mut [f32]) {
        rows.chunks_exact(d).enumerate().for_each(|(at, values)| Self::put_column(at, values, block));
    }
    fn put_rows(rows: &[f32], d: usize, block: &mut [f32]) {
        rows.chunks_exact(d).enumerate().for_each(|(at, values)| Self::put_row(at, values, block));
    }
    /// Right operands from blocks: `[D, count]`, at most 64 columns, and `[64, wide(D)]`.
    fn columns(block: &[f32], d: usize, count: usize) -> Self::Right<'_>;
    fn rows(block: &[f32], d: usize) -> Self::Right<'_>;

    /// Rounds values as packing does, which then changes nothing more.
    fn round(values: &mut [f32]);
    /// Floats of scratch for an operand of so many rows, or columns, and so long a reduction.
    fn scratch(count: usize, depth: usize) -> usize;
    /// A right operand `[count, width]` from f32 rows; `width` is a multiple of 16.
    fn right<'t>(rows: &'t [f32], count: usize, width: usize, scratch: &'t mut [f32]) -> Self::Right<'t>;
    /// A left operand `[count, depth]` from f32 rows `width` apart, which are zero past `depth`.
    fn left<'t>(rows: &'t [f32], shape: (usize, usize), width: usize, scratch: &'t mut [f32]) -> Self::Left<'t>;
    /// A left operand `[count, depth]` from `depth` f32 rows of 64 values, as many of which as it has rows.
    fn transposed<'t>(rows: &'t [f32], shape: (usize, usize), scratch: &'t mut [f32]) -> Self::Left<'t>;

    /// `c (=|+=) a b` for `a [rows, depth]`; `c`'s rows are `width` apart, and there are [`Self::TILE`] or a multiple of 16 of them.
    fn multiply(
        unit: &Self::Unit,
        rows: usize,
        depth: usize,
        a: Self::Left<'_>,
        b: Self::Right<'_>,
        c: &mut [f32],
        width: usize,
        acc: bool,
    );
}

/// Multiply-adds on the micro-kernel that the matrix products use too; every operand is read where it lies. Columns lie in 16-lane
/// panels `[4][D][16]`, rows `wide(D)` apart.
#[derive(Debug)]
pub(crate) struct F32;

/// Left operand: element (i, r) lies at `i * row + r * step`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left<'t> {
    data: &'t [f32],
    row: usize,
    step: usize,
}

/// Right operand, read 16 columns at a time: element (r, 16 p + lane) lies at `p * panel + r * step + lane`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Right<'t> {
    data: &'t [f32],
    panel: usize,
    step: usize,
    panels: usize,
}

impl Right<'_> {
    fn at(&self, panel: usize) -> *const f32 {
        self.data[panel * self.panel..].as_ptr()
    }
}

impl Products for F32 {
    const TILE: usize = ROWS;
    const PAIRS: usize = 4 * ROWS;
    type Left<'t> = Left<'t>;
    type Right<'t> = Right<'t>;
    type Unit = ();

    fn unit() {}

    fn columns_len(d: usize) -> usize {
        BLOCK * d
    }

    fn rows_len(d: usize) -> usize {
        BLOCK * wide(d)
    }

    fn put_column(at: usize, values: &[f32], block: &mut [f32]) {
        let panel = &mut block[at / LANES * values.len() * LANES..][at % LANES..];
        panel.iter_mut().step_by(LANES).zip(values).for_each(|(to, x)| *to = *x);
    }

    fn put_row(at: usize, values: &[f32], block: &mut [f32]) {
        block[at * wide(values.len())..][..values.len()].copy_from_slice(values);
    }

    fn columns(block: &[f32], d: usize, count: usize) -> Right<'_> {
        Right { data: block, panel: d * LANES, step: LANES, panels: count.div_ceil(LANES) }
    }

    fn rows(block: &[f32], d: usize) -> Right<'_> {
        Right { data: block, panel: LANES, step: wide(d), panels: wide(d) / LANES }
    }

    fn round(_values: &mut [f32]) {}

    fn scratch(_count: usize, _depth: usize) -> usize {
        0
    }

    fn right<'t>(rows: &'t [f32], _count: usize, width: usize, _scratch: &'t mut [f32]) -> Right<'t> {
        Self::rows(rows, width)
    }

    fn left<'t>(rows: &'t [f32], _shape: (usize, usize), width: usize, _scratch: &'t mut [f32]) -> Left<'t> {
        Left { data: rows, row: width, step: 1 }
    }

    fn transposed<'t>(rows: &'t [f32], _shape: (usize, usize), _scratch: &'t mut [f32]) -> Left<'t> {
        Left { data: rows, row: 1, step: BLOCK }
    }

    fn multiply(
        _unit: &(),
        rows: usize,
        depth: usize,
        a: Left<'_>,
        b: Right<'_>,
        c: &mut [f32],
        width: usize,
        acc: bool,
    ) {
        if rows == 0 || depth == 0 || b.panels == 0 {
            return;
        }
        assert!(a.data.len() > (rows - 1) * a.row + (depth - 1) * a.step, "left operand holds [{rows}, {depth}]");
        assert!(
            b.data.len() >= (b.panels - 1) * b.panel + (depth - 1) * b.step + LANES,
            "right operand holds its panels"
        );
        assert!(width >= b.panels * LANES && c.len() >= (rows - 1) * width + b.panels * LANES, "result fits");
        for row in (0..rows).step_by(ROWS) {
            let (n, a) = (ROWS.min(rows - row), Left { data: &a.data[row * a.row..], ..a });
            let c = &mut c[row * width..];
            for p in (0..b.panels).step_by(2) {
                let pair = p + 1 < b.panels;
                let second = if pair { b.at(p + 1) } else { std::ptr::null() };
                let c0 = c[p * LANES..].as_mut_ptr();
                let c1 = if pair { c[(p + 1) * LANES..].as_mut_ptr() } else { c0 };
                // SAFETY: all three operands were checked above to cover what the strides reach.
                unsafe { tile(n, depth, a.data.as_ptr(), a.row, a.step, b.at(p), second, b.step, c0, c1, width, acc) };
            }
        }
    }
}
