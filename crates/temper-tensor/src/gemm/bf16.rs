//! The three products of a linear layer in bf16: both operands are rounded to bf16 (nearest even), products and sums are f32.
//!
//! Values lie as pairs, two neighbours of the reduction in one 32-bit word, and pairs as **blocks** of 16 by 16, 32 steps of
//! the reduction each: the left operand as strips of 16 rows, `[m / 16][depth / 32][16 rows][16 pairs]`, the right one as panels of 16
//! columns, `[n / 16][depth / 32][16 pairs][16 columns]`, filled up with zeros. All ways of [`Dot`] read the same blocks.
//!
//! The order of additions of an output element depends on the length of its reduction alone, so rows, tiles and threads change
//! no bits, and decoding agrees with training:
//! - by `vdpbf16ps` and by multiply-adds, one chain: of each pair first the odd product, then the even one;
//! - by tiles, one chain over blocks: within a block the even products and the odd ones are two chains from zero, and their
//!   sum is added.
//!
//! The instructions treat values below the normal range as zero; rounding to bf16 does so here at every level. The weight gradient of
//! parts of a batch adds up to that of the whole bit for bit when parts are multiples of 32 rows.
#![allow(unsafe_code)] // hands pointers to the micro-kernel

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod kernel;
mod pack;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::ptr;

use crate::bf16_panels::Bf16Panels;
use crate::buf::Buf;
use crate::isa::{Dot, Isa, dot, isa};
use crate::panels::{LANES, Panels};

use super::{Grid, Output, part, share};
use kernel::{Block, place};

pub(crate) use kernel::{peak, peak_flops};
pub(crate) use pack::{refresh, widen};

/// Steps of the reduction in one block.
pub(crate) const STEPS: usize = 32;
/// Words of one block.
pub(crate) const WORDS: usize = LANES * LANES;
/// Rows and columns of what the kernel takes at once.
const SIDE: usize = 2 * LANES;
/// Blocks of the reduction before partial sums are stored: two panels of so many fill half of a first-level cache.
const DEPTH: usize = 18;
/// Rows of the left operand that one task keeps in the second-level cache.
const HEIGHT: usize = 512;

/// The levels that a product runs at.
type Level = (Isa, Dot);

fn level() -> Level {
    (isa(), dot())
}

/// Blocks of a reduction of length `depth`.
pub(crate) fn blocks(depth: usize) -> usize {
    depth.div_ceil(STEPS)
}

/// `y = x w^T` (`y +=` when `acc`): `x [m, k]`, `w [n, k]`, `y [m, n]`, row-major.
pub fn linear(x: &[f32], m: usize, w: &Bf16Panels, y: &mut [f32], acc: bool) {
    linear_at(level(), x, m, w, y, acc);
}

fn linear_at(level: Level, x: &[f32], m: usize, w: &Bf16Panels, y: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    assert_eq!((x.len(), y.len()), (m * k, m * n), "x is [{m}, {k}] and y is [{m}, {n}]");
    if !acc && k == 0 {
        y.fill(0.0);
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let strips = pack::strips(level.0, x, m, k);
    let out = Output(y.as_mut_ptr());
    Grid::of_height(part(m, HEIGHT, SIDE), m, n, k).run(|rows, columns| {
        let right = |panel: usize, start: usize| &w.words()[(panel * blocks(k) + start) * WORDS..];
        let task = Task { level, left: &strips, length: blocks(k), rows, out, width: n, acc };
        task.run(columns, |columns, depth| {
            let b = right(columns.start / LANES, depth.start).as_ptr();
            let pair = columns.len() > LANES;
            [b, if pair { right(columns.start / LANES + 1, depth.start).as_ptr() } else { ptr::null() }]
        });
    });
}

/// `dx = dy w` (`dx +=` when `acc`): `dy [m, n]`, `w [n, k]`, `dx [m, k]`, row-major.
pub fn linear_dx(dy: &[f32], m: usize, w: &Bf16Panels, dx: &mut [f32], acc: bool) {
    linear_dx_at(level(), dy, m, w, dx, acc);
}

fn linear_dx_at(level: Level, dy: &[f32], m: usize, w: &Bf16Panels, dx: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    assert_eq!((dy.len(), dx.len()), (m * n, m * k), "dy is [{m}, {n}] and dx is [{m}, {k}]");
    if !acc && n == 0 {
        dx.fill(0.0);
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let strips = pack::strips(level.0, dy, m, n);
    let out = Output(dx.as_mut_ptr());
    // Panels are transposed once a task, so tasks are as high as there are columns to share.
    let tasks = k.div_ceil(SIDE).max(1);
    let height = if tasks >= 2 * rayon::current_num_threads() { 2 * HEIGHT } else { HEIGHT };
    Grid::of_height(part(m, height, SIDE), m, k, n).run(|rows, columns| {
        let mut panels = Buf::dirty(2 * DEPTH * WORDS);
        let task = Task { level, left: &strips, length: blocks(n), rows, out, width: k, acc };
        task.run(columns, |columns, depth| {
            let pair = columns.len() > LANES;
            let [first, second] = panels.words_mut().split_at_mut(DEPTH * WORDS).into();
            pack::transposed(level.0, w, depth.clone(), columns.start / LANES, first);
            if pair {
                pack::transposed(level.0, w, depth, columns.start / LANES + 1, second);
            }
            [first.as_ptr(), if pair { second.as_ptr() } else { ptr::null() }]
        });
    });
}

/// One task of a product with a row-major output: some rows of the left operand's strips, by the columns of `run`.
struct Task<'a> {
    level: Level,
    left: &'a Buf,
    /// Blocks of the whole reduction.
    length: usize,
    rows: Range<usize>,
    out: Output,
    /// Of a row of the output.
    width: usize,
    acc: bool,
}

impl Task<'_> {
    /// `right(columns, blocks)` gives one or two panels for these blocks of the reduction.
    fn run(&self, columns: Range<usize>, mut right: impl FnMut(Range<usize>, Range<usize>) -> [*const u32; 2]) {
        let _tiles = kernel::Tiles::new(self.level.1);
        let step = part(self.length, DEPTH, 1);
        for start in (0..self.length).step_by(step) {
            let depth = start..(start + step).min(self.length);
            for from in columns.clone().step_by(SIDE) {
                let columns = from..(from + SIDE).min(columns.end);
                let b = right(columns.clone(), depth.clone());
                for row in self.rows.clone().step_by(SIDE) {
                    let rows = SIDE.min(self.rows.end - row);
                    let strip =
                        |s: usize| self.left.words()[((row / LANES + s) * self.length + start) * WORDS..].as_ptr();
                    let a = [strip(0), if rows > LANES { strip(1) } else { ptr::null() }];
                    let c = self.out.get().wrapping_add(row * self.width + columns.start);
                    let (blocks, c_row, acc) = (depth.len(), self.width, self.acc || start > 0);
                    let c = [c, if columns.len() > LANES { c.wrapping_add(LANES) } else { ptr::null_mut() }];
                    let block = Block { rows, columns: columns.len(), a, b, blocks, c, c_row, acc };
                    // SAFETY: rows, panels and blocks lie inside the operands; this task alone writes this rectangle.
                    unsafe { place(self.level, &block) };
                }
            }
        }
    }
}

/// `dw += dy^T x`: `dy [m, n]`, `x [m, k]`, row-major, `dw [n, k]` in f32.
pub fn linear_dw(dy: &[f32], x: &[f32], m: usize, dw: &mut Panels) {
    linear_dw_at(level(), dy, x, m, dw);
}

/// The tile's rows are columns of x, its lanes a panel of dw.
fn linear_dw_at(level: Level, dy: &[f32], x: &[f32], m: usize, dw: &mut Panels) {
    let (n, k) = (dw.n(), dw.k());
    assert_eq!((dy.len(), x.len()), (m * n, m * k), "dy is [{m}, {n}] and x is [{m}, {k}]");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let (left, right) = (pack::columns(level.0, x, m, k, true), pack::columns(level.0, dy, m, n, false));
    let (length, count) = (blocks(m), dw.count());
    let out = Output(dw.data_mut().as_mut_ptr());
    share(count.div_ceil(2), m * n * k, |task| {
        let _tiles = kernel::Tiles::new(level.1);
        let panel = 2 * task;
        let pair = panel + 1 < count;
        let step = part(length, DEPTH, 1);
        for start in (0..length).step_by(step) {
            let blocks = step.min(length - start);
            let at = |of: &Buf, i: usize| of.words()[(i * length + start) * WORDS..].as_ptr();
            let b = [at(&right, panel), if pair { at(&right, panel + 1) } else { ptr::null() }];
            for row in (0..k).step_by(SIDE) {
                let rows = SIDE.min(k - row);
                let a = [at(&left, row / LANES), if rows > LANES { at(&left, row / LANES + 1) } else { ptr::null() }];
                let c = out.get().wrapping_add((panel * k + row) * LANES);
                let c = [c, if pair { c.wrapping_add(k * LANES) } else { ptr::null_mut() }];
                let columns = if pair { SIDE } else { LANES };
                let block = Block { rows, columns, a, b, blocks, c, c_row: LANES, acc: true };
                // SAFETY: strips, panels and blocks lie inside their buffers; this task alone writes these panels of dw.
                unsafe { place(level, &block) };
            }
        }
    });
}
