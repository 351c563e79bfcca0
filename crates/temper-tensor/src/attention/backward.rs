//! Attention backward: probabilities again from the saved log-sum-exp, then the five products of a key block.

use std::ops::Range;

use rayon::prelude::*;

use crate::attention::gather::{Columns, padded};
use crate::attention::rows::{dot, probabilities, scaled, score_gradients};
use crate::attention::tiles::{Left, Right, multiply};
use crate::attention::{BLOCK, Group, Queries, Shared, TILE};
use crate::buf::Buf;
use crate::ops::AttnShape;
use crate::segments::Segments;

/// (query, head) pairs that are taken together: the reduction length of dK's and dV's partial sums.
const PAIRS: usize = 4 * TILE;

/// What backward reads, as slices: the forward's arguments and results, and the output's gradient.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'t> {
    pub(crate) q: &'t [f32],
    pub(crate) k: &'t [f32],
    pub(crate) v: &'t [f32],
    pub(crate) out: &'t [f32],
    pub(crate) lse: &'t [f32],
    pub(crate) dy: &'t [f32],
}

/// Gradients; dq is overwritten, dk and dv must be zero on entry.
///
/// Accumulation order: a tree's segments one after the other; within a segment its query rows in order; the sums of a
/// whole segment are then added to the rows of its chain, root first.
pub(crate) fn backward(
    saved: &Saved,
    segments: &Segments,
    shape: &AttnShape,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    let trees = segments.trees();
    let items: Vec<_> = trees.iter().flat_map(|tree| (0..shape.kv_heads).map(move |h| (tree, h))).collect();
    items.par_iter().with_max_len(1).for_each(|&(tree, h)| {
        let group = Group::new(shape, h);
        let kv = KvColumns { width: shape.kv_heads * group.d, col: h * group.d, d: group.d };
        let mut work = Work::new(group.d);
        for &s in tree {
            let chain = segments.chain_rows(s);
            let mut keys = Keys::new(saved, kv, &chain);
            let segment = segments.list()[s];
            let queries = Queries { start: segment.start, len: segment.len, first: segments.first_position(s) };
            for piece in queries.cut(BLOCK) {
                for at in (0..piece.len * group.size).step_by(PAIRS) {
                    let pairs = at..(at + PAIRS).min(piece.len * group.size);
                    work.step(saved, &group, piece, pairs, &mut keys, dq);
                }
            }
            keys.add_to(&chain, kv, dk, dv);
        }
    });
}

#[derive(Clone, Copy)]
struct KvColumns {
    width: usize,
    col: usize,
    d: usize,
}

/// One chain's keys and values of one kv head, in the layouts that backward multiplies by, and their gradients.
struct Keys {
    key_panels: Buf,
    key_rows: Buf,
    value_panels: Buf,
    dk: Buf,
    dv: Buf,
}

impl Keys {
    fn new(saved: &Saved, at: KvColumns, chain: &[Range<usize>]) -> Self {
        let len: usize = chain.iter().map(Range::len).sum();
        let zeros = || Buf::zeros(padded(len, at.d));
        let mut keys = Self { key_panels: zeros(), key_rows: zeros(), value_panels: zeros(), dk: zeros(), dv: zeros() };
        let columns = |data| Columns { data, width: at.width, col: at.col, d: at.d };
        columns(saved.k).panels_into(chain, len, &mut keys.key_panels);
        columns(saved.k).rows_into(chain, len, &mut keys.key_rows);
        columns(saved.v).panels_into(chain, len, &mut keys.value_panels);
        keys
    }

    /// Adds the gradients to the rows of the batch.
    fn add_to(&self, chain: &[Range<usize>], at: KvColumns, dk: Shared, dv: Shared) {
        for (pos, row) in chain.iter().cloned().flatten().enumerate() {
            for (from, to) in [(&self.dk, dk), (&self.dv, dv)] {
                // SAFETY: this worker alone owns the tree's rows in this kv head's columns.
                let to = unsafe { to.slice(row * at.width + at.col, at.d) };
                to.iter_mut().zip(&from[pos * at.d..]).for_each(|(to, x)| *to += x);
            }
        }
    }
}

/// Scratch for up to [`PAIRS`] (query, head) pairs.
struct Work {
    q: Buf,
    dy: Buf,
    dq: Buf,
    p: Buf,
    ds: Buf,
    lse: [f32; PAIRS],
    delta: [f32; PAIRS],
}

impl Work {
    fn new(d: usize) -> Self {
        let rows = || Buf::zeros(PAIRS * d);
        let block = || Buf::zeros(PAIRS * BLOCK);
        Self { q: rows(), dy: rows(), dq: rows(), p: block(), ds: block(), lse: [0.0; PAIRS], delta: [0.0; PAIRS] }
    }

    fn load(&mut self, saved: &Saved, group: &Group, queries: Queries, pairs: Range<usize>) {
        let d = group.d;
        for (i, pair) in pairs.enumerate() {
            let at = group.at(queries.start, pair);
            let (dy, out) = (&saved.dy[at..at + d], &saved.out[at..at + d]);
            self.dy[i * d..(i + 1) * d].copy_from_slice(dy);
            self.delta[i] = dot(dy, out);
            self.lse[i] = saved.lse[group.stat(queries.start, pair)];
            scaled(&saved.q[at..at + d], group.scale, &mut self.q[i * d..(i + 1) * d]);
        }
    }

    /// All key blocks of some pairs that share their last block.
    fn step(
        &mut self,
        saved: &Saved,
        group: &Group,
        queries: Queries,
        pairs: Range<usize>,
        keys: &mut Keys,
        dq: Shared,
    ) {
        let d = group.d;
        self.load(saved, group, queries, pairs.clone());
        let last = queries.first / BLOCK;
        for b in 0..=last {
            let position = |pair: usize| queries.first + pair / group.size;
            let seen = |pair: usize| if b < last { BLOCK } else { position(pair) % BLOCK + 1 };
            let depth = seen(pairs.end - 1);
            let block = b * BLOCK * d..(b + 1) * BLOCK * d;
            self.score_block(&keys.key_panels[block.clone()], &keys.value_panels[block.clone()], pairs.len(), d, depth);
            for (i, pair) in pairs.clone().enumerate() {
                let (p, ds) = (&mut self.p[i * BLOCK..][..BLOCK], &mut self.ds[i * BLOCK..][..BLOCK]);
                probabilities(p, seen(pair), self.lse[i]);
                score_gradients(p, ds, seen(pair), self.delta[i]);
            }
            self.products(keys, block, pairs.len(), d, depth, b > 0);
        }
        for (i, pair) in pairs.enumerate() {
            // SAFETY: each (row, head) pair belongs to exactly one step of one worker.
            let to = unsafe { dq.slice(group.at(queries.start, pair), d) };
            scaled(&self.dq[i * d..(i + 1) * d], group.scale, to);
        }
    }

    /// Scores into `p`, products of the output's gradient with the values into `ds`.
    fn score_block(&mut self, key_panels: &[f32], value_panels: &[f32], rows: usize, d: usize, depth: usize) {
        for at in (0..rows).step_by(TILE) {
            let n = TILE.min(rows - at);
            let (from, to) = (at * d, at * BLOCK);
            let keys = Right::panels(key_panels, d, depth);
            multiply(n, d, Left::rows(&self.q[from..], d), keys, &mut self.p[to..], BLOCK, false);
            let values = Right::panels(value_panels, d, depth);
            multiply(n, d, Left::rows(&self.dy[from..], d), values, &mut self.ds[to..], BLOCK, false);
        }
    }

    /// dV += P^T dY, dK += dS^T Q, dQ (=|+=) dS K.
    fn products(&mut self, keys: &mut Keys, block: Range<usize>, rows: usize, d: usize, depth: usize, acc: bool) {
        for at in (0..depth).step_by(TILE) {
            let n = TILE.min(depth - at);
            let to = block.start + at * d;
            let (p, ds) = (Left::columns(&self.p, BLOCK, at), Left::columns(&self.ds, BLOCK, at));
            multiply(n, rows, p, Right::rows(&self.dy, d), &mut keys.dv[to..], d, true);
            multiply(n, rows, ds, Right::rows(&self.q, d), &mut keys.dk[to..], d, true);
        }
        let key_rows = &keys.key_rows[block];
        for at in (0..rows).step_by(TILE) {
            let n = TILE.min(rows - at);
            let ds = Left::rows(&self.ds[at * BLOCK..], BLOCK);
            multiply(n, depth, ds, Right::rows(key_rows, d), &mut self.dq[at * d..], d, acc);
        }
    }
}
