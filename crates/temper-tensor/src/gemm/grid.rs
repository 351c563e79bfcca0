//! How a product is cut into tasks and tiles. None of it changes bits.
#![allow(unsafe_code)] // shares one output among threads

use std::ops::Range;
use std::ptr;

use rayon::prelude::*;

use super::tile::{ROWS, Tile, tile_at};
use super::{FETCH_ROWS, FORK, ROW_BLOCK, WIDTH, pack};
use crate::buf::Buf;
use crate::isa::Isa;
use crate::panels::LANES;

/// Most columns of one task, in tiles: with `DEPTH` steps, a left block is read from the second-level cache six times.
const MOST_TILES: usize = 6;

/// Cuts `len` into the fewest equal parts of at most `most`, rounded up to a multiple of `unit`; the last may be short.
pub(super) fn part(len: usize, most: usize, unit: usize) -> usize {
    len.div_ceil(len.div_ceil(most).max(1)).next_multiple_of(unit)
}

/// A pointer that several threads use for disjoint parts of one output.
#[derive(Clone, Copy)]
pub(super) struct Output(pub(super) *mut f32);

// SAFETY: each task writes its own rectangle of the output.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    pub(super) fn get(self) -> *mut f32 {
        self.0
    }
}

/// Runs `task(0..tasks)`, on all threads when the work (in multiply-adds) is worth it.
pub(super) fn share(tasks: usize, work: usize, task: impl Fn(usize) + Sync + Send) {
    if tasks > 1 && work >= FORK && rayon::current_num_threads() > 1 {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
}

/// An output `[m, n]` cut into tasks: blocks of rows by groups of columns.
pub(super) struct Grid {
    m: usize,
    n: usize,
    height: usize,
    width: usize,
    work: usize,
}

impl Grid {
    /// For a reduction of length `depth`; four tasks a thread, so that none waits long for the last.
    pub(super) fn new(m: usize, n: usize, depth: usize) -> Self {
        Self::of_height(part(m, ROW_BLOCK, ROWS), (4, MOST_TILES), m, n, depth)
    }

    /// With `height` rows and at most `most` tiles of columns a task, and `least` tasks a thread if columns can be cut so far.
    pub(super) fn of_height(height: usize, (least, most): (usize, usize), m: usize, n: usize, depth: usize) -> Self {
        let wanted = (least * rayon::current_num_threads()).div_ceil(m.div_ceil(height));
        let tiles = (n.div_ceil(WIDTH) / wanted).clamp(1, most);
        Self { m, n, height, width: tiles * WIDTH, work: m.max(FETCH_ROWS) * n * depth }
    }

    /// Calls `task(rows, columns)` for every part.
    pub(super) fn run(&self, task: impl Fn(Range<usize>, Range<usize>) + Sync + Send) {
        let columns = self.n.div_ceil(self.width);
        share(self.m.div_ceil(self.height) * columns, self.work, |index| {
            let (row, column) = (index / columns * self.height, index % columns * self.width);
            task(row..(row + self.height).min(self.m), column..(column + self.width).min(self.n));
        });
    }
}

/// The operand whose values are broadcast: `[m, k]` row-major, or repacked as strips of 12 rows.
pub(super) struct Left<'a> {
    values: &'a [f32],
    k: usize,
    strips: Option<Buf>,
}

impl<'a> Left<'a> {
    /// Rows a multiple of 4 KiB apart fall into one set of the first-level cache and drive each other out; then a copy
    /// pays, provided that enough columns `n` use it.
    pub(super) fn new(values: &'a [f32], m: usize, k: usize, n: usize) -> Self {
        let collide = k.is_multiple_of(1024) && m >= 2 * ROWS && n >= 128;
        Self { values, k, strips: collide.then(|| pack::row_strips(values, m, k)) }
    }

    /// The values from row `row` (a multiple of 12 if repacked) and column `start` on, and the strides of rows and
    /// columns.
    pub(super) fn at(&self, row: usize, start: usize) -> (*const f32, usize, usize) {
        match &self.strips {
            None => (self.values[row * self.k + start..].as_ptr(), self.k, 1),
            Some(strips) => (strips[(row / ROWS * self.k + start) * ROWS..].as_ptr(), 1, ROWS),
        }
    }
}

/// Runs a tile on `width` (at most 32) columns at `out`; where a panel sticks out of the output, it is computed aside
/// and copied.
///
/// # Safety
/// As for the micro-kernel; `out` has `t.rows` rows of `width` values, `t.c_row` apart.
pub(super) unsafe fn place(isa: Isa, t: &Tile, out: *mut f32, width: usize) {
    if width.is_multiple_of(LANES) {
        let second = if width == WIDTH { out.wrapping_add(LANES) } else { ptr::null_mut() };
        // SAFETY: the caller vouches for the addresses.
        return unsafe { tile_at(isa, &Tile { c: [out, second], ..*t }) };
    }
    let mut aside = [0.0_f32; ROWS * WIDTH];
    // SAFETY: `width` values a row fit `aside`, and exist in `out`, which no other task touches.
    unsafe {
        for i in 0..t.rows {
            ptr::copy_nonoverlapping(out.add(i * t.c_row), aside.as_mut_ptr().add(i * WIDTH), width);
        }
        let c = aside.as_mut_ptr();
        tile_at(isa, &Tile { c: [c, c.add(LANES)], c_row: WIDTH, ..*t });
        for i in 0..t.rows {
            ptr::copy_nonoverlapping(aside.as_ptr().add(i * WIDTH), out.add(i * t.c_row), width);
        }
    }
}
