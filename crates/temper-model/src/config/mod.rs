//! The shape of a model, and where it is read from: Hugging Face's config.json or GGUF metadata.

mod gguf;
mod hf;
mod rope;

pub use rope::RopeScaling;

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use temper_tensor::{AttnShape, PAGE, page_bytes};

/// The architectures that Temper computes. They share one forward pass; the name decides what is written to config.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM, SmolLM2 and relatives.
    #[default]
    #[serde(rename = "LlamaForCausalLM")]
    Llama,
    /// Mistral without a sliding window.
    #[serde(rename = "MistralForCausalLM")]
    Mistral,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Llama, Self::Mistral];

    /// Hugging Face's class.
    pub fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
        }
    }

    /// Hugging Face's `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
        }
    }
}

/// A model's shape and constants, checked by [`Config::validate`]. Field names are Hugging Face's.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Which architecture.
    pub architecture: Architecture,
    /// V, the number of token ids.
    pub vocab_size: usize,
    /// C, the width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward.
    pub intermediate_size: usize,
    /// L, the number of blocks.
    pub num_hidden_layers: usize,
    /// H, query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; a divisor of H.
    pub num_key_value_heads: usize,
    /// D, the size of one head: even, since rotary embeddings turn pairs. Multiples of 16 are computed without padding.
    pub head_dim: usize,
    /// The longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the frequencies were changed for longer contexts.
    pub rope_scaling: RopeScaling,
    /// Whether the query, key, value and output projections add a bias (Llama alone).
    pub attention_bias: bool,
    /// Whether the three matrices of the feed-forward add a bias (Llama alone).
    pub mlp_bias: bool,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
    /// Token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a completion.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills rows up; unused by Temper, kept for other programs.
    pub pad_token_id: Option<u32>,
}

/// Bounds that no known model reaches; they keep products of sizes from overflowing.
const MOST_VOCAB: usize = 1 << 24;
const MOST_WIDTH: usize = 1 << 20;
const MOST_LAYERS: usize = 1 << 12;
const MOST_POSITIONS: usize = 1 << 26;

impl Config {
    /// A small Llama with the usual constants: theta 10000, tied embeddings, no scaling, as many kv heads as heads.
    /// Change what differs, then [`Config::validate`].
    pub fn llama(vocab_size: usize, hidden_size: usize, layers: usize, heads: usize) -> Self {
        Self {
            architecture: Architecture::Llama,
            vocab_size,
            hidden_size,
            intermediate_size: hidden_size.saturating_mul(8).div_ceil(3).next_multiple_of(16),
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: hidden_size.checked_div(heads).unwrap_or(0),
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::Default,
            attention_bias: false,
            mlp_bias: false,
            tie_word_embeddings: true,
            initializer_range: 0.02,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
        }
    }

    /// Checks every size and constant; to be called before anything is allocated by it.
    pub fn validate(&self) -> Result<()> {
        between("vocab_size", self.vocab_size, MOST_VOCAB)?;
        between("hidden_size", self.hidden_size, MOST_WIDTH)?;
        between("intermediate_size", self.intermediate_size, MOST_WIDTH)?;
        between("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS)?;
        between("num_attention_heads", self.num_attention_heads, MOST_WIDTH)?;
        between("num_key_value_heads", self.num_key_value_heads, MOST_WIDTH)?;
        between("max_position_embeddings", self.max_position_embeddings, MOST_POSITIONS)?;
        self.validate_heads()?;
        positive("rms_norm_eps", self.rms_norm_eps)?;
        positive("rope_theta", self.rope_theta)?;
        if !(self.initializer_range >= 0.0 && self.initializer_range.is_finite()) {
            return Err(Error::config("initializer_range", self.initializer_range, "a number of 0 or more"));
        }
        self.rope_scaling.validate(self.rope_theta)?;
        self.validate_biases()?;
        self.validate_tokens()
    }

    fn validate_heads(&self) -> Result<()> {
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads ({})", self.num_attention_heads);
            return Err(Error::config("num_key_value_heads", self.num_key_value_heads, expected));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) || self.head_dim > 512 {
            let expected = "an even number from 2 to 512 (by default hidden_size / num_attention_heads)";
            return Err(Error::config("head_dim", self.head_dim, expected));
        }
        between("num_attention_heads * head_dim", self.num_attention_heads * self.head_dim, MOST_WIDTH)
    }

    fn validate_biases(&self) -> Result<()> {
        for (field, set) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)] {
            if set && self.architecture != Architecture::Llama {
                let expected = format!("false for {} (LlamaForCausalLM has biases)", self.architecture.class());
                return Err(Error::config(field, set, expected));
            }
        }
        Ok(())
    }

    fn validate_tokens(&self) -> Result<()> {
        let check = |field, id: u32| {
            let inside = (id as usize) < self.vocab_size;
            let expected = || format!("an id below vocab_size ({})", self.vocab_size);
            if inside { Ok(()) } else { Err(Error::config(field, id, expected())) }
        };
        self.bos_token_id.map_or(Ok(()), |id| check("bos_token_id", id))?;
        self.eos_token_ids.iter().try_for_each(|&id| check("eos_token_id", id))?;
        self.pad_token_id.map_or(Ok(()), |id| check("pad_token_id", id))
    }

    /// Number of values in all weights, tied ones once. Saturates instead of overflowing.
    pub fn parameter_count(&self) -> u64 {
        let (v, c, f) = (self.vocab_size as u128, self.hidden_size as u128, self.intermediate_size as u128);
        let q = self.num_attention_heads as u128 * self.head_dim as u128;
        let kv = self.num_key_value_heads as u128 * self.head_dim as u128;
        let attn_bias = if self.attention_bias { q + 2 * kv + c } else { 0 };
        let mlp_bias = if self.mlp_bias { 2 * f + c } else { 0 };
        let block = c
            .saturating_mul(2 * q + 2 * kv)
            .saturating_add(c.saturating_mul(3 * f))
            .saturating_add(2 * c + attn_bias + mlp_bias);
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        let all = block
            .saturating_mul(self.num_hidden_layers as u128)
            .saturating_add(v.saturating_mul(c).saturating_mul(tables))
            .saturating_add(c);
        u64::try_from(all).unwrap_or(u64::MAX)
    }

    /// Bytes that one position takes in a key/value cache in f32 or bf16, with what fills up the heads.
    pub fn kv_bytes_per_token(&self, bf16: bool) -> u64 {
        let head = page_bytes(self.head_dim, bf16) / PAGE;
        self.num_hidden_layers as u64 * self.num_key_value_heads as u64 * head as u64
    }

    /// Attention's shape with the usual factor `1 / sqrt(D)`.
    pub fn attn_shape(&self) -> AttnShape {
        AttnShape {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            scale: (1.0 / (self.head_dim as f64).sqrt()) as f32,
            bf16: false,
        }
    }
}

fn between(field: &'static str, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) {
        Ok(())
    } else {
        Err(Error::config(field, value, format!("a whole number from 1 to {most}")))
    }
}

fn positive(field: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() { Ok(()) } else { Err(Error::config(field, value, "a number above 0")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_smollm2_135m() {
        let mut c = Config::llama(49152, 576, 30, 9);
        c.num_key_value_heads = 3;
        assert_eq!(c.intermediate_size, 1536);
        assert_eq!(c.parameter_count(), 134_515_008);
        c.tie_word_embeddings = false;
        assert_eq!(c.parameter_count(), 134_515_008 + 49152 * 576);
    }

    #[test]
    fn hostile_sizes_are_errors_and_do_not_overflow() {
        type Set = fn(&mut Config, usize);
        let good = Config::llama(97, 64, 2, 4);
        good.validate().unwrap();
        let huge = usize::MAX;
        let cases: [(&str, Set); 8] = [
            ("vocab_size", |c, n| c.vocab_size = n),
            ("hidden_size", |c, n| c.hidden_size = n),
            ("intermediate_size", |c, n| c.intermediate_size = n),
            ("num_hidden_layers", |c, n| c.num_hidden_layers = n),
            ("num_attention_heads", |c, n| c.num_attention_heads = n),
            ("num_key_value_heads", |c, n| c.num_key_value_heads = n),
            ("head_dim", |c, n| c.head_dim = n),
            ("max_position_embeddings", |c, n| c.max_position_embeddings = n),
        ];
        for (field, set) in cases {
            for n in [0, huge] {
                let mut c = good.clone();
                set(&mut c, n);
                let message = c.validate().unwrap_err().to_string();
                assert!(message.contains(field) && message.contains(&n.to_string()), "{message}");
                c.parameter_count();
            }
        }
    }

    #[test]
    fn the_cache_takes_what_the_config_says() {
        for head_dim in [2, 16, 24, 100] {
            let mut c = Config::llama(97, 64, 3, 4);
            (c.head_dim, c.num_key_value_heads) = (head_dim, 2);
            let model = crate::Model::init(&temper_tensor::Cpu::new(), &c, 1).unwrap();
            for (model, bf16) in [(model.frozen_copy(), false), (model.in_bf16(), true)] {
                let (mut cache, ops) = (model.new_cache(), temper_tensor::Cpu::new());
                let tape = temper_tensor::Tape::new(&ops, &model.params, false);
                let mut slots = [temper_tensor::CacheSlot { cache: &mut cache, rows: 0..64 }];
                model.hidden(&tape, &[7; 64], crate::Attend::Cache(&mut slots), false).unwrap();
                assert_eq!(cache.bytes() as u64, 64 * c.kv_bytes_per_token(bf16));
            }
        }
    }

    #[test]
    fn biases_belong_to_llama() {
        let mut c = Config::llama(97, 64, 2, 4);
        let plain = c.parameter_count();
        (c.attention_bias, c.mlp_bias) = (true, true);
        c.validate().unwrap();
        assert_eq!(c.parameter_count() - plain, 2 * (4 * 64 + 2 * c.intermediate_size as u64 + 64));
        c.architecture = Architecture::Mistral;
        assert!(c.validate().unwrap_err().to_string().contains("false for MistralForCausalLM"));
    }

    #[test]
    fn heads_that_do_not_divide_are_errors() {
        let mut c = Config::llama(97, 64, 2, 4);
        c.num_key_value_heads = 3;
        assert!(c.validate().unwrap_err().to_string().contains("a divisor of num_attention_heads (4)"));
        let mut c = Config::llama(97, 64, 2, 4);
        for head_dim in [2, 8, 20, 100, 512] {
            c.head_dim = head_dim;
            c.validate().unwrap();
        }
        for head_dim in [5, 514] {
            c.head_dim = head_dim;
            assert!(c.validate().unwrap_err().to_string().contains("an even number from 2 to 512"));
        }
        let mut c = Config::llama(97, 64, 2, 4);
        c.eos_token_ids = vec![97];
        assert!(c.validate().unwrap_err().to_string().contains("eos_token_id"));
    }
}
