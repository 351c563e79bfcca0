//! The key/value cache: pages of 64 positions, cheap to fork.

use std::ops::Range;
use std::sync::Arc;

use crate::buf::Buf;
use crate::panels::wide;

/// Positions per page, which is also attention's key block.
pub const PAGE: usize = 64;

/// Keys and values of 64 absolute positions of one layer, per kv head: keys in 16-lane panels `[4][D][16]`, values as
/// rows `[64][D rounded up to a multiple of 16]`. Positions not yet written are zero, as is the padding of rows.
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
}

#[derive(Debug, Clone, Default)]
struct Layer {
    pages: Vec<Arc<KvPage>>,
    len: usize,
}

impl KvCache {
    /// An empty cache.
    pub fn new(layers: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { layers: vec![Layer::default(); layers], kv_heads, head_dim }
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

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        for layer in &mut self.layers {
            layer.len = layer.len.min(len);
            layer.pages.truncate(layer.len.div_ceil(PAGE));
        }
    }

    /// Bytes of the pages that this cache refers to (shared ones count in full).
    pub fn bytes(&self) -> usize {
        let page = self.kv_heads * PAGE * (self.head_dim + wide(self.head_dim)) * size_of::<f32>();
        self.layers.iter().map(|l| l.pages.len() * page).sum()
    }

    pub(crate) fn pages(&self, layer: usize) -> &[Arc<KvPage>] {
        &self.layers[layer].pages
    }

    /// Appends `rows` positions to a layer; `k` and `v` are row-major `[rows, kv_heads * D]`.
    pub(crate) fn append(&mut self, layer: usize, k: &[f32], v: &[f32], rows: usize) {
        let (heads, d) = (self.kv_heads, self.head_dim);
        let layer = &mut self.layers[layer];
        for r in 0..rows {
            let at = layer.len % PAGE;
            if at == 0 {
                layer.pages.push(Arc::new(KvPage::zeros(heads, d)));
            }
            let page = layer.pages.last_mut().map(Arc::make_mut);
            if let Some(page) = page {
                page.write(
                    at,
                    heads,
                    d,
                    &k[r * heads * d..(r + 1) * heads * d],
                    &v[r * heads * d..(r + 1) * heads * d],
                );
            }
            layer.len += 1;
        }
    }
}

impl KvPage {
    fn zeros(heads: usize, d: usize) -> Self {
        Self { keys: Buf::zeros(heads * PAGE * d), values: Buf::zeros(heads * PAGE * wide(d)) }
    }

    fn write(&mut self, at: usize, heads: usize, d: usize, k: &[f32], v: &[f32]) {
        let lanes = crate::panels::LANES;
        for h in 0..heads {
            let panel = h * PAGE * d + (at / lanes) * d * lanes + at % lanes;
            for (i, &x) in k[h * d..(h + 1) * d].iter().enumerate() {
                self.keys[panel + i * lanes] = x;
            }
            let row = (h * PAGE + at) * wide(d);
            self.values[row..row + d].copy_from_slice(&v[h * d..(h + 1) * d]);
        }
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
