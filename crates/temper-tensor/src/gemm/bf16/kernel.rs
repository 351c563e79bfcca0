//! The micro-kernel for each way of bf16 products.
#![allow(unsafe_code)] // vector intrinsics on pointers with strides
#![allow(clippy::needless_range_loop)] // loops over registers, which are named by row and panel

use std::mem::MaybeUninit;
use std::ptr;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
use super::{DEPTH, Level, SIDE, STEPS, WORDS};
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
    /// Length of the reduction in blocks, at least one.
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

/// By multiply-adds in f32: of each pair first the odd product, then the even one. A product of two bf16 is exact in f32
/// within its range, so that it makes no difference whether the addition is fused.
///
/// # Safety
/// As for [`run`].
#[allow(clippy::large_stack_arrays)] // 27 KiB that nothing initialises
unsafe fn widened(isa: Isa, block: &Block) {
    let most = match isa {
        Isa::Avx512 => MOST,
        Isa::Avx2 => 6,
        Isa::Portable => 3,
    };
    let mut row = 0;
    while row < block.rows {
        let rows = most.min(LANES - row % LANES).min(block.rows - row);
        for from in (0..block.blocks).step_by(DEPTH) {
            let count = DEPTH.min(block.blocks - from);
            // The rows as they are broadcast, for both panels.
            let mut wide = [const { MaybeUninit::<Wide>::uninit() }; MOST * DEPTH];
            let wide = &mut wide[..rows * count];
            // SAFETY: the caller vouches for the addresses.
            let a = unsafe {
                let first = block.a[row / LANES].add(from * WORDS + row % LANES * LANES);
                std::slice::from_raw_parts(first, (count - 1) * WORDS + rows * LANES)
            };
            widen_at(isa, a, rows, wide);
            // SAFETY: `widen` wrote a line for each row of each block.
            let a = unsafe { std::slice::from_raw_parts(wide.as_ptr().cast::<Wide>(), wide.len()) };
            for p in (0..2).filter(|p| !block.b[*p].is_null()) {
                let (c, c_row) = (block.c[p].wrapping_add(row * block.c_row), block.c_row);
                let out = Sums { c, c_row, rows, acc: block.acc || from > 0 };
                // SAFETY: as above.
                let b = unsafe { std::slice::from_raw_parts(block.b[p].add(from * WORDS), count * WORDS) };
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: the caller vouches for addresses and level.
                    Isa::Avx2 => unsafe { avx2::chains(a, b, &out) },
                    _ => chains_at(isa, a, b, &out),
                }
            }
        }
        row += rows;
    }
}

/// Most rows that are multiplied at once.
const MOST: usize = 12;

/// A row of a block: its 16 odd values, then the even ones.
type Wide = [[f32; LANES]; 2];

/// `rows` rows of each block, in `[blocks][rows]`.
#[inline(always)]
#[allow(clippy::inline_always)] // compiled into each level's function
fn widen_body<const FMA: bool>(a: &[u32], rows: usize, wide: &mut [MaybeUninit<Wide>]) {
    for (a, wide) in a.chunks(WORDS).zip(wide.chunks_exact_mut(rows)) {
        for (pairs, wide) in a.as_chunks::<LANES>().0.iter().zip(wide) {
            wide.write([pairs.map(odd), pairs.map(even)]);
        }
    }
}

/// The values of a pair.
#[inline(always)]
#[allow(clippy::inline_always)] // as above
fn odd(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}

#[inline(always)]
#[allow(clippy::inline_always)] // as above
fn even(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

/// Rows of 16 columns of C, at most [`MOST`].
pub(crate) struct Sums {
    c: *mut f32,
    c_row: usize,
    rows: usize,
    acc: bool,
}

/// Sixteen chains for each row.
#[inline(always)]
#[allow(clippy::inline_always)] // as above
fn chains_body<const FMA: bool>(a: &[Wide], b: &[u32], out: &Sums) {
    match out.rows {
        1 => chains::<FMA, 1>(a, b, out),
        2 => chains::<FMA, 2>(a, b, out),
        3 => chains::<FMA, 3>(a, b, out),
        4 => chains::<FMA, 4>(a, b, out),
        5 => chains::<FMA, 5>(a, b, out),
        6 => chains::<FMA, 6>(a, b, out),
        7 => chains::<FMA, 7>(a, b, out),
        8 => chains::<FMA, 8>(a, b, out),
        9 => chains::<FMA, 9>(a, b, out),
        10 => chains::<FMA, 10>(a, b, out),
        11 => chains::<FMA, 11>(a, b, out),
        _ => chains::<FMA, 12>(a, b, out),
    }
}

#[inline(always)]
#[allow(clippy::inline_always)] // as above
fn chains<const FMA: bool, const R: usize>(a: &[Wide], b: &[u32], out: &Sums) {
    let mut sums = [[0.0_f32; LANES]; R];
    let c = |i: usize| out.c.wrapping_add(i * out.c_row).cast::<[f32; LANES]>();
    if out.acc {
        for i in 0..R {
            // SAFETY: the caller vouches for the rows.
            sums[i] = unsafe { *c(i) };
        }
    }
    for (rows, b) in a.as_chunks::<R>().0.iter().zip(b.as_chunks::<WORDS>().0) {
        for (pair, words) in b.as_chunks::<LANES>().0.iter().enumerate() {
            for (half, lanes) in [words.map(odd), words.map(even)].into_iter().enumerate() {
                for i in 0..R {
                    for l in 0..LANES {
                        sums[i][l] = mul_add::<FMA>(rows[i][half][pair], lanes[l], sums[i][l]);
                    }
                }
            }
        }
    }
    for i in 0..R {
        // SAFETY: as above.
        unsafe { *c(i) = sums[i] };
    }
}

multiversion! {
    #[allow(dead_code)] // the level is always given
    fn widen_rows(a: &[u32], rows: usize, wide: &mut [MaybeUninit<Wide>]) = widen_body, widen_at;
    #[allow(dead_code)] // as above
    fn chains_of(a: &[Wide], b: &[u32], out: &Sums) = chains_body, chains_at;
}

/// [`chains`] on vectors of 8: what the compiler makes of it there keeps some sums in memory.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, __m256i, _mm256_and_si256, _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
        _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps,
    };

    use super::{LANES, Sums, WORDS, Wide};

    /// Lanes of one vector.
    const HALF: usize = LANES / 2;

    /// # Safety
    /// `out` has its rows of 16 values, at most 6; the processor has the instructions.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn chains(a: &[Wide], b: &[u32], out: &Sums) {
        // SAFETY: the caller vouches for the rows.
        unsafe {
            match out.rows {
                1 => kernel::<1>(a, b, out),
                2 => kernel::<2>(a, b, out),
                3 => kernel::<3>(a, b, out),
                4 => kernel::<4>(a, b, out),
                5 => kernel::<5>(a, b, out),
                _ => kernel::<6>(a, b, out),
            }
        }
    }

    #[target_feature(enable = "avx2")]
    fn odd(pairs: __m256i) -> __m256 {
        _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-0x1_0000)))
    }

    #[target_feature(enable = "avx2")]
    fn even(pairs: __m256i) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn kernel<const R: usize>(a: &[Wide], b: &[u32], out: &Sums) {
        // SAFETY: a line has 16 words; the caller vouches for C.
        unsafe {
            let mut sums: [[__m256; 2]; R] = [[_mm256_setzero_ps(); 2]; R];
            if out.acc {
                for i in 0..R {
                    for h in 0..2 {
                        sums[i][h] = _mm256_loadu_ps(out.c.add(i * out.c_row + HALF * h));
                    }
                }
            }
            for (rows, b) in a.as_chunks::<R>().0.iter().zip(b.as_chunks::<WORDS>().0) {
                for (pair, words) in b.as_chunks::<LANES>().0.iter().enumerate() {
                    let words = [0, HALF].map(|at| _mm256_loadu_si256(words[at..].as_ptr().cast()));
                    for (half, lanes) in [words.map(|w| odd(w)), words.map(|w| even(w))].into_iter().enumerate() {
                        for i in 0..R {
                            let x = _mm256_set1_ps(rows[i][half][pair]);
                            for h in 0..2 {
                                sums[i][h] = _mm256_fmadd_ps(x, lanes[h], sums[i][h]);
                            }
                        }
                    }
                }
            }
            for i in 0..R {
                for h in 0..2 {
                    _mm256_storeu_ps(out.c.add(i * out.c_row + HALF * h), sums[i][h]);
                }
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::bf16::pack::pair;
    use crate::gemm::tests::random;
    use crate::isa::levels;

    /// Random blocks of pairs.
    fn words(blocks: usize, seed: u64) -> Vec<u32> {
        random(2 * blocks * WORDS, seed).as_chunks::<2>().0.iter().map(|[a, b]| pair(*a, *b)).collect()
    }

    /// Row `i` of a strip by column `j` of a panel: of each pair the odd product, then the even one.
    fn chain(a: &[u32], i: usize, b: &[u32], j: usize, start: f32) -> f32 {
        let pairs = a
            .chunks(WORDS)
            .zip(b.chunks(WORDS))
            .flat_map(|(a, b)| (0..LANES).map(move |pair| (a[i * LANES + pair], b[pair * LANES + j])));
        pairs.fold(start, |sum, (a, b)| even(a).mul_add(even(b), odd(a).mul_add(odd(b), sum)))
    }

    #[test]
    fn every_number_of_rows_follows_the_definition_at_every_level() {
        let (a, b, old) = (words(2, 1), words(2, 2), random(MOST * LANES, 3));
        for (isa, rows) in levels().into_iter().flat_map(|isa| (1..=MOST).map(move |rows| (isa, rows))) {
            let mut wide = vec![MaybeUninit::<Wide>::uninit(); 2 * rows];
            widen_at(isa, &a, rows, &mut wide);
            // SAFETY: a line was written for each row of each block.
            let wide: Vec<Wide> = wide.into_iter().map(|line| unsafe { line.assume_init() }).collect();
            let mut c = old.clone();
            chains_at(isa, &wide, &b, &Sums { c: c.as_mut_ptr(), c_row: LANES, rows, acc: true });
            for (at, (got, old)) in c.iter().zip(&old).enumerate() {
                let want = if at < rows * LANES { chain(&a, at / LANES, &b, at % LANES, *old) } else { *old };
                assert_eq!(*got, want, "{isa:?} {rows} rows, {at}");
            }
        }
    }

    /// More of the reduction than is widened at once, both strips, and both panels.
    #[test]
    fn a_long_reduction_is_one_chain() {
        let blocks = 2 * DEPTH + 1;
        let (a, b) = ([words(blocks, 4), words(blocks, 5)], [words(blocks, 6), words(blocks, 7)]);
        for (isa, rows) in levels().into_iter().flat_map(|isa| [1, 15, 17, SIDE].map(|rows| (isa, rows))) {
            let mut c = vec![f32::NAN; rows * SIDE];
            let at = c.as_mut_ptr();
            let block = Block {
                rows,
                columns: SIDE,
                a: [a[0].as_ptr(), a[1].as_ptr()],
                b: [b[0].as_ptr(), b[1].as_ptr()],
                parts: 1,
                blocks,
                c: [at, at.wrapping_add(LANES)],
                c_row: SIDE,
                acc: false,
            };
            // SAFETY: strips and panels have so many blocks, and `c` so many rows.
            unsafe { place((isa, Dot::Fma), &block) };
            for (at, got) in c.iter().enumerate() {
                let (i, j) = (at / SIDE, at % SIDE);
                let want = chain(&a[i / LANES], i % LANES, &b[j / LANES], j % LANES, 0.0);
                assert_eq!(*got, want, "{isa:?} {rows} rows, row {i}, column {j}");
            }
        }
    }
}
