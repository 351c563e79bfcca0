//! Corrections for samples of another policy: a stale one, or an engine with other numbers.
//!
//! The ratio slot compares the policy now with the policy before the update (`logp_old`). Samples that were drawn by a third
//! policy (`logp_gen`) need the factor `pi_old / pi_gen` besides. It is data, so no gradient passes through it; it multiplies
//! the surrogate, not the KL penalty and not the entropy.

use serde::{Deserialize, Serialize};

use crate::ratio::bounded_exp;
use crate::{Coupling, Problem, Rows};

/// How `rho = pi_old / pi_gen` is bounded before it multiplies the surrogate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Correction {
    /// `clamp(rho, low, high)`: truncated importance sampling, TIS. Sources: Yao et al. 2025 (token level); TRL's
    /// `token_truncate`, `sequence_truncate`; verl's `rollout_is`.
    Truncate {
        /// Ratio of a token or of its whole sequence.
        #[serde(default)]
        level: Level,
        /// Lower bound; none unless given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        low: Option<f64>,
        /// Upper bound. TRL uses 3 (the default), verl 2.
        #[serde(default = "default_high")]
        high: f64,
    },
    /// `rho` within the bounds, 0 outside: masked importance sampling, MIS (sequence) and IcePop (token, 0.5 to 5). TRL's
    /// `token_mask`, `sequence_mask`.
    Mask {
        /// Ratio of a token or of its whole sequence.
        #[serde(default)]
        level: Level,
        /// Lower bound; none unless given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        low: Option<f64>,
        /// Upper bound. TRL uses 3 (the default).
        #[serde(default = "default_high")]
        high: f64,
    },
}

fn default_high() -> f64 {
    3.0
}

/// The unit of a correction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Each token by its own ratio: biased, of low variance.
    #[default]
    Token,
    /// All tokens of a sequence by the product of their ratios: unbiased, of high variance.
    Sequence,
}

impl Correction {
    /// The factor of every token `[M]`; 0 on tokens of weight 0. `logp_old` is `logp` where it is absent.
    pub(crate) fn factors(self, rows: &Rows, logp_gen: &[f64]) -> Vec<f64> {
        let old = rows.logp_old.unwrap_or(rows.logp);
        let live = |row: usize| rows.weight[row] != 0.0;
        let mut log_rho: Vec<f64> =
            (0..old.len()).map(|row| if live(row) { old[row] - logp_gen[row] } else { 0.0 }).collect();
        if self.level() == Level::Sequence {
            for range in rows.sequence_ranges() {
                let sum = log_rho[range.clone()].iter().sum();
                log_rho[range].fill(sum);
            }
        }
        log_rho
            .iter()
            .enumerate()
            .map(|(row, l)| if live(row) { self.bounded(bounded_exp(*l).0) } else { 0.0 })
            .collect()
    }

    fn bounded(self, rho: f64) -> f64 {
        let (low, high) = self.bounds();
        match self {
            Self::Truncate { .. } => rho.max(low).min(high),
            Self::Mask { .. } if rho < low || rho > high => 0.0,
            Self::Mask { .. } => rho,
        }
    }

    fn bounds(self) -> (f64, f64) {
        match self {
            Self::Truncate { low, high, .. } | Self::Mask { low, high, .. } => (low.unwrap_or(0.0), high),
        }
    }

    /// Token or sequence.
    pub fn level(self) -> Level {
        match self {
            Self::Truncate { level, .. } | Self::Mask { level, .. } => level,
        }
    }

    /// How far its factors are coupled.
    pub fn coupling(self) -> Coupling {
        match self.level() {
            Level::Token => Coupling::Token,
            Level::Sequence => Coupling::Sequence,
        }
    }

    /// Settings that make no sense.
    pub fn check(self) -> Vec<Problem> {
        let (low, high) = self.bounds();
        let mut problems = vec![];
        if !(0.0..=1.0).contains(&low) {
            problems.push(Problem::new(
                "low",
                format!("low is {low}, expected 0 to 1"),
                "leave it out for no lower bound",
            ));
        }
        if !(high.is_finite() && high >= 1.0) {
            let message = format!("high is {high}, expected a finite number of at least 1");
            problems.push(Problem::new(
                "high",
                message,
                "samples of the policy itself have the ratio 1: leave it out for 3",
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(correction: Correction) -> Vec<f64> {
        // Ratios 4, 1/4 | masked, 2 over two sequences.
        let (ln2, ln4) = (2f64.ln(), 4f64.ln());
        let rows = Rows {
            logp: &[-1.0; 4],
            logp_old: Some(&[ln4 - 5.0, -ln4 - 5.0, f64::NAN, ln2 - 5.0]),
            weight: &[1.0, 1.0, 0.0, 1.0],
            sequences: &[2, 2],
            ..Rows::EMPTY
        };
        correction.factors(&rows, &[-5.0; 4]).iter().map(|f| (f * 1e12).round() / 1e12).collect()
    }

    #[test]
    fn by_hand() {
        let (low, high) = (Some(0.5), 3.0);
        let (token, sequence) = (Level::Token, Level::Sequence);
        assert_eq!(factors(Correction::Truncate { level: token, low: None, high }), [3.0, 0.25, 0.0, 2.0]);
        assert_eq!(factors(Correction::Truncate { level: token, low, high }), [3.0, 0.5, 0.0, 2.0]);
        assert_eq!(factors(Correction::Mask { level: token, low, high }), [0.0, 0.0, 0.0, 2.0]);
        // Products: 4 * 1/4 = 1, and 2.
        assert_eq!(factors(Correction::Truncate { level: sequence, low, high: 1.5 }), [1.0, 1.0, 0.0, 1.5]);
        assert_eq!(factors(Correction::Mask { level: sequence, low, high: 1.5 }), [1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn samples_of_the_policy_itself_have_factor_one() {
        let rows = Rows { logp: &[-1.5, -0.1], weight: &[1.0, 1.0], sequences: &[2], ..Rows::EMPTY };
        for level in [Level::Token, Level::Sequence] {
            let correction = Correction::Mask { level, low: Some(1.0), high: 1.0 };
            assert_eq!(correction.factors(&rows, rows.logp), [1.0, 1.0]);
        }
    }

    #[test]
    fn bad_bounds_are_reported_together() {
        assert_eq!(Correction::Mask { level: Level::Token, low: Some(2.0), high: 0.5 }.check().len(), 2);
        assert!(Correction::Truncate { level: Level::Token, low: None, high: 3.0 }.check().is_empty());
    }
}
