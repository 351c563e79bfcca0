//! Which tokens keep their policy gradient: by entropy over the step, and by how far a sequence has drifted.
//!
//! Both are factors of 0 or 1 on the surrogate; they carry no gradient, leave the averaging weights as they are, and do not
//! touch the KL penalty or the entropy bonus.

use serde::{Deserialize, Serialize};

use crate::{Problem, Rows};

/// Keep the tokens whose entropy is at least the step's quantile `1 - share` (linear interpolation, as `torch.quantile`), over
/// the trained tokens. The forking tokens of reasoning: arXiv 2506.01939; Light-IF (A038) weighs by entropy likewise.
/// TRL's `top_entropy_quantile` (there the mask also acts on the entropy bonus).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TopEntropy {
    /// Share of the tokens to keep; the paper's 0.2 unless given.
    #[serde(default = "default_share")]
    pub share: f64,
}

fn default_share() -> f64 {
    0.2
}

impl TopEntropy {
    /// Whether each token is kept `[M]`.
    pub(crate) fn keep(self, rows: &Rows, entropy: &[f64]) -> Vec<bool> {
        let mut sorted: Vec<f64> = rows.live().map(|row| entropy[row]).collect();
        sorted.sort_by(f64::total_cmp);
        let threshold = quantile(&sorted, 1.0 - self.share);
        (0..entropy.len()).map(|row| rows.weight[row] != 0.0 && entropy[row] >= threshold).collect()
    }

    /// Settings that make no sense.
    pub fn check(self) -> Vec<Problem> {
        let share = self.share;
        if share > 0.0 && share < 1.0 {
            return vec![];
        }
        let message = format!("share is {share}, expected more than 0 and less than 1");
        vec![Problem::new("share", message, "0.2 is the paper's value; remove the table to keep all tokens")]
    }
}

/// The quantile `q` of sorted values; 0 of none.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * sorted.len().saturating_sub(1) as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(below), sorted.get(above)) {
        (Some(low), Some(high)) => low + (at - below as f64) * (high - low),
        _ => 0.0,
    }
}

/// Drop a token of negative advantage when its sequence has drifted: `mean_t(logp_sampled - logp) > threshold` over the trained
/// tokens, with `logp_gen` for the sampled one where a correction reads it, else `logp_old`. Source: DeepSeek-V3.2,
/// arXiv 2512.02556, equation 9; TRL's `off_policy_mask_threshold`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OffPolicyMask {
    /// Largest mean drift, in nats a token.
    pub threshold: f64,
}

impl OffPolicyMask {
    /// Whether each token is kept `[M]`.
    pub(crate) fn keep(self, rows: &Rows, sampled: &[f64]) -> Vec<bool> {
        let mut keep = vec![true; rows.logp.len()];
        for range in rows.sequence_ranges() {
            let live: Vec<usize> = range.filter(|row| rows.weight[*row] != 0.0).collect();
            let drift: f64 = live.iter().map(|row| sampled[*row] - rows.logp[*row]).sum();
            if drift / live.len().max(1) as f64 > self.threshold {
                live.iter().filter(|row| rows.adv[**row] < 0.0).for_each(|row| keep[*row] = false);
            }
        }
        keep
    }

    /// Settings that make no sense.
    pub fn check(self) -> Vec<Problem> {
        Problem::unless_positive("threshold", self.threshold, "0.5 is an example of TRL's").into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_entropy_by_hand() {
        let rows = Rows { weight: &[1.0, 1.0, 0.0, 1.0, 1.0, 1.0], ..Rows::EMPTY };
        let entropy = [0.1, 0.9, 9.0, 0.5, 0.3, 0.7];
        // Sorted 0.1, 0.3, 0.5, 0.7, 0.9; quantile 0.6 at position 2.4: 0.58.
        assert!((quantile(&[0.1, 0.3, 0.5, 0.7, 0.9], 0.6) - 0.58).abs() < 1e-15);
        assert_eq!(TopEntropy { share: 0.4 }.keep(&rows, &entropy), [false, true, false, false, false, true]);
        assert_eq!(TopEntropy { share: 0.4 }.keep(&Rows::EMPTY, &[]), [false; 0]);
    }

    #[test]
    fn off_policy_mask_by_hand() {
        // Drifts: mean(1, 0.2) = 0.6 and 0.4; the masked token does not count.
        let rows = Rows {
            logp: &[-2.0, -1.2, -9.0, -1.4],
            adv: &[-1.0, 1.0, -1.0, -1.0],
            weight: &[1.0, 1.0, 0.0, 1.0],
            sequences: &[3, 1],
            ..Rows::EMPTY
        };
        let keep = OffPolicyMask { threshold: 0.5 }.keep(&rows, &[-1.0; 4]);
        assert_eq!(keep, [false, true, true, true]);
    }

    #[test]
    fn bad_settings_are_reported() {
        assert_eq!(TopEntropy { share: 1.0 }.check().len(), 1);
        assert_eq!(OffPolicyMask { threshold: 0.0 }.check().len(), 1);
    }
}
