//! Streams: further losses of a stage, each on data of its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_algo::{SupervisedObjective, TokenObjective, WeightedTerm, Weighting};

use super::parts::{Batch, DataSource, Mask, Overflow};

/// A further loss in every optimiser step of a stage, on data of its own: `weight * sum(weight of a token * x)`, averaged over its own
/// rows alone. Its gradient is added to the stage's, before clipping and the one update.
///
/// Supervised terms beside reinforcement learning, replay of earlier data, and mixtures of supervised losses are streams.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Its name in metrics: `stream/<id>/loss`.
    pub id: String,
    /// Its examples. Either this or `demonstrations`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<DataSource>,
    /// Show the solutions of the round's own tasks (online stages). Either this or `data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demonstrations: Option<Demonstrations>,
    /// Factor of its loss; below 0 the loss is raised, as in unlearning (default 1).
    #[serde(default = "one")]
    pub weight: f64,
    /// Loss of a token (default `nll`).
    #[serde(default)]
    pub objective: TokenObjective,
    /// Further terms of the loss, each with a `weight` and an `objective` (default none).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<WeightedTerm>,
    /// How its tokens are averaged over the step (default `token`).
    #[serde(default)]
    pub weighting: Weighting,
    /// Which tokens carry loss (default `response`).
    #[serde(default)]
    pub mask: Mask,
    /// Weight of the tokens outside the response with `mask = "response"` (default 0: none).
    #[serde(default)]
    pub prompt_weight: f32,
    /// Longest example, in tokens (default 1024).
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// What to do with longer ones (default `drop`).
    #[serde(default)]
    pub overflow: Overflow,
    /// Its examples or tokens in an optimiser step; with `data` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
}

/// Solutions of the round's tasks, shown once in each pass over the round. The loss is that of an average over all of the round's
/// tasks: where one in eight is shown, it counts an eighth.
///
/// Sources: AHPO, arXiv 2510.08540 (B058), whose expert term is there while fewer than a number of rollouts succeed; HPT, arXiv
/// 2509.04419 (B072), which trains a prompt by demonstration while at most `most_right` rollouts are right.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Demonstrations {
    /// Only of tasks of which at most so many of the round's rollouts are right (default: of all).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_right: Option<usize>,
    /// A rollout is right when its reward is above this (default 0.5).
    #[serde(default = "half")]
    pub threshold: f64,
}

impl Demonstrations {
    /// Whether a task is shown whose rollouts earned these rewards; one without any is not of this round.
    pub fn applies(&self, rewards: &[f64]) -> bool {
        let right = rewards.iter().filter(|r| **r > self.threshold).count();
        !rewards.is_empty() && self.most_right.is_none_or(|most| right <= most)
    }
}

impl Stream {
    /// The loss: objective and further terms.
    pub fn loss(&self) -> SupervisedObjective {
        SupervisedObjective { objective: self.objective, terms: self.terms.clone() }
    }

    /// The longest that a row can be in a model with this context, and no bound on all of them.
    pub fn bound(&self, context: usize) -> (usize, usize) {
        (self.max_tokens.min(context), usize::MAX)
    }
}

fn one() -> f64 {
    1.0
}
fn half() -> f64 {
    0.5
}
fn max_tokens() -> usize {
    1024
}

#[cfg(test)]
mod tests {
    use super::Demonstrations;

    #[test]
    fn hard_tasks_are_shown() {
        let hard = Demonstrations { most_right: Some(1), threshold: 0.5 };
        assert!(hard.applies(&[0.0, 1.0, 0.5]) && !hard.applies(&[1.0, 1.0, 0.0]) && !hard.applies(&[]));
        assert!(Demonstrations { most_right: None, ..hard }.applies(&[1.0; 4]));
    }
}
