//! f32 values as three blocks of bf16 pairs.
#![allow(unsafe_code)] // vector intrinsics on pointers with strides

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_blend_epi16, _mm512_permutex2var_ps,
    _mm512_set1_epi32, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_ps,
};
use std::ops::Range;

use super::{PARTS, WORDS};
use crate::gemm::bf16::STEPS;
use crate::gemm::bf16::pack::{each_block, each_strip, transpose};
use crate::isa::Isa;
use crate::panels::{LANES, Panels};

/// The nearest bf16 as a f32; what is left of x after it is exact.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn nearest(x: __m512) -> __m512 {
    let bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32.cast_signed())))
}

/// Pairs of the upper halves: even in the lower one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn pair(even: __m512, odd: __m512) -> __m512i {
    _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(_mm512_castps_si512(even)), _mm512_castps_si512(odd))
}

/// Sixteen pairs, part by part.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn split(even: __m512, odd: __m512) -> [__m512i; PARTS] {
    let first = [nearest(even), nearest(odd)];
    let rest = [_mm512_sub_ps(even, first[0]), _mm512_sub_ps(odd, first[1])];
    let second = [nearest(rest[0]), nearest(rest[1])];
    let third = [_mm512_sub_ps(rest[0], second[0]), _mm512_sub_ps(rest[1], second[1])];
    [pair(first[0], first[1]), pair(second[0], second[1]), pair(third[0], third[1])]
}

/// Of 32 values those at even places, and those at odd ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn unzip(low: __m512, high: __m512) -> (__m512, __m512) {
    static EVEN: [u32; LANES] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];
    // SAFETY: the array has 64 bytes.
    let even = unsafe { _mm512_loadu_si512(EVEN.as_ptr().cast()) };
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    (_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high))
}

/// Writes line `line` of each part of a block.
#[inline]
#[target_feature(enable = "avx512f")]
fn store(words: [__m512i; PARTS], line: usize, out: &mut Split) {
    assert!(line < LANES);
    for (part, words) in words.into_iter().enumerate() {
        // SAFETY: line `line` of part `part` lies inside the block, and has 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(part * WORDS + line * LANES).cast(), words) };
    }
}

/// A block in three parts.
type Split = [u32; PARTS * WORDS];

fn each(words: &mut [u32]) -> &mut [Split] {
    words.as_chunks_mut().0
}

/// Blocks `depth` of rows `rows` of the left operand `x [m, k]`: `[rows / 16][depth][part][16 rows][16 pairs of columns]`.
pub(super) fn strips(x: (&[f32], usize), rows: Range<usize>, depth: Range<usize>, out: &mut [u32]) {
    each_strip(x, rows, depth, (PARTS * WORDS, out), |rows, k, steps, out| {
        // SAFETY: tiles are in use, so the processor has AVX-512.
        unsafe { strip(rows, k, steps, each(out)) };
    });
}

#[target_feature(enable = "avx512f,avx512bw")]
fn strip(rows: &[f32], k: usize, steps: Range<usize>, out: &mut [Split]) {
    for (r, row) in rows.chunks_exact(k).enumerate() {
        let (whole, rest) = row[steps.clone()].as_chunks::<STEPS>();
        for (values, out) in whole.iter().zip(&mut *out) {
            neighbours(values, r, out);
        }
        if !rest.is_empty() {
            let mut values = [0.0; STEPS];
            values[..rest.len()].copy_from_slice(rest);
            neighbours(&values, r, &mut out[whole.len()]);
        }
    }
}

/// Line `line` of a block from the pairs of neighbours among 32 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn neighbours(values: &[f32; STEPS], line: usize, out: &mut Split) {
    // SAFETY: two vectors have 32 values.
    let (low, high) = unsafe { (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values[LANES..].as_ptr())) };
    let (even, odd) = unzip(low, high);
    store(split(even, odd), line, out);
}

/// Blocks `depth` of columns `columns` of `x [m, n]`, to be reduced over its rows: `[columns / 16][depth][part][16 pairs of
/// rows][16 columns]`.
pub(super) fn columns(x: (&[f32], usize), columns: Range<usize>, depth: Range<usize>, out: &mut [u32]) {
    let last = columns.end;
    each_block(x, columns, depth, (PARTS * WORDS, out), |rows, n, from, out| {
        // SAFETY: as in `strips`.
        unsafe { block(rows, n, from..last.min(from + LANES), 2 * LANES, &mut each(out)[0]) };
    });
}

/// [`columns`] as a left operand: each part of a block transposed.
pub(super) fn turned(x: (&[f32], usize), columns: Range<usize>, depth: Range<usize>, out: &mut [u32]) {
    let last = columns.end;
    each_block(x, columns, depth, (PARTS * WORDS, out), |rows, n, from, out| {
        let mut pairs = [0; PARTS * WORDS];
        // SAFETY: as in `strips`.
        unsafe { block(rows, n, from..last.min(from + LANES), 2 * LANES, &mut pairs) };
        turn(&pairs, &mut each(out)[0]);
    });
}

/// Blocks `depth` of panel `panel` of w: `[depth][part][16 pairs of k][16 rows of w]`. What lies `ahead` floats behind is fetched.
pub(super) fn panel(w: &Panels, panel: usize, depth: Range<usize>, ahead: usize, out: &mut [u32]) {
    let size = LANES * w.k();
    let steps = depth.start * STEPS..(depth.end * STEPS).min(w.k());
    let values = &w.data()[panel * size..][steps.start * LANES..steps.end * LANES];
    for (rows, out) in values.chunks(STEPS * LANES).zip(each(out)) {
        // SAFETY: as in `strips`.
        unsafe { block(rows, LANES, 0..LANES, ahead, out) };
    }
}

/// Pairs of neighbouring rows of `rows [_, width]`, 32 at most, in these columns, 16 at most; zeros past the last row and column. Values
/// that lie `ahead` behind them, which the next pair of panels will need, are brought closer.
#[target_feature(enable = "avx512f,avx512bw")]
fn block(rows: &[f32], width: usize, columns: Range<usize>, ahead: usize, out: &mut Split) {
    if rows.len() == STEPS * width && columns.len() == LANES {
        return down(&rows[columns.start..], width, ahead, out);
    }
    let mut square = [0.0; STEPS * LANES];
    for (row, line) in rows.chunks_exact(width).zip(square.as_chunks_mut::<LANES>().0) {
        line[..columns.len()].copy_from_slice(&row[columns.clone()]);
    }
    down(&square, LANES, 0, out);
}

/// A block from the pairs of neighbours among the first 16 columns of 32 rows, `stride` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn down(rows: &[f32], stride: usize, ahead: usize, out: &mut Split) {
    assert!(rows.len() >= (STEPS - 1) * stride + LANES);
    for line in 0..LANES {
        let row = rows.as_ptr().wrapping_add(2 * line * stride);
        // SAFETY: rows below 32 lie inside the slice; a prefetch reads nothing that the program can see.
        let (even, odd) = unsafe {
            _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(ahead).cast());
            _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(stride + ahead).cast());
            (_mm512_loadu_ps(row), _mm512_loadu_ps(row.add(stride)))
        };
        store(split(even, odd), line, out);
    }
}

/// Each part transposed, word by word.
fn turn(from: &Split, to: &mut Split) {
    for (from, to) in from.as_chunks::<WORDS>().0.iter().zip(to.as_chunks_mut::<WORDS>().0) {
        transpose(Isa::Avx512, from, to);
    }
}

/// Blocks `depth` of the reduction over n of panel `column` of the transpose of w: `[depth][part][16 pairs of n][16 columns of w]`.
pub(super) fn transposed(w: &Panels, column: usize, depth: Range<usize>, out: &mut [u32]) {
    let mut copy = [0; PARTS * WORDS];
    for (block, out) in depth.zip(each(out)) {
        // SAFETY: as in `strips`.
        unsafe { across(w, 2 * block, column, &mut copy) };
        turn(&copy, out);
    }
}

/// Pairs of neighbouring rows of w, 32 rows from panel `panel` on, one line for each of the 16 columns.
#[target_feature(enable = "avx512f,avx512bw")]
fn across(w: &Panels, panel: usize, column: usize, out: &mut Split) {
    let (k, from) = (w.k(), column * LANES);
    let values = |panel: usize| w.data().get((panel * k + from) * LANES..).unwrap_or(&[]).as_chunks::<LANES>().0;
    let (first, second) = (values(panel), values(panel + 1));
    for line in 0..LANES.min(k - from) {
        let mut both = [0.0; STEPS];
        both[..LANES].copy_from_slice(&first[line]);
        if let Some(second) = second.get(line) {
            both[LANES..].copy_from_slice(second);
        }
        for values in [first, second] {
            let ahead = values.as_ptr().wrapping_add(2 * LANES + line);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        }
        neighbours(&both, line, out);
    }
}
