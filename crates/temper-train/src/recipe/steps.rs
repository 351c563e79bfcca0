//! Rewards inside a completion.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_algo::Problem;

/// Rewards of a completion's steps, beside its total reward: for advantages that read rewards token by token (`process`, `gae`,
/// `returns`, `reinforce_plus_plus`). A step's reward lies on its last token. Steps are the pieces of the text between separators; with
/// an empty separator, its characters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum StepRewards {
    /// Each step is compared with the one at the same place of the task's worked solution (its answer, where it has none): process
    /// supervision by a verifier, DeepSeekMath, arXiv 2402.03300, section 4.1.3.
    Solution {
        /// What lies between two steps.
        separator: String,
        /// Reward of a right step (default 1).
        #[serde(default = "one")]
        right: f64,
        /// Reward of another one (default 0).
        #[serde(default)]
        wrong: f64,
    },
    /// What the policy may expect after each step: the mean reward of `samples` ways to go on from there, which are scored as
    /// completions and not trained on; after the last step the completion's own reward.
    ///
    /// Sources: MRT, arXiv 2503.07572, section 4 (A094), forces the answer after each block and rewards the change; the changes add up
    /// to the reward less what was expected before the first token. IRCoCo, arXiv 2401.16637 (A076), rewards the level, which a
    /// learned evaluator tells there.
    Continued {
        /// What lies between two steps.
        separator: String,
        /// What the policy reads after the step before it goes on, such as the words that end thinking (default nothing).
        #[serde(default, skip_serializing_if = "String::is_empty")]
        force: String,
        /// Ways to go on from each step (default 4).
        #[serde(default = "samples")]
        samples: usize,
        /// Their longest, in tokens.
        max_tokens: usize,
        /// Steps of a completion at most; what comes after belongs to the last one (default 8).
        #[serde(default = "most")]
        most: usize,
        /// What of it is the reward (default the change).
        #[serde(default)]
        give: Give,
        /// Its factor (default 1).
        #[serde(default = "one")]
        scale: f64,
    },
}

/// What of an expectation is a step's reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Give {
    /// What the step changed.
    #[default]
    Change,
    /// The expectation itself.
    Level,
}

impl StepRewards {
    /// What lies between two steps.
    pub fn separator(&self) -> &str {
        match self {
            Self::Solution { separator, .. } | Self::Continued { separator, .. } => separator,
        }
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        let finite = |field: &str, value: f64| {
            let problem = || Problem::new(field, format!("{field} is {value}"), "give a number from -1e6 to 1e6");
            (!(value.is_finite() && value.abs() <= 1e6)).then(problem)
        };
        match self {
            Self::Solution { right, wrong, .. } => {
                let mut problems: Vec<Problem> =
                    [finite("right", *right), finite("wrong", *wrong)].into_iter().flatten().collect();
                if right == wrong {
                    let message = format!("right and wrong steps both earn {right}");
                    problems.push(Problem::new("wrong", message, "give them different rewards"));
                }
                problems
            }
            Self::Continued { samples, max_tokens, most, scale, .. } => {
                let mut problems: Vec<Problem> = finite("scale", *scale).into_iter().collect();
                if *scale == 0.0 {
                    problems.push(Problem::new("scale", "scale is 0", "remove `step_rewards`"));
                }
                for (field, value) in [("samples", *samples), ("max_tokens", *max_tokens), ("most", *most)] {
                    if value == 0 || value > 1_000_000 {
                        problems.push(Problem::new(field, format!("{field} is {value}"), "give at least 1"));
                    }
                }
                problems
            }
        }
    }
}

fn one() -> f64 {
    1.0
}
fn samples() -> usize {
    4
}
fn most() -> usize {
    8
}
