//! The key/value cache: pages of 64 positions, cheap to fork.

use std::ops::Range;
use std::sync::Arc;

use crate::attention::{Bf16, F32, Products};
use crate::buf::Buf;
use crate::ops::AttnShape;

/// Positions per page, which is also attention's key block.
pub const PAGE: usize = 64;

/// Keys and values of 64 absolute positions of one layer, per kv head, as attention's products read them: keys as the columns of a right
/// operand, values as its rows, in f32 or in bf16. Positions not yet written are zero, as is what fills up D; positions that were
/// cut off keep their values, which count for nothing as long as they are finite.
#[derive(Debug, Clone)]
pub struct KvPage {
    pub(crate) keys: Buf,
    pub(crate) values: Buf,
}

/// Keys and values of one sequence, all layers. `clone()` is a fork: pages are shared until one side writes to its
/// last, partly filled page.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<Layer>,
    kv_heads: usize,
    head_dim: usize,
    bf16: bool,
}

#[derive(Debug, Clone, Default)]
struct Layer {
    pages: Vec<Arc<KvPage>>,
    len: usize,
}

impl KvCache {
    /// An empty cache for attention of this shape.
    pub fn new(layers: usize, shape: &AttnShape) -> Self {
        let &AttnShape { kv_heads, head_dim, bf16, .. } = shape;
        Self { layers: vec![Layer::default(); layers], kv_heads, head_dim, bf16 }
    }

    /// Number of positions present in every layer.
    pub fn len(&self) -> usize {
        self.layers.iter().map(|l| l.len).min().unwrap_or(0)
    }

    /// Whether no position is present.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Number of positions that layer `layer` holds.
    pub fn layer_len(&self, layer: usize) -> usize {
        self.layers[layer].len
    }

    /// Kv heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// D, the head size.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Whether keys and values are kept in bf16.
    pub fn bf16(&self) -> bool {
        self.bf16
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        for layer in &mut self.layers {
            layer.len = layer.len.min(len);
            layer.pages.truncate(layer.len.div_ceil(PAGE));
        }
    }

    /// Bytes of the pages that this cache refers to (shared ones count in full).
    pub fn bytes(&self) -> usize {
        let page = self.kv_heads * page_bytes(self.head_dim, self.bf16);
        self.layers.iter().map(|l| l.pages.len() * page).sum()
    }

    pub(crate) fn pages(&self, layer: usize) -> &[Arc<KvPage>] {
        &self.layers[layer].pages
    }

    /// Appends `rows` positions to a layer; `k` and `v` are row-major `[rows, kv_heads * D]`.
    pub(crate) fn append<P: Products>(&mut self, layer: usize, k: &[f32], v: &[f32], rows: usize) {
        let (heads, d) = (self.kv_heads, self.head_dim);
        let layer = &mut self.layers[layer];
        for (k, v) in k.chunks_exact(heads * d).zip(v.chunks_exact(heads * d)).take(rows) {
            let at = layer.len % PAGE;
            if at == 0 {
                layer.pages.push(Arc::new(KvPage::zeros::<P>(heads, d)));
            }
            if let Some(page) = layer.pages.last_mut() {
                Arc::make_mut(page).write::<P>(at, d, k, v);
            }
            layer.len += 1;
        }
    }
}

/// Bytes of one kv head's keys and values of [`PAGE`] positions.
pub fn page_bytes(head_dim: usize, bf16: bool) -> usize {
    fn floats<P: Products>(d: usize) -> usize {
        P::columns_len(d) + P::rows_len(d)
    }
    size_of::<f32>() * if bf16 { floats::<Bf16>(head_dim) } else { floats::<F32>(head_dim) }
}

impl KvPage {
    fn zeros<P: Products>(heads: usize, d: usize) -> Self {
        Self { keys: Buf::zeros(heads * P::columns_len(d)), values: Buf::zeros(heads * P::rows_len(d)) }
    }

    fn write<P: Products>(&mut self, at: usize, d: usize, k: &[f32], v: &[f32]) {
        let keys = k.chunks_exact(d).zip(self.keys.chunks_exact_mut(P::columns_len(d)));
        keys.for_each(|(k, block)| P::put_column(at, k, block));
        let values = v.chunks_exact(d).zip(self.values.chunks_exact_mut(P::rows_len(d)));
        values.for_each(|(v, block)| P::put_row(at, v, block));
    }
}

/// One sequence's share of a cached attention call: `rows` of q, k and v continue the sequence in `cache`.
#[derive(Debug)]
pub struct CacheSlot<'c> {
    /// The sequence's cache.
    pub cache: &'c mut KvCache,
    /// Rows of the batch.
    pub rows: Range<usize>,
}
