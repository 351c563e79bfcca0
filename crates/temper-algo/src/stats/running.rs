//! Running statistics of a stream.

use serde::{Deserialize, Serialize};

/// Count, mean, extremes and spread of a stream of numbers (Welford's recurrence; merging by Chan et al.).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Running {
    count: u64,
    mean: f64,
    squares: f64,
    min: Option<f64>,
    max: Option<f64>,
}

impl Running {
    /// Take one number.
    pub fn push(&mut self, value: f64) {
        self.count += 1;
        let delta = value - self.mean;
        self.mean += delta / self.count as f64;
        self.squares += delta * (value - self.mean);
        self.min = Some(self.min.map_or(value, |m| m.min(value)));
        self.max = Some(self.max.map_or(value, |m| m.max(value)));
    }

    /// The statistics of both streams, this one first.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        if self.count == 0 || other.count == 0 {
            return if self.count == 0 { other } else { self };
        }
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        let share = other.count as f64 / count as f64;
        Self {
            count,
            mean: self.mean + delta * share,
            squares: self.squares + other.squares + delta * delta * self.count as f64 * share,
            min: self.min.zip(other.min).map(|(a, b)| a.min(b)),
            max: self.max.zip(other.max).map(|(a, b)| a.max(b)),
        }
    }

    /// Numbers taken.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Mean; `None` before the first number.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then_some(self.mean)
    }

    /// Standard deviation with divisor n - 1; 0 for one number, `None` before the first.
    pub fn std(&self) -> Option<f64> {
        (self.count > 0).then(|| (self.squares / (self.count - 1).max(1) as f64).sqrt())
    }

    /// Smallest number.
    pub fn min(&self) -> Option<f64> {
        self.min
    }

    /// Largest number.
    pub fn max(&self) -> Option<f64> {
        self.max
    }
}

impl Extend<f64> for Running {
    fn extend<I: IntoIterator<Item = f64>>(&mut self, values: I) {
        values.into_iter().for_each(|v| self.push(v));
    }
}

impl FromIterator<f64> for Running {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut running = Self::default();
        running.extend(values);
        running
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        let r: Running = [2.0, 4.0, 9.0].into_iter().collect();
        // Squares 9 + 1 + 16 = 26, over 2 = 13.
        assert_eq!((r.count(), r.mean(), r.min(), r.max()), (3, Some(5.0), Some(2.0), Some(9.0)));
        assert!((r.std().unwrap() - 13f64.sqrt()).abs() < 1e-14);
        assert_eq!((Running::default().mean(), Running::default().std()), (None, None));
        assert_eq!([3.0].into_iter().collect::<Running>().std(), Some(0.0));
    }

    proptest! {
        #[test]
        fn merging_equals_one_stream(values in prop::collection::vec(-10.0f64..10.0, 1..40), cut in 0usize..40) {
            let cut = cut.min(values.len());
            let whole: Running = values.iter().copied().collect();
            let left: Running = values[..cut].iter().copied().collect();
            let merged = left.merge(values[cut..].iter().copied().collect());
            prop_assert_eq!((whole.count(), whole.min(), whole.max()), (merged.count(), merged.min(), merged.max()));
            prop_assert!((whole.mean().unwrap() - merged.mean().unwrap()).abs() < 1e-12);
            prop_assert!((whole.std().unwrap() - merged.std().unwrap()).abs() < 1e-9);
            prop_assert!((whole.std().unwrap() - crate::sample_std(&values)).abs() < 1e-9);
        }
    }
}
