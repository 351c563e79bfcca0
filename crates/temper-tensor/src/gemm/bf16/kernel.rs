//! The micro-kernel for each way of bf16 products.
#![allow(unsafe_code)] // vector intrinsics on pointers with strides
#![allow(clippy::needless_range_loop)] // loops over registers, which are named by row and panel

use std::ptr;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
use super::{Level, SIDE, STEPS, WORDS};
use crate::isa::{Dot, Isa, mul_add, multiversion};
use crate::panels::LANES;

/// Where a product's operands lie; C's rows in floats.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Rows of C, at most 32.
    pub rows: usize,
    /// Columns of C, at most 32.
    pub columns: usize,
    /// One strip of 16 rows or two; the second may be null.
    pub a: [*const u32; 2],
    /// One panel of 16 columns or two; the second may be null.
    pub b: [*const u32; 2],
    /// Blocks that stand for 32 steps of the reduction in both operands: one, or with tiles three.
    pub parts: usize,
    /// Length of the reduction.
    pub blocks: usize,
    /// C for each panel; row i lies at `i * c_row`.
    pub c: [*mut f32; 2],
    pub c_row: usize,
    /// Whether the chain starts from the old value of C.
    pub acc: bool,
}

/// This thread's tile registers, configured while it lives where the way needs them.
pub(crate) struct Tiles {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    _amx: Option<amx::Tiles>,
}

impl Tiles {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub(crate) fn new(dot: Dot) -> Self {
        // SAFETY: a level is only ever in use where the processor and the kernel offer it.
        Self { _amx: (dot == Dot::Amx).then(|| unsafe { amx::Tiles::new() }) }
    }

    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    pub(crate) fn new(_dot: Dot) -> Self {
        Self {}
    }
}

/// Runs the kernel; what sticks out of the output is computed aside.
///
/// # Safety
/// Strips and panels have `blocks` blocks; C's rows and columns are valid, and written by no one else meanwhile; with
/// tiles, a [`Tiles`] lives on this thread.
pub(crate) unsafe fn place(level: Level, block: &Block) {
    let whole = block.columns.is_multiple_of(LANES) && (level.1 != Dot::Amx || block.rows.is_multiple_of(LANES));
    if whole {
        // SAFETY: the caller vouches for the addresses.
        return unsafe { run(level, block) };
    }
    let mut aside = [0.0_f32; SIDE * SIDE];
    let at = |i: usize, p: usize| i * SIDE + p * LANES;
    // SAFETY: a row of C has `columns` values, which fit `aside`.
    unsafe {
        for i in 0..block.rows {
            for p in 0..block.columns.div_ceil(LANES) {
                let (c, width) = (block.c[p].add(i * block.c_row), LANES.min(block.columns - p * LANES));
                ptr::copy_nonoverlapping(c, aside.as_mut_ptr().add(at(i, p)), width);
            }
        }
        let c = aside.as_mut_ptr();
        run(level, &Block { c: [c, c.add(LANES)], c_row: SIDE, ..*block });
        for i in 0..block.rows {
            for p in 0..block.columns.div_ceil(LANES) {
                let (c, width) = (block.c[p].add(i * block.c_row), LANES.min(block.columns - p * LANES));
                ptr::copy_nonoverlapping(aside.as_ptr().add(at(i, p)), c, width);
            }
        }
    }
}

/// Floating-point operations of one step of [`peak`].
pub(crate) fn peak_flops(dot: Dot) -> usize {
    match dot {
        Dot::Amx => 4 * LANES * LANES * 2 * STEPS,
        _ => 16 * LANES * 4,
    }
}

/// `steps` steps of products on registers alone, by `vdpbf16ps` or tiles.
pub(crate) fn peak(dot: Dot, steps: usize) {
    let _tiles = Tiles::new(dot);
    match dot {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        // SAFETY: the tiles are configured.
        Dot::Amx => unsafe { amx::peak(steps) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level is only ever in use where the processor offers it.
        Dot::Avx512 => unsafe { avx512::peak(steps) },
        _ => {}
    }
}

/// # Safety
/// As for [`place`]; C's columns, and with tiles its rows, are multiples of 16.
unsafe fn run((isa, dot): Level, block: &Block) {
    match dot {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        // SAFETY: the caller vouches for addresses and level.
        Dot::Amx => unsafe { amx::run(block) },
        _ if block.parts != 1 => unreachable!("sums of three are multiplied on tiles alone"),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller vouches for addresses and level.
        Dot::Avx512 => unsafe { avx512::run(block) },
        // SAFETY: the caller vouches for the addresses.
        _ => unsafe { widened(isa, block) },
    }
}

/// # Safety
/// As for [`run`].
unsafe fn widened(isa: Isa, block: &Block) {
    for row in 0..block.rows {
        for p in (0..2).filter(|p| !block.b[*p].is_null()) {
            let skipped = row % LANES * LANES;
            // SAFETY: the caller vouches for the addresses.
            let (a, b, c) = unsafe {
                (
                    std::slice::from_raw_parts(block.a[row / LANES].add(skipped), block.blocks * WORDS - skipped),
                    std::slice::from_raw_parts(block.b[p], block.blocks * WORDS),
                    &mut *block.c[p].add(row * block.c_row).cast::<[f32; LANES]>(),
                )
            };
            if !block.acc {
                c.fill(0.0);
            }
            chain_at(isa, a, b, c);
        }
    }
}

/// One row: of each pair first the odd product, then the even one. A product of two bf16 is exact in f32, so that it makes no
/// difference whether the addition is fused.
#[inline(always)]
#[allow(clippy::inline_always)] // compiled into each level's function
fn chain_body<const FMA: bool>(a: &[u32], b: &[u32], c: &mut [f32; LANES]) {
    let mut sum = *c;
    for (a, b) in a.chunks(WORDS).zip(b.chunks_exact(WORDS)) {
        for (pair, lanes) in a.iter().zip(b.as_chunks::<LANES>().0) {
            let (even, odd) = (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000));
            for l in 0..LANES {
                sum[l] = mul_add::<FMA>(odd, f32::from_bits(lanes[l] & 0xffff_0000), sum[l]);
                sum[l] = mul_add::<FMA>(even, f32::from_bits(lanes[l] << 16), sum[l]);
            }
        }
    }
    *c = sum;
}

multiversion! {
    #[allow(dead_code)] // the level is always given
    fn chain(a: &[u32], b: &[u32], c: &mut [f32; LANES]) = chain_body, chain_at;
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{Block, LANES, WORDS};

    /// Most rows of one call: with two panels 16 sums, for which the loads suffice.
    const ROWS: usize = 8;

    /// Sixteen chains of products.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn peak(steps: usize) {
        let mut sums = [_mm512_setzero_ps(); 16];
        let x = std::hint::black_box(_mm512_set1_epi32(0x3f80_3f80));
        // SAFETY: both vectors have 512 bits.
        let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
        for _ in 0..steps {
            for i in 0..16 {
                sums[i] = _mm512_dpbf16_ps(sums[i], x, x);
            }
        }
        std::hint::black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn run(block: &Block) {
        for row in (0..block.rows).step_by(ROWS) {
            let part = Part {
                a: block.a[row / LANES].wrapping_add(row % LANES * LANES),
                c: block.c.map(|c| c.wrapping_add(row * block.c_row)),
            };
            let rows = ROWS.min(block.rows - row);
            // SAFETY: the caller vouches for the addresses.
            unsafe {
                if block.b[1].is_null() {
                    part.run::<1>(rows, block);
                } else {
                    part.run::<2>(rows, block);
                }
            }
        }
    }

    /// At most 8 rows of a strip.
    struct Part {
        a: *const u32,
        c: [*mut f32; 2],
    }

    impl Part {
        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn run<const P: usize>(&self, rows: usize, block: &Block) {
            // SAFETY: the caller vouches for the addresses.
            unsafe {
                match rows {
                    1 => self.kernel::<1, P>(block),
                    2 => self.kernel::<2, P>(block),
                    3 => self.kernel::<3, P>(block),
                    4 => self.kernel::<4, P>(block),
                    5 => self.kernel::<5, P>(block),
                    6 => self.kernel::<6, P>(block),
                    7 => self.kernel::<7, P>(block),
                    _ => self.kernel::<8, P>(block),
                }
            }
        }

        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn kernel<const R: usize, const P: usize>(&self, block: &Block) {
            // SAFETY: the caller vouches for every address of the block; both vectors have 512 bits.
            unsafe {
                let pairs = |v: __m512i| std::mem::transmute::<__m512i, __m512bh>(v);
                let mut sums: [[__m512; P]; R] = [[_mm512_setzero_ps(); P]; R];
                if block.acc {
                    for i in 0..R {
                        for p in 0..P {
                            sums[i][p] = _mm512_loadu_ps(self.c[p].add(i * block.c_row));
                        }
                    }
                }
                let (mut a, mut b) = (self.a, block.b);
                for _ in 0..block.blocks {
                    for pair in 0..LANES {
                        let mut lanes = [_mm512_loadu_si512(b[0].cast()); P];
                        for p in 1..P {
                            lanes[p] = _mm512_loadu_si512(b[p].cast());
                        }
                        for p in 0..P {
                            b[p] = b[p].wrapping_add(LANES);
                        }
                        for i in 0..R {
                            let x = _mm512_set1_epi32(a.add(i * LANES + pair).read().cast_signed());
                            for p in 0..P {
                                sums[i][p] = _mm512_dpbf16_ps(sums[i][p], pairs(x), pairs(lanes[p]));
                            }
                        }
                    }
                    a = a.wrapping_add(WORDS);
                }
                for i in 0..R {
                    for p in 0..P {
                        _mm512_storeu_ps(self.c[p].add(i * block.c_row), sums[i][p]);
                    }
                }
            }
        }
    }
}
