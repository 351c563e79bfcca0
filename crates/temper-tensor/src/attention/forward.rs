//! Attention forward: one tile routine, fed from gathered rows (training) or from pages (sampling).

use rayon::prelude::*;

use crate::attention::gather::{Columns, Gathered};
use crate::attention::rows::{online_softmax_row, scale_in_place, scaled};
use crate::attention::tiles::{Left, Right, multiply};
use crate::attention::{BLOCK, Group, Queries, Shared, TILE, wide};
use crate::kv::CacheSlot;
use crate::ops::AttnShape;
use crate::segments::Segments;

/// Query positions per piece of work.
const CHUNK: usize = 256;
/// Below this many score elements the work is done on the calling thread.
const SERIAL: usize = 1 << 9;

/// Scratch of one worker.
struct Tile {
    q: Vec<f32>,
    out: Vec<f32>,
    scores: [f32; TILE * BLOCK],
}

impl Tile {
    fn new(d: usize) -> Self {
        Self { q: vec![0.0; TILE * d], out: vec![0.0; TILE * wide(d)], scores: [0.0; TILE * BLOCK] }
    }
}

/// Where queries are read and results written.
struct Io<'t> {
    q: &'t [f32],
    out: Shared,
    lse: Option<Shared>,
}

/// Training: q `[N, H * D]`, k and v `[N, kv_heads * D]`, out `[N, H * D]`, lse `[N, H]`.
pub(crate) fn forward(
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
        let keys = Gathered::new(columns(k), columns(v), &segments.chain_rows(s), piece.first + piece.len);
        attend(&io, &Group::new(shape, h), piece, |b| keys.block(b));
    });
}

/// Sampling: appends k and v to the slots' caches, then attends over their pages.
pub(crate) fn cached(
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
        slot.cache.append(layer, &k[range.clone()], &v[range], rows.len());
        for piece in (Queries { start: rows.start, len: rows.len(), first }).cut(CHUNK) {
            items.extend((0..shape.kv_heads).map(|h| (i, h, piece)));
        }
    }
    let work = items.iter().map(|(_, _, p)| p.len * (p.first + p.len)).sum::<usize>() * shape.heads / shape.kv_heads;
    let io = Io { q, out: Shared::new(out), lse: None };
    let slots: &[CacheSlot] = slots;
    run(work, &items, |&(i, h, piece)| {
        let pages = slots[i].cache.pages(layer);
        let range = |d| h * BLOCK * d..(h + 1) * BLOCK * d;
        let block = |b: usize| (&pages[b].keys[range(d)], &pages[b].values[range(wide(d))]);
        attend(&io, &Group::new(shape, h), piece, block);
    });
}

fn run<T: Sync>(work: usize, items: &[T], each: impl Fn(&T) + Sync + Send) {
    if work < SERIAL { items.iter().for_each(each) } else { items.par_iter().with_max_len(1).for_each(each) }
}

/// All queries of a piece, one kv head.
fn attend<'k>(io: &Io, group: &Group, piece: Queries, block: impl Fn(usize) -> (&'k [f32], &'k [f32])) {
    let mut tile = Tile::new(group.d);
    // Rows of a tile share their last key block.
    for same_block in piece.cut(BLOCK) {
        let pairs = same_block.len * group.size;
        for at in (0..pairs).step_by(TILE) {
            attend_tile(io, group, same_block, at..(at + TILE).min(pairs), &mut tile, &block);
        }
    }
}

fn attend_tile<'k>(
    io: &Io,
    group: &Group,
    queries: Queries,
    pairs: std::ops::Range<usize>,
    tile: &mut Tile,
    block: &impl Fn(usize) -> (&'k [f32], &'k [f32]),
) {
    let (d, wide, rows) = (group.d, wide(group.d), pairs.len());
    for (i, pair) in pairs.clone().enumerate() {
        let at = group.at(queries.start, pair);
        scaled(&io.q[at..at + d], group.scale, &mut tile.q[i * d..(i + 1) * d]);
    }
    let position = |pair: usize| queries.first + pair / group.size;
    let last = queries.first / BLOCK;
    let (mut max, mut sum) = ([f32::NEG_INFINITY; TILE], [0.0f32; TILE]);
    for b in 0..=last {
        let (keys, values) = block(b);
        let seen = |pair: usize| if b < last { BLOCK } else { position(pair) % BLOCK + 1 };
        let depth = seen(pairs.end - 1);
        multiply(rows, d, Left::rows(&tile.q, d), Right::panels(keys, d, depth), &mut tile.scores, BLOCK, false);
        for (i, pair) in pairs.clone().enumerate() {
            let row = &mut tile.scores[i * BLOCK..(i + 1) * BLOCK];
            let factor = online_softmax_row(row, seen(pair), &mut max[i], &mut sum[i]);
            if b > 0 {
                scale_in_place(&mut tile.out[i * wide..][..d], factor);
            }
        }
        let scores = Left::rows(&tile.scores, BLOCK);
        multiply(rows, depth, scores, Right::rows(values, wide), &mut tile.out, wide, b > 0);
    }
    for (i, pair) in pairs.enumerate() {
        // SAFETY: each (row, head) pair belongs to exactly one tile of one item.
        let out = unsafe { io.out.slice(group.at(queries.start, pair), d) };
        scaled(&tile.out[i * wide..][..d], 1.0 / sum[i], out);
        if let Some(lse) = &io.lse {
            // SAFETY: as above.
            let lse = unsafe { lse.slice(group.stat(queries.start, pair), 1) };
            lse[0] = max[i] + sum[i].ln();
        }
    }
}
