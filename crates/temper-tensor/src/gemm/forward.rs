//! `y = x w^T`: panels of w are read in place, and rows of x too unless their stride makes them collide in the cache.
#![allow(unsafe_code)] // hands pointers to the micro-kernel

use std::ops::Range;
use std::ptr;

use super::tile::{Next, ROWS, Tile};
use super::{DEPTH, Grid, Left, Output, part, place};
use crate::isa::Isa;
use crate::panels::{LANES, Panels};

pub(super) fn run(isa: Isa, x: &[f32], m: usize, w: &Panels, y: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    let left = Left::new(x, m, k, n);
    let out = Output(y.as_mut_ptr());
    Grid::new(m, n, k).run(|rows, columns| {
        let step = part(k, DEPTH, 1);
        for start in (0..k).step_by(step) {
            let depth = start..(start + step).min(k);
            for from in columns.clone().step_by(2 * LANES) {
                let columns = from..(from + 2 * LANES).min(columns.end);
                column(isa, &left, rows.clone(), w, columns, depth.clone(), out, acc || start > 0);
            }
        }
    });
}

/// All rows of one or two panels, over one part of the reduction.
fn column(
    isa: Isa,
    left: &Left,
    rows: Range<usize>,
    w: &Panels,
    columns: Range<usize>,
    depth: Range<usize>,
    out: Output,
    acc: bool,
) {
    let (n, k, panel) = (w.n(), w.k(), columns.start / LANES);
    let b = |p: usize| w.data()[((panel + p) * k + depth.start) * LANES..].as_ptr();
    let b = [b(0), if columns.len() > LANES { b(1) } else { ptr::null() }];
    // One or two rows wait for memory all the time; more leave it time to bring the next panels.
    let share = if rows.len() > 2 { (depth.len() * LANES).div_ceil(rows.len()) } else { 0 };
    for row in rows.clone().step_by(ROWS) {
        let count = ROWS.min(rows.end - row);
        let (a, a_row, a_k) = left.at(row, depth.start);
        let next = Next { ahead: 2 * LANES * k + (row - rows.start) * share, share };
        let t =
            Tile { rows: count, depth: depth.len(), a, a_row, a_k, b, b_k: LANES, next, c: Tile::NO_C, c_row: n, acc };
        // SAFETY: rows, panels and steps lie inside x and w; this task alone writes this rectangle of y.
        unsafe { place(isa, &t, out.get().add(row * n + columns.start), columns.len()) };
    }
}
