//! What this machine can do at most: multiply-adds, bf16 products and memory traffic, on all threads of rayon's pool at once.
//!
//! Each figure is the best of many short windows, so that other work on the machine lowers it little.
#![allow(unsafe_code)] // vector intrinsics

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::buf::Buf;
use crate::gemm::bf16;
use crate::isa::{Dot, Isa, dot, isa, multiversion};
use crate::panels::LANES;

/// Ceilings of the machine, in units of 1e9 a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Floating-point operations of f32 products on registers (a multiply-add is two): by multiply-adds, or on tiles, where one takes six
    /// of bf16 ([`crate::gemm`]).
    pub f32_flops: f64,
    /// Floating-point operations of bf16 products with f32 sums on registers, by the way in use ([`dot`]).
    pub bf16_flops: f64,
    /// Bytes read from memory.
    pub read: f64,
    /// Bytes moved by a copy, those read and those written.
    pub copy: f64,
}

/// Windows of one figure, and the bytes that memory figures go through.
const WINDOWS: usize = 24;
const BYTES: usize = 256 << 20;

/// Measures the ceilings; about a second, and 512 MiB for as long.
pub fn ceilings() -> Ceilings {
    let threads = rayon::current_num_threads() as f64;
    let flops = |per_step: usize, run: &(dyn Fn(usize) + Sync)| {
        let steps = calibrated(run);
        let seconds = best(WINDOWS, || drop(rayon::broadcast(|_| run(steps))));
        threads * (steps * per_step) as f64 / seconds / 1e9
    };
    let (isa, dot) = (isa(), dot());
    let multiply_adds = flops(multiply_adds::FLOPS, &|steps| multiply_adds::run(isa, steps));
    let bf16_flops = match dot {
        Dot::Fma => multiply_adds,
        _ => flops(bf16::peak_flops(dot), &|steps| bf16::peak(dot, steps)),
    };
    let f32_flops = if dot == Dot::Amx { multiply_adds.max(bf16_flops / 6.0) } else { multiply_adds };
    let (from, mut to) = (Buf::zeros(BYTES / 4), Buf::zeros(BYTES / 4));
    let part = from.len().div_ceil(4 * rayon::current_num_threads());
    let read = best(WINDOWS / 4, || {
        let sum: f32 = from.par_chunks(part).map(total).sum();
        black_box(sum);
    });
    let copy = best(WINDOWS / 4, || {
        from.par_chunks(part).zip(to.par_chunks_mut(part)).for_each(|(from, to)| to.copy_from_slice(from));
    });
    Ceilings { f32_flops, bf16_flops, read: BYTES as f64 / read / 1e9, copy: 2.0 * BYTES as f64 / copy / 1e9 }
}

/// The shortest of `windows` runs, in seconds.
pub fn best(windows: usize, mut run: impl FnMut()) -> f64 {
    let mut least = Duration::MAX;
    for _ in 0..windows {
        let start = Instant::now();
        run();
        least = least.min(start.elapsed());
    }
    least.as_secs_f64().max(1e-9)
}

/// Steps that take about two milliseconds.
fn calibrated(run: &(dyn Fn(usize) + Sync)) -> usize {
    const TRIAL: usize = 20_000;
    (TRIAL as f64 * 2e-3 / best(5, || run(TRIAL))).max(1.0) as usize
}

#[inline(always)]
#[allow(clippy::inline_always)] // compiled into each level's function
fn total_body<const FMA: bool>(values: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8 * LANES];
    for chunk in values.as_chunks::<{ 8 * LANES }>().0 {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
    }
    sums.iter().sum()
}

multiversion! {
    fn total(values: &[f32]) -> f32 = total_body, total_at;
}

mod multiply_adds {
    use super::{Isa, LANES, black_box};

    /// Chains of multiply-adds that run side by side, 16 lanes each.
    const CHAINS: usize = 12;
    /// Operations of one step.
    pub(super) const FLOPS: usize = CHAINS * LANES * 2;

    /// `steps` steps on registers.
    pub(super) fn run(isa: Isa, steps: usize) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level is only in use where the processor offers it.
            Isa::Avx512 => unsafe { avx512(steps) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { avx2(2 * steps) },
            _ => portable(steps),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn avx512(steps: usize) {
        use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
        let (factor, term) = black_box((_mm512_set1_ps(0.5), _mm512_set1_ps(1.0)));
        let mut sums = [term; CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(steps: usize) {
        use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
        let (factor, term) = black_box((_mm256_set1_ps(0.5), _mm256_set1_ps(1.0)));
        let mut sums = [term; CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
    }

    fn portable(steps: usize) {
        let (factor, term) = black_box(([0.5_f32; LANES], [1.0_f32; LANES]));
        let mut sums = [term; CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                for l in 0..LANES {
                    sum[l] = sum[l] * factor[l] + term[l];
                }
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_in_the_range_of_real_machines() {
        let c = ceilings();
        assert!(c.f32_flops > 0.1 && c.f32_flops < 1e5, "{c:?}");
        assert!(c.bf16_flops > 0.1 && c.bf16_flops < 1e6, "{c:?}");
        assert!(c.read > 0.1 && c.read < 1e4 && c.copy > 0.1 && c.copy < 1e4, "{c:?}");
    }
}
