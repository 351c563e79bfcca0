//! Attention backward: probabilities again from the saved log-sum-exp, then the five products of a key block.

use std::ops::Range;

use rayon::prelude::*;

use crate::attention::gather::{Columns, positions};
use crate::attention::rows::{dot, probabilities, scaled, score_gradients};
use crate::attention::tiles::{Left, Right, multiply};
use crate::attention::{BLOCK, Group, Queries, Shared, TILE, wide};
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

/// Query positions per piece of work.
const CHUNK: usize = 512;
/// Pieces whose sums are held at one time; fixed, so that nothing depends on the number of threads.
const WAVE: usize = 32;

/// One piece of work: queries of a segment against its chain, for one kv head.
struct Piece {
    chain: Vec<Range<usize>>,
    queries: Queries,
    kv_head: usize,
}

/// Gradients; dq is overwritten, dk and dv must be zero on entry.
///
/// Accumulation order: pieces in the order of segments and of query rows within them; the sums of a whole piece are
/// added to the rows of its chain, root first, so children reach their parents in order.
pub(crate) fn backward(
    saved: &Saved,
    segments: &Segments,
    shape: &AttnShape,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let dq = Shared::new(dq);
    let columns = |kv_head: usize| {
        let d = shape.head_dim;
        KvColumns { width: shape.kv_heads * d, col: kv_head * d, d }
    };
    for wave in pieces(segments, shape).chunks(WAVE) {
        let one =
            |piece: &Piece| piece_sums(saved, &Group::new(shape, piece.kv_head), columns(piece.kv_head), piece, dq);
        let sums: Vec<Sums> = wave.par_iter().with_max_len(1).map(one).collect();
        for (piece, sums) in wave.iter().zip(&sums) {
            sums.add_to(&piece.chain, columns(piece.kv_head), dk, dv);
        }
    }
}

fn pieces(segments: &Segments, shape: &AttnShape) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (s, segment) in segments.list().iter().enumerate() {
        let all = Queries { start: segment.start, len: segment.len, first: segments.first_position(s) };
        for queries in all.cut(CHUNK) {
            // Keys after the piece's last query are not seen by it.
            let mut chain = segments.chain_rows(s);
            if let Some(own) = chain.last_mut() {
                own.end = queries.start + queries.len;
            }
            pieces.extend((0..shape.kv_heads).map(|kv_head| Piece { chain: chain.clone(), queries, kv_head }));
        }
    }
    pieces
}

fn piece_sums(saved: &Saved, group: &Group, at: KvColumns, piece: &Piece, dq: Shared) -> Sums {
    let mut keys = Keys::new(saved, at, &piece.chain);
    let mut work = Work::new(group.d);
    for queries in piece.queries.cut(BLOCK) {
        let pairs = queries.len * group.size;
        for from in (0..pairs).step_by(PAIRS) {
            work.step(saved, group, queries, from..(from + PAIRS).min(pairs), &mut keys, dq);
        }
    }
    keys.sums
}

#[derive(Clone, Copy)]
struct KvColumns {
    width: usize,
    col: usize,
    d: usize,
}

/// One chain's keys and values of one kv head, in the layouts that backward multiplies by, and their gradients:
/// panels `[T/16][D][16]`, rows `[T][wide(D)]`.
struct Keys {
    key_panels: Buf,
    key_rows: Buf,
    value_panels: Buf,
    sums: Sums,
}

/// Gradients of a chain's keys and values, one kv head, by position: rows `[T][wide(D)]`.
struct Sums {
    dk: Buf,
    dv: Buf,
}

impl Keys {
    fn new(saved: &Saved, at: KvColumns, chain: &[Range<usize>]) -> Self {
        let len: usize = chain.iter().map(Range::len).sum();
        let panels = || positions(len, at.d);
        let rows = || positions(len, wide(at.d));
        let mut keys = Self {
            key_panels: panels(),
            key_rows: rows(),
            value_panels: panels(),
            sums: Sums { dk: rows(), dv: rows() },
        };
        let columns = |data| Columns { data, width: at.width, col: at.col, d: at.d };
        columns(saved.k).panels_into(chain, len, &mut keys.key_panels);
        columns(saved.k).rows_into(chain, len, &mut keys.key_rows);
        columns(saved.v).panels_into(chain, len, &mut keys.value_panels);
        keys
    }
}

impl Sums {
    /// Adds the gradients to the rows of the batch.
    fn add_to(&self, chain: &[Range<usize>], at: KvColumns, dk: &mut [f32], dv: &mut [f32]) {
        for (pos, row) in chain.iter().cloned().flatten().enumerate() {
            let (from, to) = (pos * wide(at.d), row * at.width + at.col);
            add_row(&self.dk[from..from + at.d], &mut dk[to..to + at.d]);
            add_row(&self.dv[from..from + at.d], &mut dv[to..to + at.d]);
        }
    }
}

fn add_row(from: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, x)| *to += x);
}

/// Scratch for up to [`PAIRS`] (query, head) pairs; rows of q, dy and dq are `wide(D)` apart.
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
        let rows = || Buf::zeros(PAIRS * wide(d));
        let block = || Buf::zeros(PAIRS * BLOCK);
        Self { q: rows(), dy: rows(), dq: rows(), p: block(), ds: block(), lse: [0.0; PAIRS], delta: [0.0; PAIRS] }
    }

    fn load(&mut self, saved: &Saved, group: &Group, queries: Queries, pairs: Range<usize>) {
        let (d, wide) = (group.d, wide(group.d));
        for (i, pair) in pairs.enumerate() {
            let at = group.at(queries.start, pair);
            let (dy, out) = (&saved.dy[at..at + d], &saved.out[at..at + d]);
            self.dy[i * wide..][..d].copy_from_slice(dy);
            self.delta[i] = dot(dy, out);
            self.lse[i] = saved.lse[group.stat(queries.start, pair)];
            scaled(&saved.q[at..at + d], group.scale, &mut self.q[i * wide..][..d]);
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
            self.score_block(&keys.key_panels[block.clone()], &keys.value_panels[block], pairs.len(), d, depth);
            for (i, pair) in pairs.clone().enumerate() {
                let (p, ds) = (&mut self.p[i * BLOCK..][..BLOCK], &mut self.ds[i * BLOCK..][..BLOCK]);
                probabilities(p, seen(pair), self.lse[i]);
                score_gradients(p, ds, seen(pair), self.delta[i]);
            }
            self.products(keys, b, pairs.len(), wide(d), depth);
        }
        for (i, pair) in pairs.enumerate() {
            // SAFETY: each (row, head) pair belongs to exactly one step of one worker.
            let to = unsafe { dq.slice(group.at(queries.start, pair), d) };
            scaled(&self.dq[i * wide(d)..][..d], group.scale, to);
        }
    }

    /// Scores into `p`, products of the output's gradient with the values into `ds`.
    fn score_block(&mut self, key_panels: &[f32], value_panels: &[f32], rows: usize, d: usize, depth: usize) {
        let wide = wide(d);
        for at in (0..rows).step_by(TILE) {
            let n = TILE.min(rows - at);
            let (from, to) = (at * wide, at * BLOCK);
            let keys = Right::panels(key_panels, d, depth);
            multiply(n, d, Left::rows(&self.q[from..], wide), keys, &mut self.p[to..], BLOCK, false);
            let values = Right::panels(value_panels, d, depth);
            multiply(n, d, Left::rows(&self.dy[from..], wide), values, &mut self.ds[to..], BLOCK, false);
        }
    }

    /// dV += P^T dY, dK += dS^T Q, dQ (=|+=) dS K of key block `b`; rows are `width` floats apart.
    fn products(&mut self, keys: &mut Keys, b: usize, rows: usize, width: usize, depth: usize) {
        let start = b * BLOCK * width;
        for at in (0..depth).step_by(TILE) {
            let n = TILE.min(depth - at);
            let to = start + at * width;
            let (p, ds) = (Left::columns(&self.p, BLOCK, at), Left::columns(&self.ds, BLOCK, at));
            multiply(n, rows, p, Right::rows(&self.dy, width), &mut keys.sums.dv[to..], width, true);
            multiply(n, rows, ds, Right::rows(&self.q, width), &mut keys.sums.dk[to..], width, true);
        }
        let key_rows = &keys.key_rows[start..start + BLOCK * width];
        for at in (0..rows).step_by(TILE) {
            let n = TILE.min(rows - at);
            let ds = Left::rows(&self.ds[at * BLOCK..], BLOCK);
            multiply(n, depth, ds, Right::rows(key_rows, width), &mut self.dq[at * width..], width, b > 0);
        }
    }
}
