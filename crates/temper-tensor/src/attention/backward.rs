//! Attention backward: probabilities again from the saved log-sum-exp, then the five products of a key block.

use std::ops::Range;

use rayon::prelude::*;

use crate::attention::gather::{Columns, zeros};
use crate::attention::rows::{dot, scaled, score_gradients};
use crate::attention::{BLOCK, Group, Products, Queries, Shared, wide};
use crate::buf::Buf;
use crate::ops::AttnShape;
use crate::segments::Segments;

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
pub(crate) fn backward<P: Products>(
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
        let one = |piece: &Piece| {
            piece_sums::<P>(saved, &Group::new(shape, piece.kv_head), columns(piece.kv_head), piece, dq)
        };
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

fn piece_sums<P: Products>(saved: &Saved, group: &Group, at: KvColumns, piece: &Piece, dq: Shared) -> Sums {
    let unit = P::unit();
    let mut keys = Keys::new::<P>(saved, at, &piece.chain);
    let mut work = Work::new::<P>(group.d);
    for queries in piece.queries.cut(BLOCK) {
        let pairs = queries.len * group.size;
        for from in (0..pairs).step_by(P::PAIRS) {
            work.step::<P>(&unit, saved, group, queries, from..(from + P::PAIRS).min(pairs), &mut keys, dq);
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

/// One chain's keys and values of one kv head, as backward multiplies by them, and their gradients.
struct Keys {
    key_columns: Buf,
    key_rows: Buf,
    value_columns: Buf,
    sums: Sums,
}

/// Gradients of a chain's keys and values, one kv head, by position: rows `[T][wide(D)]`.
struct Sums {
    dk: Buf,
    dv: Buf,
}

impl Keys {
    fn new<P: Products>(saved: &Saved, at: KvColumns, chain: &[Range<usize>]) -> Self {
        let len: usize = chain.iter().map(Range::len).sum();
        let columns = |data| Columns { data, width: at.width, col: at.col, d: at.d };
        let (k, v) = (columns(saved.k), columns(saved.v));
        let gradient = || zeros(len, BLOCK * wide(at.d));
        Self {
            key_columns: k.as_columns::<P>(chain, len),
            key_rows: k.as_rows::<P>(chain, len),
            value_columns: v.as_columns::<P>(chain, len),
            sums: Sums { dk: gradient(), dv: gradient() },
        }
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

/// Scratch for up to [`Products::PAIRS`] (query, head) pairs; rows of q, dy and dq are `wide(D)` apart.
struct Work {
    q: Buf,
    dy: Buf,
    dq: Buf,
    p: Buf,
    ds: Buf,
    seen: Vec<usize>,
    lse: Vec<f32>,
    delta: Vec<f32>,
    /// The operands that are packed once for all key blocks, and those of a key block.
    packed: Packed,
    block: Block,
}

struct Packed {
    q: Buf,
    dy: Buf,
    q_rows: Buf,
    dy_rows: Buf,
}

struct Block {
    p: Buf,
    ds: Buf,
    ds_rows: Buf,
}

impl Work {
    fn new<P: Products>(d: usize) -> Self {
        let rows = || Buf::zeros(P::PAIRS * wide(d));
        let block = || Buf::zeros(P::PAIRS * BLOCK);
        let pair = || vec![0.0; P::PAIRS];
        let scratch = |count, depth| Buf::dirty(P::scratch(count, depth));
        let left = || scratch(P::PAIRS, d);
        let right = || scratch(wide(d), P::PAIRS);
        let turned = || scratch(BLOCK, P::PAIRS);
        Self {
            q: rows(),
            dy: rows(),
            dq: rows(),
            p: block(),
            ds: block(),
            seen: vec![0; P::PAIRS],
            lse: pair(),
            delta: pair(),
            packed: Packed { q: left(), dy: left(), q_rows: right(), dy_rows: right() },
            block: Block { p: turned(), ds: turned(), ds_rows: scratch(P::PAIRS, BLOCK) },
        }
    }

    fn load<P: Products>(&mut self, saved: &Saved, group: &Group, queries: Queries, pairs: Range<usize>) {
        let (d, wide) = (group.d, wide(group.d));
        for (i, pair) in pairs.enumerate() {
            let at = group.at(queries.start, pair);
            // The same values give delta and, times the values, the scores' gradients, so that what rounding adds to both cancels.
            let dy = &mut self.dy[i * wide..][..d];
            dy.copy_from_slice(&saved.dy[at..at + d]);
            P::round(dy);
            self.delta[i] = dot(dy, &saved.out[at..at + d]);
            self.lse[i] = saved.lse[group.stat(queries.start, pair)];
            scaled(&saved.q[at..at + d], group.scale, &mut self.q[i * wide..][..d]);
        }
    }

    /// All key blocks of some pairs that share their last block.
    fn step<P: Products>(
        &mut self,
        unit: &P::Unit,
        saved: &Saved,
        group: &Group,
        queries: Queries,
        pairs: Range<usize>,
        keys: &mut Keys,
        dq: Shared,
    ) {
        let (d, wide, rows) = (group.d, wide(group.d), pairs.len());
        self.load::<P>(saved, group, queries, pairs.clone());
        let Packed { q, dy, q_rows, dy_rows } = &mut self.packed;
        let left_q = P::left(&self.q, (rows, d), wide, q);
        let left_dy = P::left(&self.dy, (rows, d), wide, dy);
        let (q, dy) = (P::right(&self.q, rows, wide, q_rows), P::right(&self.dy, rows, wide, dy_rows));
        let last = queries.first / BLOCK;
        for b in 0..=last {
            queries.seen(pairs.clone(), group.size, b == last, &mut self.seen[..rows]);
            let depth = self.seen[rows - 1];
            let block = b * P::columns_len(d)..(b + 1) * P::columns_len(d);
            let (key_columns, value_columns) = (&keys.key_columns[block.clone()], &keys.value_columns[block]);
            // Scores, and products of the output's gradient with the values.
            P::multiply(unit, rows, d, left_q, P::columns(key_columns, d, depth), &mut self.p, BLOCK, false);
            P::multiply(unit, rows, d, left_dy, P::columns(value_columns, d, depth), &mut self.ds, BLOCK, false);
            score_gradients(&mut self.p, &mut self.ds, &self.seen[..rows], &self.lse, &self.delta);
            // dV += P^T dY, dK += dS^T Q, dQ (=|+=) dS K.
            let sums = b * BLOCK * wide..(b + 1) * BLOCK * wide;
            let p = P::transposed(&self.p, (depth, rows), &mut self.block.p);
            P::multiply(unit, depth, rows, p, dy, &mut keys.sums.dv[sums.clone()], wide, true);
            let ds = P::transposed(&self.ds, (depth, rows), &mut self.block.ds);
            P::multiply(unit, depth, rows, ds, q, &mut keys.sums.dk[sums], wide, true);
            let ds = P::left(&self.ds, (rows, depth), BLOCK, &mut self.block.ds_rows);
            let key_rows = &keys.key_rows[b * P::rows_len(d)..(b + 1) * P::rows_len(d)];
            P::multiply(unit, rows, depth, ds, P::rows(key_rows, d), &mut self.dq, wide, b > 0);
        }
        for (i, pair) in pairs.enumerate() {
            // SAFETY: each (row, head) pair belongs to exactly one step of one worker.
            let to = unsafe { dq.slice(group.at(queries.start, pair), d) };
            scaled(&self.dq[i * wide..][..d], group.scale, to);
        }
    }
}
