//! Per-token estimators of KL(policy || reference) on tokens sampled from the policy.
//!
//! Source: J. Schulman, "Approximating KL divergence", 2020 (k1, k2, k3).

use serde::{Deserialize, Serialize};

use crate::ratio::bounded_exp;
use crate::{Level, Problem};

/// An estimator, with `d = logp - logp_ref` at the sampled token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum KlEstimator {
    /// `d`: unbiased, may be negative. As a loss term its gradient averages to zero on policy (the score function has mean
    /// zero), so it belongs in the reward; there for completeness.
    K1 {},
    /// `d^2 / 2`: biased value, but its gradient `d * grad logp` is that of the KL on policy.
    K2 {},
    /// `e^-d + d - 1`: unbiased, never negative; GRPO's choice (arXiv 2402.03300, equation 4).
    K3 {},
    /// The value of `K3` with the derivative of `K2`: the estimate that is never negative, and the gradient of the KL on policy.
    /// verl's `k3+` (`low_var_kl+`, straight-through).
    K3Plus {},
}

impl Default for KlEstimator {
    fn default() -> Self {
        Self::K3 {}
    }
}

/// Value and derivative of one token's estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KlTerm {
    /// The estimate, in nats.
    pub x: f64,
    /// dx/d(logp).
    pub d_logp: f64,
}

impl KlEstimator {
    /// The estimate at one token.
    ///
    /// ```
    /// use temper_algo::KlEstimator;
    /// assert_eq!(KlEstimator::K2 {}.term(-1.0, -3.0).x, 2.0);
    /// ```
    pub fn term(self, logp: f64, logp_ref: f64) -> KlTerm {
        let d = logp - logp_ref;
        match self {
            Self::K1 {} => KlTerm { x: d, d_logp: 1.0 },
            Self::K2 {} => KlTerm { x: 0.5 * d * d, d_logp: d },
            Self::K3 {} => {
                let (inverse, slope) = bounded_exp(-d);
                KlTerm { x: inverse + d - 1.0, d_logp: 1.0 - slope }
            }
            Self::K3Plus {} => KlTerm { d_logp: d, ..Self::K3 {}.term(logp, logp_ref) },
        }
    }
}

/// KL in the reward instead of the loss: `beta * estimate` is subtracted from what a sample earned, as a number without
/// gradient, before advantages are made. With `k1` the expected reward is that of KL-regularised RL. Source: Ziegler et al.,
/// arXiv 1909.08593, equation 2; verl's `apply_kl_penalty` and TRL's PPO by token, TRL's RLOO by sequence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KlReward {
    /// The estimator; `k1` unless given.
    #[serde(default = "k1")]
    pub estimator: KlEstimator,
    /// Its coefficient, above 0.
    pub beta: f64,
    /// `token`: every token pays for itself, so that what comes later does not burden what came before; for advantages that
    /// read rewards of tokens. `sequence` (the default): the sum is taken off the total reward.
    #[serde(default = "by_sequence")]
    pub level: Level,
}

fn by_sequence() -> Level {
    Level::Sequence
}
fn k1() -> KlEstimator {
    KlEstimator::K1 {}
}

impl KlReward {
    /// The estimate at every token of one sequence `[T]`, without `beta`.
    ///
    /// # Shapes
    /// `logp` (of the policy that sampled), `logp_ref`: `[T]`.
    pub fn estimates(&self, logp: &[f64], logp_ref: &[f64]) -> Vec<f64> {
        logp.iter().zip(logp_ref).map(|(logp, logp_ref)| self.estimator.term(*logp, *logp_ref).x).collect()
    }

    /// What of these estimates is taken off the total reward, and what off each token's `[T]` (empty where nothing is).
    ///
    /// ```
    /// use temper_algo::{KlEstimator, KlReward, Level};
    /// let kl = KlReward { estimator: KlEstimator::K1 {}, beta: 0.5, level: Level::Sequence };
    /// let estimates = kl.estimates(&[-1.0, -2.0], &[-2.0, -2.5]);
    /// assert_eq!(kl.costs(&estimates), (0.75, vec![]));
    /// assert_eq!(KlReward { level: Level::Token, ..kl }.costs(&estimates), (0.0, vec![0.5, 0.25]));
    /// ```
    pub fn costs(&self, estimates: &[f64]) -> (f64, Vec<f64>) {
        match self.level {
            Level::Sequence => (self.beta * estimates.iter().sum::<f64>(), vec![]),
            Level::Token => (0.0, estimates.iter().map(|kl| self.beta * kl).collect()),
        }
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        Problem::unless_positive("beta", self.beta, "leave the KL out of the reward instead").into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // d = ln 2: k1 = ln 2, k2 = 0.240227, k3 = 1/2 + ln 2 - 1 = 0.193147; slopes 1, ln 2, 1/2.
        let ln2 = std::f64::consts::LN_2;
        let (k1, k2, k3) = (
            KlEstimator::K1 {}.term(-1.0 + ln2, -1.0),
            KlEstimator::K2 {}.term(-1.0 + ln2, -1.0),
            KlEstimator::K3 {}.term(-1.0 + ln2, -1.0),
        );
        assert!((k1.x - ln2).abs() < 1e-15 && k1.d_logp == 1.0);
        assert!((k2.x - 0.240_227).abs() < 1e-6 && (k2.d_logp - ln2).abs() < 1e-15);
        assert!((k3.x - 0.193_147).abs() < 1e-6 && (k3.d_logp - 0.5).abs() < 1e-15);
    }

    #[test]
    fn all_vanish_at_the_reference() {
        for k in [KlEstimator::K1 {}, KlEstimator::K2 {}, KlEstimator::K3 {}, KlEstimator::K3Plus {}] {
            assert_eq!(k.term(-2.5, -2.5).x, 0.0);
        }
        assert_eq!(KlEstimator::K3 {}.term(-2.5, -2.5).d_logp, 0.0);
    }

    #[test]
    fn k3_plus_has_k3s_value_and_k2s_slope() {
        let (plus, k2, k3) = (KlEstimator::K3Plus {}, KlEstimator::K2 {}, KlEstimator::K3 {});
        let term = plus.term(-0.5, -1.7);
        assert_eq!((term.x, term.d_logp), (k3.term(-0.5, -1.7).x, k2.term(-0.5, -1.7).d_logp));
    }

    #[test]
    fn rewards_by_hand() {
        // k1 = 1, -0.5; beta 0.2: costs 0.2, -0.1.
        let kl = KlReward { estimator: KlEstimator::K1 {}, beta: 0.2, level: Level::Sequence };
        let estimates = kl.estimates(&[-1.0, -2.0], &[-2.0, -1.5]);
        assert_eq!(estimates, [1.0, -0.5]);
        assert!((kl.costs(&estimates).0 - 0.1).abs() < 1e-15);
        let (total, tokens) = KlReward { level: Level::Token, ..kl }.costs(&estimates);
        assert_eq!((total, tokens), (0.0, vec![0.2, -0.1]));
        assert_eq!(kl.costs(&[]), (0.0, vec![]));
        assert_eq!(KlReward { beta: 0.0, ..kl }.check().len(), 1);
    }

    /// Over a whole distribution: E[k1] = E[k3] = KL, and E[k2's gradient] = KL's gradient.
    #[test]
    fn expectations_over_a_distribution() {
        let (logits, reference) = ([0.3, -0.7, 1.1], [0.0f64, 0.5, -0.5]);
        let log_softmax = |z: [f64; 3]| {
            let lse = z.iter().map(|v| v.exp()).sum::<f64>().ln();
            z.map(|v| v - lse)
        };
        let (p, q) = (log_softmax(logits), log_softmax(reference));
        let kl = |p: [f64; 3]| p.iter().zip(q).map(|(a, b)| a.exp() * (a - b)).sum::<f64>();
        let mean = |k: KlEstimator| p.iter().zip(q).map(|(a, b)| a.exp() * k.term(*a, b).x).sum::<f64>();
        assert!((mean(KlEstimator::K1 {}) - kl(p)).abs() < 1e-12 && (mean(KlEstimator::K3 {}) - kl(p)).abs() < 1e-12);
        for j in 0..3 {
            // d logp_i / d logit_j = [i = j] - p_j
            let grad: f64 = (0..3)
                .map(|i| p[i].exp() * KlEstimator::K2 {}.term(p[i], q[i]).d_logp * (f64::from(i == j) - p[j].exp()))
                .sum();
            let mut up = logits;
            up[j] += 1e-6;
            let mut down = logits;
            down[j] -= 1e-6;
            let expected = (kl(log_softmax(up)) - kl(log_softmax(down))) / 2e-6;
            assert!((grad - expected).abs() < 1e-8);
        }
    }
}
