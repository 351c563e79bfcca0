//! Importance ratios: from log-probs of now and of sampling time to one log-ratio a token.

use serde::{Deserialize, Serialize};

use crate::{ClipSide, Coupling, Problem, Rows};

/// Log-ratios saturate here before they are exponentiated: e^60 = 1.1e26 still fits an f32, so that one impossible token
/// gives a large finite loss with derivative zero instead of an infinity. (TRL has no bound; verl's is 20.)
pub const MAX_LOG_RATIO: f64 = 60.0;

/// Over which unit the importance ratio is taken. With `l_t = logp_t - logp_old_t` over the trained tokens of a sequence:
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ratio {
    /// `log r_t = l_t` (PPO, GRPO).
    Token {},
    /// `log r = mean_t(l_t)`, the same for every token of the sequence: the length-normalised sequence ratio. Source: GSPO,
    /// arXiv 2507.18071, equation 7.
    Sequence {},
    /// GSPO-token: the value of `Sequence`, the derivative of `Token` (`log r_t = sg[mean(l)] + logp_t - sg[logp_t]`), so
    /// that advantages may differ by token. Equal to `Sequence` where advantages and weights are constant over a sequence;
    /// verl's `gspo`. Source: arXiv 2507.18071, section 4.3.
    SequenceToken {},
    /// `log r = sum_t(l_t)`: the ratio of the whole sequences' probabilities, unbiased and of high variance. VESPO and TOPR
    /// read it.
    Product {},
    /// `log r = mean_t(clipped l_t)`, the geometric mean of clipped token ratios, where positive advantages clip `l_t` from
    /// above at `clip_high` and negative ones from below at `-clip_low`, in log space. Goes with the surrogate `importance`,
    /// which adds no second clip. Source: GMPO, arXiv 2507.20673 (its code and verl's `geo_mean`).
    GeometricMean {
        /// How far a token's log-ratio may fall below 0.
        #[serde(default = "default_log_clip")]
        clip_low: f64,
        /// How far a token's log-ratio may rise above 0.
        #[serde(default = "default_log_clip")]
        clip_high: f64,
    },
}

/// The range `(e^-0.4, e^0.4)` that GMPO recommends.
fn default_log_clip() -> f64 {
    0.4
}

impl Default for Ratio {
    fn default() -> Self {
        Self::Token {}
    }
}

impl Ratio {
    /// One log-ratio a token from `l = logp - logp_old` `[M]`. Tokens of weight 0 count for nothing and get 0.
    pub(crate) fn forward(self, l: &[f64], rows: &Rows) -> Vec<f64> {
        let values =
            (0..l.len()).map(|row| if rows.weight[row] == 0.0 { 0.0 } else { self.clipped(l[row], rows.adv[row]) });
        over_units(values.collect(), rows, self)
    }

    /// Transpose of the derivative of [`forward`](Self::forward): from d(loss)/d(log-ratio) a token to d(loss)/d(logp).
    pub(crate) fn backward(self, d_log_ratio: Vec<f64>, l: &[f64], rows: &Rows) -> Vec<f64> {
        // A mean or a sum that is handed to all its members is its own transpose.
        let through = if self == (Self::SequenceToken {}) { Self::Token {} } else { self };
        let mut d = over_units(d_log_ratio, rows, through);
        for (row, d) in d.iter_mut().enumerate() {
            if self.clip_side(l[row], rows.adv[row]) != ClipSide::Inside {
                *d = 0.0;
            }
        }
        d
    }

    fn clipped(self, l: f64, adv: f64) -> f64 {
        match (self, self.clip_side(l, adv)) {
            (Self::GeometricMean { clip_low, .. }, ClipSide::Low) => -clip_low,
            (Self::GeometricMean { clip_high, .. }, ClipSide::High) => clip_high,
            _ => l,
        }
    }

    /// Which bound of its own cut the gradient of a token (only `GeometricMean` has bounds).
    pub(crate) fn clip_side(self, l: f64, adv: f64) -> ClipSide {
        match self {
            Self::GeometricMean { clip_high, .. } if adv > 0.0 && l > clip_high => ClipSide::High,
            Self::GeometricMean { clip_low, .. } if adv < 0.0 && l < -clip_low => ClipSide::Low,
            _ => ClipSide::Inside,
        }
    }

    /// How far its values are coupled.
    pub fn coupling(self) -> Coupling {
        match self {
            Self::Token {} => Coupling::Token,
            Self::Sequence {} | Self::SequenceToken {} | Self::Product {} | Self::GeometricMean { .. } => {
                Coupling::Sequence
            }
        }
    }

    /// Its name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Token {} => "token",
            Self::Sequence {} => "sequence",
            Self::SequenceToken {} => "sequence_token",
            Self::Product {} => "product",
            Self::GeometricMean { .. } => "geometric_mean",
        }
    }

    /// Settings that make no sense.
    pub fn check(self) -> Vec<Problem> {
        let Self::GeometricMean { clip_low, clip_high } = self else { return vec![] };
        let hint = "a log-ratio, not a ratio: 0.4 (the default) lets the ratio reach e^0.4 = 1.49";
        let bounds = [("clip_low", clip_low), ("clip_high", clip_high)];
        bounds.into_iter().filter_map(|(field, value)| Problem::unless_positive(field, value, hint)).collect()
    }
}

/// The sum or mean over each unit of `unit`, handed to its members.
fn over_units(mut values: Vec<f64>, rows: &Rows, unit: Ratio) -> Vec<f64> {
    let reduce = match unit {
        Ratio::Token {} => return values,
        Ratio::Product {} => sum_in_place,
        Ratio::Sequence {} | Ratio::SequenceToken {} | Ratio::GeometricMean { .. } => mean_in_place,
    };
    for range in rows.sequence_ranges() {
        reduce(&mut values[range.clone()], &rows.weight[range]);
    }
    values
}

/// Replace each value of weight other than 0 by the sum over those, the rest by 0.
fn sum_in_place(values: &mut [f64], weight: &[f64]) {
    let sum: f64 = values.iter().zip(weight).filter(|(_, w)| **w != 0.0).map(|(v, _)| v).sum();
    for (v, w) in values.iter_mut().zip(weight) {
        *v = if *w == 0.0 { 0.0 } else { sum };
    }
}

/// The same with the mean.
fn mean_in_place(values: &mut [f64], weight: &[f64]) {
    let count = weight.iter().filter(|w| **w != 0.0).count().max(1) as f64;
    sum_in_place(values, weight);
    for v in values {
        *v /= count;
    }
}

/// `exp(l)` with the bound, and its derivative with respect to `l` (0 beyond the bound).
pub(crate) fn bounded_exp(l: f64) -> (f64, f64) {
    let value = l.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp();
    (value, if l.abs() <= MAX_LOG_RATIO { value } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sequences of 3 and 2 tokens; the last token of the first is masked.
    const ROWS: Rows = Rows {
        weight: &[1.0, 0.5, 0.0, 1.0, 2.0],
        adv: &[1.0, 1.0, 1.0, -1.0, -1.0],
        sequences: &[3, 2],
        ..Rows::EMPTY
    };
    const L: [f64; 5] = [0.2, 0.4, 9.0, -1.0, 0.0];
    const GEOMETRIC: Ratio = Ratio::GeometricMean { clip_low: 0.6, clip_high: 0.3 };

    fn close(got: &[f64], expected: [f64; 5]) {
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{got:?} {expected:?}");
    }

    #[test]
    fn by_hand() {
        close(&Ratio::Token {}.forward(&L, &ROWS), [0.2, 0.4, 0.0, -1.0, 0.0]);
        // mean(0.2, 0.4) = 0.3, mean(-1, 0) = -0.5.
        close(&Ratio::Sequence {}.forward(&L, &ROWS), [0.3, 0.3, 0.0, -0.5, -0.5]);
        close(&Ratio::SequenceToken {}.forward(&L, &ROWS), [0.3, 0.3, 0.0, -0.5, -0.5]);
        close(&Ratio::Product {}.forward(&L, &ROWS), [0.6, 0.6, 0.0, -1.0, -1.0]);
        // Clipped: 0.2, 0.3 (from above) and -0.6 (from below), 0.
        close(&GEOMETRIC.forward(&L, &ROWS), [0.25, 0.25, 0.0, -0.3, -0.3]);
    }

    #[test]
    fn backward_by_hand() {
        let d = || vec![1.0, 3.0, 0.0, 2.0, 4.0];
        close(&Ratio::Sequence {}.backward(d(), &L, &ROWS), [2.0, 2.0, 0.0, 3.0, 3.0]);
        close(&Ratio::SequenceToken {}.backward(d(), &L, &ROWS), [1.0, 3.0, 0.0, 2.0, 4.0]);
        close(&Ratio::Product {}.backward(d(), &L, &ROWS), [4.0, 4.0, 0.0, 6.0, 6.0]);
        // The clipped tokens (second and fourth) get nothing.
        close(&GEOMETRIC.backward(d(), &L, &ROWS), [2.0, 0.0, 0.0, 0.0, 3.0]);
    }

    #[test]
    fn empty_and_fully_masked_sequences_are_zero() {
        let rows = Rows { weight: &[0.0, 0.0], adv: &[1.0, 1.0], sequences: &[0, 2, 0], ..Rows::EMPTY };
        for ratio in [Ratio::Sequence {}, Ratio::Product {}, GEOMETRIC] {
            assert_eq!(ratio.forward(&[1.0, 2.0], &rows), [0.0, 0.0]);
        }
    }

    #[test]
    fn the_exponential_saturates() {
        assert_eq!(bounded_exp(0.0), (1.0, 1.0));
        let (value, slope) = bounded_exp(1e4);
        assert!((value as f32).is_finite() && slope == 0.0);
    }

    #[test]
    fn bad_bounds_are_reported_together() {
        assert_eq!(Ratio::GeometricMean { clip_low: 0.0, clip_high: f64::NAN }.check().len(), 2);
        assert!(GEOMETRIC.check().is_empty() && Ratio::Product {}.check().is_empty());
    }
}
