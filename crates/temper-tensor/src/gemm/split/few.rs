//! `y = x w^T` for a few rows, by multiply-adds, with the bits of the tiles (for values above 2^-110): reading the weights takes longer
//! than splitting them in registers, and packing them would take longer still.
#![allow(unsafe_code)] // vector intrinsics on pointers with strides, and the mode of rounding

use std::arch::asm;
use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::{ORDER, PARTS, pack::nearest};
use crate::gemm::bf16::STEPS;
use crate::gemm::{FETCH_ROWS, Output, share};
use crate::panels::{LANES, Panels};

/// Most rows for which this is faster than tiles.
pub(super) const MOST: usize = 2;
/// Floats between what is used and what is fetched ahead.
const AHEAD: usize = 512;
/// Panels of one task.
const PANELS: usize = 8;

/// A value's parts, each a f32.
type Parts = [f32; PARTS];

fn parts(x: f32) -> Parts {
    let nearest = |x: f32| f32::from_bits(x.to_bits().wrapping_add(0x8000) & 0xffff_0000);
    let first = nearest(x);
    let second = nearest(x - first);
    [first, second, x - first - second]
}

/// While it lives, this thread treats values below the normal range as zero, as tiles do.
struct Flush(u32);

impl Flush {
    /// Results (bit 15) and operands (bit 6) of MXCSR.
    const ZERO: u32 = 1 << 15 | 1 << 6;

    fn new() -> Self {
        let mut old = 0_u32;
        // SAFETY: reads the register into a local.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut old, options(nostack, preserves_flags)) };
        Self::set(old | Self::ZERO);
        Self(old)
    }

    fn set(mode: u32) {
        // SAFETY: exceptions stay masked; until the old mode is back, this module's kernel alone computes. As the compiler has to
        // assume that memory is written, no load, and so no sum, is moved across. Rust's rules have no word for another mode than the
        // default one; what they guard against is that constants are folded under the wrong mode, and the kernel has none.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack, preserves_flags)) };
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        Self::set(self.0);
    }
}

pub(super) fn linear(x: &[f32], m: usize, w: &Panels, y: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    let x: Vec<Parts> = x.iter().copied().map(parts).collect();
    let out = Output(y.as_mut_ptr());
    share(w.count().div_ceil(PANELS), m.max(FETCH_ROWS) * n * k, |task| {
        let _flush = Flush::new();
        for panel in task * PANELS..w.count().min((task + 1) * PANELS) {
            let values = w.data()[panel * LANES * k..][..LANES * k].as_chunks().0;
            let width = LANES.min(n - panel * LANES);
            let c = |row: usize| out.get().wrapping_add(row * n + panel * LANES);
            let (x, c) = ([0, 1].map(|row| x.get(row * k..(row + 1) * k)), [0, 1].map(c));
            // SAFETY: rows of x and y exist, and this task alone writes these columns of y; tiles are in use, so the processor has
            // AVX-512.
            unsafe {
                match x {
                    [Some(first), Some(second)] => rows([first, second], values, c, width, acc),
                    [Some(row), None] => rows([row], values, [c[0]], width, acc),
                    [None, _] => {}
                }
            }
        }
    });
}

/// R rows by one panel; `width` lanes of it are written.
///
/// # Safety
/// Every c has `width` values that no one else uses; the processor has AVX-512.
#[target_feature(enable = "avx512f")]
unsafe fn rows<const R: usize>(x: [&[Parts]; R], panel: &[[f32; LANES]], c: [*mut f32; R], width: usize, acc: bool) {
    let mut sums = [[0.0_f32; LANES]; R];
    if acc {
        for (sum, c) in sums.iter_mut().zip(c) {
            // SAFETY: the caller vouches for `width` values, at most 16.
            unsafe { c.copy_to_nonoverlapping(sum.as_mut_ptr(), width) };
        }
    }
    // SAFETY: 16 lanes have 64 bytes.
    let mut sums = sums.map(|sum| unsafe { _mm512_loadu_ps(sum.as_ptr()) });
    for (start, block) in (0..).step_by(STEPS).zip(panel.chunks(STEPS)) {
        let mut chains = [[[_mm512_setzero_ps(); ORDER.len()]; R]; 2];
        for (at, pair) in (start..).step_by(2).zip(block.chunks(2)) {
            step(x.map(|x| &x[at]), &pair[0], &mut chains[0]);
            if let Some(odd) = pair.get(1) {
                step(x.map(|x| &x[at + 1]), odd, &mut chains[1]);
            }
        }
        let [even, odd] = chains;
        for r in 0..R {
            for p in 0..ORDER.len() {
                sums[r] = _mm512_add_ps(sums[r], _mm512_add_ps(even[r][p], odd[r][p]));
            }
        }
    }
    for (sum, c) in sums.into_iter().zip(c) {
        let mut lanes = [0.0_f32; LANES];
        // SAFETY: as above.
        unsafe {
            _mm512_storeu_ps(lanes.as_mut_ptr(), sum);
            c.copy_from_nonoverlapping(lanes.as_ptr(), width);
        }
    }
}

/// One step of the reduction.
#[inline]
#[target_feature(enable = "avx512f")]
fn step<const R: usize>(x: [&Parts; R], w: &[f32; LANES], chains: &mut [[__m512; ORDER.len()]; R]) {
    _mm_prefetch::<_MM_HINT_T0>(w.as_ptr().wrapping_add(AHEAD).cast());
    // SAFETY: 16 lanes have 64 bytes.
    let w = unsafe { _mm512_loadu_ps(w.as_ptr()) };
    let first = nearest(w);
    let rest = _mm512_sub_ps(w, first);
    let second = nearest(rest);
    let w = [first, second, _mm512_sub_ps(rest, second)];
    for (x, chains) in x.into_iter().zip(chains) {
        for (chain, (left, right)) in chains.iter_mut().zip(ORDER) {
            *chain = _mm512_fmadd_ps(_mm512_set1_ps(x[left]), w[right], *chain);
        }
    }
}
