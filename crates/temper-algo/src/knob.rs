//! Knobs: numeric settings that follow a schedule or are steered by what is measured.

use serde::{Deserialize, Serialize};

use crate::Problem;

/// A numeric setting that changes over the run, such as a KL coefficient, an entropy coefficient, a clip bound or a temperature.
///
/// In a recipe a table in place of the number: `beta = { kind = "adaptive_kl", init = 0.04, target = 6.0 }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Knob {
    /// From one value to another between two points of the run, constant before and after (GRPO-D's dynamic KL, arXiv 2503.16081,
    /// A051, leaves the curve open).
    Schedule {
        /// Value at the beginning.
        from: f64,
        /// Value at the end.
        to: f64,
        /// How it gets there.
        #[serde(default)]
        curve: Curve,
        /// Share of all steps after which it begins to move.
        #[serde(default)]
        begin: f64,
        /// Share of all steps after which it has arrived.
        #[serde(default = "whole")]
        end: f64,
    },
    /// `value *= 1 + rate clamp(kl / target - 1, -0.2, 0.2)` after every step: steers the KL to the reference to a target.
    /// Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2, rate 0.1 there; verl's and TRL's `kl_ctrl = "adaptive"` with
    /// `rate = samples of a step / horizon`.
    AdaptiveKl {
        /// Value of the first step, above 0.
        init: f64,
        /// Wanted KL, in the unit of the measured one.
        target: f64,
        /// How fast it follows.
        #[serde(default = "kl_rate")]
        rate: f64,
    },
    /// `value += delta` where the measured entropy is below the target and `value -= delta` where it is not, within bounds. As an
    /// entropy coefficient with `only_below = true` it is Skywork-OR1's adaptive entropy control (arXiv 2505.22312, section 3.2.5);
    /// as a sampling temperature it holds the temperature-adjusted entropy near a target (about 0.3 in AceReason-Nemotron 1.1,
    /// arXiv 2506.13284, A039, which searched for the temperature by hand).
    TargetEntropy {
        /// Value of the first step.
        init: f64,
        /// Wanted entropy, nats a token.
        target: f64,
        /// Step of the value.
        delta: f64,
        /// Smallest value.
        #[serde(default)]
        min: f64,
        /// Largest value.
        max: f64,
        /// Act with the value only while the entropy last measured was below the target, and with 0 otherwise.
        #[serde(default)]
        only_below: bool,
    },
}

/// The way of a schedule, over its progress `s` from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// `from + (to - from) s`.
    #[default]
    Linear,
    /// `to + (from - to) (1 + cos(pi s)) / 2`.
    Cosine,
    /// `from (to / from)^s`; both above 0.
    Exponential,
}

/// What a controller has to be told after every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Mean KL to the reference.
    Kl,
    /// Mean entropy of the policy, nats a token.
    Entropy,
}

/// What a knob remembers between steps; part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnobState {
    /// The controller's value.
    pub value: f64,
    /// Whether the controller acts.
    pub active: bool,
}

fn whole() -> f64 {
    1.0
}
fn kl_rate() -> f64 {
    0.1
}

impl Knob {
    /// The kinds, as in a recipe.
    pub const KINDS: [&str; 3] = ["schedule", "adaptive_kl", "target_entropy"];

    /// The state before the first step.
    pub fn start(&self) -> KnobState {
        let value = match *self {
            Self::Schedule { from, .. } => from,
            Self::AdaptiveKl { init, .. } | Self::TargetEntropy { init, .. } => init,
        };
        KnobState { value, active: true }
    }

    /// Smallest and largest value that it is known to take; of a controller without bounds its first.
    pub fn range(&self) -> [f64; 2] {
        match *self {
            Self::Schedule { from, to, .. } => [from.min(to), from.max(to)],
            Self::AdaptiveKl { init, .. } => [init; 2],
            Self::TargetEntropy { min, max, .. } => [min, max],
        }
    }

    /// The value in step `step` (from 0) of `total`.
    ///
    /// ```
    /// use temper_algo::{Curve, Knob};
    /// let knob = Knob::Schedule { from: 0.1, to: 0.0, curve: Curve::Linear, begin: 0.0, end: 1.0 };
    /// assert_eq!([0, 5, 10].map(|step| knob.value(&knob.start(), step, 10)), [0.1, 0.05, 0.0]);
    /// ```
    pub fn value(&self, state: &KnobState, step: u64, total: u64) -> f64 {
        match *self {
            Self::Schedule { from, to, curve, begin, end } => {
                let at = step as f64 / total.max(1) as f64;
                curve.between(from, to, ((at - begin) / (end - begin).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0))
            }
            Self::AdaptiveKl { .. } | Self::TargetEntropy { .. } => {
                if state.active {
                    state.value
                } else {
                    0.0
                }
            }
        }
    }

    /// What [`observe`](Self::observe) has to be told, if anything.
    pub fn watches(&self) -> Option<Signal> {
        match self {
            Self::Schedule { .. } => None,
            Self::AdaptiveKl { .. } => Some(Signal::Kl),
            Self::TargetEntropy { .. } => Some(Signal::Entropy),
        }
    }

    /// The state after a step in which `measured` was seen. A measurement that is no finite number changes nothing.
    #[must_use]
    pub fn observe(&self, state: KnobState, measured: f64) -> KnobState {
        if !measured.is_finite() {
            return state;
        }
        match *self {
            Self::Schedule { .. } => state,
            Self::AdaptiveKl { target, rate, .. } => {
                let error = (measured / target - 1.0).clamp(-0.2, 0.2);
                KnobState { value: state.value * (1.0 + rate * error), ..state }
            }
            Self::TargetEntropy { target, delta, min, max, only_below, .. } => {
                let below = measured < target;
                let value = (state.value + if below { delta } else { -delta }).clamp(min, max);
                KnobState { value, active: below || !only_below }
            }
        }
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = vec![];
        let mut unless = |ok: bool, field: &str, value: f64, expected: &str| {
            if !ok {
                problems.push(Problem::new(
                    field,
                    format!("{field} is {value}, expected {expected}"),
                    "give a plain number for a knob that does not move",
                ));
            }
        };
        match *self {
            Self::Schedule { from, to, curve, begin, end } => {
                let positive = curve == Curve::Exponential;
                let expected = if positive { "a finite number above 0" } else { "a finite number" };
                unless(from.is_finite() && (!positive || from > 0.0), "from", from, expected);
                unless(to.is_finite() && (!positive || to > 0.0), "to", to, expected);
                unless((0.0..1.0).contains(&begin), "begin", begin, "0 to below 1");
                unless(end > begin && end <= 1.0, "end", end, "above `begin` and at most 1");
            }
            Self::AdaptiveKl { init, target, rate } => {
                unless(init.is_finite() && init > 0.0, "init", init, "a finite number above 0");
                unless(target.is_finite() && target > 0.0, "target", target, "a finite number above 0");
                unless(rate > 0.0 && rate < 5.0, "rate", rate, "above 0 and below 5, so that the value stays positive");
            }
            Self::TargetEntropy { init, target, delta, min, max, .. } => {
                unless(min.is_finite() && max.is_finite() && min < max, "max", max, "above `min`");
                unless(min <= init && init <= max, "init", init, "between `min` and `max`");
                unless(target.is_finite() && target > 0.0, "target", target, "a finite number above 0");
                unless(delta.is_finite() && delta > 0.0, "delta", delta, "a finite number above 0");
            }
        }
        problems
    }
}

impl Curve {
    fn between(self, from: f64, to: f64, s: f64) -> f64 {
        match self {
            Self::Linear => from + (to - from) * s,
            Self::Cosine => to + (from - to) * 0.5 * (1.0 + (std::f64::consts::PI * s).cos()),
            Self::Exponential => from * (to / from).powf(s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_by_hand() {
        let at = |curve, step| {
            let knob = Knob::Schedule { from: 4.0, to: 1.0, curve, begin: 0.25, end: 0.75 };
            assert!(knob.check().is_empty() && knob.watches().is_none());
            knob.value(&knob.start(), step, 8)
        };
        for (curve, expected) in [
            (Curve::Linear, [4.0, 4.0, 2.5, 1.0]),
            (Curve::Cosine, [4.0, 4.0, 2.5, 1.0]),
            (Curve::Exponential, [4.0, 4.0, 2.0, 1.0]),
        ] {
            for (step, value) in [0, 2, 4, 8].into_iter().zip(expected) {
                assert!((at(curve, step) - value).abs() < 1e-14, "{curve:?} {step}");
            }
        }
        // A quarter of the way: linear 3.25, cosine 1 + 3 (1 + cos(pi/4)) / 2 = 3.5606601718.
        assert!((at(Curve::Linear, 3) - 3.25).abs() < 1e-14 && (at(Curve::Cosine, 3) - 3.560_660_171_8).abs() < 1e-10);
    }

    #[test]
    fn the_kl_controller_by_hand() {
        let knob = Knob::AdaptiveKl { init: 0.2, target: 6.0, rate: 0.1 };
        assert_eq!(knob.watches(), Some(Signal::Kl));
        // 10% too much: times 1 + 0.1 * 0.1; far too much and far too little are cut at 20%.
        let after = |kl| knob.observe(knob.start(), kl).value;
        for (kl, expected) in [(6.6, 0.2 * 1.01), (60.0, 0.2 * 1.02), (0.0, 0.2 * 0.98), (6.0, 0.2), (f64::NAN, 0.2)] {
            assert!((after(kl) - expected).abs() < 1e-15);
        }
    }

    /// On a plant whose KL falls as the coefficient rises, the controller settles at the target.
    #[test]
    fn the_kl_controller_reaches_its_target() {
        let knob = Knob::AdaptiveKl { init: 0.01, target: 2.0, rate: 0.1 };
        let mut state = knob.start();
        for _ in 0..2000 {
            state = knob.observe(state, 1.0 / (0.1 + state.value));
        }
        assert!((1.0 / (0.1 + state.value) - 2.0).abs() < 0.01);
    }

    #[test]
    fn the_entropy_controller_by_hand() {
        let knob =
            |only_below| Knob::TargetEntropy { init: 0.0, target: 0.2, delta: 0.5, min: 0.0, max: 0.75, only_below };
        let mut state = knob(true).start();
        for (entropy, value, acts) in
            [(0.1, 0.5, 0.5), (0.1, 0.75, 0.75), (0.3, 0.25, 0.0), (0.3, 0.0, 0.0), (0.1, 0.5, 0.5)]
        {
            state = knob(true).observe(state, entropy);
            assert_eq!((state.value, knob(true).value(&state, 0, 1)), (value, acts));
        }
        let state = knob(false).observe(KnobState { value: 0.75, active: true }, 0.3);
        assert_eq!(knob(false).value(&state, 0, 1), 0.25);
        let json = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<KnobState>(&json).unwrap(), state);
    }

    #[test]
    fn tables_read_and_write() {
        let read = |text: &str| serde_json::from_str::<Knob>(text);
        let adaptive = read(r#"{ "kind": "adaptive_kl", "init": 0.1, "target": 6.0 }"#).unwrap();
        assert_eq!(adaptive, Knob::AdaptiveKl { init: 0.1, target: 6.0, rate: 0.1 });
        let error = read(r#"{ "kind": "adaptive_kl", "init": 0.1, "goal": 6.0 }"#).unwrap_err().to_string();
        assert!(error.contains("goal"), "{error}");
        let entropy = r#"{ "kind": "target_entropy", "init": 0.0, "target": 0.2, "delta": 0.5, "max": 0.75 }"#;
        for knob in [adaptive, read(r#"{ "kind": "schedule", "from": 1, "to": 2 }"#).unwrap(), read(entropy).unwrap()] {
            let text = serde_json::to_string(&knob).unwrap();
            assert_eq!(read(&text).unwrap(), knob);
            let kind = serde_json::from_str::<serde_json::Value>(&text).unwrap()["kind"].clone();
            assert!(Knob::KINDS.iter().any(|k| kind == *k), "{kind}");
        }
    }

    /// Every value lies in the range that the settings were checked at.
    #[test]
    fn the_range_holds_every_value() {
        for curve in [Curve::Linear, Curve::Cosine, Curve::Exponential] {
            let knob = Knob::Schedule { from: 4.0, to: 1.0, curve, begin: 0.0, end: 1.0 };
            assert_eq!(knob.range(), [1.0, 4.0]);
            assert!((0..=10).all(|k| (1.0..=4.0).contains(&knob.value(&knob.start(), k, 10))));
        }
    }

    #[test]
    fn bad_settings_are_named() {
        let fields = |knob: Knob| knob.check().into_iter().map(|p| p.field).collect::<Vec<_>>();
        let schedule = Knob::Schedule { from: 0.0, to: f64::NAN, curve: Curve::Exponential, begin: 0.5, end: 0.5 };
        assert_eq!(fields(schedule), ["from", "to", "end"]);
        assert_eq!(fields(Knob::AdaptiveKl { init: 0.0, target: -1.0, rate: 9.0 }), ["init", "target", "rate"]);
        let entropy = Knob::TargetEntropy { init: 2.0, target: 0.0, delta: 0.0, min: 0.0, max: 1.0, only_below: false };
        assert_eq!(fields(entropy), ["init", "target", "delta"]);
    }
}
