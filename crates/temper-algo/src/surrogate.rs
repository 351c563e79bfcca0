//! Surrogates: from log-ratio, advantage and log-prob to the per-token term that is minimised.

use serde::{Deserialize, Serialize};

use crate::ratio::bounded_exp;
use crate::{Needs, Problem};

/// The policy-gradient term of one token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Surrogate {
    /// `x = -adv * logp`: no ratio, hence for on-policy samples only. Source: Williams 1992.
    Reinforce {},
    /// `x = -min(r * adv, clip(r, 1 - clip_low, 1 + clip_high) * adv)`. Source: PPO, arXiv 1707.06347, equation 7; separate
    /// bounds from DAPO, arXiv 2503.14476, equation 8.
    Clip {
        /// How far the ratio may fall below 1 before a negative advantage stops pushing.
        #[serde(default = "default_clip")]
        clip_low: f64,
        /// How far the ratio may rise above 1 before a positive advantage stops pushing.
        #[serde(default = "default_clip")]
        clip_high: f64,
    },
}

fn default_clip() -> f64 {
    0.2
}

impl Default for Surrogate {
    fn default() -> Self {
        Self::Clip { clip_low: default_clip(), clip_high: default_clip() }
    }
}

/// Which bound cut the gradient of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClipSide {
    /// None: the token pushes.
    #[default]
    Inside,
    /// The ratio fell below `1 - clip_low` and the advantage is negative.
    Low,
    /// The ratio rose above `1 + clip_high` and the advantage is positive.
    High,
}

/// Value and derivatives of one token's term.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SurrogateTerm {
    /// The term, to be minimised.
    pub x: f64,
    /// dx/d(log-ratio).
    pub d_log_ratio: f64,
    /// dx/d(logp) where `logp` enters other than through the ratio.
    pub d_logp: f64,
    /// Whether a bound cut it.
    pub clip: ClipSide,
}

impl Surrogate {
    /// The term of one token.
    ///
    /// At a log-ratio of exactly 0 the ratio is exactly 1 and the derivative, by either path, exactly `-adv`.
    ///
    /// ```
    /// use temper_algo::Surrogate;
    /// let term = Surrogate::Clip { clip_low: 0.2, clip_high: 0.2 }.term(0.0, -1.3, 2.0);
    /// assert_eq!((term.x, term.d_log_ratio), (-2.0, -2.0));
    /// ```
    pub fn term(&self, log_ratio: f64, logp: f64, adv: f64) -> SurrogateTerm {
        match *self {
            Self::Reinforce {} => SurrogateTerm { x: -adv * logp, d_logp: -adv, ..SurrogateTerm::default() },
            Self::Clip { clip_low, clip_high } => clip(log_ratio, adv, 1.0 - clip_low, 1.0 + clip_high),
        }
    }

    /// Whether the ratio enters the term at all.
    pub fn uses_ratio(&self) -> bool {
        match self {
            Self::Reinforce {} => false,
            Self::Clip { .. } => true,
        }
    }

    /// What it reads beside `logp`.
    pub fn needs(&self) -> Needs {
        match self {
            Self::Reinforce {} => Needs::NONE,
            Self::Clip { .. } => Needs::LOGP_OLD,
        }
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        match *self {
            Self::Reinforce {} => vec![],
            Self::Clip { clip_low, clip_high } => {
                let mut problems = vec![];
                if !(clip_low > 0.0 && clip_low <= 1.0) {
                    problems.push(Problem::new(
                        "clip_low",
                        format!("clip_low is {clip_low}, expected more than 0 and at most 1"),
                        "0.2 is the usual value; 1 leaves the ratio free below",
                    ));
                }
                if !(clip_high > 0.0 && clip_high.is_finite()) {
                    problems.push(Problem::new(
                        "clip_high",
                        format!("clip_high is {clip_high}, expected a finite number above 0"),
                        "0.2 is the usual value, 0.28 DAPO's",
                    ));
                }
                problems
            }
        }
    }
}

fn clip(log_ratio: f64, adv: f64, low: f64, high: f64) -> SurrogateTerm {
    let (ratio, slope) = bounded_exp(log_ratio);
    let side = match () {
        () if adv > 0.0 && ratio > high => ClipSide::High,
        () if adv < 0.0 && ratio < low => ClipSide::Low,
        () => ClipSide::Inside,
    };
    let (used, used_slope) = match side {
        ClipSide::Inside => (ratio, slope),
        ClipSide::Low => (low, 0.0),
        ClipSide::High => (high, 0.0),
    };
    SurrogateTerm { x: -used * adv, d_log_ratio: -used_slope * adv, d_logp: 0.0, clip: side }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: Surrogate = Surrogate::Clip { clip_low: 0.2, clip_high: 0.3 };

    #[test]
    fn clip_by_hand() {
        // (ratio, adv) -> (x, derivative, side); bounds 0.8 and 1.3.
        let cases = [
            (1.5, 2.0, -2.6, 0.0, ClipSide::High),
            (1.5, -2.0, 3.0, 3.0, ClipSide::Inside),
            (0.5, 2.0, -1.0, -1.0, ClipSide::Inside),
            (0.5, -2.0, 1.6, 0.0, ClipSide::Low),
            (1.1, 1.0, -1.1, -1.1, ClipSide::Inside),
            (1.5, 0.0, 0.0, 0.0, ClipSide::Inside),
        ];
        for (ratio, adv, x, slope, side) in cases {
            let term = CLIP.term(f64::ln(ratio), -1.0, adv);
            assert!((term.x - x).abs() < 1e-12 && (term.d_log_ratio - slope).abs() < 1e-12, "{ratio} {adv}: {term:?}");
            assert_eq!(term.clip, side);
        }
    }

    #[test]
    fn reinforce_by_hand() {
        let term = Surrogate::Reinforce {}.term(0.7, -2.0, 1.5);
        assert_eq!((term.x, term.d_logp, term.d_log_ratio), (3.0, -1.5, 0.0));
    }

    #[test]
    fn bad_bounds_are_reported_together() {
        assert_eq!(Surrogate::Clip { clip_low: -0.1, clip_high: f64::NAN }.check().len(), 2);
        assert!(CLIP.check().is_empty());
    }
}
