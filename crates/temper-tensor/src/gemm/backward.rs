//! `dx = dy w` and `dw += dy^T x`.
#![allow(unsafe_code)] // hands pointers to the micro-kernel

use std::ptr;

use super::tile::{ROWS, Tile, tile_at};
use super::{DEPTH, Grid, Left, Output, WIDTH, pack, part, place, share};
use crate::buf::Buf;
use crate::isa::Isa;
use crate::panels::{LANES, Panels};

/// `dx [m, k]`: the reduction runs over n, so blocks of w are transposed into `[n][32 columns]` first.
pub(super) fn dx(isa: Isa, dy: &[f32], m: usize, w: &Panels, dx: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    let left = Left::new(dy, m, n, k);
    let out = Output(dx.as_mut_ptr());
    Grid::new(m, k, n).run(|rows, columns| {
        let step = part(n, DEPTH, LANES);
        let mut packed = Buf::dirty(step * WIDTH);
        for start in (0..n).step_by(step) {
            let depth = start..(start + step).min(n);
            for from in columns.clone().step_by(WIDTH) {
                let columns = from..(from + WIDTH).min(columns.end);
                pack::transpose(isa, w, depth.clone(), columns.clone(), &mut packed);
                let b = [packed.as_ptr(), if columns.len() > LANES { packed[LANES..].as_ptr() } else { ptr::null() }];
                let ahead = pack::Ahead::new(w, depth.clone(), columns.end, rows.len().div_ceil(ROWS));
                for (strip, row) in rows.clone().step_by(ROWS).enumerate() {
                    ahead.fetch(strip);
                    let (a, a_row, a_k) = left.at(row, start);
                    let (count, acc) = (ROWS.min(rows.end - row), acc || start > 0);
                    let depth = depth.len();
                    let t = Tile { rows: count, depth, a, a_row, a_k, b, b_k: WIDTH, c: Tile::NO_C, c_row: k, acc };
                    // SAFETY: rows and steps lie inside dy; this task alone writes this rectangle of dx.
                    unsafe { place(isa, &t, out.get().add(row * k + from), columns.len()) };
                }
            }
        }
    });
}

/// `dw [n/16][k][16]`: tiles of 12 columns of x (rows of the tile) by two panels of dw (lanes); both operands are
/// packed for a block of rows.
pub(super) fn dw(isa: Isa, dy: &[f32], x: &[f32], m: usize, dw: &mut Panels) {
    let (n, k, count) = (dw.n(), dw.k(), dw.count());
    let out = Output(dw.data_mut().as_mut_ptr());
    let step = part(m, DEPTH, 1);
    for start in (0..m).step_by(step) {
        let depth = step.min(m - start);
        let strips = pack::column_strips(&x[start * k..(start + depth) * k], depth, k);
        share(count.div_ceil(2), depth * n * k, |task| {
            let panel = 2 * task;
            let pair = panel + 1 < count;
            let mut packed = Buf::dirty(depth * WIDTH);
            pack::lanes(&dy[start * n..(start + depth) * n], n, panel * LANES, &mut packed);
            let b = [packed.as_ptr(), if pair { packed[LANES..].as_ptr() } else { ptr::null() }];
            for (strip, column) in (0..k).step_by(ROWS).enumerate() {
                let (rows, a) = (ROWS.min(k - column), strips[strip * depth * ROWS..].as_ptr());
                // SAFETY: the strip lies inside its buffer, and this task alone writes these panels of dw.
                unsafe {
                    let c = out.get().add((panel * k + column) * LANES);
                    let c = [c, if pair { c.add(k * LANES) } else { ptr::null_mut() }];
                    let t = Tile { rows, depth, a, a_row: 1, a_k: ROWS, b, b_k: WIDTH, c, c_row: LANES, acc: true };
                    tile_at(isa, &t);
                }
            }
        });
    }
}
