//! Rounding to bf16, and operands in the micro-kernel's blocks.
#![allow(unsafe_code)] // threads write disjoint parts of one buffer
#![allow(clippy::inline_always)] // bodies are compiled into each instruction-set level's function

use std::ops::Range;

use super::{STEPS, WORDS, blocks};
use crate::bf16_panels::Bf16Panels;
use crate::gemm::pack::square;
use crate::gemm::{Output, share};
use crate::isa::{Isa, multiversion};
use crate::panels::{LANES, Panels};

/// Values that are worth a task of their own.
const TASK: usize = 1 << 14;

/// `x` rounded to bf16 (nearest, ties to even), in the upper half of the word, the lower one holding rubbish. Values below
/// the normal range become zero, as in the processor's conversion; NaN stays NaN.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let small = bits & 0x7f80_0000 == 0;
    let kept = if small { bits & 0x8000_0000 } else { nearest };
    if x.is_nan() { bits | 0x0040_0000 } else { kept }
}

/// A pair: `even` in the lower half.
#[inline(always)]
fn pair(even: f32, odd: f32) -> u32 {
    rounded(even) >> 16 | rounded(odd) & 0xffff_0000
}

/// The two values of a pair.
pub(crate) fn widen(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

/// Pairs of neighbours in each row: line r of block b of `out` is `rows[r][from + 32 b ..]`, zero past the end of `steps`.
#[inline(always)]
fn strip_body<const FMA: bool>(rows: &[f32], width: usize, steps: Range<usize>, out: &mut [u32]) {
    for (r, row) in rows.chunks_exact(width).enumerate() {
        let row = &row[steps.clone()];
        let lines = out[r * LANES..].chunks_mut(WORDS).map(|block| &mut block[..LANES]);
        for (line, values) in lines.zip(row.chunks(STEPS)) {
            if let Ok(values) = <&[f32; STEPS]>::try_from(values) {
                for l in 0..LANES {
                    line[l] = pair(values[2 * l], values[2 * l + 1]);
                }
            } else {
                let mut whole = [0.0; STEPS];
                whole[..values.len()].copy_from_slice(values);
                for l in 0..LANES {
                    line[l] = pair(whole[2 * l], whole[2 * l + 1]);
                }
            }
        }
    }
}

/// Pairs of neighbouring rows: `out[r][l] = (rows[2 r][l], rows[2 r + 1][l])` for the 16 columns l from `from` on, zero past the
/// width and past the last row.
#[inline(always)]
fn panel_body<const FMA: bool>(rows: &[f32], width: usize, from: usize, out: &mut [u32]) {
    let lanes = LANES.min(width - from);
    let take = |row: &[f32]| {
        row[from..].first_chunk::<LANES>().copied().unwrap_or_else(|| {
            let mut values = [0.0_f32; LANES];
            values[..lanes].copy_from_slice(&row[from..]);
            values
        })
    };
    let mut lines = out.as_chunks_mut::<LANES>().0.iter_mut();
    for (rows, line) in rows.chunks(2 * width).zip(&mut lines) {
        let (even, odd) = rows.split_at(width);
        let (even, odd) = (take(even), if odd.is_empty() { [0.0; LANES] } else { take(odd) });
        for l in 0..LANES {
            line[l] = pair(even[l], odd[l]);
        }
    }
    lines.for_each(|line| *line = [0; LANES]);
}

/// From 8 lines of two panels of w, pairs of neighbours k, to 16 lines of pairs of neighbours n: line 2 p holds the even
/// values of line p of both panels, line 2 p + 1 the odd ones.
fn regroup(isa: Isa, first: &[u32; WORDS / 2], second: &[u32; WORDS / 2], out: &mut [u32; WORDS]) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: the processor offers the level.
        return unsafe { avx512::regroup(first, second, out) };
    }
    let _ = isa;
    for (i, panel) in [first, second].into_iter().enumerate() {
        for (line, to) in panel.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<{ 2 * LANES }>().0) {
            for j in 0..LANES / 2 {
                let (a, b) = (line[2 * j], line[2 * j + 1]);
                to[i * LANES / 2 + j] = a & 0xffff | b << 16;
                to[LANES + i * LANES / 2 + j] = a >> 16 | b & 0xffff_0000;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        _mm512_add_epi16, _mm512_loadu_si512, _mm512_permutex2var_epi16, _mm512_set1_epi16, _mm512_storeu_si512,
    };

    use super::{LANES, WORDS};

    /// Halves of words: the lower ones of the first operand, then those of the second.
    static EVEN: [u16; 2 * LANES] = {
        let mut at = [0; 2 * LANES];
        let mut l = 0;
        while l < 2 * LANES {
            at[l] = 2 * l as u16;
            l += 1;
        }
        at
    };

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn regroup(first: &[u32; WORDS / 2], second: &[u32; WORDS / 2], out: &mut [u32; WORDS]) {
        // SAFETY: the array has 64 bytes.
        let even = unsafe { _mm512_loadu_si512(EVEN.as_ptr().cast()) };
        let odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
        let lines = first.as_chunks::<LANES>().0.iter().zip(second.as_chunks::<LANES>().0);
        for ((a, b), to) in lines.zip(out.as_chunks_mut::<{ 2 * LANES }>().0) {
            // SAFETY: lines have 64 bytes, and two fit `to`.
            unsafe {
                let (a, b) = (_mm512_loadu_si512(a.as_ptr().cast()), _mm512_loadu_si512(b.as_ptr().cast()));
                _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_permutex2var_epi16(a, even, b));
                _mm512_storeu_si512(to[LANES..].as_mut_ptr().cast(), _mm512_permutex2var_epi16(a, odd, b));
            }
        }
    }
}

multiversion! {
    #[allow(dead_code)] // the level is always given
    fn strip(rows: &[f32], width: usize, steps: Range<usize>, out: &mut [u32]) = strip_body, strip_at;
    #[allow(dead_code)] // as above
    fn panel(rows: &[f32], width: usize, from: usize, out: &mut [u32]) = panel_body, panel_at;
}

/// Calls `task(i, part i of the words)` for `count` parts of `size` words each.
fn parts(words: &mut [u32], size: usize, task: impl Fn(usize, &mut [u32]) + Sync + Send) {
    let count = words.len() / size.max(1);
    let out = Output(words.as_mut_ptr().cast());
    let most = (TASK / size.max(1)).max(1);
    share(count.div_ceil(most), words.len() * 16, |group| {
        for i in group * most..((group + 1) * most).min(count) {
            // SAFETY: part i lies inside the words and belongs to this task.
            task(i, unsafe { std::slice::from_raw_parts_mut(out.get().cast::<u32>().add(i * size), size) });
        }
    });
}

/// Blocks `depth` of rows `rows` of the left operand `x [m, k]`: `[rows / 16][depth][16 rows][16 pairs of columns]`.
pub(super) fn strips(isa: Isa, x: &[f32], k: usize, rows: Range<usize>, depth: Range<usize>, out: &mut [u32]) {
    let steps = depth.start * STEPS..k.min(depth.end * STEPS);
    for (i, out) in out.chunks_exact_mut(depth.len() * WORDS).enumerate() {
        let rows = rows.start + i * LANES..rows.end.min(rows.start + (i + 1) * LANES);
        if rows.len() < LANES {
            out.fill(0);
        }
        strip_at(isa, &x[rows.start * k..rows.end * k], k, steps.clone(), out);
    }
}

/// Blocks `depth` of columns `columns` of `x [m, n]`, to be reduced over its rows: `[columns / 16][depth][16 pairs of rows][16
/// columns]`, or with `left` each block transposed.
pub(super) fn columns(
    isa: Isa,
    (x, n): (&[f32], usize),
    columns: Range<usize>,
    depth: Range<usize>,
    out: &mut [u32],
    left: bool,
) {
    let rows = &x[depth.start * STEPS * n..x.len().min(depth.end * STEPS * n)];
    for (i, out) in out.chunks_exact_mut(depth.len() * WORDS).take(columns.len().div_ceil(LANES)).enumerate() {
        panel_at(isa, rows, n, columns.start + i * LANES, out);
        if left {
            let mut copy = [0; WORDS];
            for block in out.as_chunks_mut::<WORDS>().0 {
                copy.copy_from_slice(block);
                transpose(isa, &copy, block);
            }
        }
    }
}

/// Transposes a block, word by word.
pub(in crate::gemm) fn transpose(isa: Isa, from: &[u32; WORDS], to: &mut [u32; WORDS]) {
    // SAFETY: both types have four bytes, one alignment, and take every pattern of bits.
    let (from, to) = unsafe { (&*from.as_ptr().cast::<[f32; WORDS]>(), &mut *to.as_mut_ptr().cast::<[f32; WORDS]>()) };
    square(isa, from, to, LANES);
}

/// Rounds the master values `w [n, k]` into `words`, `[n / 16][k / 32][16 pairs of k][16 rows of w]`.
pub(crate) fn refresh(isa: Isa, w: &Panels, words: &mut [u32]) {
    let size = blocks(w.k()) * WORDS;
    parts(words, size, |i, out| panel_at(isa, &w.data()[i * LANES * w.k()..][..LANES * w.k()], LANES, 0, out));
}

/// Blocks `depth` of the reduction over n of panel `column` of the transpose of w: `[depth][16 pairs of n][16 columns of w]`.
pub(super) fn transposed(isa: Isa, w: &Bf16Panels, depth: Range<usize>, column: usize, out: &mut [u32]) {
    // Lines of panel i for columns 16 column .. 16 column + 16.
    let lines = |i: usize| {
        let words = w.words().get((2 * i * blocks(w.k()) + column) * WORDS / 2..).unwrap_or(&[]);
        words.first_chunk::<{ WORDS / 2 }>().unwrap_or(&[0; WORDS / 2])
    };
    let mut pairs = [0; WORDS];
    for (block, out) in depth.zip(out.as_chunks_mut::<WORDS>().0) {
        regroup(isa, lines(2 * block), lines(2 * block + 1), &mut pairs);
        transpose(isa, &pairs, out);
    }
}
