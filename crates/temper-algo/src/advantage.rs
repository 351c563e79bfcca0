//! Advantages: from the rewards of one group of rollouts to one number a rollout.

use serde::{Deserialize, Serialize};

use crate::{Needs, Problem};

/// Rewards of a group closer together than this count as equal (the tolerance of `torch.isclose` against zero).
const EQUAL: f64 = 1e-8;

/// How the rewards of the G rollouts of one prompt become advantages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Advantage {
    /// `(r - mean) / (std + eps)`, the GRPO advantage. `std` is the sample standard deviation (divisor G - 1), as in TRL
    /// and verl (`torch.std`). Source: DeepSeekMath, arXiv 2402.03300, section 4.1.2.
    GroupZScore {
        /// Added to the standard deviation. TRL uses 1e-4 (the default), verl 1e-6.
        #[serde(default = "default_eps")]
        eps: f64,
    },
    /// `r - mean`: no division, so easy and hard prompts weigh as their spread says.
    /// Source: Dr. GRPO, arXiv 2503.20783, section 3.2.
    GroupMean {},
}

fn default_eps() -> f64 {
    1e-4
}

impl Default for Advantage {
    fn default() -> Self {
        Self::GroupZScore { eps: default_eps() }
    }
}

impl Advantage {
    /// One advantage a rollout, in the order of `rewards` `[G]`. A group whose rewards are all equal (also a group of one)
    /// gives exact zeros, not rounding noise over `eps`. NaN and infinite rewards are the caller's to refuse, since it knows the task.
    ///
    /// ```
    /// use temper_algo::Advantage;
    /// assert_eq!(Advantage::GroupMean {}.advantages(&[1.0, 0.0, 0.0, 1.0]), [0.5, -0.5, -0.5, 0.5]);
    /// ```
    pub fn advantages(&self, rewards: &[f64]) -> Vec<f64> {
        if is_constant(rewards) {
            return vec![0.0; rewards.len()];
        }
        let scale = match self {
            Self::GroupZScore { eps } => sample_std(rewards) + eps,
            Self::GroupMean {} => 1.0,
        };
        let mean = mean(rewards);
        rewards.iter().map(|r| (r - mean) / scale).collect()
    }

    /// What it reads.
    pub fn needs(&self) -> Needs {
        match self {
            Self::GroupZScore { .. } | Self::GroupMean {} => Needs::GROUP,
        }
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        match self {
            Self::GroupZScore { eps } if !(eps.is_finite() && *eps >= 0.0) => vec![Problem::new(
                "eps",
                format!("eps is {eps}, expected a finite number of at least 0"),
                "leave it out for TRL's 1e-4",
            )],
            Self::GroupZScore { .. } | Self::GroupMean {} => vec![],
        }
    }
}

/// Whether a group carries no signal: all rewards equal (within 1e-8). True for groups of none or one.
pub fn is_constant(rewards: &[f64]) -> bool {
    let Some(first) = rewards.first() else { return true };
    let (low, high) = rewards.iter().fold((*first, *first), |(low, high), r| (low.min(*r), high.max(*r)));
    rewards.iter().all(|r| r.is_finite()) && high - low <= EQUAL
}

/// Standard deviation with divisor n - 1 (as `torch.std`); 0 for fewer than two values.
pub fn sample_std(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn z_score_by_hand() {
        // Rewards 1, 0, 0, 1: mean 1/2, squares 4 * 1/4 = 1, sample variance 1/3, std 0.577350269.
        let adv = Advantage::GroupZScore { eps: 0.0 }.advantages(&[1.0, 0.0, 0.0, 1.0]);
        let expected = 0.5 * 3f64.sqrt();
        for (a, sign) in adv.iter().zip([1.0, -1.0, -1.0, 1.0]) {
            assert!((a - sign * expected).abs() < 1e-15, "{a}");
        }
        // With TRL's eps: 0.5 / (0.57735027 + 0.0001) = 0.86587543.
        assert!((Advantage::default().advantages(&[1.0, 0.0, 0.0, 1.0])[0] - 0.865_875_43).abs() < 1e-8);
    }

    #[test]
    fn constant_groups_give_exact_zeros() {
        for group in [&[][..], &[3.0], &[0.1, 0.1, 0.1], &[0.1 + 0.2, 0.3]] {
            assert!(is_constant(group));
            assert!(Advantage::default().advantages(group).iter().all(|a| *a == 0.0));
        }
        assert!(!is_constant(&[0.0, 1e-6]));
        assert!(!is_constant(&[f64::NAN, f64::NAN]) && !is_constant(&[f64::INFINITY, f64::INFINITY]));
    }

    #[test]
    fn a_negative_eps_is_reported() {
        assert_eq!(Advantage::GroupZScore { eps: -1.0 }.check().len(), 1);
        assert!(Advantage::default().check().is_empty());
    }

    proptest! {
        #[test]
        fn sum_to_zero_and_ignore_shifts(rewards in prop::collection::vec(-5.0f64..5.0, 2..12), shift in -3.0f64..3.0) {
            for kind in [Advantage::default(), Advantage::GroupMean {}] {
                let adv = kind.advantages(&rewards);
                prop_assert!(adv.iter().sum::<f64>().abs() < 1e-9);
                let moved: Vec<f64> = rewards.iter().map(|r| r + shift).collect();
                for (a, b) in adv.iter().zip(kind.advantages(&moved)) {
                    prop_assert!((a - b).abs() < 1e-7);
                }
            }
        }
    }
}
