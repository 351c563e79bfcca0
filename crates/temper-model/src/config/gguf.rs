//! A model's shape from GGUF metadata (`llama.*` keys, as llama.cpp's converters write them).

use super::{Architecture, Config, RopeScaling};
use crate::error::{Error, Result};
use temper_format::{ArraySource, Gguf, GgufValue};

impl Config {
    /// Reads the metadata of a GGUF file of the Llama family.
    ///
    /// # Errors
    /// Another architecture, missing keys, mixtures of experts, frequency rules that Temper does not have, and sizes
    /// that [`Config::validate`] refuses.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let keys = Keys { file };
        keys.check_architecture()?;
        keys.refuse_unsupported()?;
        let hidden_size = keys.size("llama.embedding_length")?;
        let heads = keys.size("llama.attention.head_count")?;
        let head_dim = keys.head_dim(hidden_size, heads)?;
        let rope_theta = keys.float("llama.rope.freq_base").unwrap_or(10_000.0);
        let config = Self {
            architecture: Architecture::Llama,
            vocab_size: keys.vocab_size()?,
            hidden_size,
            intermediate_size: keys.size("llama.feed_forward_length")?,
            num_hidden_layers: keys.size("llama.block_count")?,
            num_attention_heads: heads,
            num_key_value_heads: keys.size_or("llama.attention.head_count_kv", heads)?,
            head_dim,
            max_position_embeddings: keys.size("llama.context_length")?,
            rms_norm_eps: keys.eps()?,
            rope_theta,
            rope_scaling: keys.scaling(rope_theta, head_dim)?,
            attention_bias: file.info("blk.0.attn_q.bias").is_some(),
            mlp_bias: file.info("blk.0.ffn_up.bias").is_some(),
            tie_word_embeddings: file.info("output.weight").is_none(),
            initializer_range: 0.02,
            bos_token_id: keys.id("tokenizer.ggml.bos_token_id"),
            eos_token_ids: keys.stop_ids(),
            pad_token_id: keys.id("tokenizer.ggml.padding_token_id"),
        };
        config.validate()?;
        Ok(config)
    }
}

struct Keys<'f> {
    file: &'f Gguf,
}

impl Keys<'_> {
    fn check_architecture(&self) -> Result<()> {
        let found = self.file.metadata("general.architecture").and_then(GgufValue::as_str).unwrap_or("(none named)");
        if found == "llama" {
            return Ok(());
        }
        Err(Error::Architecture { found: found.into(), supported: "llama (GGUF)".into() })
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let experts = self.file.metadata("llama.expert_count").and_then(GgufValue::as_u64).unwrap_or(0);
        if experts > 0 {
            return Err(Error::unsupported(format!("a mixture of {experts} experts"), "choose a dense model"));
        }
        Ok(())
    }

    /// A size; a list with one value per layer is accepted when all are the same.
    fn size_or(&self, key: &'static str, default: usize) -> Result<usize> {
        let Some(value) = self.file.metadata(key) else { return Ok(default) };
        let mut values = value.as_array().unwrap_or(std::slice::from_ref(value)).iter().map(GgufValue::as_u64);
        let first = values.next().flatten();
        match first {
            Some(n) if values.all(|v| v == Some(n)) => {
                usize::try_from(n).map_err(|_| Error::config(key, n, "a smaller number"))
            }
            _ => Err(Error::config(key, "not one number for all layers", "the same whole number for every layer")),
        }
    }

    fn size(&self, key: &'static str) -> Result<usize> {
        if self.file.metadata(key).is_none() {
            return Err(Error::config(key, "missing", "a whole number"));
        }
        self.size_or(key, 0)
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.file.metadata(key).and_then(GgufValue::as_f64).map(shortest)
    }

    fn id(&self, key: &str) -> Option<u32> {
        self.file.metadata(key).and_then(GgufValue::as_u64).and_then(|id| u32::try_from(id).ok())
    }

    fn eps(&self) -> Result<f64> {
        let key = "llama.attention.layer_norm_rms_epsilon";
        self.float(key).ok_or_else(|| Error::config(key, "missing", "a number above 0"))
    }

    fn head_dim(&self, hidden_size: usize, heads: usize) -> Result<usize> {
        let default = hidden_size.checked_div(heads).unwrap_or(0);
        let head_dim = self.size_or("llama.attention.key_length", default)?;
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            let other = self.size_or(key, head_dim)?;
            if other != head_dim {
                return Err(Error::config(key, other, format!("the head size ({head_dim})")));
            }
        }
        Ok(head_dim)
    }

    fn vocab_size(&self) -> Result<usize> {
        let rows = self.file.info("token_embd.weight").and_then(|i| i.shape.first().copied());
        rows.ok_or_else(|| Error::config("vocab_size", "unknown", "a tensor `token_embd.weight` in the file"))
    }

    fn scaling(&self, theta: f64, head_dim: usize) -> Result<RopeScaling> {
        if self.file.info("rope_freqs.weight").is_some() {
            return RopeScaling::from_divisors(&self.file.read_f32("rope_freqs.weight")?, theta, head_dim);
        }
        let factor = self.float("llama.rope.scaling.factor").or(self.float("llama.rope.scale_linear"));
        match self.file.metadata("llama.rope.scaling.type").and_then(GgufValue::as_str) {
            None | Some("none" | "linear") if factor.is_none_or(|f| f == 1.0 || f == 0.0) => Ok(RopeScaling::Default),
            None | Some("linear") => Ok(RopeScaling::Linear { factor: factor.unwrap_or(1.0) }),
            Some("none") => Ok(RopeScaling::Default),
            Some(other) => {
                let way_out = "supported are \"none\", \"linear\" and the rule of Llama 3.1";
                Err(Error::unsupported(format!("`llama.rope.scaling.type` = {other:?}"), way_out))
            }
        }
    }

    /// End of sequence and end of turn.
    fn stop_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = Vec::new();
        for key in ["eos", "eot", "eom"] {
            let id = self.id(&format!("tokenizer.ggml.{key}_token_id"));
            ids.extend(id.filter(|id| !ids.contains(id)));
        }
        ids
    }
}

/// GGUF keeps constants in f32; the shortest decimal that stands for the same f32 is what the author wrote (1e-5).
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}
