//! Constraints on every example's loss, kept by multipliers.

use serde::{Deserialize, Serialize};

use crate::Problem;

/// `loss_i <= epsilon` for every example i instead of a small mean: example i's weight is multiplied by `lambda_i`, and after
/// each step that had it `lambda_i <- max(0, lambda_i + lr (loss_i - epsilon - lambda_i / resilience))`, the last part only with
/// `resilience`: the slack that a resilient constraint allows itself. Feasible learning, Ramirez et al., arXiv 2501.14912
/// (the Lagrangian's gradient ascent; the optimal slack of the quadratic penalty `resilience / 2 u^2` put in).
///
/// Departure: multipliers start at `init` = 1, which is plain training, and not at 0, where the first steps train nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SampleConstraint {
    /// The loss that every example may have, nats a trained token.
    pub epsilon: f64,
    /// Step size of the multipliers, above 0.
    pub lr: f64,
    /// Multiplier of an example not yet seen (default 1).
    #[serde(default = "init")]
    pub init: f64,
    /// Price of slack, above 0; none unless given: constraints are then hard and multipliers unbounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resilience: Option<f64>,
}

fn init() -> f64 {
    1.0
}

impl SampleConstraint {
    /// The multiplier after a step in which the example's mean loss was `loss`.
    ///
    /// ```
    /// use temper_algo::SampleConstraint;
    /// let constraint = SampleConstraint { epsilon: 0.5, lr: 0.1, init: 1.0, resilience: None };
    /// assert_eq!(constraint.update(1.0, 2.5), 1.2);
    /// ```
    #[must_use]
    pub fn update(&self, multiplier: f64, loss: f64) -> f64 {
        let slack = self.resilience.map_or(0.0, |alpha| multiplier / alpha);
        (multiplier + self.lr * (loss - self.epsilon - slack)).max(0.0)
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        let values = [
            ("epsilon", Some(self.epsilon), self.epsilon >= 0.0, "at least 0"),
            ("lr", Some(self.lr), self.lr > 0.0, "above 0"),
            ("init", Some(self.init), self.init >= 0.0, "at least 0"),
            ("resilience", self.resilience, self.resilience.is_none_or(|a| a > 0.0), "above 0"),
        ];
        let bad = values.into_iter().filter_map(|(name, value, ok, expected)| {
            let value = value.filter(|v| !(ok && v.is_finite()))?;
            let message = format!("{name} is {value}, expected a finite number {expected}");
            Some(Problem::new(name, message, "losses are in nats a trained token; remove `constraint` to go without"))
        });
        bad.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: SampleConstraint = SampleConstraint { epsilon: 0.5, lr: 0.1, init: 1.0, resilience: None };

    #[test]
    fn multipliers_grow_above_epsilon_shrink_below_and_stop_at_zero() {
        assert!(PLAIN.update(1.0, 0.6) > 1.0 && PLAIN.update(1.0, 0.4) < 1.0);
        assert_eq!((PLAIN.update(1.0, 0.5), PLAIN.update(0.01, 0.0)), (1.0, 0.0));
    }

    /// With slack, a constant violation v ends at the multiplier alpha v, where the slack is the violation.
    #[test]
    fn resilience_bounds_the_multiplier() {
        let resilient = SampleConstraint { resilience: Some(3.0), ..PLAIN };
        let end = (0..2000).fold(1.0, |m, _| resilient.update(m, 0.9));
        assert!((end - 3.0 * 0.4).abs() < 1e-9, "{end}");
    }

    #[test]
    fn bad_settings_are_reported_together() {
        assert!(PLAIN.check().is_empty());
        let bad = SampleConstraint { epsilon: -1.0, lr: 0.0, init: f64::NAN, resilience: Some(0.0) };
        assert_eq!(bad.check().len(), 4);
    }
}
