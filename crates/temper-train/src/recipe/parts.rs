//! The parts that stages share: models, data, batches, optimiser, generation and evaluation tasks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_env::TaskSource;

/// Numeric type that a model computes in. The values that an optimiser updates, its moments and all sums are f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32-bit floats throughout.
    #[default]
    F32,
    /// Matrices and what is multiplied by them are rounded to bfloat16 (AMX or AVX-512 BF16 where the processor has them,
    /// else by f32 multiply-adds); norms, softmax and the head's normalisation stay f32.
    Bf16,
}

/// Type of the numbers in a saved model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SaveDtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
}

/// What a run's `model/` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Save {
    /// The whole model, in Hugging Face's layout.
    #[default]
    Whole,
    /// The adapter alone, in PEFT's format.
    Adapter,
}

/// Models by role.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Models {
    /// The model that is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<ModelSpec>,
    /// The frozen model that a KL term compares with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<ModelSpec>,
    /// The model whose body the critic begins with; its value head begins at zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critic: Option<ModelSpec>,
}

/// Where a model comes from: `path`, or `policy_at` for the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// A Hugging Face directory, a `.gguf` file, `hf:owner/name`, or the directory of a LoRA adapter in PEFT's format, which is merged
    /// into its base. Relative paths start at the current directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The base model, where `path` is an adapter (default: the one that its `adapter_config.json` names).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The policy itself at some moment of the run (roles `reference` and `critic`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_at: Option<ModelAt>,
}

/// A moment of the run at which the policy is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelAt {
    /// As it is when the stage that needs it begins.
    StageStart,
}

/// A source of training examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum DataSource {
    /// A data file: messages, prompt/completion, text, ShareGPT, Alpaca (recognised by its columns), or rows with a
    /// prompt and an answer column.
    File {
        /// `.jsonl`, `.json` or `.txt`, plain or with `.gz` / `.zst`; or `hf:datasets/owner/name/file`.
        path: String,
        /// Column that holds the prompt, for rows of bare columns such as GSM8K's `question`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prompt: Option<String>,
        /// Column that holds the answer, with `prompt`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answer: Option<String>,
        /// Take only the first `n` rows (after `start`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        n: Option<usize>,
        /// Rows to skip at the beginning of the file (default 0).
        #[serde(default)]
        start: usize,
        /// Share of the training examples that this source gives. Either every source has one, or none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        share: Option<f64>,
    },
    /// Worked solutions of tasks: prompt, then demonstration.
    Tasks {
        /// The tasks.
        tasks: TaskSource,
        /// How many tasks to draw.
        n: usize,
        /// Share of the training examples that this source gives.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        share: Option<f64>,
    },
}

impl DataSource {
    /// The share of training examples that the source gives, where one is set.
    pub fn share(&self) -> Option<f64> {
        match self {
            Self::File { share, .. } | Self::Tasks { share, .. } => *share,
        }
    }
}

/// Which tokens of a training example carry loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mask {
    /// Assistant turns with their end-of-turn marker.
    #[default]
    Response,
    /// Every token after the first.
    All,
}

impl Mask {
    /// The data crate's policy.
    pub fn policy(self) -> temper_data::MaskPolicy {
        match self {
            Self::Response => temper_data::MaskPolicy::Response,
            Self::All => temper_data::MaskPolicy::All,
        }
    }
}

/// What to do with an example longer than `max_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// Leave it out, counted in the report.
    #[default]
    Drop,
    /// Cut its end off, counted in the report.
    Truncate,
    /// Stop with an error that names it.
    Error,
}

impl Overflow {
    /// The data crate's rule.
    pub fn rule(self) -> temper_data::Overflow {
        match self {
            Self::Drop => temper_data::Overflow::Drop,
            Self::Truncate => temper_data::Overflow::Truncate,
            Self::Error => temper_data::Overflow::Error,
        }
    }
}

/// Size of one optimiser step of an offline stage: exactly one of the fields is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Examples in a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<usize>,
    /// Tokens in a step: examples are added in order while they fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
}

/// The optimiser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// AdamW with decoupled weight decay (Loshchilov & Hutter 2019), PyTorch's conventions.
    Adamw {
        /// Peak learning rate.
        lr: f64,
        /// Decay of the first moment (default 0.9).
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the second moment (default 0.999).
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the second moment (default 1e-8).
        #[serde(default = "eps")]
        eps: f64,
        /// Decoupled weight decay, on matrices only (default 0).
        #[serde(default)]
        weight_decay: f64,
    },
}

impl Optimizer {
    /// Peak learning rate.
    pub fn lr(&self) -> f64 {
        let Self::Adamw { lr, .. } = self;
        *lr
    }
}

fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn eps() -> f64 {
    1e-8
}

/// How the critic is trained beside the policy, on the same micro-batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CriticStage {
    /// Loss of a value, and for how long the critic trains alone (default: squared error, from the first round on with the policy).
    #[serde(default)]
    pub objective: temper_algo::Critic,
    /// Its optimiser.
    pub optimizer: Optimizer,
    /// Its learning-rate schedule over optimiser steps (default constant without warm-up).
    #[serde(default)]
    pub schedule: temper_algo::Schedule,
    /// Largest norm of its gradient (default 1; 0 switches clipping off).
    #[serde(default = "clip_norm")]
    pub clip_norm: Clip,
}

pub(super) fn clip_norm() -> Clip {
    1.0
}

/// Largest gradient norm; larger gradients are scaled down to it.
pub type Clip = f64;

/// How completions are sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Softmax temperature; 0 is greedy (default 1).
    #[serde(default = "one")]
    pub temperature: f32,
    /// Sample among the `k` most likely tokens only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Sample among the most likely tokens whose mass reaches `p`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Sample among the tokens at least `min_p` times as likely as the most likely one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Longest completion, in tokens.
    pub max_tokens: usize,
    /// Strings that end a completion, besides the end-of-turn tokens.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Sample on after end-of-turn tokens, so that every completion has `max_tokens` (default false). For measurements of speed.
    #[serde(default)]
    pub ignore_eos: bool,
}

fn one() -> f32 {
    1.0
}

/// Something that is measured at the start and after every training stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvalTask {
    /// Name of the row in tables, plots and the ledger.
    pub id: String,
    /// What is measured.
    pub source: EvalSource,
    /// Number of items (default 200; fewer where the source has fewer).
    #[serde(default = "eval_n")]
    pub n: usize,
    /// Completions per item; more than one gives pass@k as well (default 1).
    #[serde(default = "eval_samples")]
    pub samples: usize,
    /// Softmax temperature; 0 is greedy (default 0, or 1 with several samples).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Longest completion, in tokens (default 64).
    #[serde(default = "eval_max_tokens")]
    pub max_tokens: usize,
    /// Strings that end a completion, besides the end-of-turn tokens.
    #[serde(default)]
    pub stop: Vec<String>,
}

fn eval_n() -> usize {
    200
}
fn eval_samples() -> usize {
    1
}
fn eval_max_tokens() -> usize {
    EvalTask::MAX_TOKENS
}

impl EvalTask {
    /// Longest completion where nothing is said.
    pub const MAX_TOKENS: usize = 64;
}

impl EvalSource {
    /// Whether likelihoods are compared and nothing is sampled.
    pub fn likelihood(&self) -> bool {
        matches!(self, Self::Nll { .. } | Self::Tasks { tasks: TaskSource::Blimp(_) })
    }
}

/// What an evaluation task measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum EvalSource {
    /// Accuracy on tasks with a verifier; for minimal pairs, how often the good sentence is the likelier one.
    Tasks {
        /// The tasks.
        tasks: TaskSource,
    },
    /// Negative log-likelihood per token of the supervised tokens of a data file.
    Nll {
        /// The data file, as in training data.
        path: String,
        /// Which tokens count (default `response`; rows of plain text always count whole). No end token is added to texts and
        /// completions: the likelihood is that of what is written.
        #[serde(default)]
        mask: Mask,
        /// Longest row, in tokens; longer ones are cut (default 512).
        #[serde(default = "nll_max_tokens")]
        max_row_tokens: usize,
    },
}

fn nll_max_tokens() -> usize {
    512
}

/// Shape of a new Llama-type model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Width of the residual stream, C.
    pub hidden_size: usize,
    /// Transformer blocks, L.
    pub layers: usize,
    /// Query heads, H.
    pub heads: usize,
    /// Key/value heads (default: as many as `heads`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Longest sequence, in tokens.
    pub max_positions: usize,
    /// Base of the rotary embedding (default 10000).
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
}

fn rope_theta() -> f64 {
    10_000.0
}
