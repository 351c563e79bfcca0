//! The micro-kernel: some rows of x by a panel of 16 outputs.
#![allow(unsafe_code)] // vector intrinsics on pointers
#![allow(clippy::inline_always)] // compiled into each instruction-set level's function

use super::{OFFSET, SCALE, Way, XBlock, ZERO};
use crate::isa::multiversion;
use crate::panels::LANES;
use crate::quant_panels::Blocks;

/// Adds the products of up to `most` rows of `x`, `per_row` blocks each, with a panel to `y`, whose rows lie `stride` apart and have
/// `width` columns here; returns how many rows.
///
/// # Safety
/// `most` rows of x and y exist, and no one else touches these columns of y meanwhile.
pub(super) unsafe fn run(
    way: Way,
    blocks: Blocks,
    panel: &[u32],
    x: &[XBlock],
    per_row: usize,
    most: usize,
    y: *mut f32,
    stride: usize,
    width: usize,
) -> usize {
    match way {
        Way::Plain(isa) => {
            let mut sums = [0.0; LANES];
            // SAFETY: the caller vouches for a row of `width` columns.
            let y = unsafe { std::slice::from_raw_parts_mut(y, width) };
            sums[..width].copy_from_slice(y);
            row_at(isa, blocks, panel, &x[..per_row], &mut sums);
            y.copy_from_slice(&sums[..width]);
            1
        }
        #[cfg(target_arch = "x86_64")]
        Way::Avx2 => {
            let rows = avx2::rows(most);
            assert!(x.len() >= rows * per_row && panel.len() == per_row * blocks.words(), "operands of one length");
            // SAFETY: as asserted and as the caller vouches; the way is only ever taken where the processor offers it.
            unsafe { avx2::run(blocks, panel.as_ptr(), x.as_ptr(), per_row, rows, y, stride, width) };
            rows
        }
        #[cfg(target_arch = "x86_64")]
        Way::Vnni => {
            let rows = vnni::rows(most);
            assert!(x.len() >= rows * per_row && panel.len() == per_row * blocks.words(), "operands of one length");
            // SAFETY: as asserted and as the caller vouches; the way is only ever taken where the processor offers it.
            unsafe { vnni::run(blocks, panel.as_ptr(), x.as_ptr(), per_row, rows, y, stride, width) };
            rows
        }
    }
}

/// A finite f16 as f32: the exponent is put right by a multiplication, which does for those below the normal range too.
#[inline(always)]
fn widen(half: u32) -> f32 {
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = f32::from_bits((half & 0x7fff) << 13) * SCALE;
    f32::from_bits(magnitude.to_bits() | (half & 0x8000) << 16)
}

/// 16 neighbouring f16.
#[inline(always)]
fn widened(words: &[u32]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (out, word) in out.as_chunks_mut::<2>().0.iter_mut().zip(words) {
        *out = [widen(word & 0xffff), widen(word >> 16)];
    }
    out
}

/// `sums += sum(code * a)` over the four codes in each lane's word.
#[inline(always)]
fn dot(words: &[u32; LANES], a: u32, sums: &mut [i32; LANES]) {
    for (i, a) in a.to_le_bytes().into_iter().enumerate() {
        let a = i32::from(a.cast_signed());
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum += (word >> (8 * i) & 0xff).cast_signed() * a;
        }
    }
}

#[inline(always)]
fn row_body<const FMA: bool>(blocks: Blocks, panel: &[u32], x: &[XBlock], y: &mut [f32; LANES]) {
    for (block, x) in panel.chunks_exact(blocks.words()).zip(x) {
        let (scales, words) = block.split_at(blocks.scale_words());
        let mut sums = [x[ZERO].cast_signed(); LANES];
        for (t, words) in words.as_chunks::<LANES>().0.iter().enumerate() {
            if blocks.nibbles() {
                dot(&words.map(|w| w & 0x0f0f_0f0f), x[t], &mut sums);
                dot(&words.map(|w| w >> 4 & 0x0f0f_0f0f), x[t + 4], &mut sums);
            } else {
                dot(words, x[t], &mut sums);
            }
        }
        // Fused at every level, so that all agree.
        let d = f32::from_bits(x[SCALE]);
        for ((y, s), sum) in y.iter_mut().zip(widened(scales)).zip(sums) {
            *y = (s * d).mul_add(sum as f32, *y);
        }
        if blocks.has_minimum() {
            let offset = f32::from_bits(x[OFFSET]);
            y.iter_mut().zip(widened(&scales[LANES / 2..])).for_each(|(y, m)| *y = m.mul_add(offset, *y));
        }
    }
}

multiversion! {
    /// Adds the products of one row of x with a panel.
    #[allow(dead_code)] // called at a given level
    fn row(blocks: Blocks, panel: &[u32], x: &[XBlock], y: &mut [f32; LANES]) = row_body, row_at;
}

/// Bytes ahead of what is read that are fetched.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4096;

/// A level's `rows` and `run` by its `kernel::<R, NIBBLES, MINIMUM>`, for the numbers of rows listed and for one.
#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ([$($r:literal),+]) => {
        /// How many of so many rows are taken at once.
        pub(super) fn rows(most: usize) -> usize {
            [$($r),+].into_iter().find(|r| *r <= most).unwrap_or(1)
        }

        /// # Safety
        /// The processor has what the kernel is compiled for; `rows` is one of [`rows`]; operands and output have so many rows.
        pub(super) unsafe fn run(
            blocks: Blocks,
            panel: *const u32,
            x: *const XBlock,
            per_row: usize,
            rows: usize,
            y: *mut f32,
            stride: usize,
            width: usize,
        ) {
            // SAFETY: the caller vouches for everything.
            unsafe {
                match (blocks, rows) {
                    $(
                        (Blocks::Q4_0, $r) => kernel::<$r, true, false>(panel, x, per_row, y, stride, width),
                        (Blocks::Q4_1, $r) => kernel::<$r, true, true>(panel, x, per_row, y, stride, width),
                        (Blocks::Q8_0, $r) => kernel::<$r, false, false>(panel, x, per_row, y, stride, width),
                    )+
                    (Blocks::Q4_0, _) => kernel::<1, true, false>(panel, x, per_row, y, stride, width),
                    (Blocks::Q4_1, _) => kernel::<1, true, true>(panel, x, per_row, y, stride, width),
                    (Blocks::Q8_0, _) => kernel::<1, false, false>(panel, x, per_row, y, stride, width),
                }
            }
        }
    };
}

/// Products of bytes by `vpmaddubsw`, whose sums of two have 16 bits.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    #![allow(clippy::needless_range_loop)] // loops over registers
    #![allow(clippy::cast_ptr_alignment)] // vectors are loaded and stored unaligned

    use std::arch::x86_64::{
        __m256, __m256i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_abs_epi8, _mm256_add_epi16,
        _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi8,
        _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
        _mm256_sign_epi8, _mm256_srli_epi16, _mm256_storeu_ps, _mm256_xor_si256,
    };

    use super::super::{OFFSET, SCALE, X_WORDS, XBlock, ZERO};
    use super::AHEAD;
    use crate::panels::LANES;
    use crate::quant_panels::Blocks;

    /// Lanes of one vector.
    const HALF: usize = LANES / 2;

    by_rows!([4, 2]);

    /// `sum(q a)` of one row and the codes of 8 outputs.
    #[target_feature(enable = "avx2")]
    unsafe fn dot<const NIBBLES: bool>(codes: &[__m256i; 8], row: *const i32) -> __m256i {
        let ones = _mm256_set1_epi16(1);
        // SAFETY: the caller vouches for a block of x.
        let word = |at: usize| _mm256_set1_epi32(unsafe { *row.add(at) });
        if NIBBLES {
            // Eight times two products of 15 and 127 stay within 16 bits.
            let mut sum = _mm256_maddubs_epi16(codes[0], word(0));
            for t in 1..8 {
                sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes[t], word(t)));
            }
            return _mm256_add_epi32(word(ZERO), _mm256_madd_epi16(sum, ones));
        }
        // Magnitudes of codes, up to 128, by values with the codes' signs: two products of 128 and 127 stay within 16 bits.
        let mut sum = _mm256_setzero_si256();
        for t in 0..8 {
            let code = _mm256_xor_si256(codes[t], _mm256_set1_epi8(i8::MIN));
            let products = _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(word(t), code));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(products, ones));
        }
        sum
    }

    /// # Safety
    /// As for [`run`].
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn kernel<const R: usize, const NIBBLES: bool, const MINIMUM: bool>(
        panel: *const u32,
        x: *const XBlock,
        per_row: usize,
        y: *mut f32,
        stride: usize,
        width: usize,
    ) {
        let nibble = _mm256_set1_epi8(0x0f);
        let scale_words = if MINIMUM { LANES } else { LANES / 2 };
        let words = scale_words + if NIBBLES { 4 } else { 8 } * LANES;
        let mut aside = [[0.0_f32; LANES]; R];
        // SAFETY: `per_row` blocks of the panel and of each row are read, and `width` columns of each row of y; a prefetch reads
        // nothing that the program can see.
        unsafe {
            for r in 0..R {
                y.add(r * stride).copy_to_nonoverlapping(aside[r].as_mut_ptr(), width);
            }
            let mut sums: [[__m256; 2]; R] = [[_mm256_setzero_ps(); 2]; R];
            for r in 0..R {
                sums[r] = [0, HALF].map(|at| _mm256_loadu_ps(aside[r].as_ptr().add(at)));
            }
            for b in 0..per_row {
                let block = panel.add(b * words);
                for line in 0..words.div_ceil(LANES) {
                    _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(line * LANES).wrapping_byte_add(AHEAD).cast());
                }
                for h in 0..2 {
                    let mut codes = [_mm256_setzero_si256(); 8];
                    for t in 0..if NIBBLES { 4 } else { 8 } {
                        let word = block.add(scale_words + t * LANES + h * HALF);
                        let both = _mm256_loadu_si256(word.cast());
                        if NIBBLES {
                            codes[t] = _mm256_and_si256(both, nibble);
                            codes[t + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble);
                        } else {
                            codes[t] = both;
                        }
                    }
                    let halves = |at: usize| _mm256_cvtph_ps(_mm_loadu_si128(block.add(at + h * HALF / 2).cast()));
                    let scale = halves(0);
                    let minimum = if MINIMUM { halves(LANES / 2) } else { scale };
                    for r in 0..R {
                        let row: *const [u32; X_WORDS] = x.add(r * per_row + b);
                        let dot = dot::<NIBBLES>(&codes, row.cast());
                        let x = row.cast::<f32>();
                        let scale = _mm256_mul_ps(scale, _mm256_set1_ps(*x.add(SCALE)));
                        sums[r][h] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), sums[r][h]);
                        if MINIMUM {
                            sums[r][h] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(*x.add(OFFSET)), sums[r][h]);
                        }
                    }
                }
            }
            for r in 0..R {
                for h in 0..2 {
                    _mm256_storeu_ps(aside[r].as_mut_ptr().add(h * HALF), sums[r][h]);
                }
                y.add(r * stride).copy_from_nonoverlapping(aside[r].as_ptr(), width);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod vnni {
    #![allow(clippy::needless_range_loop)] // loops over registers
    #![allow(clippy::cast_ptr_alignment)] // vectors are loaded and stored unaligned

    use std::arch::x86_64::{
        __m256i, __m512i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T0, _mm_prefetch, _mm_storeu_si128,
        _mm256_loadu_si256, _mm512_add_epi32, _mm512_and_si512, _mm512_cvt_roundps_epi32, _mm512_cvtepi32_epi8,
        _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_epu32, _mm512_mul_ps, _mm512_reduce_add_epi32,
        _mm512_reduce_max_epu32, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_setzero_si512, _mm512_srli_epi16,
    };

    use super::super::{MAGNITUDE, OFFSET, SCALE, X_WORDS, XBlock, ZERO, finish, scale};
    use super::AHEAD;
    use crate::panels::LANES;
    use crate::quant_panels::{BLOCK, Blocks};

    /// As the plain body does it.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(in super::super) unsafe fn quantise(x: &[f32], zero: i32, out: &mut [XBlock]) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        let magnitude = _mm512_set1_epi32(MAGNITUDE.cast_signed());
        for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out) {
            // SAFETY: a block has two vectors of values, and room for two of codes.
            unsafe {
                let bits = |half: usize| _mm512_loadu_si512(x.as_ptr().add(half * LANES).cast());
                let most = [bits(0), bits(1)].map(|v| _mm512_and_si512(v, magnitude));
                let (d, inverse) = scale(_mm512_reduce_max_epu32(_mm512_max_epu32(most[0], most[1])));
                let mut sum = _mm512_setzero_si512();
                for half in 0..2 {
                    let scaled = _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr().add(half * LANES)), _mm512_set1_ps(inverse));
                    let codes = _mm512_cvt_roundps_epi32::<NEAREST>(scaled);
                    sum = _mm512_add_epi32(sum, codes);
                    _mm_storeu_si128(out.as_mut_ptr().add(half * 4).cast(), _mm512_cvtepi32_epi8(codes));
                }
                // A value that is not finite has a code of no meaning, and its block a scale of NaN.
                let sum = if d.is_nan() { 0 } else { _mm512_reduce_add_epi32(sum) };
                finish(out, d, sum, zero);
            }
        }
    }

    by_rows!([8, 4, 2]);

    /// # Safety
    /// As for [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn kernel<const R: usize, const NIBBLES: bool, const MINIMUM: bool>(
        panel: *const u32,
        x: *const XBlock,
        per_row: usize,
        y: *mut f32,
        stride: usize,
        width: usize,
    ) {
        let mask = u16::MAX >> (LANES - width);
        let nibble = _mm512_set1_epi8(0x0f);
        let scale_words = if MINIMUM { LANES } else { LANES / 2 };
        let words = scale_words + if NIBBLES { 4 } else { 8 } * LANES;
        // SAFETY: `per_row` blocks of the panel and of each row are read, and `width` columns of each row of y; a prefetch reads
        // nothing that the program can see.
        unsafe {
            let mut sums = [_mm512_setzero_ps(); R];
            for r in 0..R {
                sums[r] = _mm512_maskz_loadu_ps(mask, y.add(r * stride));
            }
            for b in 0..per_row {
                let block = panel.add(b * words);
                for line in 0..words.div_ceil(LANES) {
                    _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(line * LANES).wrapping_byte_add(AHEAD).cast());
                }
                let codes = block.add(scale_words);
                let vector = |t: usize| _mm512_loadu_si512(codes.add(t * LANES).cast());
                let mut code = [_mm512_setzero_si512(); 8];
                for t in 0..if NIBBLES { 4 } else { 8 } {
                    let both: __m512i = vector(t);
                    if NIBBLES {
                        code[t] = _mm512_and_si512(both, nibble);
                        code[t + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), nibble);
                    } else {
                        code[t] = both;
                    }
                }
                let halves = |at: usize| _mm512_cvtph_ps(_mm256_loadu_si256(block.add(at).cast::<__m256i>()));
                let row = |r: usize| {
                    let row: *const [u32; X_WORDS] = x.add(r * per_row + b);
                    row.cast::<i32>()
                };
                // Rows take turns, so that none waits for its own last product.
                let mut dots = [_mm512_setzero_si512(); R];
                for r in 0..R {
                    dots[r] = _mm512_set1_epi32(*row(r).add(ZERO));
                }
                for t in 0..8 {
                    for r in 0..R {
                        dots[r] = _mm512_dpbusd_epi32(dots[r], code[t], _mm512_set1_epi32(*row(r).add(t)));
                    }
                }
                let scale = halves(0);
                let minimum = if MINIMUM { halves(LANES / 2) } else { scale };
                for r in 0..R {
                    let x = row(r).cast::<f32>();
                    let scale = _mm512_mul_ps(scale, _mm512_set1_ps(*x.add(SCALE)));
                    sums[r] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dots[r]), sums[r]);
                    if MINIMUM {
                        sums[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(*x.add(OFFSET)), sums[r]);
                    }
                }
            }
            for r in 0..R {
                _mm512_mask_storeu_ps(y.add(r * stride), mask, sums[r]);
            }
        }
    }
}
