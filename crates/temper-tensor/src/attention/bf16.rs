//! Attention's products in bf16, on the blocks and the micro-kernel of [`crate::gemm::bf16`]: operands are rounded where they are packed,
//! sums are f32, in the order of the instructions in use. What sticks out of 32 steps of a reduction is zero, which adds nothing.

use std::ptr;

use crate::attention::products::Products;
use crate::attention::{BLOCK, wide};
use crate::gemm::bf16::{Block, SIDE, STEPS, Tiles, WORDS, blocks, level, pack, place};
use crate::isa::Dot;
use crate::panels::LANES;

/// Columns are `[4 panels][ceil(D / 32)]` blocks of `[16 pairs of D][16 positions]`, rows `[ceil(D / 16)][2]` blocks of `[16 pairs of
/// positions][16 of D]`.
#[derive(Debug)]
pub(crate) struct Bf16;

/// Strips of 16 rows, `apart` words from one to the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left<'t> {
    words: &'t [u32],
    apart: usize,
}

/// Panels of 16 columns, `apart` words from one to the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Right<'t> {
    words: &'t [u32],
    apart: usize,
    panels: usize,
}

/// Words of a block of 64 positions as rows, for each 16 of D.
const PANEL: usize = BLOCK / STEPS * WORDS;

impl Products for Bf16 {
    const TILE: usize = SIDE;
    const PAIRS: usize = BLOCK;
    type Left<'t> = Left<'t>;
    type Right<'t> = Right<'t>;
    type Unit = Tiles;

    fn unit() -> Tiles {
        Tiles::new(level().1)
    }

    fn columns_len(d: usize) -> usize {
        BLOCK / LANES * blocks(d) * WORDS
    }

    fn rows_len(d: usize) -> usize {
        wide(d) / LANES * PANEL
    }

    fn put_column(at: usize, values: &[f32], block: &mut [f32]) {
        let panel = &mut block[at / LANES * blocks(values.len()) * WORDS..][at % LANES..];
        for (to, values) in panel.iter_mut().step_by(LANES).zip(values.chunks(2)) {
            *to = f32::from_bits(pack::pair(values[0], values.get(1).copied().unwrap_or(0.0)));
        }
    }

    fn put_row(at: usize, values: &[f32], block: &mut [f32]) {
        let line = at / STEPS * WORDS + at % STEPS / 2 * LANES;
        let (kept, shift) = if at.is_multiple_of(2) { (0xffff_0000, 0) } else { (0xffff, 16) };
        for (values, panel) in values.chunks(LANES).zip(block.chunks_exact_mut(PANEL)) {
            for (to, x) in panel[line..line + LANES].iter_mut().zip(values) {
                *to = f32::from_bits(to.to_bits() & kept | pack::pair(*x, 0.0) << shift);
            }
        }
    }

    fn put_columns(rows: &[f32], d: usize, block: &mut [f32]) {
        let panels = words_mut(block).chunks_exact_mut(blocks(d) * WORDS);
        let mut strip = [0; WORDS];
        for (rows, panel) in rows.chunks(LANES * d).zip(panels) {
            if rows.len() < LANES * d {
                strip.fill(0);
            }
            for (b, out) in panel.as_chunks_mut::<WORDS>().0.iter_mut().enumerate() {
                pack::strip_of(level(), rows, d, b * STEPS..d.min((b + 1) * STEPS), &mut strip);
                pack::transpose(level().0, &strip, out);
            }
        }
    }

    fn put_rows(rows: &[f32], d: usize, block: &mut [f32]) {
        for (panel, out) in words_mut(block).chunks_exact_mut(PANEL).enumerate() {
            for (rows, out) in rows.chunks(STEPS * d).zip(out.as_chunks_mut::<WORDS>().0) {
                pack::block_of(level(), rows, d, panel * LANES, out);
            }
        }
    }

    fn columns(block: &[f32], d: usize, count: usize) -> Right<'_> {
        Right { words: words(block), apart: blocks(d) * WORDS, panels: count.div_ceil(LANES) }
    }

    fn rows(block: &[f32], d: usize) -> Right<'_> {
        Right { words: words(block), apart: PANEL, panels: wide(d) / LANES }
    }

    fn round(values: &mut [f32]) {
        for x in values {
            *x = pack::widen(pack::pair(*x, 0.0))[0];
        }
    }

    fn scratch(count: usize, depth: usize) -> usize {
        count.div_ceil(LANES) * blocks(depth) * WORDS
    }

    fn right<'t>(rows: &'t [f32], count: usize, width: usize, scratch: &'t mut [f32]) -> Right<'t> {
        let (panels, apart) = (width / LANES, blocks(count) * WORDS);
        let scratch = words_mut(scratch);
        let out = &mut scratch[..panels * apart];
        let all = 0..blocks(count);
        pack::each_block((&rows[..count * width], width), 0..width, all, (WORDS, out), |rows, width, from, out| {
            pack::block_of(level(), rows, width, from, out);
        });
        Right { words: scratch, apart, panels }
    }

    fn left<'t>(rows: &'t [f32], (count, depth): (usize, usize), width: usize, scratch: &'t mut [f32]) -> Left<'t> {
        let apart = blocks(depth) * WORDS;
        let scratch = words_mut(scratch);
        let out = &mut scratch[..count.div_ceil(LANES) * apart];
        for (i, out) in out.chunks_exact_mut(apart).enumerate() {
            let rows = &rows[i * LANES * width..count.min((i + 1) * LANES) * width];
            if rows.len() < LANES * width {
                out.fill(0);
            }
            pack::strip_of(level(), rows, width, 0..width.min(blocks(depth) * STEPS), out);
        }
        Left { words: scratch, apart }
    }

    fn transposed<'t>(rows: &'t [f32], (count, depth): (usize, usize), scratch: &'t mut [f32]) -> Left<'t> {
        let apart = blocks(depth) * WORDS;
        let scratch = words_mut(scratch);
        let out = &mut scratch[..count.div_ceil(LANES) * apart];
        let mut pairs = [0; WORDS];
        for (b, rows) in rows[..depth * BLOCK].chunks(STEPS * BLOCK).enumerate() {
            for (panel, out) in out.chunks_exact_mut(apart).enumerate() {
                pack::block_of(level(), rows, BLOCK, panel * LANES, &mut pairs);
                pack::transpose(level().0, &pairs, &mut out.as_chunks_mut::<WORDS>().0[b]);
            }
        }
        Left { words: scratch, apart }
    }

    fn multiply(
        _unit: &Tiles,
        rows: usize,
        depth: usize,
        a: Left<'_>,
        b: Right<'_>,
        c: &mut [f32],
        width: usize,
        acc: bool,
    ) {
        let level = level();
        // Tiles write sixteen rows; those of the left operand that do not exist are zero.
        let rows = if level.1 == Dot::Amx { rows.next_multiple_of(LANES) } else { rows };
        if rows == 0 || depth == 0 || b.panels == 0 {
            return;
        }
        let blocks = blocks(depth);
        let length = |apart: usize, count: usize| (count - 1) * apart + blocks * WORDS;
        assert!(a.words.len() >= length(a.apart, rows.div_ceil(LANES)), "left operand holds [{rows}, {depth}]");
        assert!(b.words.len() >= length(b.apart, b.panels), "right operand holds its panels");
        assert!(width >= b.panels * LANES && c.len() >= (rows - 1) * width + b.panels * LANES, "result fits");
        for row in (0..rows).step_by(SIDE) {
            let n = SIDE.min(rows - row);
            let strip = |i: usize| a.words[(row / LANES + i) * a.apart..].as_ptr();
            let a = [strip(0), if n > LANES { strip(1) } else { ptr::null() }];
            for p in (0..b.panels).step_by(2) {
                let pair = p + 1 < b.panels;
                let panel = |p: usize| b.words[p * b.apart..].as_ptr();
                let b = [panel(p), if pair { panel(p + 1) } else { ptr::null() }];
                let at = c[row * width + p * LANES..].as_mut_ptr();
                let c = [at, if pair { at.wrapping_add(LANES) } else { ptr::null_mut() }];
                let columns = if pair { SIDE } else { LANES };
                let block = Block { rows: n, columns, a, b, parts: 1, blocks, c, c_row: width, acc };
                // SAFETY: the operands were checked above to cover what the strides reach; the caller holds the unit.
                unsafe { place(level, &block) };
            }
        }
    }
}

/// The same memory as words.
fn words(block: &[f32]) -> &[u32] {
    // SAFETY: both types have four bytes, one alignment, and take every pattern of bits.
    unsafe { std::slice::from_raw_parts(block.as_ptr().cast(), block.len()) }
}

/// [`words`], to be written.
fn words_mut(block: &mut [f32]) -> &mut [u32] {
    // SAFETY: as in `words`, and the slice is borrowed mutably.
    unsafe { std::slice::from_raw_parts_mut(block.as_mut_ptr().cast(), block.len()) }
}
