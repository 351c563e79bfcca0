//! Schedules: from the optimiser step to a multiplier of the peak value.

use serde::{Deserialize, Serialize};

use crate::Problem;

/// A multiplier in [0, 1] over a run, in the convention of Hugging Face transformers (`get_*_schedule_with_warmup`): optimiser step
/// `k` of `total`, counted from 0, uses `value(k, total)`. During W warm-up steps it is `k / W`, so the very first step has
/// multiplier 0; afterwards it follows `progress = (k - W) / (total - W)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// 1 after the warm-up.
    Constant {
        /// Warm-up in steps; give this or `warmup_ratio`, not both; neither = none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_steps: Option<u64>,
        /// Warm-up as a share of all steps, rounded up.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_ratio: Option<f64>,
    },
    /// `min_ratio + (1 - min_ratio) * (1 - progress)`.
    Linear {
        /// Warm-up in steps; give this or `warmup_ratio`, not both; neither = none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_steps: Option<u64>,
        /// Warm-up as a share of all steps, rounded up.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_ratio: Option<f64>,
        /// Where it ends.
        #[serde(default)]
        min_ratio: f64,
    },
    /// `min_ratio + (1 - min_ratio) * (1 + cos(pi * progress)) / 2`.
    Cosine {
        /// Warm-up in steps; give this or `warmup_ratio`, not both; neither = none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_steps: Option<u64>,
        /// Warm-up as a share of all steps, rounded up.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_ratio: Option<f64>,
        /// Where it ends.
        #[serde(default)]
        min_ratio: f64,
    },
}

impl Default for Schedule {
    /// Constant, no warm-up.
    fn default() -> Self {
        Self::Constant { warmup_steps: None, warmup_ratio: None }
    }
}

/// Length of a warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// None.
    None,
    /// So many steps.
    Steps(u64),
    /// A share of all steps, rounded up.
    Ratio(f64),
}

impl Warmup {
    fn steps(self, total: u64) -> u64 {
        match self {
            Self::None => 0,
            Self::Steps(steps) => steps,
            Self::Ratio(ratio) => (total as f64 * ratio).ceil() as u64,
        }
    }
}

impl Schedule {
    /// The multiplier of optimiser step `step` (from 0) of `total`. Beyond the end it keeps its last value.
    ///
    /// ```
    /// use temper_algo::Schedule;
    /// let cosine = Schedule::Cosine { warmup_steps: Some(2), warmup_ratio: None, min_ratio: 0.0 };
    /// assert_eq!([0, 1, 2, 6, 10].map(|k| (cosine.value(k, 10) * 100.0).round()), [0.0, 50.0, 100.0, 50.0, 0.0]);
    /// ```
    pub fn value(&self, step: u64, total: u64) -> f64 {
        let warmup = self.warmup().steps(total);
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let progress = ((step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64).min(1.0);
        match self {
            Self::Constant { .. } => 1.0,
            Self::Linear { min_ratio, .. } => min_ratio + (1.0 - min_ratio) * (1.0 - progress),
            Self::Cosine { min_ratio, .. } => {
                min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }

    /// The warm-up (steps when both are given, which [`check`](Self::check) refuses).
    pub fn warmup(&self) -> Warmup {
        match self.warmup_settings() {
            (Some(steps), _) => Warmup::Steps(steps),
            (None, Some(ratio)) => Warmup::Ratio(ratio),
            (None, None) => Warmup::None,
        }
    }

    fn warmup_settings(&self) -> (Option<u64>, Option<f64>) {
        match *self {
            Self::Constant { warmup_steps, warmup_ratio }
            | Self::Linear { warmup_steps, warmup_ratio, .. }
            | Self::Cosine { warmup_steps, warmup_ratio, .. } => (warmup_steps, warmup_ratio),
        }
    }

    fn min_ratio(&self) -> f64 {
        match *self {
            Self::Constant { .. } => 0.0,
            Self::Linear { min_ratio, .. } | Self::Cosine { min_ratio, .. } => min_ratio,
        }
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = vec![];
        if let (Some(steps), Some(ratio)) = self.warmup_settings() {
            problems.push(Problem::new(
                "warmup_steps",
                format!("both warmup_steps = {steps} and warmup_ratio = {ratio} are given, expected one"),
                "remove one of them",
            ));
        }
        let shares = [("warmup_ratio", self.warmup_settings().1.unwrap_or(0.0)), ("min_ratio", self.min_ratio())];
        problems.extend(shares.into_iter().filter(|(_, v)| !(0.0..=1.0).contains(v)).map(|(field, v)| {
            Problem::new(field, format!("{field} is {v}, expected 0 to 1"), "it is a share, not a number of steps")
        }));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let linear = Schedule::Linear { warmup_steps: Some(4), warmup_ratio: None, min_ratio: 0.2 };
        // Warm-up 0, 1/4, .., then from 1 down to 0.2 over 16 steps.
        for (k, expected) in [(0, 0.0), (1, 0.25), (4, 1.0), (12, 0.6), (20, 0.2), (99, 0.2)] {
            assert!((linear.value(k, 20) - expected).abs() < 1e-15, "{k}");
        }
        let constant = Schedule::Constant { warmup_steps: None, warmup_ratio: Some(0.03) };
        // ceil(0.03 * 100) = 3 steps.
        assert_eq!([0, 3, 50].map(|k| constant.value(k, 100)), [0.0, 1.0, 1.0]);
        let cosine = Schedule::Cosine { warmup_steps: None, warmup_ratio: None, min_ratio: 0.1 };
        // A quarter of the way: 0.1 + 0.9 * (1 + cos(pi / 4)) / 2 = 0.8681980515.
        assert!((cosine.value(25, 100) - 0.868_198_051_5).abs() < 1e-10);
        assert_eq!((cosine.value(0, 100), cosine.value(100, 100)), (1.0, 0.1));
    }

    #[test]
    fn degenerate_lengths_stay_finite() {
        for total in [0, 1, 2] {
            for schedule in [
                Schedule::default(),
                Schedule::Linear { warmup_steps: Some(5), warmup_ratio: None, min_ratio: 0.0 },
                Schedule::Cosine { warmup_steps: None, warmup_ratio: Some(1.0), min_ratio: 0.0 },
            ] {
                assert!((0..4).all(|k| (0.0..=1.0).contains(&schedule.value(k, total))));
            }
        }
    }

    #[test]
    fn both_warmups_and_bad_shares_are_reported_together() {
        let bad = Schedule::Cosine { warmup_steps: Some(3), warmup_ratio: Some(30.0), min_ratio: -1.0 };
        let fields: Vec<_> = bad.check().into_iter().map(|p| p.field).collect();
        assert_eq!(fields, ["warmup_steps", "warmup_ratio", "min_ratio"]);
    }
}
