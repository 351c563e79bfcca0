//! What a stage needs in memory, from the model's shape and the recipe's sizes alone; asked before anything is loaded.

use serde::Serialize;
use temper_model::{Config, Lora};
use temper_tensor::{Dot, dot};

use crate::error::{Error, Result};
use crate::recipe::{Adapter, Dtype};

/// Values of a chunk of logits in the head.
const LOGITS: u64 = 8 << 20;
/// What the pool may keep besides what is in use.
const SLACK: u64 = 32 << 20;
/// The program itself, and a token of the vocabulary in the tokenizer.
const PROCESS: u64 = 16 << 20;
const TOKEN: u64 = 1200;

/// What decides the memory of a training stage.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::struct_excessive_bools)] // each stands for itself
pub struct Sizes {
    /// N of the largest micro-batch: `micro_tokens`, or the longest example or group where that is larger.
    pub micro_tokens: usize,
    /// The longest example or group, which is never split.
    pub longest: usize,
    /// Whether blocks are run again in backward.
    pub recompute: bool,
    /// Tokens in key/value caches while sampling.
    pub cached_tokens: usize,
    /// What weights are rounded to for computing, beside the f32 values that are updated.
    pub dtype: Dtype,
    /// What is trained, where it is not the whole model.
    pub lora: Option<Lora>,
    /// Whether there is a reference model of its own.
    pub reference: bool,
    /// Whether its distributions are compared with over the whole vocabulary.
    pub kl_ref: bool,
    /// Whether there is a critic.
    pub critic: bool,
    /// Copies of what is trained: where it started, averages.
    pub copies: usize,
}

/// Bytes by what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights of the policy, the reference and the critic.
    pub weights: u64,
    /// Gradients, the two moments and kept copies of what is trained; the critic's too.
    pub optimizer: u64,
    /// What backward reads, and what is in flight in the head and in a block's backward.
    pub activations: u64,
    /// Key/value caches while sampling.
    pub cache: u64,
    /// The program, its tokenizer, and free memory that is kept.
    pub process: u64,
    /// The most that is held at one time: caches are gone when training begins.
    pub total: u64,
}

impl Memory {
    /// Of a training stage.
    pub fn of(config: &Config, sizes: &Sizes) -> Self {
        let whole = 4 * config.parameter_count();
        // Matrices in bf16 lie beside their f32 values; those of a frozen model stand alone.
        let bf16 = sizes.dtype == Dtype::Bf16;
        let stored = |values: u64| if bf16 { values + values / 2 } else { values };
        let frozen = if bf16 { whole / 2 } else { whole };
        let adapter = sizes.lora.as_ref().map(|lora| 4 * lora.parameter_count(config));
        let [reference, critic] = [sizes.reference, sizes.critic].map(u64::from);
        let weights = stored(whole) * (1 + critic) + stored(adapter.unwrap_or(0)) + frozen * reference;
        let optimizer = (3 + sizes.copies as u64) * adapter.unwrap_or(whole) + 3 * whole * critic;
        let activations = activations(config, sizes);
        let cache = sizes.cached_tokens as u64 * config.kv_bytes_per_token(bf16);
        let process = PROCESS + TOKEN * config.vocab_size as u64 + SLACK;
        let total = weights + optimizer + activations.max(cache) + process;
        Self { weights, optimizer, activations, cache, process, total }
    }
}

/// Bytes of a micro-batch of `n` tokens, all of them scored, at the moment when they are most.
fn activations(config: &Config, sizes: &Sizes) -> u64 {
    let (n, recompute) = (sizes.micro_tokens as u64, sizes.recompute);
    let (c, f, h) = (config.hidden_size as u64, config.intermediate_size as u64, config.num_attention_heads as u64);
    let (q, kv) = (h * config.head_dim as u64, (config.num_key_value_heads * config.head_dim) as u64);
    let layers = config.num_hidden_layers as u64;
    // A block keeps its input and the residual stream in its middle, q, k, v, attention's output with a log-sum-exp a head, gate
    // and up; norms and the product of gate and up are made again.
    let block = 2 * c + 2 * q + 2 * kv + h + 2 * f;
    let kept = if recompute { layers * c } else { layers * block };
    let again = if recompute { block } else { 0 };
    // The head holds the last rows, the scored ones and their gradient beside its logits; a block's backward the gradient of the
    // residual stream and four rows as wide as the feed-forward. Another model's rows stay for both, its logits are the head's.
    let other = u64::from(sizes.kl_ref);
    let logits = LOGITS.min(n * config.vocab_size as u64);
    let head = 4 * n * 4 * c + (4 + 4 * other + laid_out(config, sizes.dtype)) * logits;
    let backward = 4 * n * (again + 4 * c + 5 * f);
    4 * n * (kept + other * c) + head.max(backward)
}

/// Bytes a value of the layout that the head's products make of the gradient of its logits: pairs of bf16, or strips of f32 where rows
/// would collide in the cache ([`temper_tensor::gemm`]). On tiles a f32 product makes none, its tasks split what they multiply.
fn laid_out(config: &Config, dtype: Dtype) -> u64 {
    let collide = config.vocab_size.is_multiple_of(1024) && config.hidden_size >= 128;
    match dtype {
        Dtype::Bf16 => 2,
        Dtype::F32 if dot() != Dot::Amx && collide => 4,
        Dtype::F32 => 0,
    }
}

/// The tokens of the largest micro-batch when items of at most `longest` tokens are cut at `limit`, `total` in all.
pub fn largest_micro_batch(limit: usize, longest: usize, total: usize) -> usize {
    limit.min(total).max(longest)
}

/// Refuses a stage that cannot fit, with what would.
pub fn fits(stage: &str, config: &Config, sizes: &Sizes, available: Option<u64>) -> Result<()> {
    let needed = Memory::of(config, sizes).total;
    let Some(available) = available.filter(|available| needed > *available) else { return Ok(()) };
    let then = |sizes: &Sizes| Memory::of(config, sizes).total;
    let fitting = changes(sizes).into_iter().filter_map(|(name, mut sizes)| {
        let at = sizes.iter().position(|s| then(s) <= available)?;
        let sizes = sizes.swap_remove(at);
        Some(format!("{} needs {}", name(&sizes), gib(then(&sizes))))
    });
    let ways: Vec<String> = fitting.collect();
    let hint = match &ways[..] {
        [] => "take a smaller model or a machine with more memory".to_owned(),
        ways => format!("{}; set one of these", ways.join(", ")),
    };
    Err(Error::user(
        format!("stage `{stage}` needs about {}, and this machine has {}", gib(needed), gib(available)),
        hint,
    ))
}

/// How a change is named, once it is known how far it goes.
type Name = fn(&Sizes) -> String;

/// Settings that need less, each as steps of which the first that fits is named.
fn changes(sizes: &Sizes) -> Vec<(Name, Vec<Sizes>)> {
    let halves = |from: usize, least: usize| {
        let micro = std::iter::successors(Some(from / 2), |n| Some(n / 2)).take_while(move |n| *n >= least.max(64));
        micro.map(|n| Sizes { micro_tokens: n, ..sizes.clone() }).collect::<Vec<_>>()
    };
    let lora = Sizes { lora: Some(Adapter::default().lora()), reference: false, ..sizes.clone() };
    let mut found: Vec<(Name, Vec<Sizes>)> =
        vec![(|s| format!("`micro_tokens = {}`", s.micro_tokens), halves(sizes.micro_tokens, sizes.longest))];
    if sizes.longest >= sizes.micro_tokens {
        let name: Name = |s| {
            format!("an example or group of at most {} tokens (`max_tokens`, `samples_per_prompt`)", s.micro_tokens)
        };
        found.push((name, halves(sizes.longest, 0)));
    }
    if !sizes.recompute {
        found.push((|_| "`recompute = true`".into(), vec![Sizes { recompute: true, ..sizes.clone() }]));
    }
    if sizes.lora.is_none() {
        found.push((|_| "`adapter = { kind = \"lora\" }`".into(), vec![lora.clone()]));
        let both = Sizes { recompute: true, ..lora };
        found.push((|_| "`adapter = { kind = \"lora\" }` with `recompute = true`".into(), vec![both]));
    }
    found
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes() -> Sizes {
        Sizes {
            micro_tokens: 2048,
            longest: 300,
            recompute: false,
            cached_tokens: 0,
            dtype: Dtype::F32,
            lora: None,
            reference: false,
            kl_ref: false,
            critic: false,
            copies: 0,
        }
    }

    #[test]
    fn micro_batches_are_bounded_by_the_limit_the_step_and_the_longest_item() {
        assert_eq!(largest_micro_batch(1024, 200, 5000), 1024);
        assert_eq!(largest_micro_batch(1024, 200, 600), 600);
        assert_eq!(largest_micro_batch(1024, 3000, 6000), 3000);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let config = Config::llama(49152, 576, 30, 9);
        let needed = Memory::of(&config, &sizes()).total;
        fits("sft", &config, &sizes(), None).unwrap();
        fits("sft", &config, &sizes(), Some(needed)).unwrap();
        let error = fits("sft", &config, &sizes(), Some(needed - 1)).unwrap_err();
        assert!(error.to_string().contains("`sft`"), "{error}");
        let hint = error.hint().unwrap();
        assert!(
            hint.contains("lora") && hint.contains("recompute = true") && hint.contains("micro_tokens = 1024"),
            "{hint}"
        );
        let group = Sizes { micro_tokens: 9000, longest: 9000, ..sizes() };
        let hint = fits("grpo", &config, &group, Some(needed)).unwrap_err();
        let hint = hint.hint().unwrap();
        assert!(!hint.contains("micro_tokens") && hint.contains("at most 1125 tokens"), "{hint}");
        let error = fits("sft", &config, &sizes(), Some(1 << 29)).unwrap_err();
        assert!(error.hint().unwrap().contains("smaller model"), "{error}");
    }
}
