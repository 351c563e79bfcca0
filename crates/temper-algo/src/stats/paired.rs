//! Paired comparisons: the same tasks before and after.

use serde::{Deserialize, Serialize};

use super::distribution::ln_gamma;
use super::interval::{bootstrap_mean, check_confidence, mean};
use crate::Error;

/// What changed between two measurements of the same items.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairedDifference {
    /// Mean of `after - before`.
    pub difference: f64,
    /// Lower end of its interval (percentile bootstrap over items).
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Items that rose.
    pub gained: u64,
    /// Items that fell.
    pub lost: u64,
    /// Two-sided p-value of the exact sign test over the items that changed: McNemar's exact test when scores are 0 and 1.
    pub p_value: f64,
}

/// Compare `after` with `before`, item by item.
pub fn paired_difference(
    before: &[f64],
    after: &[f64],
    confidence: f64,
    resamples: usize,
    seed: u64,
) -> Result<PairedDifference, Error> {
    check_confidence(confidence)?;
    if before.len() != after.len() {
        return Err(Error::Argument {
            name: "after",
            value: after.len() as f64,
            expected: "as many items as `before`, in the same order",
        });
    }
    let differences: Vec<f64> = before.iter().zip(after).map(|(b, a)| a - b).collect();
    mean(&differences)?;
    let gained = differences.iter().filter(|d| **d > 0.0).count() as u64;
    let lost = differences.iter().filter(|d| **d < 0.0).count() as u64;
    let interval = bootstrap_mean(&differences, confidence, resamples, seed)?;
    Ok(PairedDifference {
        difference: interval.estimate,
        low: interval.low,
        high: interval.high,
        gained,
        lost,
        p_value: mcnemar_exact(gained, lost),
    })
}

/// McNemar's exact test: two-sided binomial p-value (p = 1/2) of `gained` against `lost` discordant pairs; 1 when there are none.
///
/// ```
/// // 1 against 5: 2 * (C(6, 0) + C(6, 1)) / 64 = 14 / 64.
/// assert!((temper_algo::stats::mcnemar_exact(1, 5) - 14.0 / 64.0).abs() < 1e-12);
/// ```
pub fn mcnemar_exact(gained: u64, lost: u64) -> f64 {
    if gained == lost {
        return 1.0; // the tails meet in the middle; say so exactly
    }
    let n = (gained + lost) as f64;
    let ln_choose = |k: u64| ln_gamma(n + 1.0) - ln_gamma(k as f64 + 1.0) - ln_gamma(n - k as f64 + 1.0);
    let tail: f64 = (0..=gained.min(lost)).map(|k| (ln_choose(k) - n * std::f64::consts::LN_2).exp()).sum();
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcnemar_by_hand() {
        assert_eq!(mcnemar_exact(0, 0), 1.0);
        assert_eq!(mcnemar_exact(3, 3), 1.0);
        assert!((mcnemar_exact(0, 10) - 2.0 / 1024.0).abs() < 1e-13);
        assert_eq!(mcnemar_exact(2, 9), mcnemar_exact(9, 2));
        assert!(mcnemar_exact(400, 600) < 1e-9 && mcnemar_exact(400, 600) > 0.0);
    }

    #[test]
    fn paired_by_hand() {
        let (before, after) = ([0.0, 0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0, 0.0]);
        let d = paired_difference(&before, &after, 0.95, 500, 3).unwrap();
        assert_eq!((d.gained, d.lost), (2, 1));
        assert!((d.p_value - 1.0).abs() < 1e-12);
        assert!((d.difference - 0.2).abs() < 1e-15 && d.low <= d.difference && d.difference <= d.high);
        assert!(paired_difference(&before, &after[1..], 0.95, 500, 3).is_err());
        assert!(paired_difference(&[], &[], 0.95, 500, 3).is_err());
    }
}
