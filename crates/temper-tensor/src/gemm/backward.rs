//! `dx = dy w` and `dw += dy^T x`.
#![allow(unsafe_code)] // hands pointers to the micro-kernel

use std::ops::Range;
use std::ptr;

use super::forward::ragged;
use super::tile::{ROWS, Tile, tile_at};
use super::{DEPTH, Output, share};
use crate::buf::Buf;
use crate::isa::Isa;
use crate::panels::{LANES, Panels};

/// Columns of one tile.
const WIDTH: usize = 2 * LANES;

/// `dx [m, k]`: the reduction runs over n, so blocks of w are transposed into `[n][32 columns]` first.
pub(super) fn dx(isa: Isa, dy: &[f32], m: usize, w: &Panels, dx: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    let out = Output(dx.as_mut_ptr());
    share(k.div_ceil(WIDTH), m * n * k, |task| {
        let columns = task * WIDTH..((task + 1) * WIDTH).min(k);
        let mut packed = Buf::dirty(DEPTH * WIDTH);
        for start in (0..n).step_by(DEPTH) {
            let depth = DEPTH.min(n - start);
            transpose(w, start..start + depth, columns.clone(), &mut packed);
            let b1 = if columns.len() > LANES { packed[LANES..].as_ptr() } else { ptr::null() };
            let t = Tile {
                rows: ROWS,
                depth,
                a: dy[start..].as_ptr(),
                a_row: n,
                a_k: 1,
                b: [packed.as_ptr(), b1],
                b_k: WIDTH,
                c: [ptr::null_mut(); 2],
                c_row: k,
                acc: acc || start > 0,
            };
            for row in (0..m).step_by(ROWS) {
                let a = dy[row * n + start..].as_ptr();
                // SAFETY: the rows lie inside dy and dx; this task alone writes these columns of dx.
                unsafe {
                    let c = out.get().add(row * k + columns.start);
                    place(isa, &Tile { rows: ROWS.min(m - row), a, ..t }, c, columns.len());
                }
            }
        }
    });
}

/// Runs a tile on `width` columns at `c`.
///
/// # Safety
/// As for the micro-kernel, for `width` columns.
unsafe fn place(isa: Isa, t: &Tile, c: *mut f32, width: usize) {
    // SAFETY: the caller vouches for the addresses.
    unsafe {
        if width.is_multiple_of(LANES) {
            let c1 = if width == WIDTH { c.add(LANES) } else { ptr::null_mut() };
            tile_at(isa, &Tile { c: [c, c1], ..*t });
        } else {
            ragged(isa, t, c, width);
        }
    }
}

/// `out[j][c] = w[rows.start + j][columns.start + c]`, rows of 32 values.
fn transpose(w: &Panels, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
    let k = w.k();
    for (j, out) in rows.zip(out.chunks_exact_mut(WIDTH)) {
        let panel = &w.data()[j / LANES * LANES * k..][..LANES * k];
        for (c, out) in columns.clone().zip(out) {
            *out = panel[c * LANES + j % LANES];
        }
    }
}

/// `dw [n/16][k][16]`: tiles of 12 columns of x (rows of the tile) by two panels of dw (lanes); both operands are
/// packed for a block of rows.
pub(super) fn dw(isa: Isa, dy: &[f32], x: &[f32], m: usize, dw: &mut Panels) {
    let (n, k, count) = (dw.n(), dw.k(), dw.count());
    let out = Output(dw.data_mut().as_mut_ptr());
    for start in (0..m).step_by(DEPTH) {
        let depth = DEPTH.min(m - start);
        let strips = pack_strips(&x[start * k..(start + depth) * k], depth, k);
        share(count.div_ceil(2), depth * n * k, |task| {
            let panel = 2 * task;
            let pair = panel + 1 < count;
            let mut packed = Buf::dirty(DEPTH * WIDTH);
            pack_lanes(&dy[start * n..(start + depth) * n], n, panel * LANES, &mut packed);
            for (strip, column) in (0..k).step_by(ROWS).enumerate() {
                // SAFETY: the strip lies inside its buffer, and this task alone writes these panels of dw.
                unsafe {
                    let c = out.get().add((panel * k + column) * LANES);
                    let b1 = if pair { packed[LANES..].as_ptr() } else { ptr::null() };
                    let c1 = if pair { c.add(k * LANES) } else { ptr::null_mut() };
                    let t = Tile {
                        rows: ROWS.min(k - column),
                        depth,
                        a: strips[strip * depth * ROWS..].as_ptr(),
                        a_row: 1,
                        a_k: ROWS,
                        b: [packed.as_ptr(), b1],
                        b_k: WIDTH,
                        c: [c, c1],
                        c_row: LANES,
                        acc: true,
                    };
                    tile_at(isa, &t);
                }
            }
        });
    }
}

/// x `[depth, k]` as strips `[ceil(k / 12)][depth][12]`.
fn pack_strips(x: &[f32], depth: usize, k: usize) -> Buf {
    let count = k.div_ceil(ROWS);
    let mut strips = Buf::dirty(count * depth * ROWS);
    for (r, row) in x.chunks_exact(k).enumerate() {
        for (s, values) in row.chunks(ROWS).enumerate() {
            strips[(s * depth + r) * ROWS..][..values.len()].copy_from_slice(values);
        }
    }
    strips
}

/// Columns `[from, from + 32)` of dy `[rows, n]` as rows of 32 values, zero past n.
fn pack_lanes(dy: &[f32], n: usize, from: usize, out: &mut [f32]) {
    let width = WIDTH.min(n - from);
    for (row, out) in dy.chunks_exact(n).zip(out.chunks_exact_mut(WIDTH)) {
        out[..width].copy_from_slice(&row[from..from + width]);
        out[width..].fill(0.0);
    }
}
