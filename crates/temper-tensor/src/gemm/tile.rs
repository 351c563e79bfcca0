//! The micro-kernel that every product and attention share, for each instruction-set level.
#![allow(unsafe_code)] // vector intrinsics on pointers with strides
#![allow(clippy::needless_range_loop)] // loops over registers, which are named by row and panel

use crate::isa::{Isa, isa};
use crate::panels::LANES;

/// Most rows that one call takes.
pub(crate) const ROWS: usize = 12;

/// Where a tile's operands lie; strides in floats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    /// Rows of the tile, at most [`ROWS`].
    pub rows: usize,
    /// Length of the reduction.
    pub depth: usize,
    /// First value of A; row i, step r lies at `i * a_row + r * a_k`.
    pub a: *const f32,
    pub a_row: usize,
    pub a_k: usize,
    /// Two panels of 16 lanes; step r lies at `r * b_k`. The second may be null.
    pub b: [*const f32; 2],
    pub b_k: usize,
    /// What is fetched from memory meanwhile. The kernels of other levels than AVX2 do without.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub next: Next,
    /// Outputs for the two panels; row i lies at `i * c_row`.
    pub c: [*mut f32; 2],
    pub c_row: usize,
    /// Whether the chain starts from the old value of C.
    pub acc: bool,
}

/// What is fetched of the panels that are multiplied after a tile's own. Each row fetches a share of them, so that memory is busy
/// all the time and not only while the first rows run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Next {
    /// Floats from B to the share of the tile's first row; those of the others follow it.
    pub ahead: usize,
    /// Floats in the share of one row; zero where nothing is worth fetching.
    pub share: usize,
}

impl Next {
    pub(super) const NONE: Self = Self { ahead: 0, share: 0 };
}

/// The micro-kernel: `c[i][lane] (= or +=) sum over r < depth of a[i * a_row + r * a_k] * b[r * b_k + lane]` for
/// `i < rows` and 16 lanes of `b0` (and of `b1`, unless it is null), one ascending chain an element. Strides in floats.
///
/// # Safety
/// `rows <= 12`; every address that the formula names is valid, `c0` and `c1` for writing and apart from the inputs.
#[inline]
pub(crate) unsafe fn tile(
    rows: usize,
    depth: usize,
    a: *const f32,
    a_row: usize,
    a_k: usize,
    b0: *const f32,
    b1: *const f32,
    b_k: usize,
    c0: *mut f32,
    c1: *mut f32,
    c_row: usize,
    acc: bool,
) {
    let t = Tile { rows, depth, a, a_row, a_k, b: [b0, b1], b_k, next: Next::NONE, c: [c0, c1], c_row, acc };
    // SAFETY: the caller vouches for the addresses, `isa()` for the instructions.
    unsafe { tile_at(isa(), &t) }
}

/// [`tile`] at a given level.
///
/// # Safety
/// As for [`tile`]; the processor offers `isa`.
#[inline]
pub(crate) unsafe fn tile_at(isa: Isa, t: &Tile) {
    debug_assert!(t.rows <= ROWS);
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller vouches for both.
        Isa::Avx512 => unsafe { avx512::tile(t) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller vouches for both.
        Isa::Avx2 => unsafe { avx2::tile(t) },
        // SAFETY: the caller vouches for the addresses.
        _ => unsafe { portable::tile(t) },
    }
}

/// Calls `$kernel::<R, P>` for the tile's number of rows, which is at most the last one listed.
macro_rules! by_rows {
    ($t:expr, $rows:expr, $kernel:ident, $p:literal, [$($r:literal),+]) => {
        match $rows {
            // SAFETY: the caller of the enclosing function vouches for the addresses.
            $($r => unsafe { $kernel::<$r, $p>($t) },)+
            _ => {}
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::Tile;
    use std::arch::x86_64::{
        __m512, _MM_HINT_T0, _mm_prefetch, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };

    /// Floats between what is used and what is fetched ahead: 32 steps of a panel.
    const AHEAD: usize = 512;

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn tile(t: &Tile) {
        if t.b[1].is_null() {
            by_rows!(t, t.rows, kernel, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        } else {
            by_rows!(t, t.rows, kernel, 2, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn kernel<const R: usize, const P: usize>(t: &Tile) {
        // SAFETY: the caller vouches for every address of the tile.
        unsafe {
            let mut sums: [[__m512; P]; R] = [[_mm512_setzero_ps(); P]; R];
            if t.acc {
                for i in 0..R {
                    for p in 0..P {
                        sums[i][p] = _mm512_loadu_ps(t.c[p].add(i * t.c_row));
                    }
                }
            }
            let s = t.a_row;
            let (mut a, mut b) = ([0, 3, 6, 9].map(|i| t.a.wrapping_add(i * s)), t.b);
            for _ in 0..t.depth {
                let mut lanes = [_mm512_setzero_ps(); P];
                for p in 0..P {
                    lanes[p] = _mm512_loadu_ps(b[p]);
                    if R >= 8 {
                        // Weights that come from memory are used by all rows: fetch ahead.
                        _mm_prefetch::<_MM_HINT_T0>(b[p].wrapping_add(AHEAD).cast());
                    }
                    b[p] = b[p].wrapping_add(t.b_k);
                }
                for i in 0..R {
                    let x = _mm512_set1_ps(*a[i / 3].add(i % 3 * s));
                    for p in 0..P {
                        sums[i][p] = _mm512_fmadd_ps(x, lanes[p], sums[i][p]);
                    }
                }
                for pointer in &mut a {
                    *pointer = pointer.wrapping_add(t.a_k);
                }
            }
            for i in 0..R {
                for p in 0..P {
                    _mm512_storeu_ps(t.c[p].add(i * t.c_row), sums[i][p]);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::Tile;
    use std::arch::x86_64::{
        __m256, _MM_HINT_T0, _mm_prefetch, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn tile(t: &Tile) {
        for i in (0..t.rows).step_by(6) {
            for p in 0..2 {
                if !t.b[p].is_null() {
                    // SAFETY: row i is one of the tile's.
                    let part = unsafe { t.part(i, p) };
                    let rows = part.rows.min(6);
                    if t.next.share == 0 {
                        by_rows!(&part, rows, kernel, false, [1, 2, 3, 4, 5, 6]);
                    } else {
                        by_rows!(&part, rows, kernel, true, [1, 2, 3, 4, 5, 6]);
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn kernel<const R: usize, const FETCH: bool>(t: &Tile) {
        // SAFETY: the caller vouches for every address of the tile.
        unsafe {
            let mut sums: [[__m256; 2]; R] = [[_mm256_setzero_ps(); 2]; R];
            if t.acc {
                for i in 0..R {
                    for h in 0..2 {
                        sums[i][h] = _mm256_loadu_ps(t.c[0].add(i * t.c_row + 8 * h));
                    }
                }
            }
            let s = t.a_row;
            let (mut a, mut b) = ([0, 3].map(|i| t.a.wrapping_add(i * s)), t.b[0]);
            let (mut next, next_k) = (b.wrapping_add(t.next.ahead), (R * t.next.share).div_ceil(t.depth));
            for _ in 0..t.depth {
                let lanes = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
                if FETCH {
                    _mm_prefetch::<_MM_HINT_T0>(next.cast());
                    next = next.wrapping_add(next_k);
                }
                b = b.wrapping_add(t.b_k);
                for i in 0..R {
                    let x = _mm256_set1_ps(*a[i / 3].add(i % 3 * s));
                    for h in 0..2 {
                        sums[i][h] = _mm256_fmadd_ps(x, lanes[h], sums[i][h]);
                    }
                }
                for pointer in &mut a {
                    *pointer = pointer.wrapping_add(t.a_k);
                }
            }
            for i in 0..R {
                for h in 0..2 {
                    _mm256_storeu_ps(t.c[0].add(i * t.c_row + 8 * h), sums[i][h]);
                }
            }
        }
    }
}

mod portable {
    use super::{LANES, Tile};

    pub(super) unsafe fn tile(t: &Tile) {
        for i in (0..t.rows).step_by(3) {
            for p in 0..2 {
                if !t.b[p].is_null() {
                    // SAFETY: row i is one of the tile's.
                    let part = unsafe { t.part(i, p) };
                    by_rows!(&part, (t.rows - i).min(3), kernel, 1, [1, 2, 3]);
                }
            }
        }
    }

    unsafe fn kernel<const R: usize, const P: usize>(t: &Tile) {
        // SAFETY: the caller vouches for every address of the tile.
        unsafe {
            let mut sums = [[0.0_f32; LANES]; R];
            if t.acc {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = *t.c[0].add(i * t.c_row).cast::<[f32; LANES]>();
                }
            }
            for r in 0..t.depth {
                let lanes = *t.b[0].add(r * t.b_k).cast::<[f32; LANES]>();
                for (i, sum) in sums.iter_mut().enumerate() {
                    let x = *t.a.add(i * t.a_row + r * t.a_k);
                    for l in 0..LANES {
                        sum[l] += x * lanes[l];
                    }
                }
            }
            for (i, sum) in sums.iter().enumerate() {
                *t.c[0].add(i * t.c_row).cast::<[f32; LANES]>() = *sum;
            }
        }
    }
}

impl Tile {
    /// To be replaced before the tile runs.
    pub(super) const NO_C: [*mut f32; 2] = [std::ptr::null_mut(); 2];

    /// Rows from `i` on of panel `p` alone.
    ///
    /// # Safety
    /// Row i and panel p are the tile's.
    #[inline]
    unsafe fn part(&self, i: usize, p: usize) -> Self {
        // SAFETY: the pointers stay inside the tile's operands.
        let (a, c) = unsafe { (self.a.add(i * self.a_row), self.c[p].add(i * self.c_row)) };
        let next = Next { ahead: self.next.ahead + i * self.next.share, ..self.next };
        Self { rows: self.rows - i, a, b: [self.b[p], std::ptr::null()], next, c: [c, std::ptr::null_mut()], ..*self }
    }
}
