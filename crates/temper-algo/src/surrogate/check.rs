//! Which settings and which ratios a surrogate accepts.

use super::Surrogate;
use crate::{Problem, Ratio};

/// What a surrogate asks of the rest of an objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ratios {
    /// Reads none.
    None,
    /// Any; the gradient passes through it.
    Any,
    /// Any; a weight that the gradient does not pass.
    Detached,
    /// The token's own.
    Token,
    /// The product over the sequence, detached.
    Product,
}

impl Surrogate {
    pub(super) fn ratios(&self) -> Ratios {
        match self {
            Self::Importance {} | Self::Clip { .. } | Self::Sapo { .. } | Self::Nft { .. } => Ratios::Any,
            Self::Cispo { .. } | Self::Topr { .. } => Ratios::Detached,
            Self::DppoTv { .. } | Self::DppoKl { .. } | Self::ClipCov { .. } | Self::KlCov { .. } => Ratios::Token,
            Self::Vespo { .. } => Ratios::Product,
            Self::Reinforce {}
            | Self::Raft {}
            | Self::RewardWeighted { .. }
            | Self::Nll {}
            | Self::Gvpo { .. }
            | Self::None {} => Ratios::None,
        }
    }

    /// Whether it clips by the ratio itself, so that a ratio with bounds of its own would clip twice.
    fn clips(&self) -> bool {
        !matches!(self, Self::Importance {})
    }

    /// What is wrong with this surrogate on that ratio.
    pub(crate) fn check_ratio(&self, ratio: Ratio) -> Option<Problem> {
        let (surrogate, unit) = (self.name(), ratio.name());
        let problem = |message: String, hint: &str| Some(Problem::new("ratio", message, hint));
        match self.ratios() {
            Ratios::None if ratio != Ratio::default() => problem(
                format!("the ratio `{unit}` has no effect on the surrogate `{surrogate}`"),
                "remove `ratio`, or use the surrogate `clip`",
            ),
            Ratios::Token if ratio != Ratio::default() => problem(
                format!("the surrogate `{surrogate}` looks at single tokens, and the ratio is over the `{unit}`"),
                "remove `ratio`",
            ),
            Ratios::Product if ratio != (Ratio::Product {}) => problem(
                format!("the surrogate `{surrogate}` weighs whole sequences, and the ratio is over the `{unit}`"),
                "set ratio = { kind = \"product\" }",
            ),
            Ratios::Detached if ratio == (Ratio::SequenceToken {}) => problem(
                format!("no gradient of `{surrogate}` passes through the ratio, so `{unit}` is the same as `sequence`"),
                "set ratio = { kind = \"sequence\" }",
            ),
            _ if matches!(ratio, Ratio::GeometricMean { .. }) && self.clips() => problem(
                format!("the ratio `{unit}` has been clipped already, and the surrogate `{surrogate}` bounds it again"),
                "use the surrogate `importance`",
            ),
            _ => None,
        }
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        let positive = |fields: &[(&str, f64)], hint: &str| -> Vec<Problem> {
            fields.iter().filter_map(|(field, value)| Problem::unless_positive(field, *value, hint)).collect()
        };
        match *self {
            Self::Clip { clip_low, clip_high, delta } => {
                let mut problems = check_clip(clip_low, clip_high);
                problems.extend(delta.filter(|d| !(d.is_finite() && *d > 1.0 + clip_high)).map(|d| {
                    let message =
                        format!("delta is {d}, expected a finite number above 1 + clip_high = {}", 1.0 + clip_high);
                    Problem::new("delta", message, "verl uses 3, INTELLECT-2 4; leave it out for no bound")
                }));
                problems
            }
            Self::ClipCov { clip_low, clip_high, share, cov_low, cov_high } => {
                let mut problems = check_clip(clip_low, clip_high);
                problems.extend(check_share(share));
                if cov_low.partial_cmp(&cov_high) != Some(std::cmp::Ordering::Less) {
                    let message = format!("cov_low is {cov_low} and cov_high {cov_high}: no covariance lies between");
                    problems.push(Problem::new("cov_low", message, "the released code uses 1 and 5"));
                }
                problems
            }
            Self::Cispo { clip_low, clip_high } => check_clip(clip_low, clip_high),
            Self::KlCov { share, coef } => {
                let mut problems: Vec<Problem> = check_share(share).into_iter().collect();
                problems.extend(positive(&[("coef", coef)], "1 is the released code's value"));
                problems
            }
            Self::DppoTv { clip_low, clip_high, cap } => positive(
                &[("clip_low", clip_low), ("clip_high", clip_high), ("cap", cap)],
                "0.15, 0.15 and 20 are usual",
            ),
            Self::DppoKl { clip_low, clip_high, cap } => positive(
                &[("clip_low", clip_low), ("clip_high", clip_high), ("cap", cap)],
                "0.05, 0.05 and 20 are usual",
            ),
            Self::Sapo { temperature_pos, temperature_neg } => positive(
                &[("temperature_pos", temperature_pos), ("temperature_neg", temperature_neg)],
                "1 and 1.05 are the paper's values",
            ),
            Self::Vespo { k_pos, lambda_pos, k_neg, lambda_neg } => positive(
                &[("k_pos", k_pos), ("lambda_pos", lambda_pos), ("k_neg", k_neg), ("lambda_neg", lambda_neg)],
                "2, 3, 3, 2 are the paper's values",
            ),
            Self::Nft { eps } => positive(&[("eps", eps)], "1 is the released run's value"),
            Self::Topr { cap } => positive(&[("cap", cap)], "1 is the paper's value"),
            Self::RewardWeighted { temperature, cap } => {
                positive(&[("temperature", temperature), ("cap", cap)], "1 and 20 are the defaults")
            }
            Self::Gvpo { beta } => positive(&[("beta", beta)], "0.1 is the paper's value"),
            Self::Reinforce {} | Self::Importance {} | Self::Raft {} | Self::Nll {} | Self::None {} => vec![],
        }
    }
}

fn check_share(share: f64) -> Option<Problem> {
    let message = || format!("share is {share}, expected more than 0 and at most 1");
    (!(share > 0.0 && share <= 1.0)).then(|| Problem::new("share", message(), "0.0002 is the released code's value"))
}

fn check_clip(clip_low: f64, clip_high: f64) -> Vec<Problem> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_bounds_are_reported_together() {
        assert_eq!(Surrogate::Clip { clip_low: -0.1, clip_high: f64::NAN, delta: None }.check().len(), 2);
        let capped = |delta| Surrogate::Clip { clip_low: 0.2, clip_high: 0.3, delta: Some(delta) }.check().len();
        assert_eq!((capped(1.3), capped(3.0)), (1, 0));
        assert_eq!(
            Surrogate::Vespo { k_pos: 0.0, lambda_pos: -1.0, k_neg: f64::NAN, lambda_neg: 1.0 }.check().len(),
            3
        );
        let cov = Surrogate::ClipCov { clip_low: 0.2, clip_high: 0.2, share: 0.0, cov_low: 5.0, cov_high: 1.0 };
        assert_eq!(cov.check().len(), 2);
    }

    #[test]
    fn ratios_that_do_not_fit_are_reported() {
        let sequence = Ratio::Sequence {};
        assert!(Surrogate::Reinforce {}.check_ratio(sequence).is_some());
        assert!(Surrogate::KlCov { share: 0.1, coef: 1.0 }.check_ratio(sequence).is_some());
        assert!(Surrogate::Topr { cap: 1.0 }.check_ratio(Ratio::SequenceToken {}).is_some());
        assert!(Surrogate::default().check_ratio(Ratio::GeometricMean { clip_low: 0.4, clip_high: 0.4 }).is_some());
        assert!(Surrogate::default().check_ratio(sequence).is_none());
        let vespo: Surrogate = serde_json::from_str(r#"{ "kind": "vespo" }"#).unwrap();
        assert!(vespo.check_ratio(Ratio::Token {}).is_some() && vespo.check_ratio(Ratio::Product {}).is_none());
    }
}
