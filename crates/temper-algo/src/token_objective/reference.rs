//! Terms of the log-ratio to the reference role.

use serde::{Deserialize, Serialize};

use super::TokenTerm;
use crate::KlEstimator;

/// Which divergence a KL term estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// KL(policy || reference), as in RL: the estimator of `u = logp - logp_ref`.
    #[default]
    Reverse,
    /// KL(reference || policy): the estimator of `-u`. Its k3, `e^u - 1 - u`, pushes hard against tokens that the reference
    /// thinks unlikely.
    Forward,
}

/// The estimate and its slope. An estimator is a function of the difference of its arguments, so swapping them flips the
/// sign of the slope.
pub(super) fn kl(estimator: KlEstimator, direction: Direction, logp: f64, logp_ref: f64) -> TokenTerm {
    let (term, sign) = match direction {
        Direction::Reverse => (estimator.term(logp, logp_ref), 1.0),
        Direction::Forward => (estimator.term(logp_ref, logp), -1.0),
    };
    TokenTerm { x: term.x, d_logp: sign * term.d_logp, ..TokenTerm::default() }
}

/// MinorSFT's coefficient `2 sigmoid(-beta u)`.
pub(super) fn minor(beta: f64, u: f64) -> f64 {
    2.0 / (1.0 + (beta * u).exp())
}

/// A divergence by its `phi(r) = -f*(-r)`, shifted so that `phi(0) = 0` with slope 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// Chi-square: `r - r^2 / 4`. Pulls back beyond `r = 2`.
    Pearson,
    /// `r / (1 + r)`.
    SquaredHellinger,
    /// `ln(2 - e^-r)`.
    JensenShannon,
    /// `1 - e^-r`.
    ReverseKl,
}

/// Steepest slope of phi; beyond it phi goes on linearly.
const STEEPEST: f64 = 4.0;

impl Divergence {
    /// phi and its slope.
    fn phi(self, r: f64) -> (f64, f64) {
        match self {
            Self::Pearson => (r - r * r / 4.0, 1.0 - r / 2.0),
            Self::SquaredHellinger => (r / (1.0 + r), (1.0 + r).powi(-2)),
            Self::JensenShannon => ((2.0 - (-r).exp()).ln(), 1.0 / (2.0 * r.exp() - 1.0)),
            Self::ReverseKl => (-(-r).exp_m1(), (-r).exp()),
        }
    }

    /// Where the slope is [`STEEPEST`].
    fn knee(self) -> f64 {
        match self {
            Self::Pearson => 2.0 - 2.0 * STEEPEST,
            Self::SquaredHellinger => STEEPEST.sqrt().recip() - 1.0,
            Self::JensenShannon => (0.5 + 0.5 / STEEPEST).ln(),
            Self::ReverseKl => -STEEPEST.ln(),
        }
    }

    /// `-phi(beta u) / beta`.
    pub(super) fn term(self, beta: f64, u: f64) -> TokenTerm {
        let (r, knee) = (beta * u, self.knee());
        let (phi, slope) = if r < knee { (self.phi(knee).0 + STEEPEST * (r - knee), STEEPEST) } else { self.phi(r) };
        TokenTerm { x: -phi / beta, d_logp: -slope, ..TokenTerm::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Divergence; 4] =
        [Divergence::Pearson, Divergence::SquaredHellinger, Divergence::JensenShannon, Divergence::ReverseKl];

    #[test]
    fn divergences_by_hand() {
        // r = 1: 3/4, 1/2, ln(2 - 1/e) = 0.489880, 1 - 1/e = 0.632121; slopes 1/2, 1/4, 1/(2e - 1) = 0.225400, 1/e.
        let expected = [(0.75, 0.5), (0.5, 0.25), (0.489_880, 0.225_400), (0.632_121, 0.367_879)];
        for (divergence, (phi, slope)) in ALL.into_iter().zip(expected) {
            let term = divergence.term(0.5, 2.0);
            assert!((term.x + 2.0 * phi).abs() < 2e-6 && (term.d_logp + slope).abs() < 1e-6, "{divergence:?} {term:?}");
        }
    }

    #[test]
    fn every_slope_is_minus_one_at_the_reference_and_never_below_minus_four() {
        for divergence in ALL {
            assert_eq!(divergence.term(0.3, 0.0), TokenTerm { x: -0.0, d_logp: -1.0, ..TokenTerm::default() });
            assert!((divergence.phi(divergence.knee()).1 - STEEPEST).abs() < 1e-12);
            for u in [-1e6, -100.0, -9.0] {
                let term = divergence.term(1.0, u);
                assert!(term.d_logp == -4.0 && term.x.is_finite() && term.x > 0.0, "{divergence:?} {u}: {term:?}");
            }
        }
    }

    #[test]
    fn the_forward_estimate_is_the_reverse_one_with_the_roles_swapped() {
        let k3 = KlEstimator::K3 {};
        // u = ln 2: forward e^u - 1 - u = 1 - ln 2, slope 1.
        let term = kl(k3, Direction::Forward, -1.0 + std::f64::consts::LN_2, -1.0);
        assert!((term.x - (1.0 - std::f64::consts::LN_2)).abs() < 1e-12 && (term.d_logp - 1.0).abs() < 1e-12);
        assert_eq!(kl(k3, Direction::Reverse, -1.5, -2.0).x, k3.term(-1.5, -2.0).x);
    }
}
