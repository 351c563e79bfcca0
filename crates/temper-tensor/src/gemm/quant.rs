//! Forward products with matrices in quantised blocks: both operands are small integers, products are summed exactly, and scales are
//! applied a block at a time.
//!
//! A row of x is quantised in blocks of 32 as ggml does for its products (Q8_0 and Q8_1): `d = max |x| / 127`, codes
//! `a = round(x / d)` from -127 to 127, ties to even; d stays f32. With a weight block's scale s, minimum m (0 where the type has none) and
//! codes q less their zero, an output is one chain over the blocks in ascending order, from zero or its old value:
//! `y = fma(s d, sum(q a), y)`, and where there are minima then `y = fma(m, d sum(a), y)`.
//!
//! Integers have no rounding and the chain no choice, so that an output's bits depend on its row of x and its weights alone: not on
//! rows beside it, on threads, or on the instruction-set level.
#![allow(unsafe_code)] // shares one output among threads

mod kernel;

#[cfg(test)]
mod tests;

use std::ops::Range;

use rayon::prelude::*;

use crate::buf::Buf;
#[cfg(target_arch = "x86_64")]
use crate::isa::vnni;
use crate::isa::{Isa, isa, multiversion};
use crate::panels::LANES;
use crate::quant_panels::{BLOCK, QuantPanels};

use super::grid::Output;

/// Words of a quantised block of x: eight of four codes each, `d`, `d sum(a)`, and `-zero sum(a)` as an integer; one is free.
const X_WORDS: usize = 12;
type XBlock = [u32; X_WORDS];
const SCALE: usize = 8;
const OFFSET: usize = 9;
const ZERO: usize = 10;

/// All bits of a f32 but its sign.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// Added to a small number, it leaves the nearest integer, ties to even, in the lowest bits of the sum.
const ROUND: f32 = 12_582_912.0;

/// Rows of x whose blocks stay in the second-level cache while panels go by.
const ROWS: usize = 192;
/// Words of weights below which a second thread costs more than it brings.
const FORK: usize = 1 << 13;
/// Rows that are worth a task of their own when x is quantised.
const QUANTISE: usize = 16;

/// How products are computed: the level of the plain kernel, or instructions that multiply bytes (`vpmaddubsw`, `vpdpbusd`). All give
/// the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Plain(Isa),
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

fn way() -> Way {
    #[cfg(target_arch = "x86_64")]
    if vnni() {
        return Way::Vnni;
    } else if isa() >= Isa::Avx2 && is_x86_feature_detected!("f16c") {
        return Way::Avx2;
    }
    Way::Plain(isa())
}

/// `y = x w^T` (`y +=` when `acc`): `x [m, k]`, `w [n, k]`, `y [m, n]`, row-major.
pub fn linear(x: &[f32], m: usize, w: &QuantPanels, y: &mut [f32], acc: bool) {
    linear_at(way(), x, m, w, y, acc);
}

fn linear_at(way: Way, x: &[f32], m: usize, w: &QuantPanels, y: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    assert_eq!((x.len(), y.len()), (m * k, m * n), "x is [{m}, {k}] and y is [{m}, {n}]");
    if !acc {
        y.fill(0.0);
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let mut words = Buf::dirty(m * k / BLOCK * X_WORDS);
    let blocks = words.words_mut().as_chunks_mut::<X_WORDS>().0;
    quantised(way, x, k, w.blocks().zero(), blocks);
    let blocks = &*blocks;
    let out = Output(y.as_mut_ptr());
    let task = |panels: Range<usize>| {
        for rows in (0..m).step_by(ROWS) {
            let rows = rows..(rows + ROWS).min(m);
            // SAFETY: each task writes columns of its own, and they exist.
            panels.clone().for_each(|panel| unsafe { columns(way, w, panel, rows.clone(), blocks, out) });
        }
    };
    let (panels, threads) = (n.div_ceil(LANES), rayon::current_num_threads());
    if threads == 1 || panels * w.panel_words() * m < FORK {
        return task(0..panels);
    }
    let size = panels.div_ceil(threads * tasks(panels * w.panel_words() * m));
    (0..panels.div_ceil(size)).into_par_iter().with_max_len(1).for_each(|i| {
        task(i * size..((i + 1) * size).min(panels));
    });
}

/// Tasks a thread: more where there is much to do, so that none waits long for the last.
fn tasks(words: usize) -> usize {
    (words >> 20).clamp(1, 4)
}

/// The columns of one panel for some rows.
///
/// # Safety
/// `out` is a whole `[rows, n]` matrix; no one else touches these columns meanwhile.
unsafe fn columns(way: Way, w: &QuantPanels, panel: usize, rows: Range<usize>, x: &[XBlock], out: Output) {
    let (n, size, per_row) = (w.n(), w.panel_words(), w.k() / BLOCK);
    let words = &w.words()[panel * size..(panel + 1) * size];
    let width = LANES.min(n - panel * LANES);
    let mut row = rows.start;
    while row < rows.end {
        let most = rows.end - row;
        let x = &x[row * per_row..];
        let at = out.get().wrapping_add(row * n + panel * LANES);
        // SAFETY: so many rows of x and y remain.
        row += unsafe { kernel::run(way, w.blocks(), words, x, per_row, most, at, n, width) };
    }
}

/// Rows of x in blocks.
fn quantised(way: Way, x: &[f32], k: usize, zero: i32, out: &mut [XBlock]) {
    let (chunk, per_row) = (QUANTISE * k, k / BLOCK);
    let quantise = |x: &[f32], out: &mut [XBlock]| match way {
        Way::Plain(isa) => quantise_at(isa, x, zero, out),
        #[cfg(target_arch = "x86_64")]
        Way::Avx2 => quantise_at(Isa::Avx2, x, zero, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the way is only ever taken where the processor offers it.
        Way::Vnni => unsafe { kernel::vnni::quantise(x, zero, out) },
    };
    if x.len() <= chunk {
        return quantise(x, out);
    }
    let chunks = x.par_chunks(chunk).zip(out.par_chunks_mut(QUANTISE * per_row));
    chunks.for_each(|(x, out)| quantise(x, out));
}

/// The scale of a block whose largest magnitude has these bits, and what its values are multiplied by. As integers, magnitudes are in
/// the order of their values, and NaN is above all.
#[inline(always)]
#[allow(clippy::inline_always)] // compiled into each instruction-set level's function
fn scale(most: u32) -> (f32, f32) {
    let most = f32::from_bits(most);
    let d = if most.is_finite() { most / 127.0 } else { f32::NAN };
    // Below the normal range the inverse could overflow; such a block is one of zeros.
    (d, if d >= f32::MIN_POSITIVE { 1.0 / d } else { 0.0 })
}

/// Writes what follows a block's codes.
#[inline(always)]
#[allow(clippy::inline_always)] // as above
fn finish(out: &mut XBlock, d: f32, sum: i32, zero: i32) {
    out[SCALE] = d.to_bits();
    out[OFFSET] = (d * sum as f32).to_bits();
    out[ZERO] = (-zero * sum).cast_unsigned();
}

#[inline(always)]
#[allow(clippy::inline_always)] // compiled into each instruction-set level's function
fn quantise_body<const FMA: bool>(x: &[f32], zero: i32, out: &mut [XBlock]) {
    for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out) {
        let (d, inverse) = scale(x.iter().fold(0, |most, x| most.max(x.to_bits() & MAGNITUDE)));
        let mut codes = [0_u8; BLOCK];
        codes.iter_mut().zip(x).for_each(|(code, x)| *code = (x * inverse + ROUND).to_bits() as u8);
        let sum: i32 = codes.iter().map(|code| i32::from(code.cast_signed())).sum();
        for (word, codes) in out.iter_mut().zip(codes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*codes);
        }
        finish(out, d, sum, zero);
    }
}

multiversion! {
    /// Blocks of 32 values as integers with a scale.
    #[allow(dead_code)] // called at a given level
    fn quantise(x: &[f32], zero: i32, out: &mut [XBlock]) = quantise_body, quantise_at;
}
