//! Controllers: from a measurement of the last step to the next value of a coefficient.
//!
//! The value itself is all the state there is; a loop keeps it in its checkpoint.

use serde::{Deserialize, Serialize};

use crate::{Problem, Schedule};

/// How a coefficient (KL's `beta`, the entropy bonus, a sampling temperature) moves during a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Controller {
    /// It stays.
    Fixed {},
    /// `value *= 1 + clip(measured / target - 1, -limit, limit) * samples / horizon`: a KL above the target raises its coefficient.
    /// Source: Ziegler et al., arXiv 1909.08593, section 2.2; verl's and TRL's adaptive KL controller.
    Proportional {
        /// The measurement aimed at (for a KL, nats).
        target: f64,
        /// Samples over which an error of 1 would change the value e-fold.
        horizon: f64,
        /// Largest relative error that counts.
        #[serde(default = "default_limit")]
        limit: f64,
    },
    /// Above `band * target` the value is multiplied by `factor`, below `target / band` divided by it. Source: PPO,
    /// arXiv 1707.06347, section 4 (band 1.5, factor 2).
    Doubling {
        /// The measurement aimed at.
        target: f64,
        /// How far off it may be, as a factor above 1.
        #[serde(default = "default_band")]
        band: f64,
        /// What the value is multiplied by, above 1.
        #[serde(default = "default_factor")]
        factor: f64,
    },
    /// `value += delta` while the measurement is at most the target, else `-= delta`, within the bounds: for knobs that raise what
    /// is measured, an entropy coefficient (TRL's `entropy_target`; Skywork-OR1, arXiv 2505.22312) or the rollouts' temperature
    /// (AceReason-Nemotron 1.1 (A039) holds temperature-adjusted entropy near 0.3).
    Stepwise {
        /// The measurement aimed at (for an entropy, nats).
        target: f64,
        /// Change a step.
        delta: f64,
        /// Smallest value.
        low: f64,
        /// Largest value.
        high: f64,
    },
    /// `value = first * schedule(step)`: a coefficient on a schedule, as in GRPO-D (A051), whose abstract leaves the curve open.
    Scheduled {
        /// The curve, as of a learning rate.
        schedule: Schedule,
    },
}

fn default_limit() -> f64 {
    0.2
}

fn default_band() -> f64 {
    1.5
}

fn default_factor() -> f64 {
    2.0
}

impl Default for Controller {
    fn default() -> Self {
        Self::Fixed {}
    }
}

/// What a controller is told after an optimiser step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// The measurement.
    pub measured: f64,
    /// Samples behind it.
    pub samples: u64,
    /// The value at the start of the run.
    pub first: f64,
    /// The step that comes next, from 0.
    pub step: u64,
    /// Steps of the run.
    pub total: u64,
}

impl Controller {
    /// The value of the next step. A measurement that is not finite changes nothing.
    ///
    /// ```
    /// use temper_algo::{Controller, Reading};
    /// let kl = Controller::Proportional { target: 6.0, horizon: 10_000.0, limit: 0.2 };
    /// let reading = Reading { measured: 6.6, samples: 1000, ..Reading::default() };
    /// assert!((kl.next(0.2, &reading) - 0.202).abs() < 1e-12);
    /// ```
    pub fn next(&self, value: f64, reading: &Reading) -> f64 {
        if let Self::Scheduled { schedule } = self {
            return reading.first * schedule.value(reading.step, reading.total);
        }
        if !reading.measured.is_finite() {
            return value;
        }
        let measured = reading.measured;
        match *self {
            Self::Fixed {} | Self::Scheduled { .. } => value,
            Self::Proportional { target, horizon, limit } => {
                let error = (measured / target - 1.0).clamp(-limit, limit);
                value * (1.0 + error * reading.samples as f64 / horizon)
            }
            Self::Doubling { target, band, factor } => match () {
                () if measured > target * band => value * factor,
                () if measured < target / band => value / factor,
                () => value,
            },
            Self::Stepwise { target, delta, low, high } => {
                let moved = if measured <= target { value + delta } else { value - delta };
                moved.max(low).min(high)
            }
        }
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        let positive = |fields: &[(&str, f64)]| -> Vec<Problem> {
            let hint = "use the controller `fixed` for a value that stays";
            fields.iter().filter_map(|(field, value)| Problem::unless_positive(field, *value, hint)).collect()
        };
        match *self {
            Self::Fixed {} => vec![],
            Self::Proportional { target, horizon, limit } => {
                positive(&[("target", target), ("horizon", horizon), ("limit", limit)])
            }
            Self::Doubling { target, band, factor } => {
                let mut problems = positive(&[("target", target)]);
                problems.extend(
                    [("band", band), ("factor", factor)].into_iter().filter(|(_, v)| v.is_nan() || *v <= 1.0).map(
                        |(field, v)| {
                            Problem::new(field, format!("{field} is {v}, expected more than 1"), "1.5 and 2 are PPO's")
                        },
                    ),
                );
                problems
            }
            Self::Stepwise { target, delta, low, high } => {
                let mut problems = positive(&[("target", target), ("delta", delta)]);
                if low.partial_cmp(&high) != Some(std::cmp::Ordering::Less) {
                    let message = format!("low is {low} and high {high}: no value lies between");
                    problems.push(Problem::new("low", message, "give the bounds in order"));
                }
                problems
            }
            Self::Scheduled { schedule } => schedule.check().into_iter().map(|p| p.within("schedule")).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(measured: f64) -> Reading {
        Reading { measured, samples: 100, first: 0.4, step: 5, total: 10 }
    }

    #[test]
    fn by_hand() {
        assert_eq!(Controller::Fixed {}.next(0.3, &read(9.0)), 0.3);
        // Error 9 / 6 - 1 = 0.5 is limited to 0.2: 0.5 * (1 + 0.2 * 100 / 1000) = 0.51; and 3 / 6 - 1 to -0.2: 0.49.
        let proportional = Controller::Proportional { target: 6.0, horizon: 1000.0, limit: 0.2 };
        assert!((proportional.next(0.5, &read(9.0)) - 0.51).abs() < 1e-15);
        assert!((proportional.next(0.5, &read(3.0)) - 0.49).abs() < 1e-15);
        let doubling = Controller::Doubling { target: 0.01, band: 1.5, factor: 2.0 };
        assert_eq!([0.02, 0.012, 0.005].map(|kl| doubling.next(1.0, &read(kl))), [2.0, 1.0, 0.5]);
        let stepwise = Controller::Stepwise { target: 0.3, delta: 0.125, low: 0.0, high: 1.0 };
        assert_eq!([0.2, 0.3, 0.4].map(|e| stepwise.next(0.5, &read(e))), [0.625, 0.625, 0.375]);
        assert_eq!((stepwise.next(1.0, &read(0.1)), stepwise.next(0.0, &read(0.9))), (1.0, 0.0));
        let schedule = Schedule::Linear { warmup_steps: None, warmup_ratio: None, min_ratio: 0.0 };
        assert_eq!(Controller::Scheduled { schedule }.next(9.0, &read(f64::NAN)), 0.2);
    }

    #[test]
    fn a_measurement_that_is_not_finite_changes_nothing() {
        assert_eq!(Controller::Doubling { target: 0.1, band: 1.5, factor: 2.0 }.next(0.7, &read(f64::NAN)), 0.7);
    }

    #[test]
    fn bad_settings_are_reported_together() {
        assert_eq!(Controller::Doubling { target: 0.0, band: 1.0, factor: 0.5 }.check().len(), 3);
        assert_eq!(Controller::Stepwise { target: 0.3, delta: 0.1, low: 1.0, high: 0.0 }.check().len(), 1);
        assert!(Controller::default().check().is_empty());
    }
}
