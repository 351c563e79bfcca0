//! What an objective reports besides its loss.

use crate::ClipSide;

/// Sums over scored tokens of weight other than 0; micro-batches add up with [`merge`](Self::merge).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PolicyMetrics {
    /// Tokens counted.
    pub tokens: u64,
    /// `sum(weight * surrogate)`: the loss without its penalties.
    pub policy_loss: f64,
    /// Tokens on which the lower bound acted.
    pub clipped_low: u64,
    /// Tokens on which the upper bound acted.
    pub clipped_high: u64,
    /// Tokens (1 each, of all) on which another rule of the surrogate acted, for surrogates that have one.
    pub other: Option<Sum>,
    /// Factors of the correction for stale samples, where there is one.
    pub correction: Option<Sum>,
    /// Tokens (1 each, of all) that a selection by entropy or drift kept, where there is one.
    pub selected: Option<Sum>,
    /// Sum of the ratios.
    pub ratio_sum: f64,
    /// Largest ratio (0 when no token was counted).
    pub ratio_max: f64,
    /// KL estimates, when there is a reference.
    pub kl: Option<Sum>,
    /// Entropies, when they were given.
    pub entropy: Option<Sum>,
}

/// A sum and how many numbers went into it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// The sum.
    pub sum: f64,
    /// Its terms.
    pub count: u64,
}

impl Sum {
    pub(crate) fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn plus(self, other: Self) -> Self {
        Self { sum: self.sum + other.sum, count: self.count + other.count }
    }

    /// Mean (0 of nothing).
    pub fn mean(self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

impl PolicyMetrics {
    pub(crate) fn add_token(&mut self, weighted: f64, clip: ClipSide, log_ratio: f64) {
        let (ratio, _) = crate::ratio::bounded_exp(log_ratio);
        self.tokens += 1;
        self.policy_loss += weighted;
        self.clipped_low += u64::from(clip == ClipSide::Low);
        self.clipped_high += u64::from(clip == ClipSide::High);
        self.ratio_sum += ratio;
        self.ratio_max = self.ratio_max.max(ratio);
    }

    /// The sums of this part and another.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let both = |a: Option<Sum>, b: Option<Sum>| match (a, b) {
            (Some(a), Some(b)) => Some(a.plus(b)),
            (a, b) => a.or(b),
        };
        Self {
            tokens: self.tokens + other.tokens,
            policy_loss: self.policy_loss + other.policy_loss,
            clipped_low: self.clipped_low + other.clipped_low,
            clipped_high: self.clipped_high + other.clipped_high,
            ratio_sum: self.ratio_sum + other.ratio_sum,
            ratio_max: self.ratio_max.max(other.ratio_max),
            other: both(self.other, other.other),
            correction: both(self.correction, other.correction),
            selected: both(self.selected, other.selected),
            kl: both(self.kl, other.kl),
            entropy: both(self.entropy, other.entropy),
        }
    }

    /// The metrics by the names that users of TRL know, each a mean over trained tokens:
    ///
    /// - `policy_loss`: the weighted surrogate alone (a sum, like the loss);
    /// - `clip_ratio/low_mean`, `clip_ratio/high_mean`: share of tokens on which the lower / upper bound acted (which cuts their
    ///   gradient, except in `cispo`); `clip_ratio/region_mean`: either; `clip_ratio/other_mean`: another rule of the surrogate
    ///   (`delta`, a choice by covariance, a cap or floor), only for surrogates that have one;
    /// - `sampling/importance_sampling_ratio/mean`: of the bounded factors of the correction (only with one);
    /// - `selected`: share of tokens that the selection by entropy or drift kept (only with one);
    /// - `ratio/mean`, `ratio/max`: of the importance ratio, exactly 1 in the first update after sampling;
    /// - `kl`: mean of the chosen estimator against the reference, in nats (only with a KL penalty);
    /// - `entropy`: mean entropy of the next-token distribution, in nats (only when given).
    pub fn entries(&self) -> Vec<(&'static str, f64)> {
        let share = |count: u64| count as f64 / self.tokens.max(1) as f64;
        let mut entries = vec![
            ("policy_loss", self.policy_loss),
            ("clip_ratio/low_mean", share(self.clipped_low)),
            ("clip_ratio/high_mean", share(self.clipped_high)),
            ("clip_ratio/region_mean", share(self.clipped_low + self.clipped_high)),
            ("ratio/mean", self.ratio_sum / self.tokens.max(1) as f64),
            ("ratio/max", self.ratio_max),
        ];
        entries.extend(self.other.map(|other| ("clip_ratio/other_mean", other.mean())));
        entries.extend(self.correction.map(|c| ("sampling/importance_sampling_ratio/mean", c.mean())));
        entries.extend(self.selected.map(|selected| ("selected", selected.mean())));
        entries.extend(self.kl.map(|kl| ("kl", kl.mean())));
        entries.extend(self.entropy.map(|entropy| ("entropy", entropy.mean())));
        entries
    }
}
