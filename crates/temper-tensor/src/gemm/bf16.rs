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
mod latest;
pub(crate) mod pack;

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::ops::Range;
use std::ptr;

use crate::bf16_panels::Bf16Panels;
use crate::buf::Buf;
use crate::isa::{Dot, Isa, dot, isa};
use crate::panels::{LANES, Panels};

use super::{Grid, Output, part};
pub(crate) use kernel::{Block, Tiles, peak, peak_flops, place};
use latest::Kind;
pub use latest::Rows;
pub(crate) use pack::{refresh, widen};

/// Steps of the reduction in one block.
pub(crate) const STEPS: usize = 32;
/// Words of one block.
pub(crate) const WORDS: usize = LANES * LANES;
/// Rows and columns of what the kernel takes at once.
pub(crate) const SIDE: usize = 2 * LANES;
/// Blocks of the reduction before partial sums are stored: two panels of so many fill half of a first-level cache.
const DEPTH: usize = 18;
/// Rows of the left operand that one task keeps in the second-level cache.
const HEIGHT: usize = 512;

/// Least tasks a thread.
pub(super) const LEAST: usize = 2;
/// Most columns of a task, in tiles: where tasks pack their rows themselves (f32), that takes as long as multiplying them by 64 columns.
const MOST: usize = 24;

/// The levels that a product runs at.
pub(crate) type Level = (Isa, Dot);

pub(crate) fn level() -> Level {
    (isa(), dot())
}

/// Blocks of a reduction of length `depth`.
pub(crate) fn blocks(depth: usize) -> usize {
    depth.div_ceil(STEPS)
}

/// `y = x w^T` (`y +=` when `acc`): `x [m, k]`, `w [n, k]`, `y [m, n]`, row-major.
pub fn linear<'x>(x: impl Into<Rows<'x>>, m: usize, w: &Bf16Panels, y: &mut [f32], acc: bool) {
    linear_at(level(), x, m, w, y, acc);
}

fn linear_at<'x>(level: Level, x: impl Into<Rows<'x>>, m: usize, w: &Bf16Panels, y: &mut [f32], acc: bool) {
    let (x, n, k) = (x.into(), w.n(), w.k());
    assert_eq!((x.values.len(), y.len()), (m * k, m * n), "x is [{m}, {k}] and y is [{m}, {n}]");
    if !acc && k == 0 {
        y.fill(0.0);
    }
    let shape = Shape::of_height(HEIGHT);
    let right = in_place(w.words(), blocks(k));
    strips(level, x, m, k, |strips| {
        product(level, &shape, (m, n, k), whole(strips, k), right, &Out::rows(y, n, acc));
    });
}

/// `dx = dy w` (`dx +=` when `acc`): `dy [m, n]`, `w [n, k]`, `dx [m, k]`, row-major.
pub fn linear_dx<'x>(dy: impl Into<Rows<'x>>, m: usize, w: &Bf16Panels, dx: &mut [f32], acc: bool) {
    linear_dx_at(level(), dy, m, w, dx, acc);
}

fn linear_dx_at<'x>(level: Level, dy: impl Into<Rows<'x>>, m: usize, w: &Bf16Panels, dx: &mut [f32], acc: bool) {
    let (dy, n, k) = (dy.into(), w.n(), w.k());
    assert_eq!((dy.values.len(), dx.len()), (m * n, m * k), "dy is [{m}, {n}] and dx is [{m}, {k}]");
    if !acc && n == 0 {
        dx.fill(0.0);
    }
    // Panels are transposed once a task, so tasks are as high as there are columns to share.
    let high = k.div_ceil(SIDE) >= 2 * rayon::current_num_threads();
    let shape = Shape::of_height(if high { 2 * HEIGHT } else { HEIGHT });
    let right = packed(1, |panel, depth, out| pack::transposed(level.0, w, depth, panel, out));
    strips(level, dy, m, n, |strips| {
        product(level, &shape, (m, k, n), whole(strips, n), right, &Out::rows(dx, k, acc));
    });
}

/// Calls `with` with the left operand `x [m, k]` in strips.
fn strips(level: Level, x: Rows, m: usize, k: usize, with: impl FnOnce(&[u32])) {
    latest::packed(Kind::Strips, x, (m, k), |x| pack::strips(level, x, m, k), with);
}

/// How a product is cut.
pub(super) struct Shape {
    /// Blocks of words that stand for one block of values: one, or the three bf16 values that a f32 is the sum of.
    pub(super) parts: usize,
    /// Blocks of the reduction before partial sums are stored.
    pub(super) depth: usize,
    /// Rows of the left operand that one task keeps in the second-level cache.
    pub(super) height: usize,
    /// Longest reduction, in blocks, over which a few rows' strips are all kept at once.
    pub(super) few: usize,
    /// Whether tasks pack the left operand themselves.
    pub(super) packs_left: bool,
    /// Least tasks a thread, if columns can be cut so far.
    pub(super) least: usize,
}

impl Shape {
    /// Of products in bf16, whose left operand is packed before.
    fn of_height(height: usize) -> Self {
        Self { parts: 1, depth: DEPTH, height, few: usize::MAX, packs_left: false, least: LEAST }
    }
}

/// Where the output `[m, n]` lies.
pub(super) struct Out {
    at: Output,
    /// From one row to the next.
    row: usize,
    /// From one panel of 16 columns to the next.
    panel: usize,
    /// Whether columns past n exist.
    padded: bool,
    acc: bool,
}

impl Out {
    /// Row-major.
    pub(super) fn rows(y: &mut [f32], n: usize, acc: bool) -> Self {
        Self { at: Output(y.as_mut_ptr()), row: n, panel: LANES, padded: false, acc }
    }

    /// Panels `[n / 16][m][16]`, added to.
    pub(super) fn panels(w: &mut Panels) -> Self {
        let k = w.k();
        Self { at: Output(w.data_mut().as_mut_ptr()), row: LANES, panel: k * LANES, padded: true, acc: true }
    }
}

/// The right operand from `pack(panel, blocks, words)`, which makes these blocks of one panel.
pub(super) fn packed(
    parts: usize,
    pack: impl Fn(usize, Range<usize>, &mut [u32]) + Sync + Send,
) -> impl Fn(Range<usize>, Range<usize>, &mut [u32]) -> [*const u32; 2] + Sync + Send {
    move |panels, depth, out| {
        let (first, second) = out.split_at_mut(depth.len() * parts * WORDS);
        pack(panels.start, depth.clone(), first);
        if panels.len() == 1 {
            return [first.as_ptr(), ptr::null()];
        }
        pack(panels.start + 1, depth, second);
        [first.as_ptr(), second.as_ptr()]
    }
}

/// A left operand that is packed already, all blocks of its reduction of length `depth`.
fn whole(strips: &[u32], depth: usize) -> impl Fn(Range<usize>, Range<usize>, &mut [u32]) -> Strips + Sync + Send {
    let apart = blocks(depth) * WORDS;
    move |rows, depth, _| Strips { first: strips[rows.start / LANES * apart + depth.start * WORDS..].as_ptr(), apart }
}

/// A right operand whose panels, of `length` blocks each, lie ready.
fn in_place(
    words: &[u32],
    length: usize,
) -> impl Fn(Range<usize>, Range<usize>, &mut [u32]) -> [*const u32; 2] + Sync + Send {
    move |panels, depth, _| {
        let panel = |p: usize| words[(p * length + depth.start) * WORDS..].as_ptr();
        [panel(panels.start), if panels.len() > 1 { panel(panels.start + 1) } else { ptr::null() }]
    }
}

/// Where strips of the left operand lie.
#[derive(Clone, Copy)]
pub(super) struct Strips {
    pub(super) first: *const u32,
    /// Words from one strip to the next.
    pub(super) apart: usize,
}

/// `out [m, n] (+)= left [m, k] right [k, n]`. `left(rows, blocks, words)` says where these blocks of strips of rows lie, `right(panels,
/// blocks, words)` where these blocks of one or two panels do; both may pack them into `words`, so that they are in the
/// thread's caches.
pub(super) fn product(
    level: Level,
    shape: &Shape,
    (m, n, k): (usize, usize, usize),
    left: impl Fn(Range<usize>, Range<usize>, &mut [u32]) -> Strips + Sync + Send,
    right: impl Fn(Range<usize>, Range<usize>, &mut [u32]) -> [*const u32; 2] + Sync + Send,
    out: &Out,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let length = blocks(k);
    let step = part(length, shape.depth, 1);
    let height = part(m, shape.height, SIDE);
    // Rows that are multiplied at once need nothing again, so that weights can come from memory in their order.
    let few = height <= SIDE && length <= shape.few;
    let size = |blocks: usize| blocks * shape.parts * WORDS;
    Grid::of_height(height, (shape.least, MOST), m, n, k).run(|rows, columns| {
        let _tiles = Tiles::new(level.1);
        let strips = if shape.packs_left { rows.len().div_ceil(LANES) } else { 0 };
        scratch(strips * size(if few { length } else { step }), 2 * size(step), |a, b| {
            let mut multiply = |strips: Strips, depth: Range<usize>, from: usize| {
                let count = SIDE.min(columns.end - from);
                let panel = from / LANES;
                let b = right(panel..panel + count.div_ceil(LANES), depth.clone(), b);
                let count = if out.padded { count.next_multiple_of(LANES) } else { count };
                for row in (0..rows.len()).step_by(SIDE) {
                    let height = SIDE.min(rows.len() - row);
                    let a = strips.first.wrapping_add(row / LANES * strips.apart);
                    let a = [a, if height > LANES { a.wrapping_add(strips.apart) } else { ptr::null() }];
                    let c = out.at.get().wrapping_add((rows.start + row) * out.row + panel * out.panel);
                    let c = [c, if count > LANES { c.wrapping_add(out.panel) } else { ptr::null_mut() }];
                    let (parts, blocks, acc) = (shape.parts, depth.len(), out.acc || depth.start > 0);
                    let block = Block { rows: height, columns: count, a, b, parts, blocks, c, c_row: out.row, acc };
                    // SAFETY: strips, panels and blocks lie inside the operands; this task alone writes this rectangle.
                    unsafe { place(level, &block) };
                }
            };
            let parts = || (0..length).step_by(step).map(|start| start..(start + step).min(length));
            if few {
                let all = left(rows.clone(), 0..length, a);
                let from_block = |block| Strips { first: all.first.wrapping_add(size(block)), ..all };
                for from in columns.clone().step_by(SIDE) {
                    parts().for_each(|depth| multiply(from_block(depth.start), depth, from));
                }
            } else {
                for depth in parts() {
                    let strips = left(rows.clone(), depth.clone(), a);
                    columns.clone().step_by(SIDE).for_each(|from| multiply(strips, depth.clone(), from));
                }
            }
        });
    });
}

/// Calls `run` with this thread's scratch of at least so many words: what lies in it stays in the thread's own cache.
fn scratch(first: usize, second: usize, run: impl FnOnce(&mut [u32], &mut [u32])) {
    thread_local! {
        static WORDS: Cell<Option<Buf>> = const { Cell::new(None) };
    }
    // A product inside `run` would find none and make its own.
    let mut buf = WORDS.take().filter(|buf| buf.len() >= first + second).unwrap_or_else(|| Buf::dirty(first + second));
    let (a, b) = buf.words_mut().split_at_mut(first);
    run(a, b);
    WORDS.set(Some(buf));
}

/// `dw += dy^T x`: `dy [m, n]`, `x [m, k]`, row-major, `dw [n, k]` in f32.
pub fn linear_dw<'x>(dy: &[f32], x: impl Into<Rows<'x>>, m: usize, dw: &mut Panels) {
    linear_dw_at(level(), dy, x, m, dw);
}

/// The tile's rows are columns of x, its lanes a panel of dw.
fn linear_dw_at<'x>(level: Level, dy: &[f32], x: impl Into<Rows<'x>>, m: usize, dw: &mut Panels) {
    let (x, n, k) = (x.into(), dw.n(), dw.k());
    assert_eq!((dy.len(), x.values.len()), (m * n, m * k), "dy is [{m}, {n}] and x is [{m}, {k}]");
    let panels = pack::paired(level, dy, m, n, false);
    let right = in_place(panels.words(), blocks(m));
    latest::packed(
        Kind::Turned,
        x,
        (m, k),
        |x| pack::paired(level, x, m, k, true),
        |strips| {
            product(level, &Shape::of_height(HEIGHT), (k, n, m), whole(strips, m), right, &Out::panels(dw));
        },
    );
}
