//! Settings of reward shapings that make no sense.

use super::RewardShaping;
use crate::Problem;

impl RewardShaping {
    /// Settings that make no sense, given the names of the reward parts.
    pub fn check(&self, names: &[&str]) -> Vec<Problem> {
        let unknown = self.parts().into_iter().filter(|part| !names.contains(part)).map(|part| {
            Problem::new(
                "part",
                format!("there is no reward part `{part}`"),
                format!("the parts are {}", names.join(", ")),
            )
        });
        let mut problems: Vec<Problem> = unknown.collect();
        let mut unless = |ok: bool, field: &str, value: f64, expected: &str| {
            if !ok {
                problems.push(Problem::new(
                    field,
                    format!("{field} is {value}, expected {expected}"),
                    "see the schema",
                ));
            }
        };
        match self {
            Self::Constraint { violated, parts, .. } => {
                unless(violated.is_finite(), "violated", *violated, "a finite number");
                unless(!parts.is_empty(), "parts", 0.0, "at least one name");
            }
            Self::Trust { coef, anneal_steps, .. } => {
                unless(coef.is_finite() && *coef > 0.0, "coef", *coef, "a finite number above 0");
                unless(*anneal_steps > 0.0, "anneal_steps", *anneal_steps, "above 0");
            }
            Self::Rescue { threshold, weight, .. } => {
                unless(threshold.is_finite(), "threshold", *threshold, "a finite number");
                unless(weight.is_finite() && *weight != 0.0, "weight", *weight, "a finite number other than 0");
            }
            Self::Flip { probability, .. } => {
                unless(*probability > 0.0 && *probability <= 1.0, "probability", *probability, "above 0 and at most 1");
            }
            Self::LengthBudget { start, decay, every, weight } => {
                unless(start.is_finite() && *start >= 1.0, "start", *start, "at least 1 token");
                unless(*decay > 0.0 && *decay <= 1.0, "decay", *decay, "above 0 and at most 1");
                unless(*every > 0, "every", 0.0, "at least 1 round");
                unless(weight.is_finite() && *weight != 0.0, "weight", *weight, "a finite number other than 0");
            }
            Self::Majority { weight } => {
                unless(weight.is_finite() && *weight != 0.0, "weight", *weight, "a finite number other than 0");
            }
            Self::Diversity { floor, threshold, .. } => {
                unless((0.0..1.0).contains(floor), "floor", *floor, "at least 0 and below 1");
                unless(threshold.is_finite(), "threshold", *threshold, "a finite number");
            }
            Self::Episodic { exploit, explore, k, capacity, threshold } => {
                unless(exploit.is_finite(), "exploit", *exploit, "a finite number");
                unless(explore.is_finite(), "explore", *explore, "a finite number");
                unless(
                    *exploit != 0.0 || *explore != 0.0,
                    "exploit",
                    0.0,
                    "a number other than 0 here or in `explore`",
                );
                unless(*k > 0, "k", 0.0, "at least 1");
                unless((1..=100_000).contains(capacity), "capacity", f64::from(*capacity), "from 1 to 100000");
                unless(threshold.is_finite(), "threshold", *threshold, "a finite number");
            }
        }
        problems
    }
}
