//! The three products of a linear layer over [`Panels`].
//!
//! Every output element is one chain of multiply-adds in ascending order of its reduction index, starting from zero or
//! from the element's old value. Between blocks of the reduction the partial sum is stored and loaded again, which
//! changes no bits. So results depend neither on the number of rows nor on tiles, blocks, threads or, for the weight
//! gradient, on how rows are cut into calls.
//!
//! Where the processor has AMX tiles, `gemm/split.rs` takes f32 products over, with another order of additions.

mod backward;
pub mod bf16;
mod forward;
mod grid;
mod pack;
pub mod quant;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod split;
pub(crate) mod tile;

#[cfg(test)]
pub(crate) mod tests;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::isa::{Dot, dot};
use crate::isa::{Isa, isa};
use crate::panels::{LANES, Panels};

use grid::{Grid, Left, Output, part, place, share};

pub(crate) use tile::{ROWS, tile};

/// Steps of the reduction that run before the partial sums are stored.
const DEPTH: usize = 384;
/// Columns of one tile.
const WIDTH: usize = 2 * LANES;
/// Rows of the left operand that are kept in the second-level cache: with `DEPTH` steps, 396 KiB.
const ROW_BLOCK: usize = 264;
/// Multiply-adds below which a second thread costs more than it brings.
const FORK: usize = 1 << 20;
/// Rows whose multiply-adds take as long as fetching the weights; fewer rows take no less time.
const FETCH_ROWS: usize = 8;

/// How f32 products are computed. Each way has its own order of additions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the multiply-adds of a level, one chain an element.
    Chain(Isa),
    /// On tiles of bf16, each f32 the sum of three.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Split,
}

fn way() -> Way {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if dot() == Dot::Amx {
        return Way::Split;
    }
    Way::Chain(isa())
}

/// Rows of the chunks into which `m` rows are best cut, when a chunk should have about `most` of them.
pub(crate) fn even_rows(m: usize, most: usize) -> usize {
    part(m, most, tile::ROWS.min(most))
}

/// `y = x w^T` (`y +=` when `acc`): `x [m, k]`, `w [n, k]`, `y [m, n]`, row-major.
pub fn linear(x: &[f32], m: usize, w: &Panels, y: &mut [f32], acc: bool) {
    linear_at(way(), x, m, w, y, acc);
}

/// [`linear`] a given way, which the processor must offer.
pub(crate) fn linear_at(way: Way, x: &[f32], m: usize, w: &Panels, y: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    assert_eq!((x.len(), y.len()), (m * k, m * n), "x is [{m}, {k}] and y is [{m}, {n}]");
    if !acc && k == 0 {
        y.fill(0.0);
    }
    if m > 0 && n > 0 && k > 0 {
        match way {
            Way::Chain(isa) => forward::run(isa, x, m, w, y, acc),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Way::Split => split::linear(x, m, w, y, acc),
        }
    }
}

/// `dx = dy w` (`dx +=` when `acc`): `dy [m, n]`, `w [n, k]`, `dx [m, k]`, row-major.
pub fn linear_dx(dy: &[f32], m: usize, w: &Panels, dx: &mut [f32], acc: bool) {
    linear_dx_at(way(), dy, m, w, dx, acc);
}

/// [`linear_dx`] a given way, which the processor must offer.
pub(crate) fn linear_dx_at(way: Way, dy: &[f32], m: usize, w: &Panels, dx: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    assert_eq!((dy.len(), dx.len()), (m * n, m * k), "dy is [{m}, {n}] and dx is [{m}, {k}]");
    if !acc && n == 0 {
        dx.fill(0.0);
    }
    if m > 0 && n > 0 && k > 0 {
        match way {
            Way::Chain(isa) => backward::dx(isa, dy, m, w, dx, acc),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Way::Split => split::linear_dx(dy, m, w, dx, acc),
        }
    }
}

/// `dw += dy^T x`: `dy [m, n]`, `x [m, k]`, row-major, `dw [n, k]`. Rows are added in ascending order, so that
/// consecutive calls on parts of a batch give the same bits as one call on the whole.
pub fn linear_dw(dy: &[f32], x: &[f32], m: usize, dw: &mut Panels) {
    linear_dw_at(way(), dy, x, m, dw);
}

/// [`linear_dw`] a given way, which the processor must offer.
pub(crate) fn linear_dw_at(way: Way, dy: &[f32], x: &[f32], m: usize, dw: &mut Panels) {
    let (n, k) = (dw.n(), dw.k());
    assert_eq!((dy.len(), x.len()), (m * n, m * k), "dy is [{m}, {n}] and x is [{m}, {k}]");
    if m > 0 && n > 0 && k > 0 {
        match way {
            Way::Chain(isa) => backward::dw(isa, dy, x, m, dw),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Way::Split => split::linear_dw(dy, x, m, dw),
        }
    }
}
