//! Intervals for one sample, and pass@k.

use serde::{Deserialize, Serialize};

use super::distribution::{two_sided_normal, two_sided_student};
use crate::{Error, sample_std, seed::SplitMix64};

/// An estimate and its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    pub estimate: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Wilson's score interval for a share: `successes` of `n`. Source: Wilson 1927; sound at 0, at n and for small n.
///
/// ```
/// let share = temper_algo::stats::wilson(8, 10, 0.95).unwrap();
/// assert!((share.low - 0.4902).abs() < 1e-4 && (share.high - 0.9433).abs() < 1e-4);
/// ```
pub fn wilson(successes: u64, n: u64, confidence: f64) -> Result<Interval, Error> {
    check_confidence(confidence)?;
    if n == 0 || successes > n {
        return Err(Error::Argument {
            name: "successes",
            value: successes as f64,
            expected: "at most n, with n above 0",
        });
    }
    let (n, z) = (n as f64, two_sided_normal(confidence));
    let p = successes as f64 / n;
    let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    // At the ends the closed form touches 0 and 1 only up to rounding.
    Ok(Interval { estimate: p, low: (centre - half).clamp(0.0, p), high: (centre + half).clamp(p, 1.0) })
}

/// Student's interval for a mean: `mean +- t(n - 1) * std / sqrt(n)`. For one value the interval is that value alone.
pub fn mean_interval(values: &[f64], confidence: f64) -> Result<Interval, Error> {
    check_confidence(confidence)?;
    let estimate = mean(values)?;
    let n = values.len() as f64;
    let half =
        if values.len() < 2 { 0.0 } else { two_sided_student(confidence, n - 1.0) * sample_std(values) / n.sqrt() };
    Ok(Interval { estimate, low: estimate - half, high: estimate + half })
}

/// Percentile bootstrap interval for a mean over `resamples` resamples; the same seed gives the same bits.
pub fn bootstrap_mean(values: &[f64], confidence: f64, resamples: usize, seed: u64) -> Result<Interval, Error> {
    check_confidence(confidence)?;
    let estimate = mean(values)?;
    if resamples == 0 {
        return Err(Error::Argument { name: "resamples", value: 0.0, expected: "at least 1 (1000 is usual)" });
    }
    let mut rng = SplitMix64::new(seed);
    let mut resample = || (0..values.len()).map(|_| values[rng.below(values.len())]).sum::<f64>() / values.len() as f64;
    let mut means: Vec<f64> = (0..resamples).map(|_| resample()).collect();
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - confidence) / 2.0;
    Ok(Interval { estimate, low: quantile(&means, tail), high: quantile(&means, 1.0 - tail) })
}

/// Quantile of sorted values with linear interpolation (NumPy's default).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q * (sorted.len() - 1) as f64;
    let (below, share) = (position.floor() as usize, position.fract());
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + share * (sorted[above] - sorted[below])
}

/// Unbiased pass@k of one task: `1 - C(n - correct, k) / C(n, k)` for `n` samples of which `correct` pass.
/// Source: Chen et al. 2021, arXiv 2107.03374, equation 1. Requires `k <= n`.
///
/// ```
/// // 4 samples, 1 correct, k = 2: 1 - C(3, 2) / C(4, 2) = 1/2.
/// assert_eq!(temper_algo::stats::pass_at_k(4, 1, 2).unwrap(), 0.5);
/// ```
pub fn pass_at_k(n: u64, correct: u64, k: u64) -> Result<f64, Error> {
    if k == 0 || k > n {
        return Err(Error::Argument { name: "k", value: k as f64, expected: "1 to the number of samples" });
    }
    if correct > n {
        return Err(Error::Argument {
            name: "correct",
            value: correct as f64,
            expected: "at most the number of samples",
        });
    }
    if n - correct < k {
        return Ok(1.0);
    }
    let miss: f64 = (n - correct + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product();
    Ok(1.0 - miss)
}

pub(super) fn mean(values: &[f64]) -> Result<f64, Error> {
    if values.is_empty() {
        return Err(Error::Argument { name: "values", value: 0.0, expected: "at least one value" });
    }
    Ok(values.iter().sum::<f64>() / values.len() as f64)
}

pub(super) fn check_confidence(confidence: f64) -> Result<(), Error> {
    if confidence > 0.0 && confidence < 1.0 {
        return Ok(());
    }
    Err(Error::Argument { name: "confidence", value: confidence, expected: "between 0 and 1, such as 0.95" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wilson_at_the_ends() {
        // 0 of 10: high = z^2 / (n + z^2) = 3.841459 / 13.841459 = 0.277533.
        let none = wilson(0, 10, 0.95).unwrap();
        assert!(none.low == 0.0 && (none.high - 0.277_533).abs() < 1e-6);
        let all = wilson(10, 10, 0.95).unwrap();
        assert!(all.high == 1.0 && (all.low - 0.722_467).abs() < 1e-6);
        assert!(wilson(1, 0, 0.95).is_err() && wilson(3, 2, 0.95).is_err() && wilson(1, 2, 95.0).is_err());
    }

    #[test]
    fn student_by_hand() {
        // 1, 2, 3: mean 2, std 1, t(0.975; 2) = 4.302653, half = 4.302653 / sqrt(3) = 2.484138.
        let interval = mean_interval(&[1.0, 2.0, 3.0], 0.95).unwrap();
        assert!((interval.low + 0.484_138).abs() < 1e-6 && (interval.high - 4.484_138).abs() < 1e-6);
        assert_eq!(mean_interval(&[5.0], 0.95).unwrap(), Interval { estimate: 5.0, low: 5.0, high: 5.0 });
        assert!(mean_interval(&[], 0.95).is_err());
    }

    #[test]
    fn bootstrap_is_seeded_and_close_to_student() {
        let values: Vec<f64> = (0..60).map(|i| f64::from(i % 7)).collect();
        let a = bootstrap_mean(&values, 0.95, 2000, 1).unwrap();
        assert_eq!(a, bootstrap_mean(&values, 0.95, 2000, 1).unwrap());
        assert_ne!(a, bootstrap_mean(&values, 0.95, 2000, 2).unwrap());
        let t = mean_interval(&values, 0.95).unwrap();
        assert!((a.low - t.low).abs() < 0.1 && (a.high - t.high).abs() < 0.1);
    }

    #[test]
    fn pass_at_k_by_hand() {
        assert_eq!(pass_at_k(5, 0, 3).unwrap(), 0.0);
        assert_eq!(pass_at_k(5, 3, 3).unwrap(), 1.0);
        assert!((pass_at_k(10, 3, 1).unwrap() - 0.3).abs() < 1e-15);
        // 1 - C(7, 5) / C(10, 5) = 1 - 21 / 252.
        assert!((pass_at_k(10, 3, 5).unwrap() - (1.0 - 21.0 / 252.0)).abs() < 1e-14);
        assert!(pass_at_k(4, 1, 5).is_err() && pass_at_k(4, 5, 1).is_err() && pass_at_k(4, 1, 0).is_err());
    }

    proptest! {
        #[test]
        fn wilson_holds_its_estimate_and_shrinks(n in 1u64..500, share in 0.0f64..=1.0) {
            let successes = (share * n as f64) as u64;
            let small = wilson(successes, n, 0.95).unwrap();
            let large = wilson(successes * 4, n * 4, 0.95).unwrap();
            prop_assert!(0.0 <= small.low && small.low <= small.estimate && small.estimate <= small.high && small.high <= 1.0);
            prop_assert!(large.high - large.low < small.high - small.low);
        }
    }
}
