//! `y = x w^T`: panels of w and rows of x are read in place.
#![allow(unsafe_code)] // hands pointers to the micro-kernel

use std::ptr;

use super::tile::{ROWS, Tile, tile_at};
use super::{DEPTH, Output, ROW_BLOCK, share};
use crate::isa::Isa;
use crate::panels::{LANES, Panels};

/// Pairs of panels in one task.
const PAIRS: usize = 6;

struct Job<'a> {
    isa: Isa,
    x: &'a [f32],
    w: &'a Panels,
    y: Output,
    acc: bool,
}

pub(super) fn run(isa: Isa, x: &[f32], m: usize, w: &Panels, y: &mut [f32], acc: bool) {
    let job = Job { isa, x, w, y: Output(y.as_mut_ptr()), acc };
    let (row_blocks, column_blocks) = (m.div_ceil(ROW_BLOCK), w.count().div_ceil(2 * PAIRS));
    share(row_blocks * column_blocks, m * w.n() * w.k(), |task| {
        let (rows, columns) = (task / column_blocks * ROW_BLOCK, task % column_blocks * 2 * PAIRS);
        job.block(rows..(rows + ROW_BLOCK).min(m), columns..(columns + 2 * PAIRS).min(w.count()));
    });
}

impl Job<'_> {
    /// One rectangle of y: `rows` by the panels `panels`.
    fn block(&self, rows: std::ops::Range<usize>, panels: std::ops::Range<usize>) {
        for start in (0..self.w.k()).step_by(DEPTH) {
            let depth = DEPTH.min(self.w.k() - start);
            for panel in panels.clone().step_by(2) {
                let count = 2.min(panels.end - panel);
                for row in rows.clone().step_by(ROWS) {
                    self.tile(row, ROWS.min(rows.end - row), panel, count, start, depth);
                }
            }
        }
    }

    fn tile(&self, row: usize, rows: usize, panel: usize, count: usize, start: usize, depth: usize) {
        let (n, k) = (self.w.n(), self.w.k());
        let acc = self.acc || start > 0;
        let a = self.x[row * k + start..].as_ptr();
        let b = |p: usize| self.w.data()[((panel + p) * k + start) * LANES..].as_ptr();
        let b = [b(0), if count == 2 { b(1) } else { ptr::null() }];
        let full = (panel + count) * LANES <= n;
        let t = Tile { rows, depth, a, a_row: k, a_k: 1, b, b_k: LANES, c: [ptr::null_mut(); 2], c_row: n, acc };
        // SAFETY: rows and panels lie inside x, w and y; this task alone writes this rectangle of y.
        unsafe {
            let c = self.y.get().add(row * n + panel * LANES);
            if full {
                let c1 = if count == 2 { c.add(LANES) } else { ptr::null_mut() };
                tile_at(self.isa, &Tile { c: [c, c1], ..t });
            } else {
                ragged(self.isa, &t, c, n - panel * LANES);
            }
        }
    }
}

/// A tile whose last panel sticks out of the output, of which `width` columns exist: computed aside and copied.
///
/// # Safety
/// As for the micro-kernel; `out` has `t.rows` rows of `width` values, `t.c_row` apart.
pub(super) unsafe fn ragged(isa: Isa, t: &Tile, out: *mut f32, width: usize) {
    let mut aside = [0.0_f32; ROWS * 2 * LANES];
    // SAFETY: `width <= 32` values a row fit `aside`, and exist in `out`, which nothing else refers to.
    unsafe {
        for i in 0..t.rows {
            if t.acc {
                ptr::copy_nonoverlapping(out.add(i * t.c_row), aside.as_mut_ptr().add(i * 2 * LANES), width);
            }
        }
        let c = aside.as_mut_ptr();
        tile_at(isa, &Tile { c: [c, c.add(LANES)], c_row: 2 * LANES, ..*t });
        for i in 0..t.rows {
            ptr::copy_nonoverlapping(aside.as_ptr().add(i * 2 * LANES), out.add(i * t.c_row), width);
        }
    }
}
