//! Reward shaping: rewards of one group to rewards of the same group, before it is shaped and compared.
//!
//! What looks at one completion alone (DAPO's soft overlong penalty, a target length, formats) is a reward part of the
//! environment. Here is what compares within the group, changes over the run, or acts on parts by their name.

mod check;
mod compared;
mod judged;
mod length;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::Error;
pub use compared::{diversity_rewards, majority_rewards};

/// One change of the rewards of a group. Several are applied in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RewardShaping {
    /// Judges as constraints: a rollout that violates one gets the reward `violated` whatever else it earned.
    /// Source: CRPG in CGPO, arXiv 2409.20370, section 4.1 (B018).
    Constraint {
        /// Reward parts that say whether a constraint holds: above 0.5 it does. Give them weight 0, so that they only constrain.
        parts: Vec<String>,
        /// Reward of a violating rollout.
        #[serde(default)]
        violated: f64,
        /// Replace the reward of the others by `1 / (1 + e^-(r - baseline))`, the baseline being the greedy rollout of the prompt
        /// (the paper: a reference answer), so that rewards of different prompts compare.
        #[serde(default)]
        calibrate: bool,
    },
    /// Adds `gamma c e^(-step / anneal_steps) r_process`: a learned reward of the reasoning, trusted as far as it tells right from
    /// wrong. `gamma` is 1 where the mean process reward of right rollouts is at least that of wrong ones, else
    /// `exp(mean of right - mean of wrong)`; a group that is all right or all wrong adds nothing.
    /// Source: Trust-GRPO, SophiaVL-R1, arXiv 2505.17018, equations 3 to 6 (B252), constants of the released code.
    Trust {
        /// Reward part of the outcome: above 0.5 is right.
        outcome: String,
        /// Reward part of the process; give it weight 0, so that it comes in here alone.
        process: String,
        /// The factor c.
        #[serde(default = "trust")]
        coef: f64,
        /// Rounds in which its share falls to 1/e.
        #[serde(default = "anneal_steps")]
        anneal_steps: f64,
    },
    /// Flips a 0/1 reward part with a probability: `v` becomes `1 - v`. The expected centred reward is `1 - 2p` times the clean one.
    /// What comes after it reads the flipped part. Source: arXiv 2505.22653, section 2 (B149).
    Flip {
        /// The reward part.
        part: String,
        /// Probability p of a flip.
        probability: f64,
        /// What is flipped at once.
        #[serde(default)]
        of: FlipUnit,
    },
    /// Adds `weight` times the part `with` where the part `part` is at most `threshold`: what looks wrong may be a judge's mistake, so good
    /// reasoning still earns something. Give `with` weight 0, so that it counts here alone. Source: the calibration of a noisy
    /// reward by the reasoning pattern reward, arXiv 2505.22653, section 4 (B149), and its released code for 0/1 rewards.
    Rescue {
        /// The noisy reward part.
        part: String,
        /// The part that counts where that one is low.
        with: String,
        /// The largest value that counts as low (default 0: a wrong answer).
        #[serde(default)]
        threshold: f64,
        /// Factor of the part `with`.
        #[serde(default = "no_decay")]
        weight: f64,
    },
    /// Adds `weight` times a triangle over the length: `length / budget` up to the budget, falling to 0 at twice the budget. The
    /// budget is `max(1, start decay^floor(step / every))`. Source: arXiv 2508.08940, equations 1 and 2 (A048); the falling side is
    /// ours to choose, the source at hand only says that the reward peaks at the budget.
    LengthBudget {
        /// Budget of the first rounds, tokens.
        start: f64,
        /// Factor of each tightening.
        #[serde(default = "no_decay")]
        decay: f64,
        /// Rounds between tightenings.
        #[serde(default = "every")]
        every: u64,
        /// Factor of the term.
        #[serde(default = "no_decay")]
        weight: f64,
    },
    /// Adds `weight` to the rollouts that give the most frequent answer of the group ([`majority_rewards`]): a reward without
    /// labels. Give the verifier, which reads the answers, weight 0. Source: MM-UPT, arXiv 2505.22453 (B030); TTRL, arXiv
    /// 2504.16084.
    Majority {
        /// Factor of the term.
        #[serde(default = "no_decay")]
        weight: f64,
    },
    /// Multiplies the reward of right rollouts by the share of the other right ones that differ from it
    /// ([`diversity_rewards`]). Source: DARLING, arXiv 2509.02534, section 3.2 (B128); equality takes the place of the learned
    /// classifier.
    Diversity {
        /// What makes two rollouts the same.
        #[serde(default)]
        same: Same,
        /// Smallest factor (default 0.1, the released one).
        #[serde(default = "floor")]
        floor: f64,
        /// A rollout is right when its reward is above this (default 0.5); the others keep their reward.
        #[serde(default = "half")]
        threshold: f64,
    },
    /// Adds `exploit` times the likeness to remembered right rollouts and `explore` times the distance from everything
    /// remembered, each standardised over the round ([`Memory::intrinsic`](crate::Memory::intrinsic)). Source: Memory-R+, arXiv
    /// 2504.02273 (A066).
    Episodic {
        /// Factor of the likeness.
        #[serde(default = "small")]
        exploit: f64,
        /// Factor of the distance.
        #[serde(default = "small")]
        explore: f64,
        /// Nearest right rollouts that the likeness is averaged over (default 3).
        #[serde(default = "three")]
        k: u32,
        /// Right rollouts that are remembered, and as many wrong ones; the oldest go first (default 256).
        #[serde(default = "capacity")]
        capacity: u32,
        /// A rollout is right when its reward is above this (default 0.5).
        #[serde(default = "half")]
        threshold: f64,
    },
}

/// What makes two rollouts of a group the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Same {
    /// The same answer, as the verifier reads it.
    #[default]
    Answer,
    /// The same text.
    Text,
}

/// What noise flips at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlipUnit {
    /// Each rollout by itself.
    #[default]
    Rollout,
    /// All rollouts of a prompt together, as the released code does: a wrong label.
    Prompt,
}

fn half() -> f64 {
    0.5
}
fn floor() -> f64 {
    0.1
}
fn small() -> f64 {
    0.1
}
fn three() -> u32 {
    3
}
fn capacity() -> u32 {
    256
}
fn trust() -> f64 {
    0.3
}
fn anneal_steps() -> f64 {
    500.0
}
fn no_decay() -> f64 {
    1.0
}
fn every() -> u64 {
    100
}

/// The rewards of one group and what they are made of; shaping changes both.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shaped {
    /// Total rewards `[G]`.
    pub rewards: Vec<f64>,
    /// Reward parts before weighting `[G][K]`.
    pub parts: Vec<Vec<f64>>,
}

/// What shaping reads of one group beside its rewards.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShapingInput<'a> {
    /// Names of the reward parts `[K]`.
    pub names: &'a [&'a str],
    /// Their weights `[K]`.
    pub weights: &'a [f64],
    /// Completion lengths `[G]`, tokens.
    pub lengths: &'a [usize],
    /// Total reward of a greedy rollout of the same prompt.
    pub greedy: Option<f64>,
    /// Answers as the verifier reads them `[G]`, equal for equal ones.
    pub answers: &'a [Option<&'a str>],
    /// Texts `[G]`.
    pub texts: &'a [&'a str],
    /// Intrinsic rewards from an episodic memory `[G]`.
    pub intrinsic: &'a [f64],
    /// A uniform number in [0, 1) for every rollout `[G]`: the randomness of noise.
    pub draws: &'a [f64],
    /// One for the whole group.
    pub group_draw: f64,
    /// Rounds done before this one.
    pub step: u64,
}

impl ShapingInput<'_> {
    fn index(&self, name: &str) -> Result<usize, Error> {
        self.names.iter().position(|n| *n == name).ok_or(Error::Missing { name: "parts", part: "shaping" })
    }

    fn column(&self, group: &Shaped, name: &str) -> Result<Vec<f64>, Error> {
        let k = self.index(name)?;
        Ok(group.parts.iter().map(|row| row.get(k).copied().unwrap_or(0.0)).collect())
    }
}

impl RewardShaping {
    /// Changes the rewards of the group, and its parts where the noise is theirs.
    ///
    /// # Errors
    /// A part, draw, length or greedy reward that it reads and that was not given.
    pub fn apply(&self, group: &mut Shaped, input: &ShapingInput) -> Result<(), Error> {
        let n = group.rewards.len();
        match self {
            Self::Constraint { parts, violated, calibrate } => {
                judged::constrain(group, input, parts, *violated, *calibrate)?;
            }
            Self::Trust { outcome, process, coef, anneal_steps } => {
                let (outcome, process) = (input.column(group, outcome)?, input.column(group, process)?);
                let decay = (-(input.step as f64) / anneal_steps).exp();
                let scale = judged::trust_weight(&outcome, &process) * coef * decay;
                add(&mut group.rewards, process.into_iter().map(|p| scale * p));
            }
            Self::Flip { part, probability, of } => {
                given("draws", input.draws.len(), n)?;
                let flipped = |i: usize| match of {
                    FlipUnit::Rollout => input.draws[i] < *probability,
                    FlipUnit::Prompt => input.group_draw < *probability,
                };
                judged::flip(group, input, part, flipped)?;
            }
            Self::Rescue { part, with, threshold, weight } => {
                let (judged, with) = (input.column(group, part)?, input.column(group, with)?);
                let helps = |(v, w): (&f64, f64)| if v <= threshold { weight * w } else { 0.0 };
                add(&mut group.rewards, judged.iter().zip(with).map(helps));
            }
            Self::LengthBudget { start, decay, every, weight } => {
                given("lengths", input.lengths.len(), n)?;
                let budget = length::budget(*start, *decay, *every, input.step);
                add(&mut group.rewards, input.lengths.iter().map(|n| weight * length::triangle(*n as f64 / budget)));
            }
            Self::Majority { weight } => {
                given("answers", input.answers.len(), n)?;
                add(&mut group.rewards, majority_rewards(input.answers).into_iter().map(|m| weight * m));
            }
            Self::Diversity { same, floor, threshold } => {
                given("answers", input.answers.len(), n)?;
                given("texts", input.texts.len(), n)?;
                let class = |i: usize| match same {
                    Same::Answer => input.answers[i],
                    Same::Text => Some(input.texts[i]),
                };
                let classes: Vec<Option<&str>> =
                    (0..n).map(|i| class(i).filter(|_| group.rewards[i] > *threshold)).collect();
                group.rewards = diversity_rewards(&group.rewards, &classes, *floor);
            }
            Self::Episodic { .. } => {
                given("intrinsic", input.intrinsic.len(), n)?;
                add(&mut group.rewards, input.intrinsic.iter().copied());
            }
        }
        Ok(())
    }

    /// The reward parts that it names.
    pub fn parts(&self) -> Vec<&str> {
        match self {
            Self::Constraint { parts, .. } => parts.iter().map(String::as_str).collect(),
            Self::Trust { outcome, process, .. } => vec![outcome, process],
            Self::Flip { part, .. } => vec![part],
            Self::Rescue { part, with, .. } => vec![part, with],
            Self::LengthBudget { .. } | Self::Majority { .. } | Self::Diversity { .. } | Self::Episodic { .. } => {
                vec![]
            }
        }
    }

    /// Whether it rewards something by itself, whatever the parts' weights are.
    pub fn adds(&self) -> bool {
        match self {
            Self::LengthBudget { .. }
            | Self::Majority { .. }
            | Self::Episodic { .. }
            | Self::Trust { .. }
            | Self::Rescue { .. } => true,
            Self::Constraint { .. } | Self::Flip { .. } | Self::Diversity { .. } => false,
        }
    }

    /// Whether it changes the reward parts, and not their sum alone.
    pub fn changes_parts(&self) -> bool {
        matches!(self, Self::Flip { .. })
    }

    /// Whether it reads the answers that a verifier extracts.
    pub fn needs_answers(&self) -> bool {
        matches!(self, Self::Majority { .. } | Self::Diversity { same: Same::Answer, .. })
    }

    /// Whether it reads the reward of a greedy rollout.
    pub fn needs_greedy(&self) -> bool {
        matches!(self, Self::Constraint { calibrate: true, .. })
    }
}

fn add(rewards: &mut [f64], more: impl Iterator<Item = f64>) {
    rewards.iter_mut().zip(more).for_each(|(r, m)| *r += m);
}

fn given(name: &'static str, got: usize, expected: usize) -> Result<(), Error> {
    if got == expected { Ok(()) } else { Err(Error::GroupLength { name, group: 0, got, expected }) }
}

/// Step rewards from the chance of success after each block: `alpha (J_j - J_(j-1))`, the first against `prior`, the chance before the
/// first block. They add up to `alpha (J_last - prior)`. Source: the progress bonus of MRT, arXiv 2503.07572, section 4 (A094), `J`
/// estimated by forcing answers after the block.
///
/// ```
/// use temper_algo::reward_shaping::progress;
/// assert_eq!(progress(&[0.5, 0.25, 1.0], 0.25, 2.0), [0.5, -0.5, 1.5]);
/// ```
pub fn progress(success: &[f64], prior: f64, alpha: f64) -> Vec<f64> {
    let before = std::iter::once(&prior).chain(success);
    success.iter().zip(before).map(|(now, before)| alpha * (now - before)).collect()
}
