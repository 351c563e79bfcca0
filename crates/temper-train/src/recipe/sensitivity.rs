//! Sensitivity dropout.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_algo::Problem;

/// Leave out the units of the last block but one whose activations on a probe change most from look to look: after `looks` of them the most
/// sensitive ones ([`temper_algo::sensitive`]) are zero in training until the next choice; sampling and measuring see the whole
/// model. Sensitivity dropout (SenD), Mohammadzadeh et al., arXiv 2410.15460 (B092).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sensitivity {
    /// Share of the units (default 0.3, as released for Pythia).
    #[serde(default = "share")]
    pub share: f64,
    /// Optimiser steps between two looks.
    pub every: usize,
    /// Looks that a choice compares (default 3, as released).
    #[serde(default = "looks")]
    pub looks: usize,
    /// Examples of the probe: the first of the stage's data (default 32).
    #[serde(default = "probe")]
    pub probe: usize,
}

fn share() -> f64 {
    0.3
}
fn looks() -> usize {
    3
}
fn probe() -> usize {
    32
}

impl Sensitivity {
    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        let values = [
            ("share", self.share, self.share > 0.0 && self.share < 1.0, "above 0 and below 1"),
            ("every", self.every as f64, self.every > 0, "at least 1"),
            ("looks", self.looks as f64, self.looks > 1, "at least 2"),
            ("probe", self.probe as f64, self.probe > 0, "at least 1"),
        ];
        let bad = values.into_iter().filter(|(_, _, ok, _)| !ok);
        bad.map(|(name, value, _, expected)| {
            Problem::new(name, format!("{name} is {value}, expected {expected}"), "remove `sensitivity` to go without")
        })
        .collect()
    }

    /// What is wrong with it in a stage of so many optimiser steps: a choice after the last one changes nothing.
    pub fn never(&self, updates: usize) -> Option<Problem> {
        let Self { every, looks, .. } = *self;
        (every.saturating_mul(looks) >= updates).then(|| {
            let message =
                format!("units are chosen after {looks} looks, one in {every} optimiser steps, and the stage ends before: it has {updates}");
            Problem::new("every", message, "look more often, or take more steps")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_settings_are_reported_together() {
        assert_eq!(Sensitivity { share: 1.0, every: 0, looks: 1, probe: 0 }.check().len(), 4);
        let good = Sensitivity { share: share(), every: 10, looks: looks(), probe: probe() };
        assert!(good.check().is_empty());
        assert!(good.never(30).is_some() && good.never(31).is_none());
    }
}
