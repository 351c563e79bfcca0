//! The metrics that a run logs, each defined here and nowhere else.
//!
//! Names are the ones people know from TRL where the meaning is the same. What an objective itself measures (`kl`,
//! `clip_ratio/*`, `ratio/*`, `policy_loss`, `selected`) is defined by [`temper_algo::PolicyMetrics::entries`].

use serde::{Serialize, Serializer};

/// Loss of the step: `sum(weight * x)` over its tokens, plus the weighted KL and entropy terms, plus the streams' losses times their
/// factors. For GRPO on its first
/// pass this is near 0 by construction; look at [`REWARD`].
pub const LOSS: &str = "loss";
/// L2 norm of the gradient before clipping.
pub const GRAD_NORM: &str = "grad_norm";
/// L2 distance of the parameters from those that the stage started with, before the step, of those that `l2_sp` pulls (once for each
/// transform that does).
pub const DISTANCE: &str = "start/distance";
/// Learning rate of the step.
pub const LEARNING_RATE: &str = "learning_rate";
/// Passes over the data so far.
pub const EPOCH: &str = "epoch";
/// Tokens so far in the stage: offline, of the rows trained on; online, of prompts (once a group) and completions sampled.
pub const NUM_TOKENS: &str = "num_tokens";
/// Mean entropy of the predicted distribution over the step's scored tokens, nats.
pub const ENTROPY: &str = "entropy";
/// Share of scored tokens that are the argmax of the predicted distribution.
pub const MEAN_TOKEN_ACCURACY: &str = "mean_token_accuracy";
/// Mean reward over all completions sampled in the step, all parts weighted and summed, before shaping; also of groups that are
/// not trained on, so that filtering does not flatter it.
pub const REWARD: &str = "reward";
/// Mean over groups of the sample standard deviation of the reward within the group.
pub const REWARD_STD: &str = "reward_std";
/// Share of groups whose rewards are all equal: they give no gradient.
pub const FRAC_REWARD_ZERO_STD: &str = "frac_reward_zero_std";
/// Mean reward over the step's completions after shaping; only where a recipe shapes rewards.
pub const REWARD_SHAPED: &str = "reward_shaped";
/// Share of the round's sampled groups of which nothing is trained on (constant ones, by default), those that were sampled in
/// place of others included.
pub const GROUPS_DROPPED: &str = "groups/dropped_ratio";
/// Groups that were sampled in place of dropped ones; only where a recipe refills.
pub const GROUPS_REFILLED: &str = "groups/refilled";
/// Prompts that the round trains on fewer than `prompts_per_step`, after the cap on refilling; only where a recipe refills.
pub const GROUPS_MISSING: &str = "groups/missing";
/// Share of the sampled completions of groups that are trained on which are themselves left out (cut off, or not chosen by a
/// down-sampling rule); only where a recipe leaves out single completions.
pub const ROLLOUTS_LEFT_OUT: &str = "completions/left_out_ratio";
/// Mean reward of the model's first turns, by themselves; only with an environment.
pub const FIRST_TURN: &str = "turns/first_reward";
/// Mean reward of the model's last turns, by themselves; only with an environment.
pub const LAST_TURN: &str = "turns/last_reward";
/// Share of the round's groups that got a member from elsewhere (`inject`).
pub const GROUPS_INJECTED: &str = "groups/injected_ratio";
/// Groups of another learner in the round's step (`shared`).
pub const GROUPS_SHARED: &str = "groups/shared";
/// Tasks for which a right answer is stored (`inject` from `stored`).
pub const STORED_ANSWERS: &str = "groups/stored_answers";
/// Right rollouts in the episodic memory (shaping `episodic`).
pub const MEMORY_RIGHT: &str = "memory/right";
/// Wrong rollouts in the episodic memory (shaping `episodic`).
pub const MEMORY_WRONG: &str = "memory/wrong";
/// Share of the round's completions that a budget in stages did not sample (`budget`).
pub const BUDGET_SAVED: &str = "completions/saved_ratio";
/// Share of the units that the step was drawn from which are in it (`redraw`).
pub const REDRAWN: &str = "completions/redrawn_ratio";
/// Mean reward of the greedy completions, as scored; only where a part needs them.
pub const REWARD_GREEDY: &str = "reward_greedy";
/// Mean estimate of the KL to the reference over the round's sampled tokens, before `beta`; only with the KL in the reward.
pub const REWARD_KL: &str = "reward_kl";
/// Loss of the critic, mean over the round's optimiser steps; half the mean squared error where nothing is clipped. The metrics
/// `value*` are there with a critic only.
pub const VALUE_LOSS: &str = "value_loss";
/// L2 norm of the critic's gradient before clipping.
pub const VALUE_GRAD_NORM: &str = "value/grad_norm";
/// Share of tokens at which the bound of the value loss cut the gradient.
pub const VALUE_CLIP_RATIO: &str = "value/clip_ratio";
/// Mean of the values that made the round's advantages.
pub const VALUE_MEAN: &str = "value/mean";
/// `1 - variance(return - value) / variance(return)` over the round's tokens, of the values that made its advantages: 1 where the
/// critic knows the return, 0 where a constant would do as well. Left out where all returns are equal.
pub const EXPLAINED_VARIANCE: &str = "value/explained_variance";
/// Lower tracked quantile of the bundle scores; only with the advantage `risk`.
pub const QUANTILE_LOW: &str = "risk/quantile_low";
/// Upper tracked quantile of the bundle scores; only with the advantage `risk`.
pub const QUANTILE_HIGH: &str = "risk/quantile_high";
/// Mean number of steps of the sampled completions of groups that are not dropped (`step_rewards`).
pub const STEPS: &str = "steps/mean";
/// Mean reward of their steps (`step_rewards`).
pub const STEP_REWARD: &str = "steps/reward";
/// Mean reward that was expected before the first token of the completions (`step_rewards` of kind `continued`).
pub const STEPS_PRIOR: &str = "steps/prior";
/// Mean completion length, tokens.
pub const LENGTH_MEAN: &str = "completions/mean_length";
/// Shortest completion, tokens.
pub const LENGTH_MIN: &str = "completions/min_length";
/// Longest completion, tokens.
pub const LENGTH_MAX: &str = "completions/max_length";
/// Share of completions cut off by `max_tokens` or the context.
pub const CLIPPED_RATIO: &str = "completions/clipped_ratio";
/// Share of completions in which the verifier found no answer at all.
pub const UNPARSED: &str = "completions/unparsed_ratio";
/// Mean probability mass that top-k, top-p or min-p cut away per sampled token.
pub const LOST_MASS: &str = "sampling/lost_mass";

/// Mean of `logp - logp_ref` over the scored tokens of a step whose objective has a reference: how far the model has moved on
/// the data (MinorSFT's deviation, arXiv 2408.10642).
pub const REF_LOG_RATIO: &str = "ref_log_ratio";
/// Share of the units of the last block but one that the step left out (stages with `sensitivity`).
pub const SENSITIVE: &str = "sensitivity/dropped_ratio";
/// Mean multiplier of the step's examples, before its update (stages with a `constraint`).
pub const MULTIPLIER: &str = "constraint/multiplier";
/// Share of the step's examples whose loss is above the constraint's bound.
pub const VIOLATED: &str = "constraint/violated";

/// `sum(weight * x)` of one term of an objective with several, before its coefficient: `loss/<kind>`, the second of a kind
/// `loss/<kind>_2`.
pub fn term_loss(kind: &str, nth: usize) -> String {
    if nth < 2 { format!("loss/{kind}") } else { format!("loss/{kind}_{nth}") }
}

/// Of a stream, its `sum(weight * x)` before its factor, mean over the round's optimiser steps that trained on it; left out of rounds
/// without one.
pub const STREAM_LOSS: &str = "loss";
/// Of a stream, the mean over its examples of their mean negative log-likelihood, whatever its objective.
pub const STREAM_NLL: &str = "nll";
/// Of a stream, examples in the round's optimiser steps.
pub const STREAM_EXAMPLES: &str = "examples";

/// A stream's own number: `stream/<id>/<what>`.
pub fn stream(id: &str, what: &str) -> String {
    format!("stream/{id}/{what}")
}

/// Value of a moving setting in the step, by its path in the stage: `knob/objective.kl.beta`.
pub fn knob(path: &str) -> String {
    format!("knob/{path}")
}

/// Mean of one reward part, unweighted, over the step's completions: `rewards/<part>/mean`.
pub fn reward_part_mean(part: &str) -> String {
    format!("rewards/{part}/mean")
}

/// Sample standard deviation of one reward part over the step's completions: `rewards/<part>/std`.
pub fn reward_part_std(part: &str) -> String {
    format!("rewards/{part}/std")
}

/// Named numbers of one step, in the order in which they were added.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(Vec<(String, f64)>);

impl Metrics {
    /// Adds a number.
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        self.0.push((name.into(), value));
    }
    /// Adds the values of moving settings, by path.
    pub fn knobs(&mut self, values: &[(&str, f64)]) {
        self.0.extend(values.iter().map(|(path, value)| (knob(path), *value)));
    }
    /// The number called `name`.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }
    /// All numbers in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(n, v)| (n.as_str(), *v))
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(n, v)| (n, v)))
    }
}
