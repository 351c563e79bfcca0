//! The micro-kernel on the tiles of AMX-BF16 (Intel SDM, volume 2, TDPBF16PS). The compiler uses no tile registers itself.
#![allow(unsafe_code)] // tile instructions

use std::arch::asm;

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

/// `tile!(load 4, address, stride)`: one tile instruction.
macro_rules! tile {
    (zero $t:literal) => {
        asm!(concat!("tilezero tmm", $t), options(nostack, preserves_flags, nomem))
    };
    (load $t:literal, $at:expr, $stride:expr) => {
        asm!(concat!("tileloadd tmm", $t, ", [{a} + {s}]"), a = in(reg) $at, s = in(reg) $stride,
            options(nostack, preserves_flags, readonly))
    };
    (store $t:literal, $at:expr, $stride:expr) => {
        asm!(concat!("tilestored [{a} + {s}], tmm", $t), a = in(reg) $at, s = in(reg) $stride,
            options(nostack, preserves_flags))
    };
    (dot $c:literal, $a:literal, $b:literal) => {
        asm!(concat!("tdpbf16ps tmm", $c, ", tmm", $a, ", tmm", $b), options(nostack, preserves_flags, nomem))
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
        match (block.a[1].is_null(), block.b[1].is_null()) {
            (false, false) => kernel::<2, 2>(block),
            (false, true) => kernel::<2, 1>(block),
            (true, false) => kernel::<1, 2>(block),
            (true, true) => kernel::<1, 1>(block),
        }
    }
}

/// Sums of strip s and panel p in tile `2 s + p`, strips in tiles 4 and 5, panels in tiles 6 and 7.
unsafe fn kernel<const S: usize, const P: usize>(block: &Block) {
    let line = LANES * size_of::<u32>();
    let c_row = block.c_row * size_of::<f32>();
    let c = |s: usize, p: usize| block.c[p].wrapping_add(s * LANES * block.c_row);
    let ([mut a0, mut a1], [mut b0, mut b1]) = (block.a, block.b);
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
            tile!(load 4, a0, line);
            tile!(load 6, b0, line);
            tile!(dot 0, 4, 6);
            if P == 2 {
                tile!(load 7, b1, line);
                tile!(dot 1, 4, 7);
            }
            if S == 2 {
                tile!(load 5, a1, line);
                tile!(dot 2, 5, 6);
            }
            if S == 2 && P == 2 {
                tile!(dot 3, 5, 7);
            }
            (a0, a1) = (a0.wrapping_add(WORDS), a1.wrapping_add(WORDS));
            (b0, b1) = (b0.wrapping_add(WORDS), b1.wrapping_add(WORDS));
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
