//! Importance ratios: from log-probs of now and of sampling time to one log-ratio a token.

use serde::{Deserialize, Serialize};

use crate::Coupling;

/// Log-ratios saturate here before they are exponentiated: e^60 = 1.1e26 still fits an f32, so that one impossible token
/// gives a large finite loss with derivative zero instead of an infinity. (TRL has no bound; verl's is 20.)
pub const MAX_LOG_RATIO: f64 = 60.0;

/// Over which unit the importance ratio is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ratio {
    /// `log r_t = logp_t - logp_old_t` (PPO, GRPO).
    Token {},
    /// `log r = mean_t(logp_t - logp_old_t)` over the trained tokens of the sequence, the same for each of them: the
    /// length-normalised sequence ratio. Source: GSPO, arXiv 2507.18071, equation 7.
    Sequence {},
}

impl Default for Ratio {
    fn default() -> Self {
        Self::Token {}
    }
}

impl Ratio {
    /// One log-ratio a token. Tokens of weight 0 count for nothing and get 0.
    ///
    /// # Shapes
    /// `log_ratio`: `logp - logp_old` `[M]`; `weight` `[M]`; `sequences`: lengths that add up to M (read by `Sequence` only).
    pub(crate) fn forward(self, mut log_ratio: Vec<f64>, weight: &[f64], sequences: &[usize]) -> Vec<f64> {
        for (l, w) in log_ratio.iter_mut().zip(weight) {
            if *w == 0.0 {
                *l = 0.0;
            }
        }
        self.over_units(log_ratio, weight, sequences)
    }

    /// Transpose of [`forward`](Self::forward): from d(loss)/d(log-ratio) a token to d(loss)/d(logp).
    pub(crate) fn backward(self, d_log_ratio: Vec<f64>, weight: &[f64], sequences: &[usize]) -> Vec<f64> {
        self.over_units(d_log_ratio, weight, sequences) // a mean that is handed to all its members is its own transpose
    }

    fn over_units(self, mut values: Vec<f64>, weight: &[f64], sequences: &[usize]) -> Vec<f64> {
        match self {
            Self::Token {} => values,
            Self::Sequence {} => {
                let mut start = 0;
                for length in sequences {
                    let rows = start..start + length;
                    mean_in_place(&mut values[rows.clone()], &weight[rows]);
                    start += length;
                }
                values
            }
        }
    }

    /// How far its values are coupled.
    pub fn coupling(self) -> Coupling {
        match self {
            Self::Token {} => Coupling::Token,
            Self::Sequence {} => Coupling::Sequence,
        }
    }
}

/// Replace each value of weight other than 0 by the mean over those, the rest by 0.
fn mean_in_place(values: &mut [f64], weight: &[f64]) {
    let count = weight.iter().filter(|w| **w != 0.0).count().max(1);
    let sum: f64 = values.iter().zip(weight).filter(|(_, w)| **w != 0.0).map(|(v, _)| v).sum();
    for (v, w) in values.iter_mut().zip(weight) {
        *v = if *w == 0.0 { 0.0 } else { sum / count as f64 };
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

    #[test]
    fn sequence_ratio_by_hand() {
        // Two sequences of 3 and 2 tokens; the last token of the first is masked: mean(0.2, 0.4) = 0.3, mean(-1, 0) = -0.5.
        let weight = [1.0, 0.5, 0.0, 1.0, 2.0];
        let out = Ratio::Sequence {}.forward(vec![0.2, 0.4, 9.0, -1.0, 0.0], &weight, &[3, 2]);
        let expected = [0.3, 0.3, 0.0, -0.5, -0.5];
        assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{out:?}");
        assert_eq!(Ratio::Token {}.forward(vec![0.2, 9.0], &[1.0, 0.0], &[]), [0.2, 0.0]);
    }

    #[test]
    fn backward_is_the_transpose_of_forward() {
        let (weight, sequences) = ([1.0, 0.0, 0.3, 1.0], [3, 1]);
        let (x, y) = (vec![0.5, -2.0, 1.5, 0.25], vec![1.0, 4.0, -0.5, 2.0]);
        for ratio in [Ratio::Token {}, Ratio::Sequence {}] {
            let masked: Vec<f64> = y.iter().zip(&weight).map(|(v, w)| if *w == 0.0 { 0.0 } else { *v }).collect();
            let fx = ratio.forward(x.clone(), &weight, &sequences);
            let by = ratio.backward(masked.clone(), &weight, &sequences);
            let left: f64 = fx.iter().zip(&masked).map(|(a, b)| a * b).sum();
            let right: f64 = x.iter().zip(&by).map(|(a, b)| a * b).sum();
            assert!((left - right).abs() < 1e-14);
        }
    }

    #[test]
    fn empty_and_fully_masked_sequences_are_zero() {
        assert_eq!(Ratio::Sequence {}.forward(vec![1.0, 2.0], &[0.0, 0.0], &[0, 2, 0]), [0.0, 0.0]);
    }

    #[test]
    fn the_exponential_saturates() {
        assert_eq!(bounded_exp(0.0), (1.0, 1.0));
        let (value, slope) = bounded_exp(1e4);
        assert!((value as f32).is_finite() && slope == 0.0);
    }
}
