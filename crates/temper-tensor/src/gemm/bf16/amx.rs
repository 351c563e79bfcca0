//! The micro-kernel on the tiles of AMX-BF16 (Intel SDM, volume 2, TDPBF16PS). The compiler uses no tile registers itself.
#![allow(unsafe_code)] // tile instructions

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::WORDS;
use super::kernel::Block;
use crate::panels::LANES;

/// `ldtilecfg`'s operand: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config([u8; 64]);

static CONFIG: Config = Config(config());

const fn config() -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    bytes
}

/// Configured tile registers of this thread.
pub(super) struct Tiles(());

impl Tiles {
    /// # Safety
    /// The processor has tiles and the process may use them.
    pub(super) unsafe fn new() -> Self {
        // SAFETY: the configuration has 64 valid bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, preserves_flags, readonly)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `new` found tiles; their contents are no longer needed.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// `tile!(load 4, address, stride)`: one tile instruction, and a few empty ones behind it. Where something else on the processor
/// keeps the tile unit busy, tile instructions on each other's heels take up to twice as long; where nothing does, these cost nothing.
macro_rules! tile {
    (zero $t:literal) => {
        asm!(concat!("tilezero tmm", $t), options(nostack, preserves_flags, nomem))
    };
    (load $t:literal, $at:expr, $stride:expr) => {
        tile!("tileloadd", $t, $at, $stride)
    };
    // Past the first-level cache: what is read once there would push out what is read again.
    (stream $t:literal, $at:expr, $stride:expr) => {
        tile!("tileloaddt1", $t, $at, $stride)
    };
    ($load:literal, $t:literal, $at:expr, $stride:expr) => {
        asm!(concat!($load, " tmm", $t, ", [{a} + {s}]"), ".fill 8, 1, 0x90", a = in(reg) $at, s = in(reg) $stride,
            options(nostack, preserves_flags, readonly))
    };
    (store $t:literal, $at:expr, $stride:expr) => {
        asm!(concat!("tilestored [{a} + {s}], tmm", $t), ".fill 8, 1, 0x90", a = in(reg) $at, s = in(reg) $stride,
            options(nostack, preserves_flags))
    };
    (dot $c:literal, $a:literal, $b:literal) => {
        asm!(concat!("tdpbf16ps tmm", $c, ", tmm", $a, ", tmm", $b), ".fill 8, 1, 0x90",
            options(nostack, preserves_flags, nomem))
    };
}

/// `steps` times four products of tiles.
///
/// # Safety
/// A [`Tiles`] lives on this thread.
pub(super) unsafe fn peak(steps: usize) {
    // SAFETY: the caller vouches for the tiles.
    unsafe {
        for _ in 0..steps {
            tile!(dot 0, 4, 6);
            tile!(dot 1, 4, 7);
            tile!(dot 2, 5, 6);
            tile!(dot 3, 5, 7);
        }
    }
}

/// # Safety
/// As for the micro-kernel; a [`Tiles`] lives on this thread.
pub(super) unsafe fn run(block: &Block) {
    // SAFETY: the caller vouches for addresses and tiles.
    unsafe {
        match (block.a[1].is_null(), block.b[1].is_null(), block.parts) {
            (false, false, 1) => kernel::<2, 2, 1>(block),
            (false, true, 1) => kernel::<2, 1, 1>(block),
            (true, false, 1) => kernel::<1, 2, 1>(block),
            (true, true, 1) => kernel::<1, 1, 1>(block),
            (false, false, _) => kernel::<2, 2, 3>(block),
            (false, true, _) => kernel::<2, 1, 3>(block),
            (true, false, _) => kernel::<1, 2, 3>(block),
            (true, true, _) => kernel::<1, 1, 3>(block),
        }
    }
}

/// `step!(a, b)`: the products of two parts of S strips and P panels; `None` keeps what the tiles hold.
macro_rules! step {
    ($a:expr, $b:expr) => {
        let (a, b): (Option<[*const u32; 2]>, Option<[*const u32; 2]>) = ($a, $b);
        if let Some(a) = a {
            tile!(stream 4, a[0], LINE);
            if S == 2 {
                tile!(stream 5, a[1], LINE);
            }
        }
        if let Some(b) = b {
            tile!(load 6, b[0], LINE);
            if P == 2 {
                tile!(load 7, b[1], LINE);
            }
        }
        tile!(dot 0, 4, 6);
        if P == 2 {
            tile!(dot 1, 4, 7);
        }
        if S == 2 {
            tile!(dot 2, 5, 6);
        }
        if S == 2 && P == 2 {
            tile!(dot 3, 5, 7);
        }
    };
}

/// Bytes of a line of a block.
const LINE: usize = LANES * size_of::<u32>();

/// Sums of strip s and panel p in tile `2 s + p`, strips in tiles 4 and 5, panels in tiles 6 and 7.
///
/// Of three parts, largest first, the six products down to 2^-16 of the largest are added, in an order that loads few tiles.
unsafe fn kernel<const S: usize, const P: usize, const PARTS: usize>(block: &Block) {
    let c_row = block.c_row * size_of::<f32>();
    let c = |s: usize, p: usize| block.c[p].wrapping_add(s * LANES * block.c_row);
    let ([mut a0, mut a1], [mut b0, mut b1]) = (block.a, block.b);
    for row in 0..S * LANES {
        for line in &block.c[..P] {
            // SAFETY: a prefetch reads nothing that the program can see. Sums are stored here long after it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(row * block.c_row).cast()) };
        }
    }
    // SAFETY: the caller vouches for every address of the block and for the tiles.
    unsafe {
        if block.acc {
            tile!(load 0, c(0, 0), c_row);
            if P == 2 {
                tile!(load 1, c(0, 1), c_row);
            }
            if S == 2 {
                tile!(load 2, c(1, 0), c_row);
            }
            if S == 2 && P == 2 {
                tile!(load 3, c(1, 1), c_row);
            }
        } else {
            tile!(zero 0);
            tile!(zero 1);
            tile!(zero 2);
            tile!(zero 3);
        }
        for _ in 0..block.blocks {
            let a = |part: usize| Some([a0, a1].map(|at| at.wrapping_add(part * WORDS)));
            let b = |part: usize| Some([b0, b1].map(|at| at.wrapping_add(part * WORDS)));
            if PARTS == 1 {
                step!(a(0), b(0));
            } else {
                step!(a(0), b(2));
                step!(None, b(1));
                step!(a(1), None);
                step!(None, b(0));
                step!(a(0), None);
                step!(a(2), None);
            }
            (a0, a1) = (a0.wrapping_add(PARTS * WORDS), a1.wrapping_add(PARTS * WORDS));
            (b0, b1) = (b0.wrapping_add(PARTS * WORDS), b1.wrapping_add(PARTS * WORDS));
        }
        tile!(store 0, c(0, 0), c_row);
        if P == 2 {
            tile!(store 1, c(0, 1), c_row);
        }
        if S == 2 {
            tile!(store 2, c(1, 0), c_row);
        }
        if S == 2 && P == 2 {
            tile!(store 3, c(1, 1), c_row);
        }
    }
}
