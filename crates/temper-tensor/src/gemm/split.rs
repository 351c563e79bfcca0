//! The three products of a linear layer in f32 on the tiles of AMX-BF16.
//!
//! A f32 has 24 significant bits and a bf16 has 8, so a f32 is the sum of three bf16 values, `x = x1 + x2 + x3`, each the nearest to what
//! the ones before it left. Of the nine products of two such sums the six largest are added in f32; what is left out is below 2^-25
//! of `|x w|`, less than one rounding of f32 (Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
//! Higher-Precision Computations", ARITH 2019). A tile instruction does 17 times the multiply-adds of two vector units, so six of
//! them still take a third of the time; and since 32 products meet the long sum in six roundings instead of 32, results are closer to
//! f64 than a chain's.
//!
//! The order of additions of an output element: blocks of 32 steps in ascending order; within one, six products (1 3, 1 2, 2 2, 2 1,
//! 1 1, 3 1 of left and right), each two chains from zero, of even steps and of odd ones, whose sum is added. So, as everywhere,
//! rows, tiles and threads change no bits, and weight gradients of parts of a batch add up to the whole's where parts are
//! multiples of 32 rows. Values below 2^-110 lose their last bits (tiles know no subnormal numbers), and an infinity becomes NaN.

mod few;
mod pack;

use std::ops::Range;

use super::bf16::{LEAST, Level, Out, SIDE, Shape, Strips, WORDS, blocks, packed, product};
use crate::isa::{Dot, Isa};
use crate::panels::{LANES, Panels};

/// How parts are multiplied.
const LEVEL: Level = (Isa::Avx512, Dot::Amx);
/// The products of parts of left and right that are added, in this order: it loads few tiles.
pub(super) const ORDER: [(usize, usize); 6] = [(0, 2), (0, 1), (1, 1), (1, 0), (0, 0), (2, 0)];
/// bf16 values that make a f32.
const PARTS: usize = 3;
/// Blocks of the reduction before partial sums are stored. With [`HEIGHT`] rows the left operand takes 0.9 MB, half of a
/// second-level cache, and two panels 108 KB.
const DEPTH: usize = 18;
/// The same for few rows, when weights come from memory: splitting a block and multiplying it overlap.
const DEPTH_OF_FEW: usize = 1;
/// Floats between what is split and what is fetched, for few rows.
const AHEAD_OF_FEW: usize = 1024;
/// Rows of the left operand that one task keeps in the second-level cache; more of them where the reduction is shorter.
const HEIGHT: usize = 256;

/// Longest reduction, in blocks, over which a few rows are all split at once: 0.8 MB for 32 rows.
const FEW: usize = 128;

fn shape(m: usize, length: usize) -> Shape {
    let length = blocks(length);
    let depth = if m <= SIDE && length <= FEW { DEPTH_OF_FEW } else { DEPTH };
    let height = HEIGHT * DEPTH / length.clamp(1, DEPTH);
    Shape { parts: PARTS, depth, height, few: FEW, packs_left: true, least: LEAST }
}

/// `y = x w^T` (`y +=` when `acc`).
pub(super) fn linear(x: &[f32], m: usize, w: &Panels, y: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    if m <= few::MOST {
        return few::linear(x, m, w, y, acc);
    }
    let ahead = if m <= SIDE { AHEAD_OF_FEW } else { 2 * LANES * k };
    let right = packed(PARTS, |panel, depth, out| pack::panel(w, panel, depth, ahead, out));
    product(LEVEL, &shape(m, k), (m, n, k), strips(x, k), right, &Out::rows(y, n, acc));
}

/// `dx = dy w` (`dx +=` when `acc`).
pub(super) fn linear_dx(dy: &[f32], m: usize, w: &Panels, dx: &mut [f32], acc: bool) {
    let (n, k) = (w.n(), w.k());
    let right = packed(PARTS, |panel, depth, out| pack::transposed(w, panel, depth, out));
    product(LEVEL, &shape(m, n), (m, k, n), strips(dy, n), right, &Out::rows(dx, k, acc));
}

/// The rows of x as a left operand, split where they are multiplied.
fn strips(x: &[f32], k: usize) -> impl Fn(Range<usize>, Range<usize>, &mut [u32]) -> Strips + Sync + Send {
    move |rows, depth, out| {
        pack::strips((x, k), rows, depth.clone(), out);
        Strips { first: out.as_ptr(), apart: depth.len() * PARTS * WORDS }
    }
}

/// `dw += dy^T x`.
pub(super) fn linear_dw(dy: &[f32], x: &[f32], m: usize, dw: &mut Panels) {
    let (n, k) = (dw.n(), dw.k());
    let left = |columns: Range<usize>, depth: Range<usize>, out: &mut [u32]| {
        pack::turned((x, k), columns, depth.clone(), out);
        Strips { first: out.as_ptr(), apart: depth.len() * PARTS * WORDS }
    };
    let right = packed(PARTS, |panel, depth, out| {
        pack::columns((dy, n), panel * LANES..n.min((panel + 1) * LANES), depth, out);
    });
    // Every task packs the whole length of its rows, which is long.
    let shape = Shape { least: 1, ..shape(k, m) };
    product(LEVEL, &shape, (k, n, m), left, right, &Out::panels(dw));
}
