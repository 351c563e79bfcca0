//! Attention weights on request, for diagnostics: composed of generic operations, so it works on any device.

use crate::error::{Error, Result};
use crate::ops::{AttnShape, Binary, Ops, Tensor, Unary};
use crate::segments::Segments;

/// Stands for minus infinity without producing NaN in products with zero.
const MASKED: f32 = -1e30;

/// How much each row of segment `segment` attends to each position of its chain, for query head `head`:
/// `[segment's rows, chain's positions]`, rows sum to 1; in f32, whatever the shape says. `q: [N, H * D]`, `k: [N, kv_heads * D]`, as attention got them.
pub fn attention_weights(
    ops: &dyn Ops,
    q: &Tensor,
    k: &Tensor,
    segments: &Segments,
    shape: &AttnShape,
    segment: usize,
    head: usize,
) -> Result<Tensor> {
    for (index, len) in [(segment, segments.len()), (head, shape.heads)] {
        if index >= len {
            return Err(Error::Index { op: "attention_weights", index, len });
        }
    }
    let d = shape.head_dim;
    let kv_head = head / (shape.heads / shape.kv_heads.max(1)).max(1);
    let queries = ops.slice(q, segments.range(segment), head * d..(head + 1) * d)?;
    let chain: Vec<u32> = segments.chain_rows(segment).into_iter().flatten().map(|r| r as u32).collect();
    let keys = ops.slice(&ops.gather_rows(k, &chain)?, 0..chain.len(), kv_head * d..(kv_head + 1) * d)?;
    let scores = ops.unary(Unary::Scale(shape.scale), &ops.matmul_nt(&queries, &keys)?)?;
    let first = segments.first_position(segment);
    let hidden = |i: usize| if i % chain.len() > first + i / chain.len() { MASKED } else { 0.0 };
    let mask: Vec<f32> = (0..queries.rows() * chain.len()).map(hidden).collect();
    let mask = ops.upload(queries.rows(), chain.len(), &mask)?;
    ops.softmax(&ops.binary(Binary::Add, &scores, &mask)?, false)
}
