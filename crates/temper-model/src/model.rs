//! The transformer: one forward pass for training, scoring and generation.

use crate::adapter::{Adapter, Attached};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{EMBED, HEAD, NORM, bias_name, block_name};
use std::sync::Arc;
use temper_tensor::{AttnShape, CacheSlot, KvCache, ParamId, Params, RopeTable, Segments, Tape, Var};

/// A model: configuration and weights.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its shape.
    pub config: Config,
    /// Its weights under Hugging Face's names.
    pub params: Params,
    embed: ParamId,
    blocks: Vec<Block>,
    norm: ParamId,
    head: ParamId,
    rope: Arc<RopeTable>,
    pub(crate) shape: AttnShape,
    pub(crate) adapter: Option<Adapter>,
}

/// The parameters of one block.
#[derive(Debug, Clone, Copy)]
struct Block {
    attn_norm: ParamId,
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    mlp_norm: ParamId,
    gate: Projection,
    up: Projection,
    down: Projection,
}

/// A matrix, in some models its bias, and what is trained beside them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Projection {
    pub(crate) w: ParamId,
    b: Option<ParamId>,
    pub(crate) adapter: Option<Attached>,
}

impl Projection {
    /// `x w^T + b`, and the adapter's part.
    fn apply(self, tape: &Tape, x: &Var) -> temper_tensor::Result<Var> {
        let mut y = tape.linear(x, self.w)?;
        if let Some(b) = self.b {
            y = tape.bias(&y, b)?;
        }
        match self.adapter {
            Some(adapter) => adapter.apply(tape, x, y),
            None => Ok(y),
        }
    }
}

impl Block {
    fn projections(&mut self) -> [(&'static str, &mut Projection); 7] {
        [
            ("self_attn.q_proj", &mut self.q),
            ("self_attn.k_proj", &mut self.k),
            ("self_attn.v_proj", &mut self.v),
            ("self_attn.o_proj", &mut self.o),
            ("mlp.gate_proj", &mut self.gate),
            ("mlp.up_proj", &mut self.up),
            ("mlp.down_proj", &mut self.down),
        ]
    }

    /// The same block with its adapter off.
    fn base(mut self) -> Self {
        self.projections().into_iter().for_each(|(_, p)| p.adapter = None);
        self
    }
}

/// Which weights a forward pass uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weights {
    /// All of them.
    Whole,
    /// Those of the base model, without its adapter.
    Base,
}

/// What the rows of a forward pass attend to.
#[derive(Debug)]
pub enum Attend<'s, 'c> {
    /// The segments of a batch (training and scoring).
    Segments(&'s Arc<Segments>),
    /// Sequences with a key/value cache, which grows by the rows of each slot (generation). The slots' rows lie end to
    /// end from row 0 and cover the batch.
    Cache(&'s mut [CacheSlot<'c>]),
}

impl Model {
    /// A model of these parameters, which must be those of [`crate::weights::tensors`].
    pub(crate) fn new(config: Config, params: Params) -> Result<Self> {
        let id = |name: &str| {
            params.by_name(name).ok_or_else(|| Error::TensorNames {
                path: "(memory)".into(),
                missing: vec![name.into()],
                unexpected: Vec::new(),
            })
        };
        let block = |layer: usize| {
            let part = |part: &str| id(&block_name(layer, part));
            let projection = |name: &str, biased: bool| {
                let b = biased.then(|| id(&bias_name(layer, name))).transpose()?;
                Ok::<_, Error>(Projection { w: part(name)?, b, adapter: None })
            };
            let attn = |name: &str| projection(name, config.attention_bias);
            let mlp = |name: &str| projection(name, config.mlp_bias);
            Ok(Block {
                attn_norm: part("input_layernorm")?,
                q: attn("self_attn.q_proj")?,
                k: attn("self_attn.k_proj")?,
                v: attn("self_attn.v_proj")?,
                o: attn("self_attn.o_proj")?,
                mlp_norm: part("post_attention_layernorm")?,
                gate: mlp("mlp.gate_proj")?,
                up: mlp("mlp.up_proj")?,
                down: mlp("mlp.down_proj")?,
            })
        };
        let blocks = (0..config.num_hidden_layers).map(block).collect::<Result<_>>()?;
        let (embed, norm) = (id(EMBED)?, id(NORM)?);
        let head = if config.tie_word_embeddings { embed } else { id(HEAD)? };
        let frequencies = config.rope_scaling.frequencies(config.rope_theta, config.head_dim);
        let factor = config.rope_scaling.attention_factor();
        let rope = Arc::new(RopeTable::new(frequencies, factor, config.max_position_embeddings));
        let shape = config.attn_shape();
        Ok(Self { config, params, embed, blocks, norm, head, rope, shape, adapter: None })
    }

    /// The embedding's weight `[V, C]`.
    pub fn embedding(&self) -> ParamId {
        self.embed
    }

    /// The head's weight `[V, C]`, which is the embedding's where the two are tied.
    pub fn head(&self) -> ParamId {
        self.head
    }

    /// The same model computing in bf16: its matrices are rounded, and what is multiplied by them, as are the operands of attention and
    /// the key/value cache; sums, norms, softmax and gradients of parameters stay f32, and so do the values that an optimiser updates.
    /// Matrices in quantised blocks stay as they are.
    #[must_use]
    pub fn in_bf16(mut self) -> Self {
        self.params.store_in_bf16();
        self.shape.bf16 = true;
        self
    }

    /// A linear layer by block and name in the block.
    pub(crate) fn projection_mut(&mut self, layer: usize, part: &str) -> Option<&mut Projection> {
        self.blocks.get_mut(layer)?.projections().into_iter().find(|(name, _)| *name == part).map(|(_, p)| p)
    }

    /// A copy of the weights that no training changes: the frozen reference of this model as it is now.
    #[must_use]
    pub fn frozen_copy(&self) -> Self {
        Self {
            config: self.config.clone(),
            params: self.params.frozen_copy(),
            blocks: self.blocks.clone(),
            rope: Arc::clone(&self.rope),
            adapter: self.adapter.clone(),
            ..*self
        }
    }

    /// An empty key/value cache of this model's shape.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(self.config.num_hidden_layers, &self.shape)
    }

    /// Checks that every id has a row in the embedding.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab_size = self.config.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(Error::TokenId { id, vocab_size }),
            None => Ok(()),
        }
    }

    /// Hidden rows after the final norm, `[N, C]`; row r predicts the token after `ids[r]`.
    ///
    /// With `recompute`, each block keeps only its input, and backward runs it again (gradient checkpointing). Points:
    /// `embed`, `layers.I.attn` and `layers.I.mlp` (what the two halves add to the residual stream), `layers.I`.
    pub fn hidden<'a>(&'a self, tape: &Tape<'a>, ids: &[u32], attend: Attend<'_, '_>, recompute: bool) -> Result<Var> {
        self.hidden_of(Weights::Whole, tape, ids, attend, recompute)
    }

    pub(crate) fn hidden_of<'a>(
        &'a self,
        weights: Weights,
        tape: &Tape<'a>,
        ids: &[u32],
        attend: Attend<'_, '_>,
        recompute: bool,
    ) -> Result<Var> {
        self.check_ids(ids)?;
        let x = tape.embedding(self.embed, ids)?;
        let x = tape.point("embed", &x)?;
        let x = match attend {
            Attend::Segments(segments) => self.over_segments(weights, tape, x, segments, recompute)?,
            Attend::Cache(slots) => self.over_cache(weights, tape, x, slots)?,
        };
        Ok(tape.rms_norm(&x, self.norm, self.config.rms_norm_eps as f32)?)
    }

    fn over_segments<'a>(
        &'a self,
        weights: Weights,
        tape: &Tape<'a>,
        mut x: Var,
        s: &Arc<Segments>,
        recompute: bool,
    ) -> Result<Var> {
        let longest = (0..s.len()).map(|i| s.first_position(i) + s.list()[i].len).max().unwrap_or(0);
        self.check_length("a sequence of the batch", longest)?;
        let positions = s.positions();
        for layer in 0..self.blocks.len() {
            let (positions, s) = (Arc::clone(&positions), Arc::clone(s));
            let block = move |tape: &Tape<'a>, x: &[Var]| {
                let attend = |q: &Var, k: &Var, v: &Var| tape.attention(q, k, v, &s, self.shape);
                self.block(weights, tape, layer, &x[0], &positions, attend)
            };
            x = if recompute { tape.checkpoint(&[&x], block)? } else { block(tape, &[x])? };
        }
        Ok(x)
    }

    fn over_cache<'a>(&'a self, weights: Weights, tape: &Tape<'a>, mut x: Var, slots: &mut [CacheSlot]) -> Result<Var> {
        for slot in &*slots {
            self.check_length("a cached sequence", slot.cache.len() + slot.rows.len())?;
        }
        let positions: Arc<[u32]> = slots
            .iter()
            .flat_map(|slot| (slot.cache.len()..slot.cache.len() + slot.rows.len()).map(|p| p as u32))
            .collect();
        for layer in 0..self.blocks.len() {
            x = self.block(weights, tape, layer, &x, &positions, |q, k, v| {
                tape.cached_attention(q, k, v, slots, layer, self.shape)
            })?;
        }
        Ok(x)
    }

    fn block<'a>(
        &'a self,
        weights: Weights,
        tape: &Tape<'a>,
        layer: usize,
        x: &Var,
        positions: &Arc<[u32]>,
        attend: impl FnOnce(&Var, &Var, &Var) -> temper_tensor::Result<Var>,
    ) -> temper_tensor::Result<Var> {
        let b = match weights {
            Weights::Whole => &self.blocks[layer],
            Weights::Base => &self.blocks[layer].base(),
        };
        let attn = self.attn(tape, b, x, positions, attend)?;
        let x = tape.add(x, &tape.point(&format!("layers.{layer}.attn"), &attn)?)?;
        drop(attn);
        let mlp = self.mlp(tape, b, &x)?;
        let x = tape.add(&x, &tape.point(&format!("layers.{layer}.mlp"), &mlp)?)?;
        tape.point(&format!("layers.{layer}"), &x)
    }

    fn attn<'a>(
        &'a self,
        tape: &Tape<'a>,
        b: &Block,
        x: &Var,
        positions: &Arc<[u32]>,
        attend: impl FnOnce(&Var, &Var, &Var) -> temper_tensor::Result<Var>,
    ) -> temper_tensor::Result<Var> {
        let x = tape.rms_norm(x, b.attn_norm, self.config.rms_norm_eps as f32)?;
        let q = tape.rope(&b.q.apply(tape, &x)?, self.shape.heads, &self.rope, positions)?;
        let k = tape.rope(&b.k.apply(tape, &x)?, self.shape.kv_heads, &self.rope, positions)?;
        let v = b.v.apply(tape, &x)?;
        b.o.apply(tape, &attend(&q, &k, &v)?)
    }

    fn mlp(&self, tape: &Tape, b: &Block, x: &Var) -> temper_tensor::Result<Var> {
        let x = tape.rms_norm(x, b.mlp_norm, self.config.rms_norm_eps as f32)?;
        let gated = tape.swiglu(&b.gate.apply(tape, &x)?, &b.up.apply(tape, &x)?)?;
        b.down.apply(tape, &gated)
    }

    pub(crate) fn check_length(&self, what: &str, len: usize) -> Result<()> {
        let context = self.config.max_position_embeddings;
        if len <= context { Ok(()) } else { Err(Error::TooLong { what: what.into(), len, context }) }
    }
}
