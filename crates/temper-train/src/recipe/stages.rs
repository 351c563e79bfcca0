//! The stage kinds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_algo::group_reuse::{Inject, InjectFrom, Redraw, StagedBudget};
use temper_algo::{
    GroupShaper, Needs, PolicyObjective, RewardShaping, SampleConstraint, Schedule, SupervisedObjective,
    TokenObjective, WeightedTerm, Weighting,
};
use temper_env::{Environment, RewardPart, TaskSource};

use super::adapter::Adapter;
use super::input::Input;
use super::knobs::Knobs;
use super::parts::{
    Batch, Clip, CriticStage, DataSource, EvalTask, Generation, Mask, Optimizer, Overflow, Shape, clip_norm,
};
use super::sensitivity::Sensitivity;
use super::slots::{AfterUpdate, Freeze, GradientTransform};
use super::steps::StepRewards;
use super::stream::Stream;
use crate::transform::Transform;

/// One stage of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // a recipe has a handful of stages
pub enum Stage {
    /// Train a tokenizer.
    Tokenizer(TokenizerStage),
    /// Make a model with random weights.
    Init(InitStage),
    /// Train on given examples: supervised fine-tuning and everything else that samples nothing.
    Offline(OfflineStage),
    /// Train on what the model samples: reinforcement learning.
    Online(OnlineStage),
    /// Measure only.
    Evaluate(EvaluateStage),
}

impl Stage {
    /// The stage's name, unique in the recipe.
    pub fn id(&self) -> &str {
        match self {
            Self::Tokenizer(s) => &s.id,
            Self::Init(s) => &s.id,
            Self::Offline(s) => &s.id,
            Self::Online(s) => &s.id,
            Self::Evaluate(s) => &s.id,
        }
    }

    /// Its moving settings, where it trains, to be set.
    pub(super) fn knobs_mut(&mut self) -> Option<&mut Knobs> {
        match self {
            Self::Offline(s) => Some(&mut s.knobs),
            Self::Online(s) => Some(&mut s.knobs),
            Self::Tokenizer(_) | Self::Init(_) | Self::Evaluate(_) => None,
        }
    }

    /// The stage that this one names as its start.
    pub fn from(&self) -> Option<&str> {
        match self {
            Self::Tokenizer(_) | Self::Init(_) => None,
            Self::Offline(s) => s.from.as_deref(),
            Self::Online(s) => s.from.as_deref(),
            Self::Evaluate(s) => s.from.as_deref(),
        }
    }

    /// Whether the stage's result is a model.
    pub fn makes_model(&self) -> bool {
        matches!(self, Self::Init(_) | Self::Offline(_) | Self::Online(_))
    }
}

/// Train a byte-level BPE tokenizer on text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizerStage {
    /// Name of the stage.
    pub id: String,
    /// The text: rendered conversations and plain text.
    pub data: Vec<DataSource>,
    /// Tokens in the vocabulary, special ones and the 256 bytes included.
    pub vocab_size: usize,
    /// Split numbers into single digits (default true).
    #[serde(default = "yes")]
    pub individual_digits: bool,
    /// Special tokens, which get the first ids (default: ChatML's `<|endoftext|>`, `<|im_start|>` and `<|im_end|>`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub special_tokens: Option<Vec<String>>,
    /// The special token that ends texts and turns (default `<|im_end|>`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
    /// The chat template, in Jinja (default: ChatML's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
}

/// Make a model with random weights for the tokenizer of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InitStage {
    /// Name of the stage.
    pub id: String,
    /// Directory of the tokenizer; by default the one that a `tokenizer` stage before made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// The model's shape.
    pub shape: Shape,
}

/// Train on given examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfflineStage {
    /// Name of the stage.
    pub id: String,
    /// Stage whose model this one starts from (default: the closest one before that makes a model).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Training examples.
    pub data: Vec<DataSource>,
    /// What is done to the examples before they are tokenised, in order (default nothing).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transform: Vec<Transform>,
    /// What is done to the model's input in training (default nothing).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Input>,
    /// Loss of a token (default `nll`).
    #[serde(default)]
    pub objective: TokenObjective,
    /// Further terms of the loss, each with a `weight` and an `objective` (default none).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<WeightedTerm>,
    /// Units that are left out in training because they change most (default none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<Sensitivity>,
    /// Further losses on data of their own in every optimiser step (default none).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<Stream>,
    /// Factor of the stage's own loss beside those of its streams (default 1).
    #[serde(default = "share")]
    pub weight: f64,
    /// A bound on every example's loss, kept by multipliers (default none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<SampleConstraint>,
    /// How tokens are averaged over the step (default `token`: every supervised token counts the same).
    #[serde(default)]
    pub weighting: Weighting,
    /// Which tokens carry loss (default `response`).
    #[serde(default)]
    pub mask: Mask,
    /// Weight of the tokens outside the response with `mask = "response"` (default 0: none).
    #[serde(default)]
    pub prompt_weight: f32,
    /// Longest example, in tokens.
    pub max_tokens: usize,
    /// What to do with longer ones (default `drop`).
    #[serde(default)]
    pub overflow: Overflow,
    /// Size of an optimiser step.
    pub batch: Batch,
    /// Length of the stage in passes over the data. Either this or `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Length of the stage in optimiser steps. Either this or `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Train an adapter and freeze the model (default: train all of the model's parameters).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Adapter>,
    /// What changes the gradient before a step (default nothing).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gradient: Vec<GradientTransform>,
    /// What changes the parameters, or the reference, after a step, in order (default nothing).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after_update: Vec<AfterUpdate>,
    /// Parameters that the stage leaves as they are (default none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
    /// The optimiser.
    pub optimizer: Optimizer,
    /// Learning-rate schedule (default constant without warm-up).
    #[serde(default)]
    pub schedule: Schedule,
    /// Largest gradient norm (default 1; 0 switches clipping off).
    #[serde(default = "clip_norm")]
    pub clip_norm: Clip,
    /// Most tokens in memory at once: a step is split into micro-batches of at most this many (default 1024).
    #[serde(default = "micro_tokens")]
    pub micro_tokens: usize,
    /// Recompute the blocks' activations in the backward pass: less memory, about a third more time (default false).
    #[serde(default)]
    pub recompute: bool,
    /// Optimiser steps between checkpoints (default 100).
    #[serde(default = "checkpoint_every")]
    pub checkpoint_every: usize,
    /// Settings that move, of which the fields hold the first value.
    #[serde(skip)]
    pub knobs: Knobs,
}

impl OfflineStage {
    /// The loss: objective and further terms.
    pub fn loss(&self) -> SupervisedObjective {
        SupervisedObjective { objective: self.objective, terms: self.terms.clone() }
    }
}

/// A source of tasks and how often it is drawn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskMix {
    /// The tasks.
    pub source: TaskSource,
    /// Share of the prompts, relative to the other sources' (default 1).
    #[serde(default = "share")]
    pub share: f64,
}

/// Rollouts shared by another learner: an online stage of the same run that came before. In its round t a learner trains on `local`
/// of its own groups and on `groups` of those that the other one sampled in its round t, both drawn from the groups with a
/// signal. Source: SAPO (swarm sampling), arXiv 2509.08721 (B093).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// The other learner: an online stage before this one that keeps all its rollouts (`log_rollouts_every = 1`), with the same
    /// kinds of tasks and rewards. Its text is re-tokenised, its rewards are taken over.
    pub stage: String,
    /// Own groups in a step, at most.
    pub local: usize,
    /// The other's groups in a step, at most.
    pub groups: usize,
}

/// Train on what the model samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnlineStage {
    /// Name of the stage.
    pub id: String,
    /// Stage whose model this one starts from (default: the closest one before that makes a model).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Where the prompts come from.
    pub tasks: Vec<TaskMix>,
    /// Rounds of sampling and training.
    pub steps: usize,
    /// Prompts in a round, P.
    pub prompts_per_step: usize,
    /// Completions of each prompt, G.
    pub samples_per_prompt: usize,
    /// Longest prompt, in tokens; tasks with a longer one are left out and counted (default 1024).
    #[serde(default = "max_prompt_tokens")]
    pub max_prompt_tokens: usize,
    /// How completions are sampled.
    pub sampling: Generation,
    /// What a completion is rewarded for: the weighted sum of the parts.
    pub rewards: Vec<RewardPart>,
    /// Rewards of a completion's steps, beside these (default none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_rewards: Option<StepRewards>,
    /// Advantage, ratio, surrogate, KL term and weighting.
    #[serde(default)]
    pub objective: PolicyObjective,
    /// Further losses on data of their own in every optimiser step (default none).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<Stream>,
    /// Factor of the stage's own loss beside those of its streams (default 1).
    #[serde(default = "share")]
    pub weight: f64,
    /// What changes the rewards of a group before it is compared, in order (default nothing).
    #[serde(default)]
    pub shaping: Vec<RewardShaping>,
    /// Which completions of a group are trained on, in order (default `[{ kind = "drop_constant" }]`: groups whose rewards are all
    /// equal are left out; `[]` trains on everything).
    #[serde(default = "drop_constant")]
    pub group: Vec<GroupShaper>,
    /// Several turns of the model about each task, with something said to it in between (default: one turn).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// Factors of `objective.kl` on the tokens of the model's turns, the first turn's first (default 1 on all of them): a beta for each
    /// turn. SCoRe's first stage ties the first attempt alone, `[1.0, 0.0]` (arXiv 2409.12917, equation 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_turns: Option<Vec<f64>>,
    /// Sample in stages, and no more once a completion is right (default: all `samples_per_prompt` at once).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<StagedBudget>,
    /// A member of the group that the policy did not sample in this round (default none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inject: Option<Inject>,
    /// Groups that another learner sampled, in every step (default none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<Shared>,
    /// Draw the step anew from the round's completions, by their advantages (default: each of them once).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redraw: Option<Redraw>,
    /// Passes over a round's completions (default 1).
    #[serde(default = "inner_epochs")]
    pub inner_epochs: usize,
    /// Optimiser steps in a pass; the groups are dealt out evenly (default 1).
    #[serde(default = "inner_epochs")]
    pub minibatches: usize,
    /// Train an adapter and freeze the model (default: train all of the model's parameters).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Adapter>,
    /// What changes the gradient before a step (default nothing).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gradient: Vec<GradientTransform>,
    /// What changes the parameters, or the reference, after a step, in order (default nothing).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after_update: Vec<AfterUpdate>,
    /// Parameters that the stage leaves as they are (default none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
    /// The optimiser.
    pub optimizer: Optimizer,
    /// Learning-rate schedule over optimiser steps (default constant without warm-up).
    #[serde(default)]
    pub schedule: Schedule,
    /// Largest gradient norm (default 1; 0 switches clipping off).
    #[serde(default = "clip_norm")]
    pub clip_norm: Clip,
    /// How the critic is trained; for advantages that read values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critic: Option<CriticStage>,
    /// Most tokens in memory at once in training; a group is never split (default 1024).
    #[serde(default = "micro_tokens")]
    pub micro_tokens: usize,
    /// Sequences that are sampled at the same time (default 32).
    #[serde(default = "max_batch")]
    pub max_batch: usize,
    /// Recompute the blocks' activations in the backward pass (default false).
    #[serde(default)]
    pub recompute: bool,
    /// Rounds between checkpoints (default 20).
    #[serde(default = "online_checkpoint_every")]
    pub checkpoint_every: usize,
    /// Rounds between the completions kept in `rollouts.jsonl`; the first and the last round always are (default 10).
    #[serde(default = "log_every")]
    pub log_rollouts_every: usize,
    /// Settings that move, of which the fields hold the first value.
    #[serde(skip)]
    pub knobs: Knobs,
}

impl OnlineStage {
    /// Whether every prompt needs a greedy completion beside its samples.
    pub fn needs_greedy(&self) -> bool {
        self.objective.needs().contains(Needs::GREEDY) || self.shaping.iter().any(RewardShaping::needs_greedy)
    }

    /// Names of the reward parts `[K]`.
    pub fn reward_names(&self) -> Vec<&str> {
        self.rewards.iter().map(|r| r.name.as_str()).collect()
    }

    /// How many more times a round may sample to replace groups that were dropped.
    pub fn refill(&self) -> u32 {
        self.group.iter().map(GroupShaper::refill).max().unwrap_or(0)
    }

    /// The shaping that asks for an episodic memory, where there is one.
    pub fn episodic(&self) -> Option<&RewardShaping> {
        self.shaping.iter().find(|s| matches!(s, RewardShaping::Episodic { .. }))
    }

    /// The setting that makes the stage store right answers, where there is one.
    pub fn stores(&self) -> Option<&Inject> {
        self.inject.as_ref().filter(|inject| inject.from == InjectFrom::Stored)
    }

    /// Completions of a prompt that its advantages are computed from: how many there are at least.
    pub fn counted_samples(&self) -> usize {
        let fewest = self.budget.map_or(self.samples_per_prompt, |b| b.stage as usize);
        self.group.iter().fold(fewest, |n, g| match g {
            GroupShaper::DownSample { keep, counts: false, .. } => n.min(*keep as usize),
            GroupShaper::DownSample { .. }
            | GroupShaper::MaskTruncated { .. }
            | GroupShaper::DropUnsolved { .. }
            | GroupShaper::DropConstant { .. } => n,
        })
    }
}

/// Measure tasks without training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluateStage {
    /// Name of the stage.
    pub id: String,
    /// Stage whose model is measured (default: the closest one before that makes a model).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What is measured, besides the recipe's targets and retained tasks.
    #[serde(default)]
    pub tasks: Vec<EvalTask>,
}

fn yes() -> bool {
    true
}
fn drop_constant() -> Vec<GroupShaper> {
    vec![GroupShaper::DropConstant { refill: 0, part: None }]
}
fn share() -> f64 {
    1.0
}
fn micro_tokens() -> usize {
    1024
}
fn max_batch() -> usize {
    32
}
fn checkpoint_every() -> usize {
    100
}
fn online_checkpoint_every() -> usize {
    20
}
fn max_prompt_tokens() -> usize {
    1024
}
fn inner_epochs() -> usize {
    1
}
fn log_every() -> usize {
    10
}
