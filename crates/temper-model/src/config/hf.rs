//! Hugging Face's config.json, as transformers 4 and 5 write and read it.

use super::{Architecture, Config, RopeScaling};
use crate::error::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The keys that matter; others are ignored, as transformers does.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    vocab_size: Option<u64>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    max_position_embeddings: Option<u64>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    tie_word_embeddings: Option<bool>,
    initializer_range: Option<f64>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMore>,
    pad_token_id: Option<i64>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Window,
    layer_types: Option<Vec<String>>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<Value>,
}

/// Absent is not null: Mistral has a window by default.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(from = "Option<u64>")]
enum Window {
    #[default]
    Absent,
    Unlimited,
    Tokens(u64),
}

impl From<Option<u64>> for Window {
    fn from(value: Option<u64>) -> Self {
        value.map_or(Self::Unlimited, Self::Tokens)
    }
}

/// The window of Mistral's first version, which its configs may leave out.
const MISTRAL_WINDOW: u64 = 4096;

/// `rope_parameters` of transformers 5, `rope_scaling` of transformers 4.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawRope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    r#type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<u64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    partial_rotary_factor: Option<f64>,
}

/// A token id, or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

impl OneOrMore {
    fn ids(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::More(ids) => ids,
        }
    }
}

/// Settings of generation_config.json that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawGeneration {
    eos_token_id: Option<OneOrMore>,
}

impl Config {
    /// Reads the text of a config.json.
    ///
    /// # Errors
    /// Not JSON or a value of the wrong type; an architecture or feature that Temper does not compute, named; sizes
    /// that [`Config::validate`] refuses.
    pub fn from_json(text: &str) -> Result<Self> {
        let parse =
            |why: serde_json::Error| Error::config("config.json", why, "the JSON of a Hugging Face model config");
        let raw: Raw = serde_json::from_str(text).map_err(parse)?;
        let config = raw.config()?;
        config.validate()?;
        Ok(config)
    }

    /// Adds the end-of-sequence ids of a generation_config.json, which may be more than the config's own.
    pub(crate) fn add_generation_eos(&mut self, text: &str) -> std::result::Result<(), serde_json::Error> {
        let raw: RawGeneration = serde_json::from_str(text)?;
        for &id in raw.eos_token_id.iter().flat_map(OneOrMore::ids) {
            if !self.eos_token_ids.contains(&id) && (id as usize) < self.vocab_size {
                self.eos_token_ids.push(id);
            }
        }
        Ok(())
    }

    /// The config as transformers 4 and 5 both read it. `dtype` is that of the weights beside it ("float32", ...).
    pub fn to_json(&self, dtype: &str) -> Value {
        let mut rope = self.rope_scaling.to_json();
        let scaling = if self.rope_scaling == RopeScaling::Default { Value::Null } else { json!(rope) };
        rope.insert("rope_theta".into(), json!(self.rope_theta));
        let mut out = json!({
            "architectures": [self.architecture.class()],
            "model_type": self.architecture.model_type(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "rope_parameters": rope,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_json(),
            "pad_token_id": self.pad_token_id,
            "torch_dtype": dtype,
            "dtype": dtype,
            "use_cache": true,
        });
        let own = match self.architecture {
            Architecture::Llama => {
                json!({"attention_bias": self.attention_bias, "mlp_bias": self.mlp_bias, "pretraining_tp": 1})
            }
            Architecture::Mistral => json!({"sliding_window": null}),
        };
        if let (Value::Object(out), Value::Object(own)) = (&mut out, own) {
            out.extend(own);
        }
        out
    }

    /// generation_config.json: the token ids that transformers' `generate` needs.
    pub fn to_generation_json(&self) -> Value {
        json!({
            "_from_model_config": true,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_json(),
            "pad_token_id": self.pad_token_id,
        })
    }

    fn eos_json(&self) -> Value {
        match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            more => json!(more),
        }
    }
}

impl Raw {
    fn config(&self) -> Result<Config> {
        let architecture = self.architecture()?;
        self.refuse_unsupported()?;
        let heads = size("num_attention_heads", self.num_attention_heads)?;
        let hidden_size = size("hidden_size", self.hidden_size)?;
        let max_position_embeddings = size("max_position_embeddings", self.max_position_embeddings)?;
        self.refuse_sliding_window(architecture, max_position_embeddings)?;
        let (rope_theta, rope_scaling) = self.rope(max_position_embeddings)?;
        Ok(Config {
            architecture,
            vocab_size: size("vocab_size", self.vocab_size)?,
            hidden_size,
            intermediate_size: size("intermediate_size", self.intermediate_size)?,
            num_hidden_layers: size("num_hidden_layers", self.num_hidden_layers)?,
            num_attention_heads: heads,
            num_key_value_heads: self.kv_heads(architecture, heads)?,
            head_dim: self.head_dim(hidden_size, heads)?,
            max_position_embeddings,
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            attention_bias: self.attention_bias.unwrap_or(false),
            mlp_bias: self.mlp_bias.unwrap_or(false),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            initializer_range: self.initializer_range.unwrap_or(0.02),
            bos_token_id: self.bos_token_id,
            eos_token_ids: self.eos_token_id.as_ref().map(|e| e.ids().to_vec()).unwrap_or_default(),
            // -1 is how some Llama 2 configs say "none".
            pad_token_id: self.pad_token_id.and_then(|id| u32::try_from(id).ok()),
        })
    }

    fn architecture(&self) -> Result<Architecture> {
        let class = self.architectures.as_ref().and_then(|a| a.first());
        let known = Architecture::ALL.into_iter().find(|a| match (class, &self.model_type) {
            (Some(class), _) => class == a.class(),
            (None, Some(model_type)) => model_type == a.model_type(),
            (None, None) => false,
        });
        known.ok_or_else(|| Error::Architecture {
            found: class.or(self.model_type.as_ref()).cloned().unwrap_or_else(|| "(none named)".into()),
            supported: Architecture::ALL.map(Architecture::class).join(", "),
        })
    }

    fn kv_heads(&self, architecture: Architecture, heads: usize) -> Result<usize> {
        match (self.num_key_value_heads, architecture) {
            (Some(_), _) => size("num_key_value_heads", self.num_key_value_heads),
            (None, Architecture::Llama) => Ok(heads),
            // Mistral's own default, which configs may leave out.
            (None, Architecture::Mistral) => Ok(8),
        }
    }

    fn head_dim(&self, hidden_size: usize, heads: usize) -> Result<usize> {
        if self.head_dim.is_some() {
            return size("head_dim", self.head_dim);
        }
        if heads == 0 || !hidden_size.is_multiple_of(heads) {
            let expected = format!("a multiple of num_attention_heads ({heads}), or `head_dim` given");
            return Err(Error::config("hidden_size", hidden_size, expected));
        }
        Ok(hidden_size / heads)
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let refuse = |what: String, way_out: &str| Err(Error::unsupported(what, way_out));
        if let Some(act) = self.hidden_act.as_ref().filter(|a| !matches!(a.as_str(), "silu" | "swish")) {
            return refuse(format!("`hidden_act` = {act:?}"), "only \"silu\" is");
        }
        let nested = [&self.rope_parameters, &self.rope_scaling].into_iter().flatten();
        let partial = nested.map(|r| r.partial_rotary_factor).chain([self.partial_rotary_factor]);
        if let Some(part) = partial.flatten().find(|&p| p != 1.0) {
            return refuse(format!("`partial_rotary_factor` = {part}"), "only 1 is");
        }
        if self.quantization_config.as_ref().is_some_and(|q| !q.is_null()) {
            let way_out = "use the unquantised model, or a GGUF file in Q8_0, Q4_0 or Q4_1";
            return refuse("a quantised Hugging Face checkpoint (`quantization_config`)".into(), way_out);
        }
        Ok(())
    }

    fn refuse_sliding_window(&self, architecture: Architecture, context: usize) -> Result<()> {
        let window = match (self.sliding_window, architecture) {
            (Window::Tokens(window), _) => window,
            (Window::Absent, Architecture::Mistral) => MISTRAL_WINDOW,
            (Window::Absent | Window::Unlimited, _) => u64::MAX,
        };
        let layers = self.layer_types.as_deref().unwrap_or_default();
        let slides = layers.is_empty() || layers.iter().any(|l| l != "full_attention");
        if window >= context as u64 || !slides {
            return Ok(());
        }
        Err(Error::unsupported(
            format!("`sliding_window` = {window} in a context of {context}"),
            format!(
                "set \"sliding_window\" to null and \"max_position_embeddings\" to {window} in config.json, which gives \
                 the same model for sequences of up to {window} tokens"
            ),
        ))
    }

    /// The base and the rule; the newer spelling wins, the older fills in.
    fn rope(&self, context: usize) -> Result<(f64, RopeScaling)> {
        let nested_theta = [&self.rope_parameters, &self.rope_scaling].into_iter().flatten().find_map(|r| r.rope_theta);
        let theta = nested_theta.or(self.rope_theta).unwrap_or(10_000.0);
        let named = [&self.rope_parameters, &self.rope_scaling].into_iter().flatten().find(|r| r.kind().is_some());
        let scaling = named.map_or(Ok(RopeScaling::Default), |r| r.scaling(context))?;
        Ok((theta, scaling))
    }
}

impl RawRope {
    fn kind(&self) -> Option<&str> {
        self.rope_type.as_deref().or(self.r#type.as_deref())
    }

    fn scaling(&self, context: usize) -> Result<RopeScaling> {
        match self.kind() {
            None | Some("default") => Ok(RopeScaling::Default),
            Some("linear") => Ok(RopeScaling::Linear { factor: number("rope_scaling.factor", self.factor)? }),
            Some("dynamic") => Ok(RopeScaling::Dynamic { factor: number("rope_scaling.factor", self.factor)? }),
            Some("yarn") => self.yarn(context),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: number("rope_scaling.factor", self.factor)?,
                low_freq_factor: number("rope_scaling.low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: number("rope_scaling.high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: size(
                    "rope_scaling.original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?,
            }),
            Some(other) => {
                let way_out = "supported are \"default\", \"linear\", \"dynamic\", \"llama3\" and \"yarn\"";
                Err(Error::unsupported(format!("`rope_type` = {other:?}"), way_out))
            }
        }
    }

    /// Defaults as in transformers 5: a setting of 0 counts as absent, the original context as the whole one, the factor
    /// as their ratio.
    fn yarn(&self, context: usize) -> Result<RopeScaling> {
        let given = |value: Option<f64>| value.filter(|&x| x != 0.0);
        let original = self.original_max_position_embeddings.unwrap_or(context as u64);
        let original = size("rope_scaling.original_max_position_embeddings", Some(original))?;
        let factor = self.factor.unwrap_or(context as f64 / original as f64);
        let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let inferred = match (given(self.mscale), given(self.mscale_all_dim)) {
            (Some(m), Some(all)) => mscale(m) / mscale(all),
            _ => mscale(1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast: given(self.beta_fast).unwrap_or(32.0),
            beta_slow: given(self.beta_slow).unwrap_or(1.0),
            attention_factor: self.attention_factor.unwrap_or(inferred),
            truncate: self.truncate.unwrap_or(true),
        })
    }
}

impl RopeScaling {
    fn to_json(self) -> Map<String, Value> {
        let value = match self {
            Self::Default => json!({"rope_type": "default"}),
            Self::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Self::Dynamic { factor } => json!({"rope_type": "dynamic", "factor": factor}),
            Self::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original_max_position_embeddings,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "attention_factor": attention_factor,
                "truncate": truncate,
            }),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
        };
        if let Value::Object(map) = value { map } else { Map::new() }
    }
}

fn size(field: &'static str, value: Option<u64>) -> Result<usize> {
    let value = value.ok_or_else(|| Error::config(field, "missing", "a whole number"))?;
    usize::try_from(value).map_err(|_| Error::config(field, value, "a smaller number"))
}

fn number(field: &'static str, value: Option<f64>) -> Result<f64> {
    value.ok_or_else(|| Error::config(field, "missing", "a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97, "hidden_size": 64,
            "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "hidden_act": "silu",
            "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": [2, 3], "unknown_key": {"a": 1},
        })
    }

    fn with(key: &str, value: Value) -> Result<Config> {
        let mut c = llama();
        c[key] = value;
        Config::from_json(&c.to_string())
    }

    #[test]
    fn reads_old_and_new_spelling_of_rope() {
        let old = Config::from_json(&llama().to_string()).unwrap();
        assert_eq!((old.rope_theta, old.rope_scaling, old.head_dim), (5e5, RopeScaling::Default, 16));
        assert_eq!(old.eos_token_ids, [2, 3]);
        let new = with("rope_parameters", json!({"rope_type": "default", "rope_theta": 7.0})).unwrap();
        assert_eq!(new.rope_theta, 7.0);
        let scaling = json!({
            "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        });
        let scaled = with("rope_scaling", scaling).unwrap();
        assert!(matches!(scaled.rope_scaling, RopeScaling::Llama3 { factor: 8.0, .. }));
        assert_eq!(scaled.rope_theta, 5e5);
    }

    #[test]
    fn yarn_takes_what_is_absent_from_the_context() {
        let yarn = |extra: Value| {
            let mut rope = json!({"rope_type": "yarn"});
            rope.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            with("rope_parameters", rope).unwrap().rope_scaling
        };
        let default = RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 64,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 0.1 * 4f64.ln() + 1.0,
            truncate: true,
        };
        // 256 positions in all.
        assert_eq!(yarn(json!({"original_max_position_embeddings": 64})), default);
        assert_eq!(yarn(json!({"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 0})), default);
        let own = yarn(json!({"factor": 8.0, "attention_factor": 0.9, "truncate": false}));
        let RopeScaling::Yarn { original_max_position_embeddings, attention_factor, truncate, .. } = own else {
            panic!("{own:?}")
        };
        assert_eq!((original_max_position_embeddings, attention_factor, truncate), (256, 0.9, false));
    }

    #[test]
    fn written_config_reads_back_equal() {
        let mut config = with("head_dim", json!(32)).unwrap();
        let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7,
                          "mscale_all_dim": 1.2, "beta_fast": 16});
        let yarn = with("rope_scaling", yarn).unwrap().rope_scaling;
        let scalings =
            [RopeScaling::Default, RopeScaling::Linear { factor: 2.0 }, RopeScaling::Dynamic { factor: 2.0 }, yarn];
        for scaling in scalings {
            for architecture in Architecture::ALL {
                (config.rope_scaling, config.architecture) = (scaling, architecture);
                config.attention_bias = architecture == Architecture::Llama;
                assert_eq!(Config::from_json(&config.to_json("float32").to_string()).unwrap(), config);
            }
        }
        assert_eq!(config.to_json("bfloat16")["torch_dtype"], "bfloat16");
    }

    #[test]
    fn refuses_what_is_not_computed_and_says_so() {
        let cases = [
            ("architectures", json!(["Qwen2ForCausalLM"]), "supported: LlamaForCausalLM, MistralForCausalLM"),
            ("hidden_act", json!("gelu"), "only \"silu\""),
            ("sliding_window", json!(255), "`sliding_window` = 255 in a context of 256"),
            ("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0}), "\"longrope\" is not supported"),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": -1}), "rope_scaling.factor"),
            ("rope_scaling", json!({"rope_type": "yarn", "beta_slow": 40}), "more than beta_slow (40)"),
            ("rope_scaling", json!({"rope_type": "dynamic"}), "rope_scaling.factor"),
            ("rope_scaling", json!({"rope_type": "linear"}), "rope_scaling.factor"),
            ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
            ("quantization_config", json!({"bits": 4}), "quantised"),
            ("num_attention_heads", json!(7), "a multiple of num_attention_heads (7)"),
            ("num_attention_heads", json!(0), "num_attention_heads"),
            ("hidden_size", json!(null), "missing"),
            ("hidden_size", json!(-3), "invalid value"),
            ("hidden_size", json!("64"), "invalid type"),
            ("vocab_size", json!(u64::MAX), "vocab_size"),
        ];
        for (key, value, expected) in cases {
            let message = with(key, value).unwrap_err().to_string();
            assert!(message.contains(expected), "{key}: {message}");
        }
        assert!(with("sliding_window", json!(256)).is_ok());
        assert!(with("attention_bias", json!(true)).unwrap().attention_bias);
        assert!(with("mlp_bias", json!(true)).unwrap().mlp_bias);
        let mut mistral = llama();
        mistral["architectures"] = json!(["MistralForCausalLM"]);
        mistral["max_position_embeddings"] = json!(8192);
        let message = Config::from_json(&mistral.to_string()).unwrap_err().to_string();
        assert!(message.contains("`sliding_window` = 4096 in a context of 8192"), "{message}");
        mistral["sliding_window"] = Value::Null;
        Config::from_json(&mistral.to_string()).unwrap();
        mistral["attention_bias"] = json!(true);
        let message = Config::from_json(&mistral.to_string()).unwrap_err().to_string();
        assert!(message.contains("attention_bias"), "{message}");
        assert!(Config::from_json("{").unwrap_err().to_string().contains("config.json"));
    }

    #[test]
    fn generation_config_may_name_more_stop_tokens() {
        let mut config = Config::from_json(&llama().to_string()).unwrap();
        config.add_generation_eos(r#"{"eos_token_id": [3, 5, 4000]}"#).unwrap();
        assert_eq!(config.eos_token_ids, [2, 3, 5]);
    }
}
