//! `dx = dy w` and `dw += dy^T x`.
#![allow(unsafe_code)] // hands pointers to the micro-kernel

use std::ops::Range;
use std::ptr;

use super::tile::{Next, ROWS, Tile, tile_at};
use super::{DEPTH, Grid, Left, Output, WIDTH, pack, part, place, share};
use crate::buf::Buf;
use crate::isa::Isa;
use crate::panels::{LANES, Panels};

/// Longest chain of the reduction over n. A head's `dlogits` hold a few large values and tens of thousands of tiny ones; in one
/// chain the tiny ones vanish against the partial sum (relative error 7e-5 at n = 49152, 2e-6 with this cut). Chains begin at
/// absolute multiples of it, from zero, and their sums are added in order, so rows, tiles and threads still change no bit.
const CHAIN: usize = 2048;

/// `dx [m, k]`: the reduction runs over n, so blocks of w are transposed into `[n][32 columns]` first.
pub(super) fn dx(isa: Isa, dy: &[f32], m: usize, w: &Panels, dx: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    let left = Left::new(dy, m, n, k);
    let out = Output(dx.as_mut_ptr());
    Grid::new(m, k, n).run(|rows, columns| {
        let mut packed = Buf::dirty(DEPTH.next_multiple_of(LANES) * WIDTH);
        // SAFETY: the rectangle lies inside dx.
        let to = unsafe { out.get().add(rows.start * k + columns.start) };
        if n <= CHAIN {
            chain(isa, &left, w, 0..n, &rows, &columns, &mut packed, (to, k), acc);
            return;
        }
        let width = columns.len();
        let mut sum = Buf::dirty(rows.len() * width);
        for start in (0..n).step_by(CHAIN) {
            let depth = start..(start + CHAIN).min(n);
            chain(isa, &left, w, depth, &rows, &columns, &mut packed, (sum.as_mut_ptr(), width), false);
            for (row, part) in sum.chunks_exact(width).enumerate() {
                // SAFETY: this task alone reads and writes this rectangle of dx.
                let line = unsafe { std::slice::from_raw_parts_mut(to.add(row * k), width) };
                if start == 0 && !acc {
                    line.copy_from_slice(part);
                } else {
                    line.iter_mut().zip(part).for_each(|(x, p)| *x += p);
                }
            }
        }
    });
}

/// One chain of the reduction for a rectangle of dx; `c` is where the rectangle begins, and the distance of its rows.
fn chain(
    isa: Isa,
    left: &Left,
    w: &Panels,
    reduction: Range<usize>,
    rows: &Range<usize>,
    columns: &Range<usize>,
    packed: &mut [f32],
    (c, c_row): (*mut f32, usize),
    acc: bool,
) {
    let step = part(reduction.len(), DEPTH, LANES);
    for start in reduction.clone().step_by(step) {
        let depth = start..(start + step).min(reduction.end);
        let acc = acc || start > reduction.start;
        for from in columns.clone().step_by(WIDTH) {
            let tile = from..(from + WIDTH).min(columns.end);
            pack::transpose(isa, w, depth.clone(), tile.clone(), packed);
            let b = [packed.as_ptr(), if tile.len() > LANES { packed[LANES..].as_ptr() } else { ptr::null() }];
            let ahead = pack::Ahead::new(w, depth.clone(), tile.end, rows.len().div_ceil(ROWS));
            for (strip, row) in rows.clone().step_by(ROWS).enumerate() {
                ahead.fetch(strip);
                let (a, a_row, a_k) = left.at(row, start);
                let (count, depth) = (ROWS.min(rows.end - row), depth.len());
                let next = Next::NONE;
                let t = Tile { rows: count, depth, a, a_row, a_k, b, b_k: WIDTH, next, c: Tile::NO_C, c_row, acc };
                // SAFETY: rows and steps lie inside dy; this task alone writes this rectangle.
                unsafe { place(isa, &t, c.add((row - rows.start) * c_row + from - columns.start), tile.len()) };
            }
        }
    }
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
                    let (a_row, a_k, b_k, c_row, next) = (1, ROWS, WIDTH, LANES, Next::NONE);
                    let t = Tile { rows, depth, a, a_row, a_k, b, b_k, next, c, c_row, acc: true };
                    tile_at(isa, &t);
                }
            }
        });
    }
}
