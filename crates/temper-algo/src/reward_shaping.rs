//! Reward shaping: rewards of one group to rewards of the same group, before it is shaped and compared.
//!
//! What looks at one completion alone (DAPO's soft overlong penalty, a target length, formats) is a reward part of the
//! environment. Here is what compares within the group, changes over the run, or acts on parts by their name.

use serde::{Deserialize, Serialize};

use crate::{Error, Problem};

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
    /// Source: arXiv 2505.22653, section 3 (B149).
    Flip {
        /// The reward part.
        part: String,
        /// Probability p of a flip.
        probability: f64,
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

/// What shaping reads of one group.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShapingInput<'a> {
    /// Names of the reward parts `[K]`.
    pub names: &'a [&'a str],
    /// Their weights `[K]`.
    pub weights: &'a [f64],
    /// Their values before weighting `[G][K]`.
    pub parts: &'a [Vec<f64>],
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
    /// Rounds done before this one.
    pub step: u64,
}

impl ShapingInput<'_> {
    fn index(&self, name: &str) -> Result<usize, Error> {
        self.names.iter().position(|n| *n == name).ok_or(Error::Missing { name: "parts", part: "shaping" })
    }

    fn column(&self, name: &str) -> Result<Vec<f64>, Error> {
        let k = self.index(name)?;
        Ok(self.parts.iter().map(|row| row.get(k).copied().unwrap_or(0.0)).collect())
    }
}

impl RewardShaping {
    /// The rewards of the group `[G]` after this step.
    ///
    /// # Errors
    /// A part, draw, length or greedy reward that it reads and that was not given.
    pub fn apply(&self, rewards: &[f64], input: &ShapingInput) -> Result<Vec<f64>, Error> {
        match self {
            Self::Constraint { parts, violated, calibrate } => {
                constrained(rewards, input, parts, *violated, *calibrate)
            }
            Self::Trust { outcome, process, coef, anneal_steps } => {
                let (outcome, process) = (input.column(outcome)?, input.column(process)?);
                let scale = trust_weight(&outcome, &process) * coef * (-(input.step as f64) / anneal_steps).exp();
                Ok(rewards.iter().zip(process).map(|(r, p)| r + scale * p).collect())
            }
            Self::Flip { part, probability } => {
                let (values, weight) = (input.column(part)?, input.weights[input.index(part)?]);
                given("draws", input.draws.len(), rewards.len())?;
                let flip = |((r, v), draw): ((&f64, f64), &f64)| {
                    if draw < probability { r + weight * (1.0 - 2.0 * v) } else { *r }
                };
                Ok(rewards.iter().zip(values).zip(input.draws).map(flip).collect())
            }
            Self::LengthBudget { start, decay, every, weight } => {
                given("lengths", input.lengths.len(), rewards.len())?;
                let budget = budget(*start, *decay, *every, input.step);
                let triangle = |n: &usize| weight * triangle(*n as f64 / budget);
                Ok(rewards.iter().zip(input.lengths).map(|(r, n)| r + triangle(n)).collect())
            }
            Self::Majority { weight } => {
                given("answers", input.answers.len(), rewards.len())?;
                let agrees = majority_rewards(input.answers);
                Ok(rewards.iter().zip(agrees).map(|(r, m)| r + weight * m).collect())
            }
            Self::Diversity { same, floor, threshold } => {
                given("answers", input.answers.len(), rewards.len())?;
                given("texts", input.texts.len(), rewards.len())?;
                let class = |i: usize| match same {
                    Same::Answer => input.answers[i],
                    Same::Text => Some(input.texts[i]),
                };
                let classes: Vec<Option<&str>> =
                    (0..rewards.len()).map(|i| class(i).filter(|_| rewards[i] > *threshold)).collect();
                Ok(diversity_rewards(rewards, &classes, *floor))
            }
            Self::Episodic { .. } => {
                given("intrinsic", input.intrinsic.len(), rewards.len())?;
                Ok(rewards.iter().zip(input.intrinsic).map(|(r, i)| r + i).collect())
            }
        }
    }

    /// The reward parts that it names.
    pub fn parts(&self) -> Vec<&str> {
        match self {
            Self::Constraint { parts, .. } => parts.iter().map(String::as_str).collect(),
            Self::Trust { outcome, process, .. } => vec![outcome, process],
            Self::Flip { part, .. } => vec![part],
            Self::LengthBudget { .. } | Self::Majority { .. } | Self::Diversity { .. } | Self::Episodic { .. } => {
                vec![]
            }
        }
    }

    /// Whether it rewards something by itself, whatever the parts' weights are.
    pub fn adds(&self) -> bool {
        matches!(self, Self::LengthBudget { .. } | Self::Majority { .. } | Self::Episodic { .. } | Self::Trust { .. })
    }

    /// Whether it reads the answers that a verifier extracts.
    pub fn needs_answers(&self) -> bool {
        matches!(self, Self::Majority { .. } | Self::Diversity { same: Same::Answer, .. })
    }

    /// Whether it reads the reward of a greedy rollout.
    pub fn needs_greedy(&self) -> bool {
        matches!(self, Self::Constraint { calibrate: true, .. })
    }

    /// Settings that make no sense, given the names of the reward parts.
    pub fn check(&self, names: &[&str]) -> Vec<Problem> {
        let unknown = self.parts().into_iter().filter(|part| !names.contains(part)).map(|part| {
            Problem::new(
                "part",
                format!("there is no reward part `{part}`"),
                format!("the parts are {}", names.join(", ")),
            )
        });
        let mut problems: Vec<Problem> = unknown.collect();
        let mut unless = |ok: bool, field: &str, value: f64, expected: &str| {
            if !ok {
                problems.push(Problem::new(
                    field,
                    format!("{field} is {value}, expected {expected}"),
                    "see the schema",
                ));
            }
        };
        match self {
            Self::Constraint { violated, parts, .. } => {
                unless(violated.is_finite(), "violated", *violated, "a finite number");
                unless(!parts.is_empty(), "parts", 0.0, "at least one name");
            }
            Self::Trust { coef, anneal_steps, .. } => {
                unless(coef.is_finite() && *coef > 0.0, "coef", *coef, "a finite number above 0");
                unless(*anneal_steps > 0.0, "anneal_steps", *anneal_steps, "above 0");
            }
            Self::Flip { probability, .. } => {
                unless(*probability > 0.0 && *probability <= 1.0, "probability", *probability, "above 0 and at most 1");
            }
            Self::LengthBudget { start, decay, every, weight } => {
                unless(start.is_finite() && *start >= 1.0, "start", *start, "at least 1 token");
                unless(*decay > 0.0 && *decay <= 1.0, "decay", *decay, "above 0 and at most 1");
                unless(*every > 0, "every", 0.0, "at least 1 round");
                unless(weight.is_finite() && *weight != 0.0, "weight", *weight, "a finite number other than 0");
            }
            Self::Majority { weight } => {
                unless(weight.is_finite() && *weight != 0.0, "weight", *weight, "a finite number other than 0");
            }
            Self::Diversity { floor, threshold, .. } => {
                unless((0.0..1.0).contains(floor), "floor", *floor, "at least 0 and below 1");
                unless(threshold.is_finite(), "threshold", *threshold, "a finite number");
            }
            Self::Episodic { exploit, explore, k, capacity, threshold } => {
                unless(exploit.is_finite(), "exploit", *exploit, "a finite number");
                unless(explore.is_finite(), "explore", *explore, "a finite number");
                unless(
                    *exploit != 0.0 || *explore != 0.0,
                    "exploit",
                    0.0,
                    "a number other than 0 here or in `explore`",
                );
                unless(*k > 0, "k", 0.0, "at least 1");
                unless((1..=100_000).contains(capacity), "capacity", f64::from(*capacity), "from 1 to 100000");
                unless(threshold.is_finite(), "threshold", *threshold, "a finite number");
            }
        }
        problems
    }
}

fn given(name: &'static str, got: usize, expected: usize) -> Result<(), Error> {
    if got == expected { Ok(()) } else { Err(Error::GroupLength { name, group: 0, got, expected }) }
}

fn constrained(
    rewards: &[f64],
    input: &ShapingInput,
    parts: &[String],
    violated: f64,
    calibrate: bool,
) -> Result<Vec<f64>, Error> {
    let columns = parts.iter().map(|p| input.column(p)).collect::<Result<Vec<_>, _>>()?;
    let baseline = match (calibrate, input.greedy) {
        (true, None) => return Err(Error::Missing { name: "greedy", part: "shaping" }),
        (true, greedy) => greedy,
        (false, _) => None,
    };
    let reward = |(i, r): (usize, &f64)| {
        if columns.iter().any(|c| c[i] <= 0.5) {
            violated
        } else {
            baseline.map_or(*r, |b| 1.0 / (1.0 + (b - r).exp()))
        }
    };
    Ok(rewards.iter().enumerate().map(reward).collect())
}

/// `gamma` of Trust-GRPO, 0 where a group is all right or all wrong.
fn trust_weight(outcome: &[f64], process: &[f64]) -> f64 {
    let mean_where = |right: bool| {
        let of: Vec<f64> = outcome.iter().zip(process).filter(|(o, _)| (**o > 0.5) == right).map(|(_, p)| *p).collect();
        (!of.is_empty()).then(|| of.iter().sum::<f64>() / of.len() as f64)
    };
    match (mean_where(true), mean_where(false)) {
        (Some(right), Some(wrong)) => (right - wrong).min(0.0).exp(),
        _ => 0.0,
    }
}

fn budget(start: f64, decay: f64, every: u64, step: u64) -> f64 {
    (start * decay.powf((step / every.max(1)) as f64)).max(1.0)
}

/// 0 at 0, 1 at 1, 0 from 2 on.
fn triangle(x: f64) -> f64 {
    x.min(2.0 - x).max(0.0)
}

/// Self-consistency: 1 for the rollouts that give the most frequent answer of the group (of equally frequent ones the one that came
/// first), 0 for the others. `answers` `[G]`, `None` where there is no answer, which never wins. Source: MM-UPT, arXiv 2505.22453
/// (B030); TTRL, arXiv 2504.16084.
pub fn majority_rewards<T: PartialEq>(answers: &[Option<T>]) -> Vec<f64> {
    let count = |answer: &T| answers.iter().flatten().filter(|a| *a == answer).count();
    let mut winner: Option<(&T, usize)> = None;
    for answer in answers.iter().flatten() {
        let n = count(answer);
        if winner.is_none_or(|(_, most)| n > most) {
            winner = Some((answer, n));
        }
    }
    let wins = |a: &Option<T>| a.as_ref().is_some_and(|a| winner.is_some_and(|(w, _)| a == w));
    answers.iter().map(|a| f64::from(u8::from(wins(a)))).collect()
}

/// Quality times diversity: each reward is multiplied by the share of the other counted rollouts that say something else,
/// `max(floor, (n - size of its class) / (n - 1))`. `classes` `[G]`: equal numbers for equivalent rollouts, `None` for one that is not
/// compared (a wrong answer of a verifiable task) and keeps its reward. Source: DARLING, arXiv 2509.02534, section 3.2 (B128);
/// released floor 0.1.
pub fn diversity_rewards<T: PartialEq>(rewards: &[f64], classes: &[Option<T>], floor: f64) -> Vec<f64> {
    let n = classes.iter().flatten().count();
    let factor = |class: &Option<T>| match class {
        Some(_) if n > 1 => {
            let same = classes.iter().filter(|c| *c == class).count();
            ((n - same) as f64 / (n - 1) as f64).max(floor)
        }
        _ => 1.0,
    };
    rewards.iter().zip(classes).map(|(r, class)| r * factor(class)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["right", "style"];

    fn input<'a>(parts: &'a [Vec<f64>], lengths: &'a [usize]) -> ShapingInput<'a> {
        ShapingInput {
            names: &NAMES,
            weights: &[1.0, 0.0],
            parts,
            lengths,
            draws: &[0.1, 0.9, 0.3, 0.5],
            ..ShapingInput::default()
        }
    }

    fn parts() -> Vec<Vec<f64>> {
        vec![vec![1.0, 0.2], vec![0.0, 0.8], vec![1.0, 0.4], vec![0.0, 0.6]]
    }

    fn rewards() -> Vec<f64> {
        parts().iter().map(|p| p[0]).collect()
    }

    #[test]
    fn constraints_by_hand() {
        let parts = parts();
        let mut shaping = RewardShaping::Constraint { parts: vec!["style".into()], violated: -1.0, calibrate: false };
        assert_eq!(shaping.apply(&rewards(), &input(&parts, &[])).unwrap(), [-1.0, 0.0, -1.0, 0.0]);
        let RewardShaping::Constraint { calibrate, .. } = &mut shaping else { panic!() };
        *calibrate = true;
        assert!(shaping.needs_greedy());
        assert!(matches!(shaping.apply(&rewards(), &input(&parts, &[])), Err(Error::Missing { name: "greedy", .. })));
        let calibrated = shaping.apply(&rewards(), &ShapingInput { greedy: Some(0.0), ..input(&parts, &[]) }).unwrap();
        assert_eq!(calibrated, [-1.0, 0.5, -1.0, 0.5]);
    }

    #[test]
    fn trust_by_hand() {
        // Right rollouts have process rewards 0.2 and 0.4, wrong ones 0.8 and 0.6: gamma = e^(0.3 - 0.7).
        let parts = parts();
        let shaping =
            RewardShaping::Trust { outcome: "right".into(), process: "style".into(), coef: 0.5, anneal_steps: 10.0 };
        let at = |step| shaping.apply(&rewards(), &ShapingInput { step, ..input(&parts, &[]) }).unwrap();
        assert!((at(0)[0] - (1.0 + 0.5 * (-0.4f64).exp() * 0.2)).abs() < 1e-15);
        assert!((at(20)[1] - 0.5 * (-2.4f64).exp() * 0.8).abs() < 1e-15);
        assert_eq!(trust_weight(&[1.0, 0.0], &[0.9, 0.1]), 1.0);
        assert_eq!(trust_weight(&[1.0, 1.0], &[0.9, 0.1]), 0.0);
    }

    /// Over all draws: the expected reward is p + (1 - 2p) r, so centred rewards shrink by 1 - 2p.
    #[test]
    fn flips_scale_the_signal_by_one_minus_twice_their_probability() {
        let parts = parts();
        for probability in [0.1, 0.25, 0.5, 0.9] {
            let shaping = RewardShaping::Flip { part: "right".into(), probability };
            let n = 1000;
            let mut mean = [0.0; 4];
            for d in 0..n {
                let draws = [(d as f64 + 0.5) / n as f64; 4];
                let noisy = shaping.apply(&rewards(), &ShapingInput { draws: &draws, ..input(&parts, &[]) }).unwrap();
                mean.iter_mut().zip(noisy).for_each(|(m, r)| *m += r / n as f64);
            }
            let centred = |r: &[f64]| r.iter().map(|x| x - r.iter().sum::<f64>() / 4.0).collect::<Vec<_>>();
            for (noisy, clean) in centred(&mean).into_iter().zip(centred(&rewards())) {
                assert!((noisy - (1.0 - 2.0 * probability) * clean).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn budgets_by_hand() {
        assert_eq!([0, 9, 10, 25].map(|step| budget(256.0, 0.5, 10, step)), [256.0, 256.0, 128.0, 64.0]);
        assert_eq!(budget(2.0, 0.1, 1, 50), 1.0);
        assert_eq!([0.0, 0.5, 1.0, 1.75, 3.0].map(triangle), [0.0, 0.5, 1.0, 0.25, 0.0]);
        let shaping = RewardShaping::LengthBudget { start: 8.0, decay: 0.5, every: 4, weight: 2.0 };
        let parts = parts();
        let got = shaping.apply(&rewards(), &ShapingInput { step: 4, ..input(&parts, &[2, 4, 6, 100]) }).unwrap();
        assert_eq!(got, [2.0, 2.0, 2.0, 0.0]);
    }

    #[test]
    fn majorities_and_diversity_by_hand() {
        assert_eq!(majority_rewards(&[Some(3), None, Some(5), Some(5), None, None]), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(majority_rewards(&[Some(3), Some(5)]), [1.0, 0.0]);
        assert_eq!(majority_rewards::<u64>(&[None, None]), [0.0, 0.0]);
        // Classes of 2 and 1 of 3: (3 - 2) / 2 and (3 - 1) / 2.
        let classes = [Some(1), Some(1), Some(2), None];
        assert_eq!(diversity_rewards(&[1.0, 2.0, 1.0, 0.5], &classes, 0.1), [0.5, 1.0, 1.0, 0.5]);
        assert_eq!(diversity_rewards(&[1.0, 1.0], &[Some(1), Some(1)], 0.1), [0.1, 0.1]);
        assert_eq!(diversity_rewards(&[1.0], &[Some(1)], 0.1), [1.0]);
    }

    #[test]
    fn what_compares_within_the_group_by_hand() {
        let parts = vec![vec![1.0, 0.0], vec![1.0, 0.0], vec![0.0, 0.0], vec![1.0, 0.0]];
        let rewards: Vec<f64> = parts.iter().map(|p| p[0]).collect();
        let input = ShapingInput {
            answers: &[Some("3"), Some("4"), Some("4"), None],
            texts: &["3", "2+2 => 4", "4", "3"],
            intrinsic: &[0.5, -0.5, 0.0, 0.0],
            ..input(&parts, &[])
        };
        let apply = |s: RewardShaping| s.apply(&rewards, &input).unwrap();
        assert_eq!(apply(RewardShaping::Majority { weight: 2.0 }), [1.0, 3.0, 2.0, 1.0]);
        // Right are the first, the second and the last, which says nothing: two answers that differ.
        let diverse = |same| RewardShaping::Diversity { same, floor: 0.1, threshold: 0.5 };
        assert_eq!(apply(diverse(Same::Answer)), [1.0, 1.0, 0.0, 1.0]);
        assert_eq!(apply(diverse(Same::Text)), [0.5, 1.0, 0.0, 0.5]);
        let episodic: RewardShaping = serde_json::from_str(r#"{"kind": "episodic"}"#).unwrap();
        assert_eq!(apply(episodic), [1.5, 0.5, 0.0, 1.0]);
        let without = RewardShaping::Majority { weight: 1.0 }.apply(&rewards, &ShapingInput { answers: &[], ..input });
        assert!(matches!(without, Err(Error::GroupLength { name: "answers", .. })));
    }

    #[test]
    fn progress_telescopes() {
        let steps = progress(&[0.3, 0.1, 0.9], 0.2, 0.5);
        assert!((steps.iter().sum::<f64>() - 0.5 * 0.7).abs() < 1e-15);
    }

    #[test]
    fn bad_settings_are_named() {
        let fields = |s: &RewardShaping| s.check(&NAMES).into_iter().map(|p| p.field).collect::<Vec<_>>();
        assert_eq!(fields(&RewardShaping::Flip { part: "wrong".into(), probability: 0.0 }), ["part", "probability"]);
        let budget = RewardShaping::LengthBudget { start: 0.0, decay: 2.0, every: 0, weight: f64::NAN };
        assert_eq!(fields(&budget), ["start", "decay", "every", "weight"]);
        let missing = RewardShaping::Flip { part: "wrong".into(), probability: 0.5 };
        assert!(missing.apply(&rewards(), &input(&parts(), &[])).is_err());
    }
}
