//! Attention forward: one tile routine, fed from gathered rows (training) or from pages (sampling).

use rayon::prelude::*;

use crate::attention::gather::{Columns, Gathered};
use crate::attention::rows::{online_softmax, scale_in_place, scaled};
use crate::attention::{BLOCK, Group, Products, Queries, Shared, wide};
use crate::buf::Buf;
use crate::kv::CacheSlot;
use crate::ops::AttnShape;
use crate::panels::LANES;
use crate::segments::Segments;

/// Query positions per piece of work.
const CHUNK: usize = 256;
/// Below this many score elements the work is done on the calling thread.
const SERIAL: usize = 1 << 9;

/// Most rows of a tile.
const MOST: usize = 32;

/// Scratch of one worker.
struct Tile {
    memory: Buf,
    /// Floats of each part of the memory: queries, results and scores as rows, queries and scores as left operands.
    sizes: [usize; 5],
    seen: [usize; MOST],
    max: [f32; MOST],
    sum: [f32; MOST],
    factor: [f32; MOST],
}

impl Tile {
    /// For so many rows, at most [`Products::TILE`].
    fn new<P: Products>(rows: usize, d: usize) -> Self {
        const { assert!(P::TILE <= MOST) };
        // Products fill up the rows of their results.
        let rows = rows.min(P::TILE).next_multiple_of(LANES).min(P::TILE);
        let left = |depth| P::scratch(rows, depth);
        let sizes = [rows * d, rows * wide(d), rows * BLOCK, left(d), left(BLOCK)];
        let memory = Buf::dirty(sizes.iter().sum());
        Self { memory, sizes, seen: [0; MOST], max: [0.0; MOST], sum: [0.0; MOST], factor: [0.0; MOST] }
    }
}

/// Where queries are read and results written.
struct Io<'t> {
    q: &'t [f32],
    out: Shared,
    lse: Option<Shared>,
}

/// Training: q `[N, H * D]`, k and v `[N, kv_heads * D]`, out `[N, H * D]`, lse `[N, H]`.
pub(crate) fn forward<P: Products>(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &Segments,
    shape: &AttnShape,
    out: &mut [f32],
    lse: &mut [f32],
) {
    let io = Io { q, out: Shared::new(out), lse: Some(Shared::new(lse)) };
    let (d, width) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    let mut items = Vec::new();
    for s in 0..segments.len() {
        let queries =
            Queries { start: segments.list()[s].start, len: segments.list()[s].len, first: segments.first_position(s) };
        for piece in queries.cut(CHUNK) {
            items.extend((0..shape.kv_heads).map(|h| (s, h, piece)));
        }
    }
    let work = items.iter().map(|(_, _, p)| p.len * (p.first + p.len)).sum::<usize>() * shape.heads / shape.kv_heads;
    run(work, &items, |&(s, h, piece)| {
        let columns = |data| Columns { data, width, col: h * d, d };
        let keys = Gathered::<P>::new(columns(k), columns(v), &segments.chain_rows(s), piece.first + piece.len);
        attend::<P>(&io, &Group::new(shape, h), piece, |b| keys.block(b));
    });
}

/// Sampling: appends k and v to the slots' caches, then attends over their pages.
pub(crate) fn cached<P: Products>(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    slots: &mut [CacheSlot],
    layer: usize,
    shape: &AttnShape,
    out: &mut [f32],
) {
    let (d, width) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    let mut items = Vec::new();
    for (i, slot) in slots.iter_mut().enumerate() {
        let rows = slot.rows.clone();
        let first = slot.cache.layer_len(layer);
        let range = rows.start * width..rows.end * width;
        slot.cache.append::<P>(layer, &k[range.clone()], &v[range], rows.len());
        for piece in (Queries { start: rows.start, len: rows.len(), first }).cut(CHUNK) {
            items.extend((0..shape.kv_heads).map(|h| (i, h, piece)));
        }
    }
    let work = items.iter().map(|(_, _, p)| p.len * (p.first + p.len)).sum::<usize>() * shape.heads / shape.kv_heads;
    let io = Io { q, out: Shared::new(out), lse: None };
    let slots: &[CacheSlot] = slots;
    run(work, &items, |&(i, h, piece)| {
        let pages = slots[i].cache.pages(layer);
        let range = |size| h * size..(h + 1) * size;
        let block = |b: usize| (&pages[b].keys[range(P::columns_len(d))], &pages[b].values[range(P::rows_len(d))]);
        attend::<P>(&io, &Group::new(shape, h), piece, block);
    });
}

fn run<T: Sync>(work: usize, items: &[T], each: impl Fn(&T) + Sync + Send) {
    if work < SERIAL { items.iter().for_each(each) } else { items.par_iter().with_max_len(1).for_each(each) }
}

/// All queries of a piece, one kv head.
fn attend<'k, P: Products>(io: &Io, group: &Group, piece: Queries, block: impl Fn(usize) -> (&'k [f32], &'k [f32])) {
    let unit = P::unit();
    let mut tile = Tile::new::<P>(piece.len.min(BLOCK) * group.size, group.d);
    // Rows of a tile share their last key block.
    for same_block in piece.cut(BLOCK) {
        let pairs = same_block.len * group.size;
        for at in (0..pairs).step_by(P::TILE) {
            attend_tile::<P>(&unit, io, group, same_block, at..(at + P::TILE).min(pairs), &mut tile, &block);
        }
    }
}

fn attend_tile<'k, P: Products>(
    unit: &P::Unit,
    io: &Io,
    group: &Group,
    queries: Queries,
    pairs: std::ops::Range<usize>,
    tile: &mut Tile,
    block: &impl Fn(usize) -> (&'k [f32], &'k [f32]),
) {
    let (d, wide, rows) = (group.d, wide(group.d), pairs.len());
    let last = queries.first / BLOCK;
    let Tile { memory, sizes, seen, max, sum, factor } = tile;
    let mut rest = &mut memory[..];
    let [q, out, scores, left_q, left_scores] = sizes.map(|size| rest.split_off_mut(..size).unwrap_or_default());
    for (i, pair) in pairs.clone().enumerate() {
        let at = group.at(queries.start, pair);
        scaled(&io.q[at..at + d], group.scale, &mut q[i * d..(i + 1) * d]);
    }
    let q = P::left(q, (rows, d), d, left_q);
    max.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    for b in 0..=last {
        let (keys, values) = block(b);
        queries.seen(pairs.clone(), group.size, b == last, &mut seen[..rows]);
        let depth = seen[rows - 1];
        P::multiply(unit, rows, d, q, P::columns(keys, d, depth), scores, BLOCK, false);
        online_softmax(scores, &seen[..rows], max, sum, factor);
        if b > 0 {
            let changed = out.chunks_exact_mut(wide).zip(&factor[..rows]).filter(|(_, factor)| **factor != 1.0);
            changed.for_each(|(out, factor)| scale_in_place(&mut out[..d], *factor));
        }
        let weights = P::left(scores, (rows, depth), BLOCK, left_scores);
        P::multiply(unit, rows, depth, weights, P::rows(values, d), out, wide, b > 0);
    }
    for (i, pair) in pairs.enumerate() {
        // SAFETY: each (row, head) pair belongs to exactly one tile of one item.
        let to = unsafe { io.out.slice(group.at(queries.start, pair), d) };
        scaled(&out[i * wide..][..d], 1.0 / sum[i], to);
        if let Some(lse) = &io.lse {
            // SAFETY: as above.
            let lse = unsafe { lse.slice(group.stat(queries.start, pair), 1) };
            lse[0] = max[i] + sum[i].ln();
        }
    }
}
