//! Rearrangements of operands into the micro-kernel's order. They move values and change none.
#![allow(unsafe_code)] // vector intrinsics on pointers with strides

use std::ops::Range;

use super::tile::ROWS;
use super::{Output, WIDTH, share};
use crate::buf::{self, Buf};
use crate::isa::Isa;
use crate::panels::{LANES, Panels};

/// `out[j][c] = w[rows.start + j][columns.start + c]` in rows of 32 values; `rows.start` is a multiple of 16 and `out`
/// has room for the rows rounded up to 16. Values past the matrix are zero or left as they were.
pub(super) fn transpose(isa: Isa, w: &Panels, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
    let (k, count) = (w.k(), rows.len().div_ceil(LANES));
    assert!(rows.start.is_multiple_of(LANES) && columns.len() <= WIDTH && out.len() >= count * LANES * WIDTH);
    for (panel, out) in (rows.start / LANES..).zip(out.chunks_exact_mut(LANES * WIDTH)).take(count) {
        let panel = &w.data()[panel * LANES * k..][..LANES * k];
        for at in (0..columns.len()).step_by(LANES) {
            let from = &panel[(columns.start + at) * LANES..];
            if columns.len() - at >= LANES {
                square(isa, &from[..LANES * LANES], &mut out[at..at + (LANES - 1) * WIDTH + LANES], WIDTH);
            } else {
                corner(from, columns.len() - at, &mut out[at..], WIDTH);
            }
        }
    }
}

/// Brings the block of w that [`transpose`] will read next closer, a share of it before each strip of rows: the block
/// lies in short runs that the processor does not foresee.
pub(super) struct Ahead<'a> {
    w: &'a [f32],
    /// Floats from one panel to the next.
    stride: usize,
    /// Cache lines per panel, over all panels, and per strip.
    lines: usize,
    total: usize,
    share: usize,
}

impl<'a> Ahead<'a> {
    /// For rows `rows` and the tile of columns that starts at `column`, if there is one, fetched over `strips` strips.
    pub(super) fn new(w: &'a Panels, rows: Range<usize>, column: usize, strips: usize) -> Self {
        let (k, panels) = (w.k(), rows.start / LANES..rows.end.div_ceil(LANES));
        let lines = WIDTH.min(k - column);
        let total = lines * panels.len();
        let from = (panels.start * k + column) * LANES;
        Self { w: w.data().get(from..).unwrap_or(&[]), stride: k * LANES, lines, total, share: total.div_ceil(strips) }
    }

    pub(super) fn fetch(&self, strip: usize) {
        for line in strip * self.share..((strip + 1) * self.share).min(self.total) {
            prefetch(self.w, line / self.lines * self.stride + line % self.lines * LANES);
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn prefetch(values: &[f32], at: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: a prefetch reads nothing that the program can see, and no address makes it fail.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(values.as_ptr().wrapping_add(at).cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch(_values: &[f32], _at: usize) {}

fn corner(from: &[f32], columns: usize, out: &mut [f32], stride: usize) {
    for (c, lanes) in from.chunks_exact(LANES).take(columns).enumerate() {
        for (j, value) in lanes.iter().enumerate() {
            out[j * stride + c] = *value;
        }
    }
}

/// `to[j * stride + c] = from[c * 16 + j]` for c and j below 16. It moves 32 bits at a time, whatever they mean.
pub(super) fn square(isa: Isa, from: &[f32], to: &mut [f32], stride: usize) {
    assert!(from.len() >= LANES * LANES && stride >= LANES && to.len() >= (LANES - 1) * stride + LANES);
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor offers the level, and the lengths were checked.
        Isa::Avx512 => unsafe { avx512::square(from.as_ptr(), to.as_mut_ptr(), stride) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above; the four quarters lie inside the square.
        Isa::Avx2 => unsafe {
            for (c, j) in [(0, 0), (8, 0), (0, 8), (8, 8)] {
                avx2::quarter(from.as_ptr().add(c * LANES + j), to.as_mut_ptr().add(j * stride + c), stride);
            }
        },
        _ => corner(from, LANES, to, stride),
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::LANES;
    use std::arch::x86_64::{
        __m512, _mm512_castpd_ps, _mm512_castps_pd, _mm512_loadu_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4,
        _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };

    #[target_feature(enable = "avx512f")]
    fn low(a: __m512, b: __m512) -> __m512 {
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
    }

    #[target_feature(enable = "avx512f")]
    fn high(a: __m512, b: __m512) -> __m512 {
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
    }

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn square(from: *const f32, to: *mut f32, stride: usize) {
        let mut quads = [_mm512_setzero_ps(); LANES];
        for i in 0..4 {
            // SAFETY: the caller vouches for 16 rows of 16 values.
            let row = |r: usize| unsafe { _mm512_loadu_ps(from.add((4 * i + r) * LANES)) };
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
            (quads[4 * i], quads[4 * i + 1]) = (low(ab, cd), high(ab, cd));
            let (ab, cd) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
            (quads[4 * i + 2], quads[4 * i + 3]) = (low(ab, cd), high(ab, cd));
        }
        // quads[4 * i + c] holds, in quarter q, values 4 i .. 4 i + 4 of column 4 q + c.
        for c in 0..4 {
            let even = |i: usize| _mm512_shuffle_f32x4::<0x88>(quads[i + c], quads[i + 4 + c]);
            let odd = |i: usize| _mm512_shuffle_f32x4::<0xdd>(quads[i + c], quads[i + 4 + c]);
            let (e0, e8, o0, o8) = (even(0), even(8), odd(0), odd(8));
            // SAFETY: the caller vouches for 16 rows of 16 values, `stride` apart.
            unsafe {
                _mm512_storeu_ps(to.add(c * stride), _mm512_shuffle_f32x4::<0x88>(e0, e8));
                _mm512_storeu_ps(to.add((c + 4) * stride), _mm512_shuffle_f32x4::<0x88>(o0, o8));
                _mm512_storeu_ps(to.add((c + 8) * stride), _mm512_shuffle_f32x4::<0xdd>(e0, e8));
                _mm512_storeu_ps(to.add((c + 12) * stride), _mm512_shuffle_f32x4::<0xdd>(o0, o8));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::LANES;
    use std::arch::x86_64::{
        __m256, _mm256_castpd_ps, _mm256_castps_pd, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_setzero_ps,
        _mm256_storeu_ps, _mm256_unpackhi_pd, _mm256_unpackhi_ps, _mm256_unpacklo_pd, _mm256_unpacklo_ps,
    };

    #[target_feature(enable = "avx2")]
    fn low(a: __m256, b: __m256) -> __m256 {
        _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)))
    }

    #[target_feature(enable = "avx2")]
    fn high(a: __m256, b: __m256) -> __m256 {
        _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)))
    }

    /// Transposes 8 rows of 8 values, 16 apart, to rows `stride` apart.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn quarter(from: *const f32, to: *mut f32, stride: usize) {
        let mut quads = [_mm256_setzero_ps(); 8];
        for i in 0..2 {
            // SAFETY: the caller vouches for 8 rows of 8 values.
            let row = |r: usize| unsafe { _mm256_loadu_ps(from.add((4 * i + r) * LANES)) };
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            (quads[4 * i], quads[4 * i + 1]) = (low(ab, cd), high(ab, cd));
            let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            (quads[4 * i + 2], quads[4 * i + 3]) = (low(ab, cd), high(ab, cd));
        }
        for c in 0..4 {
            // SAFETY: the caller vouches for 8 rows of 8 values, `stride` apart.
            unsafe {
                _mm256_storeu_ps(to.add(c * stride), _mm256_permute2f128_ps::<0x20>(quads[c], quads[4 + c]));
                _mm256_storeu_ps(to.add((c + 4) * stride), _mm256_permute2f128_ps::<0x31>(quads[c], quads[4 + c]));
            }
        }
    }
}

/// Columns `[from, from + 32)` of the row-major `x [_, n]` as rows of 32 values, zero past n.
pub(super) fn lanes(x: &[f32], n: usize, from: usize, out: &mut [f32]) {
    let width = WIDTH.min(n - from);
    for (row, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(WIDTH)) {
        if width == WIDTH {
            out.copy_from_slice(&row[from..from + WIDTH]);
        } else {
            out[..width].copy_from_slice(&row[from..]);
            out[width..].fill(0.0);
        }
    }
}

/// The row-major `x [depth, k]` as strips of columns, `[ceil(k / 12)][depth][12]`.
pub(super) fn column_strips(x: &[f32], depth: usize, k: usize) -> Buf {
    /// Strips in one task: 48 cache lines of one row.
    const GROUP: usize = 64;
    let count = k.div_ceil(ROWS);
    let mut strips = Buf::dirty_in(count * depth * ROWS, count * buf::room_of(depth, k) * ROWS);
    let out = Output(strips.as_mut_ptr());
    share(count.div_ceil(GROUP), count * depth * ROWS, |task| {
        let first = task * GROUP;
        for (r, row) in x.chunks_exact(k).enumerate() {
            for (s, values) in row[first * ROWS..].chunks(ROWS).take(GROUP).enumerate() {
                // SAFETY: strip `first + s` has room for `depth` rows of 12 and belongs to this task.
                unsafe {
                    let to = out.get().add(((first + s) * depth + r) * ROWS);
                    match <&[f32; ROWS]>::try_from(values) {
                        Ok(whole) => *to.cast::<[f32; ROWS]>() = *whole,
                        Err(_) => to.copy_from_nonoverlapping(values.as_ptr(), values.len()),
                    }
                }
            }
        }
    });
    strips
}

/// The row-major `x [m, k]` as strips of rows, `[ceil(m / 12)][k][12]`.
pub(super) fn row_strips(x: &[f32], m: usize, k: usize) -> Buf {
    /// Steps that stay in the first-level cache while the rows go by.
    const STEPS: usize = 128;
    let size = |m: usize| m.div_ceil(ROWS) * ROWS * k;
    let mut strips = Buf::dirty_in(size(m), size(buf::room_of(m, k)));
    let out = Output(strips.as_mut_ptr());
    share(m.div_ceil(ROWS), m * k, |strip| {
        let rows = strip * ROWS..(strip * ROWS + ROWS).min(m);
        // SAFETY: strip `strip` has k steps of 12 values and belongs to this task.
        let strip = unsafe { std::slice::from_raw_parts_mut(out.get().add(strip * k * ROWS).cast::<[f32; ROWS]>(), k) };
        for (from, steps) in (0..).step_by(STEPS).zip(strip.chunks_mut(STEPS)) {
            for (i, r) in rows.clone().enumerate() {
                let row = &x[r * k + from..][..steps.len()];
                steps.iter_mut().zip(row).for_each(|(step, value)| step[i] = *value);
            }
        }
    });
    strips
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::levels;

    #[test]
    fn transposes_at_every_level() {
        for (n, k) in [(16, 16), (32, 64), (40, 50), (7, 3), (100, 33)] {
            let rows: Vec<f32> = (0..n * k).map(|i| i as f32).collect();
            let w = Panels::from_rows(&rows, n, k);
            for isa in levels() {
                for from in (0..k).step_by(WIDTH) {
                    let (height, width) = ((n - n / 32 * 16).min(n), WIDTH.min(k - from));
                    let start = n / 32 * 16;
                    let mut out = vec![-1.0; height.next_multiple_of(LANES) * WIDTH];
                    transpose(isa, &w, start..start + height, from..from + width, &mut out);
                    for j in 0..height {
                        let want = &rows[(start + j) * k + from..][..width];
                        assert_eq!(&out[j * WIDTH..][..width], want, "{isa:?} [{n}, {k}] row {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn strips_hold_every_value() {
        for (m, k) in [(1, 1), (13, 25), (24, 800), (5, 12)] {
            let x: Vec<f32> = (0..m * k).map(|i| i as f32).collect();
            let (columns, rows) = (column_strips(&x, m, k), row_strips(&x, m, k));
            for (at, value) in x.iter().enumerate() {
                let (r, c) = (at / k, at % k);
                assert_eq!(columns[(c / ROWS * m + r) * ROWS + c % ROWS], *value);
                assert_eq!(rows[(r / ROWS * k + c) * ROWS + r % ROWS], *value);
            }
        }
    }
}
