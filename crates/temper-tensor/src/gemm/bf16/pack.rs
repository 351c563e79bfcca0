//! Rounding to bf16, and operands in the micro-kernel's blocks.
#![allow(unsafe_code)] // threads write disjoint parts of one buffer
#![allow(clippy::inline_always)] // bodies are compiled into each instruction-set level's function

use std::ops::Range;

use super::{Level, STEPS, WORDS, blocks};
use crate::bf16_panels::Bf16Panels;
use crate::buf::{self, Buf};
use crate::gemm::pack::square;
use crate::gemm::{Output, share};
use crate::isa::{Dot, Isa, multiversion};
use crate::panels::{LANES, Panels};

/// Floats between what is rounded and what is fetched: the next pair of panels.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 2 * LANES;
/// Panels whose blocks of the same rows are one task.
const GROUP: usize = 64;
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
pub(crate) fn pair(even: f32, odd: f32) -> u32 {
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

/// Pairs of neighbouring rows of `rows [_, width]`, 32 at most: `out[r][l] = (rows[2 r][l], rows[2 r + 1][l])` for the columns l from
/// `from` on, 16 at most, zero past the width and past the last row.
#[inline(always)]
fn block_body<const FMA: bool>(rows: &[f32], width: usize, from: usize, out: &mut [u32]) {
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
    regroup_at(isa, first, second, out);
}

#[inline(always)]
fn regroup_body<const FMA: bool>(first: &[u32; WORDS / 2], second: &[u32; WORDS / 2], out: &mut [u32; WORDS]) {
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
        __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi16, _mm512_cvtne2ps_pbh, _mm512_loadu_ps,
        _mm512_loadu_si512, _mm512_permutex2var_epi16, _mm512_permutexvar_epi16, _mm512_set1_epi16,
        _mm512_storeu_si512,
    };
    use std::mem::transmute;
    use std::ops::Range;

    use super::{AHEAD, LANES, STEPS, WORDS};

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

    /// Rounds 32 values, the lower ones first.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn rounded(low: __m512, high: __m512) -> __m512i {
        // SAFETY: both types are 512 bits of which every pattern is valid.
        unsafe { transmute(_mm512_cvtne2ps_pbh(high, low)) }
    }

    /// # Safety
    /// The processor has AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn strip(rows: &[f32], width: usize, steps: Range<usize>, out: &mut [u32]) {
        for (r, row) in rows.chunks_exact(width).enumerate() {
            let blocks = out.as_chunks_mut::<WORDS>().0.iter_mut();
            for (values, block) in row[steps.clone()].as_chunks::<STEPS>().0.iter().zip(blocks) {
                let line = &mut block[r * LANES..][..LANES];
                // SAFETY: there are 32 values, and a line has 64 bytes.
                unsafe {
                    let (low, high) = (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values[LANES..].as_ptr()));
                    _mm512_storeu_si512(line.as_mut_ptr().cast(), rounded(low, high));
                }
            }
        }
    }

    /// Places of the halves of 32 rounded values, so that value l and value 16 + l are neighbours.
    static ZIP: [u16; 2 * LANES] = {
        let mut at = [0; 2 * LANES];
        let mut l = 0;
        while l < LANES {
            (at[2 * l], at[2 * l + 1]) = (l as u16, (LANES + l) as u16);
            l += 1;
        }
        at
    };

    /// A whole block from the first 16 columns of 32 rows, `width` apart; what comes next is fetched.
    ///
    /// # Safety
    /// The processor has AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn block(rows: &[f32], width: usize, out: &mut [u32]) {
        assert!(rows.len() >= (STEPS - 1) * width + LANES);
        // SAFETY: the array has 64 bytes.
        let zip = unsafe { _mm512_loadu_si512(ZIP.as_ptr().cast()) };
        for (i, line) in out.as_chunks_mut::<LANES>().0.iter_mut().take(LANES).enumerate() {
            let even = rows.as_ptr().wrapping_add(2 * i * width);
            let odd = even.wrapping_add(width);
            for row in [even, odd] {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD).cast());
            }
            // SAFETY: rows below 32 lie inside the slice, and a line has 64 bytes.
            unsafe {
                let pairs = rounded(_mm512_loadu_ps(even), _mm512_loadu_ps(odd));
                _mm512_storeu_si512(line.as_mut_ptr().cast(), _mm512_permutexvar_epi16(zip, pairs));
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn regroup(first: &[u32; WORDS / 2], second: &[u32; WORDS / 2], out: &mut [u32; WORDS]) {
        // SAFETY: the array has 64 bytes.
        let even = unsafe { _mm512_loadu_si512(EVEN.as_ptr().cast()) };
        let odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
        let lines = first.as_chunks::<LANES>().0.iter().zip(second.as_chunks::<LANES>().0);
        for ((a, b), to) in lines.zip(out.as_chunks_mut::<{ 2 * LANES }>().0) {
            // The next pair of panels' lines, which lie too far apart for the processor to foresee.
            for line in [a, b] {
                _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(WORDS).cast());
            }
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
    fn block(rows: &[f32], width: usize, from: usize, out: &mut [u32]) = block_body, block_at;
    #[allow(dead_code)] // as above
    fn regroup_of(first: &[u32; WORDS / 2], second: &[u32; WORDS / 2], out: &mut [u32; WORDS]) = regroup_body, regroup_at;
}

/// [`strip_body`] by the level's instructions.
pub(crate) fn strip_of(level: Level, rows: &[f32], width: usize, steps: Range<usize>, out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if level.1 != Dot::Fma && steps.len().is_multiple_of(STEPS) {
        // SAFETY: where bf16 products have instructions, so has rounding.
        return unsafe { avx512::strip(rows, width, steps, out) };
    }
    strip_at(level.0, rows, width, steps, out);
}

/// [`block_body`] by the level's instructions.
pub(crate) fn block_of(level: Level, rows: &[f32], width: usize, from: usize, out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if level.1 != Dot::Fma && rows.len() == STEPS * width && from + LANES <= width {
        // SAFETY: as in `strip_of`.
        return unsafe { avx512::block(&rows[from..], width, out) };
    }
    block_at(level.0, rows, width, from, out);
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

/// Cuts blocks `depth` of rows `rows` of the left operand `x [m, k]` into strips, `[rows / 16][depth][size]` words, each made by
/// `strip(rows, k, steps, words)`; words of rows that do not exist are zero.
pub(in crate::gemm) fn each_strip(
    (x, k): (&[f32], usize),
    rows: Range<usize>,
    depth: Range<usize>,
    (size, out): (usize, &mut [u32]),
    strip: impl Fn(&[f32], usize, Range<usize>, &mut [u32]),
) {
    let steps = depth.start * STEPS..k.min(depth.end * STEPS);
    for (i, out) in out.chunks_exact_mut(depth.len() * size).take(rows.len().div_ceil(LANES)).enumerate() {
        let rows = rows.start + i * LANES..rows.end.min(rows.start + (i + 1) * LANES);
        if rows.len() < LANES {
            out.fill(0);
        }
        strip(&x[rows.start * k..rows.end * k], k, steps.clone(), out);
    }
}

/// Cuts blocks `depth` of columns `columns` of `x [m, n]`, to be reduced over its rows, into panels, `[columns / 16][depth][size]` words,
/// each made by `block(rows, n, first column, words)` from 32 rows or the last ones.
pub(crate) fn each_block(
    (x, n): (&[f32], usize),
    columns: Range<usize>,
    depth: Range<usize>,
    (size, out): (usize, &mut [u32]),
    block: impl Fn(&[f32], usize, usize, &mut [u32]),
) {
    let rows = &x[depth.start * STEPS * n..x.len().min(depth.end * STEPS * n)];
    for (b, rows) in rows.chunks(STEPS * n).enumerate() {
        for (i, from) in columns.clone().step_by(LANES).enumerate() {
            block(rows, n, from, &mut out[(i * depth.len() + b) * size..][..size]);
        }
    }
}

/// All of the left operand `x [m, k]`: `[m / 16][k / 32][16 rows][16 pairs of columns]`.
pub(super) fn strips(level: Level, x: &[f32], m: usize, k: usize) -> Buf {
    let size = blocks(k) * WORDS;
    let words = |rows: usize| rows.div_ceil(LANES) * size;
    let mut out = Buf::dirty_in(words(m), words(buf::room_of(m, k)));
    parts(out.words_mut(), size, |i, out| {
        let rows = i * LANES..m.min((i + 1) * LANES);
        each_strip((x, k), rows, 0..blocks(k), (WORDS, out), |rows, k, steps, out| {
            strip_of(level, rows, k, steps, out);
        });
    });
    out
}

/// All of `x [m, n]`, to be reduced over its rows: `[n / 16][m / 32][16 pairs of rows][16 columns]`, or for the `left` operand each block
/// transposed.
pub(super) fn paired(level: Level, x: &[f32], m: usize, n: usize, left: bool) -> Buf {
    let (panels, length) = (n.div_ceil(LANES), blocks(m));
    let words = |rows: usize| panels * blocks(rows) * WORDS;
    let mut out = Buf::dirty_in(words(m), words(buf::room_of(m, n)));
    let words = Output(out.as_mut_ptr());
    let groups = panels.div_ceil(GROUP);
    share(groups * length, m * n * 16, |task| {
        let (b, group) = (task / groups, task % groups);
        let rows = &x[b * STEPS * n..x.len().min((b + 1) * STEPS * n)];
        let mut pairs = [0; WORDS];
        for panel in group * GROUP..panels.min((group + 1) * GROUP) {
            // SAFETY: this block lies inside the words, and this task alone writes it.
            let to =
                unsafe { &mut *words.get().cast::<u32>().add((panel * length + b) * WORDS).cast::<[u32; WORDS]>() };
            if left {
                block_of(level, rows, n, panel * LANES, &mut pairs);
                transpose(level.0, &pairs, to);
            } else {
                block_of(level, rows, n, panel * LANES, to);
            }
        }
    });
    out
}

/// Transposes a block, word by word.
pub(crate) fn transpose(isa: Isa, from: &[u32; WORDS], to: &mut [u32; WORDS]) {
    // SAFETY: both types have four bytes, one alignment, and take every pattern of bits.
    let (from, to) = unsafe { (&*from.as_ptr().cast::<[f32; WORDS]>(), &mut *to.as_mut_ptr().cast::<[f32; WORDS]>()) };
    square(isa, from, to, LANES);
}

/// Rounds the master values `w [n, k]` into `words`, `[n / 16][k / 32][16 pairs of k][16 rows of w]`.
pub(crate) fn refresh(level: Level, w: &Panels, words: &mut [u32]) {
    let size = blocks(w.k()) * WORDS;
    parts(words, size, |i, out| {
        let panel = &w.data()[i * LANES * w.k()..][..LANES * w.k()];
        for (rows, out) in panel.chunks(STEPS * LANES).zip(out.chunks_exact_mut(WORDS)) {
            block_of(level, rows, LANES, 0, out);
        }
    });
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
