//! What a group can take from elsewhere: a demonstration, an earlier answer, rollouts of other learners, a second budget.
//!
//! Pure decisions; sampling and storing are the loop's.

use serde::{Deserialize, Serialize};

use crate::Problem;
use crate::group_shaper::by_reward;
use crate::seed::SplitMix64;

/// A member that a group gets besides its own rollouts: an answer that the policy did not sample in this round.
///
/// Nobody sampled a demonstration, and an earlier answer was sampled by an earlier policy, so the ratio of the objective compares
/// with the log-probabilities under the policy before the update, computed by a forward pass: it is exactly 1 in the first pass, as
/// for the group's own rollouts. A correction compares these with the log-probabilities as sampled, where there are any.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Inject {
    /// Where the member comes from.
    pub from: InjectFrom,
    /// When there is one.
    #[serde(default)]
    pub when: InjectWhen,
    /// A rollout is right when its reward is above this (default 0.5).
    #[serde(default = "half")]
    pub threshold: f64,
    /// Reward parts that count for the member (default all): the second reward control of ViSurf gives labels no reward for their
    /// form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewards: Option<Vec<String>>,
    /// What the policy is told about its wrong rollout (`from = "refinement"`); `{answer}` stands for the right answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critique: Option<String>,
    /// Weigh the member's tokens by [`shaped_weight`] with this gamma (default: all the same).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
}

/// The factor of a foreign token's gradient under the shaping `f(p) = p / (p + gamma)` of its probability `p`:
/// `df/dlog p = gamma p / (p + gamma)^2`, at the policy before the update. Unlikely tokens keep more of their gradient than
/// with `f(p) = p`, and likely ones have little left to learn. Sources: LUFFY, arXiv 2504.14945, section 3.3; Critique-GRPO, arXiv
/// 2506.03106 (A065).
///
/// ```
/// use temper_algo::group_reuse::shaped_weight;
/// assert_eq!(shaped_weight(0.5f64.ln(), 0.5), 0.25);
/// ```
pub fn shaped_weight(logp: f64, gamma: f64) -> f64 {
    let p = logp.exp();
    gamma * p / (p + gamma).powi(2)
}

/// Where a member that the policy did not sample in this round comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InjectFrom {
    /// The task's demonstration, or its answer where it has none.
    Demonstration,
    /// The last right answer that was sampled for the same task in an earlier round; none where there is not any yet.
    Stored,
    /// A new attempt of the policy at the group's first wrong rollout, which it sees with a critique behind it; it is trained on
    /// as an answer to the prompt alone. Source: Critique-GRPO, arXiv 2506.03106 (A065).
    Refinement,
}

impl Inject {
    /// Settings that make no sense, given the names of the reward parts.
    pub fn check(&self, names: &[&str]) -> Vec<Problem> {
        let mut problems = vec![];
        if !self.threshold.is_finite() {
            problems.push(Problem::new("threshold", "threshold is no number", "leave it out for 0.5"));
        }
        let unknown = self.rewards.iter().flatten().filter(|part| !names.contains(&part.as_str()));
        problems.extend(unknown.map(|part| {
            let message = format!("there is no reward part `{part}`");
            Problem::new("rewards", message, format!("the parts are {}", names.join(", ")))
        }));
        let refines = self.from == InjectFrom::Refinement;
        if refines != self.critique.is_some() {
            let message = if refines { "there is no critique" } else { "critique has no effect: nothing is refined" };
            problems.push(Problem::new("critique", message, "it belongs to `from = \"refinement\"`"));
        }
        if let Some(gamma) = self.gamma {
            problems.extend(Problem::unless_positive("gamma", gamma, "LUFFY and Critique-GRPO use 0.1"));
        }
        if self.rewards.as_ref().is_some_and(Vec::is_empty) {
            problems.push(Problem::new("rewards", "rewards is empty", "name a part, or leave it out for all of them"));
        }
        problems
    }
}

fn half() -> f64 {
    0.5
}

/// When a group gets one more member that the policy did not sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InjectWhen {
    /// When no rollout is right: a stored right answer (AR3PO, arXiv 2509.25808, B069) or a demonstration keeps the advantage
    /// from vanishing.
    #[default]
    AllWrong,
    /// Always (ViSurf, arXiv 2510.10606, B010).
    Always,
}

impl InjectWhen {
    /// Whether a group with these rewards gets one; right is a reward above `threshold`.
    pub fn applies(self, rewards: &[f64], threshold: f64) -> bool {
        match self {
            Self::AllWrong => rewards.iter().all(|r| *r <= threshold),
            Self::Always => true,
        }
    }
}

/// The reward of an injected member whose own reward is `label`. Once a rollout does as well, it is the mean of the rollouts, so
/// that the member's group-relative advantage is exactly the rounding of 0 and the others' baseline stays where it was: the third
/// reward control of ViSurf (arXiv 2510.10606, section 3.3). The other two, rollout style and no format reward for labels, are
/// the caller's.
///
/// ```
/// use temper_algo::group_reuse::injected_reward;
/// assert_eq!(injected_reward(1.0, &[0.0, 0.5]), 1.0);
/// assert_eq!(injected_reward(1.0, &[0.0, 1.0]), 0.5);
/// ```
pub fn injected_reward(label: f64, rewards: &[f64]) -> f64 {
    if rewards.iter().any(|r| *r >= label) { rewards.iter().sum::<f64>() / rewards.len() as f64 } else { label }
}

/// A sampling budget spent in stages: prompts with a right answer stop, the others go on, up to the samples of a full group.
/// Source: adaptive rollout in AR3PO, arXiv 2509.25808 (B069).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StagedBudget {
    /// Samples of a prompt in one stage.
    pub stage: u32,
    /// A rollout is right when its reward is above this (default 0.5).
    #[serde(default = "half")]
    pub threshold: f64,
}

impl StagedBudget {
    /// How many more samples a prompt gets after these rewards, `most` in all; 0: it is done.
    pub fn next(self, rewards: &[f64], most: usize) -> usize {
        let solved = rewards.iter().any(|r| *r > self.threshold);
        if solved { 0 } else { (self.stage as usize).min(most.saturating_sub(rewards.len())) }
    }

    /// Settings that make no sense for groups of at most `most` rollouts.
    pub fn check(self, most: usize) -> Vec<Problem> {
        let mut problems = vec![];
        if self.stage == 0 || self.stage as usize >= most {
            let message =
                format!("stage is {}, expected 1 to {} of {most} samples", self.stage, most.saturating_sub(1));
            problems.push(Problem::new("stage", message, "a stage is a part of `samples_per_prompt`"));
        }
        if !self.threshold.is_finite() {
            problems.push(Problem::new("threshold", "threshold is no number", "leave it out for 0.5"));
        }
        problems
    }
}

/// Which groups a learner trains on: up to `local` of its own and `shared` of others', both drawn without replacement from those
/// with a signal. Returns indices in ascending order. Source: SAPO (swarm sampling), arXiv 2509.08721 (B093).
pub fn mix_shared(own: &[bool], others: &[bool], local: usize, shared: usize, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut rng = SplitMix64::new(seed);
    let own = draw(informative(own), local, &mut rng);
    (own, draw(informative(others), shared, &mut rng))
}

fn informative(signal: &[bool]) -> Vec<usize> {
    (0..signal.len()).filter(|i| signal[*i]).collect()
}

fn draw(mut from: Vec<usize>, n: usize, rng: &mut SplitMix64) -> Vec<usize> {
    let n = n.min(from.len());
    for i in 0..n {
        let j = i + rng.below(from.len() - i);
        from.swap(i, j);
    }
    from.truncate(n);
    from.sort_unstable();
    from
}

/// The batch shuffle of Shuffle-R1 (arXiv 2508.05612, B014): the step is drawn anew from the round's rollouts, each draw with
/// probability proportional to `|advantage|`, as many draws as there are units. A unit that is drawn twice has twice the example
/// weight, one that is not drawn is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redraw {
    /// What is drawn.
    pub unit: RedrawUnit,
}

/// What is drawn at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RedrawUnit {
    /// A rollout.
    Rollout,
    /// The best with the worst rollout of a group, the second best with the second worst, and so on, weighing the sum of both.
    Pair,
}

impl RedrawUnit {
    /// The units of a group, each the places of its rollouts. A rollout in the middle of an odd number is a unit by itself.
    ///
    /// ```
    /// use temper_algo::group_reuse::RedrawUnit;
    /// assert_eq!(RedrawUnit::Pair.units(&[0.0, 3.0, 1.0]), [vec![1, 0], vec![2]]);
    /// assert_eq!(RedrawUnit::Rollout.units(&[0.0, 3.0]), [vec![0], vec![1]]);
    /// ```
    pub fn units(self, rewards: &[f64]) -> Vec<Vec<usize>> {
        let n = rewards.len();
        match self {
            Self::Rollout => (0..n).map(|i| vec![i]).collect(),
            Self::Pair => {
                let order = by_reward(rewards);
                let pair = |i: usize| if i == n - 1 - i { vec![order[i]] } else { vec![order[i], order[n - 1 - i]] };
                (0..n.div_ceil(2)).map(pair).collect()
            }
        }
    }
}

/// How often each of the items is drawn in `draws` draws with probability proportional to its weight: the advantage-based batch
/// shuffle of Shuffle-R1 (arXiv 2508.05612, B014) with `weight = |advantage|`. Without any weight above 0 every item is drawn
/// once.
pub fn redraw(weights: &[f64], draws: usize, seed: u64) -> Vec<u32> {
    let total: f64 = weights.iter().map(|w| w.max(0.0)).sum();
    if total.partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater) || !total.is_finite() {
        return vec![1; weights.len()];
    }
    let mut rng = SplitMix64::new(seed);
    let mut counts = vec![0; weights.len()];
    for _ in 0..draws {
        counts[pick(weights, rng.next_f64() * total)] += 1;
    }
    counts
}

fn pick(weights: &[f64], mut at: f64) -> usize {
    let mut last = 0;
    for (i, w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        last = i;
        at -= w;
        if at < 0.0 {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn injection_by_hand() {
        assert!(InjectWhen::AllWrong.applies(&[0.0, 0.5], 0.5) && !InjectWhen::AllWrong.applies(&[0.0, 1.0], 0.5));
        assert!(InjectWhen::Always.applies(&[1.0], 0.5));
        // The neutral label leaves the mean where it was.
        let rewards = [0.0, 1.0, 1.0];
        let label = injected_reward(1.0, &rewards);
        let with = [0.0, 1.0, 1.0, label];
        assert!((with.iter().sum::<f64>() / 4.0 - 2.0 / 3.0).abs() < 1e-15);
    }

    /// The factor is the derivative of the shaped probability.
    #[test]
    fn the_shaped_weight_is_a_derivative() {
        let f = |logp: f64| logp.exp() / (logp.exp() + 0.1);
        for logp in [-9.0, -2.3, -0.5, 0.0] {
            let slope = (f(logp + 1e-6) - f(logp - 1e-6)) / 2e-6;
            assert!((shaped_weight(logp, 0.1) - slope).abs() < 1e-9, "{logp}");
        }
    }

    #[test]
    fn budgets_by_hand() {
        let budget = StagedBudget { stage: 4, threshold: 0.5 };
        assert_eq!([0, 4, 8, 10].map(|n| budget.next(&vec![0.0; n], 10)), [4, 4, 2, 0]);
        assert_eq!(budget.next(&[0.0, 1.0], 10), 0);
        assert_eq!((budget.check(8).len(), budget.check(4).len()), (0, 1));
    }

    #[test]
    fn bad_members_are_reported() {
        let inject = |rewards: Option<Vec<String>>, threshold| Inject {
            from: InjectFrom::Stored,
            when: InjectWhen::AllWrong,
            threshold,
            rewards,
            critique: None,
            gamma: None,
        };
        let fields = |i: Inject| i.check(&["right"]).into_iter().map(|p| p.field).collect::<Vec<_>>();
        assert_eq!(fields(inject(Some(vec!["form".into()]), f64::NAN)), ["threshold", "rewards"]);
        assert_eq!(fields(inject(Some(vec![]), 0.5)), ["rewards"]);
        assert!(fields(inject(None, 0.5)).is_empty() && fields(inject(Some(vec!["right".into()]), 0.5)).is_empty());
    }

    #[test]
    fn shared_rollouts_have_a_signal() {
        let (own, others) = mix_shared(&[true, false, true, true], &[false, true], 2, 3, 7);
        assert_eq!((own.len(), others), (2, vec![1]));
        assert!(!own.contains(&1) && own[0] < own[1]);
        assert_eq!(mix_shared(&[true; 9], &[true; 9], 4, 4, 1), mix_shared(&[true; 9], &[true; 9], 4, 4, 1));
    }

    #[test]
    fn redrawing_follows_the_weights() {
        let counts = redraw(&[1.0, 0.0, 3.0], 4000, 5);
        assert_eq!((counts.iter().sum::<u32>(), counts[1]), (4000, 0));
        assert!((900..1100).contains(&counts[0]), "{counts:?}");
        assert_eq!(redraw(&[0.0, 0.0], 5, 1), [1, 1]);
    }
}
