//! The critic: loss of a value against its target, with clipping, and how long it trains alone.

use serde::{Deserialize, Serialize};

use crate::Problem;

/// How a critic with an optimiser of its own is trained beside a policy. There is no coefficient of its loss: AdamW would cancel it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Critic {
    /// How far a value may move from the value at sampling time before its gradient is cut; none: no clipping
    /// (the default; TRL's PPO uses 0.2, verl 0.5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// Rounds in which only the critic trains: rollouts of the policy as it is let the values settle first, so that the first policy
    /// gradients do not follow wrong ones (WSRL, arXiv 2412.07762, B115; verl's `critic_warmup`).
    pub warmup_steps: u64,
}

/// Value and derivative of one token's value loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ValueTerm {
    /// The term, without weight.
    pub x: f64,
    /// dx/d(value).
    pub d_value: f64,
    /// Whether the bound cut the gradient.
    pub clipped: bool,
}

impl Critic {
    /// `max((v - ret)^2, (clamp(v, v_old - clip, v_old + clip) - ret)^2) / 2`, the value loss of PPO's released code; verl and
    /// TRL's PPO agree. `value_old` is the value that made the advantages.
    ///
    /// ```
    /// use temper_algo::Critic;
    /// let term = Critic::default().term(1.0, 0.0, 3.0);
    /// assert_eq!((term.x, term.d_value), (2.0, -2.0));
    /// ```
    pub fn term(&self, value: f64, value_old: f64, ret: f64) -> ValueTerm {
        let free = value - ret;
        let bounded = self.clip.map_or(free, |c| value.clamp(value_old - c, value_old + c) - ret);
        let clipped = bounded.powi(2) > free.powi(2);
        let error = if clipped { bounded } else { free };
        let d_value = if clipped { 0.0 } else { free };
        ValueTerm { x: 0.5 * error * error, d_value, clipped }
    }

    /// Whether the policy trains in round `step` (from 0).
    pub fn policy_trains(&self, step: u64) -> bool {
        step >= self.warmup_steps
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        let bad = self.clip.filter(|c| !(c.is_finite() && *c > 0.0));
        let message = |c: f64| format!("clip is {c}, expected a finite number above 0");
        bad.map(|c| Problem::new("clip", message(c), "leave it out for none")).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let critic = Critic { clip: Some(0.5), warmup_steps: 3 };
        // Target 3, old value 0, clamped to 0.5: error -2.5 is larger than -1, so the term is constant.
        assert_eq!(critic.term(2.0, 0.0, 3.0), ValueTerm { x: 3.125, d_value: 0.0, clipped: true });
        // Moving away from the target: the free error is the larger one.
        assert_eq!(critic.term(-2.0, 0.0, 3.0), ValueTerm { x: 12.5, d_value: -5.0, clipped: false });
        assert_eq!([2, 3].map(|step| critic.policy_trains(step)), [false, true]);
    }

    #[test]
    fn the_derivative_agrees_with_finite_differences() {
        let critic = Critic { clip: Some(0.2), warmup_steps: 0 };
        for i in 0..200 {
            let value = -2.0 + 0.02 * f64::from(i) + 1e-3;
            for (old, ret) in [(0.3, 0.9), (-1.0, 0.0), (1.0, -0.5)] {
                let numeric = (critic.term(value + 1e-6, old, ret).x - critic.term(value - 1e-6, old, ret).x) / 2e-6;
                assert!((critic.term(value, old, ret).d_value - numeric).abs() < 1e-6, "{value} {old} {ret}");
            }
        }
    }

    #[test]
    fn bad_settings_are_named() {
        let problems = Critic { clip: Some(-1.0), warmup_steps: 0 }.check();
        assert_eq!(problems.iter().map(|p| p.field.as_str()).collect::<Vec<_>>(), ["clip"]);
        assert!(Critic::default().check().is_empty());
    }
}
