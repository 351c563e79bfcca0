//! Settings of advantages that make no sense.

use super::Advantage;
use crate::Problem;

impl Advantage {
    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        let mut found = Found(vec![]);
        match *self {
            Self::GroupZScore { eps }
            | Self::BatchZScore { eps }
            | Self::Process { eps, .. }
            | Self::Gdpo { eps, .. } => {
                found.eps(eps, "leave it out for TRL's 1e-4");
            }
            Self::GrpoPassk { eps, .. } => found.eps(eps, "leave it out for verl's 1e-6"),
            Self::PassAtK { k, eps, threshold } => {
                found.eps(eps, "leave it out for 1e-6");
                found.count("k", k);
                found.finite("threshold", threshold);
            }
            Self::BestOf { keep } => found.count("keep", keep),
            Self::Trice { threshold } => found.finite("threshold", threshold),
            Self::ReinforcePlusPlus { gamma, .. } => found.share("gamma", gamma),
            Self::Returns { gamma, baseline } => {
                found.share("gamma", gamma);
                found.finite("baseline", baseline);
            }
            Self::Gae { gamma, lambda, .. } => {
                found.share("gamma", gamma);
                found.share("lambda", lambda);
            }
            Self::Risk { bundle, low, high, tail_weight, rate } => {
                found.count("bundle", bundle);
                found.risk(low, high, tail_weight, rate);
            }
            Self::GroupMean {}
            | Self::Rloo { .. }
            | Self::Remax { .. }
            | Self::Opo {}
            | Self::Gpg { .. }
            | Self::MaxRl {} => {}
        }
        found.0
    }

    /// Settings that do not fit rounds of `prompts` groups of `group_size` rollouts.
    pub fn check_round(&self, prompts: usize, group_size: usize) -> Vec<Problem> {
        let problem = |field: &str, message: String, hint: &str| vec![Problem::new(field, message, hint)];
        match *self {
            Self::PassAtK { k, .. } if k as usize > group_size => {
                problem("k", format!("k is {k}, and a group has {group_size} rollouts"), "use at most the group's size")
            }
            Self::BestOf { keep } if keep as usize >= group_size => problem(
                "keep",
                format!("keep is {keep}, and a group has {group_size} rollouts, so nothing is selected"),
                "keep fewer than the group's size",
            ),
            Self::Risk { bundle, .. } if bundle == 0 || !prompts.is_multiple_of(bundle as usize) => problem(
                "bundle",
                format!("bundle is {bundle}, and a round has {prompts} prompts"),
                "use a bundle that divides the prompts of a round",
            ),
            _ => vec![],
        }
    }
}

/// Collects problems of settings.
struct Found(Vec<Problem>);

impl Found {
    fn unless(&mut self, ok: bool, field: &str, value: impl std::fmt::Display, expected: &str, hint: &str) {
        if !ok {
            self.0.push(Problem::new(field, format!("{field} is {value}, expected {expected}"), hint));
        }
    }
    fn eps(&mut self, eps: f64, hint: &str) {
        self.unless(eps.is_finite() && eps >= 0.0, "eps", eps, "a finite number of at least 0", hint);
    }
    fn share(&mut self, field: &str, value: f64) {
        self.unless((0.0..=1.0).contains(&value), field, value, "0 to 1", "1 is no discount");
    }
    fn count(&mut self, field: &str, value: u32) {
        self.unless(value > 0, field, value, "at least 1", "use a number of rollouts or prompts");
    }
    fn finite(&mut self, field: &str, value: f64) {
        self.unless(value.is_finite(), field, value, "a finite number", "use a number on the scale of the rewards");
    }
    fn risk(&mut self, low: f64, high: f64, tail_weight: f64, rate: f64) {
        self.unless(low > 0.0 && low < high, "low", low, "above 0 and below `high`", "leave it out for 0.2");
        self.unless(high < 1.0 && low < high, "high", high, "above `low` and below 1", "leave it out for 0.8");
        self.unless(
            tail_weight >= 0.0 && tail_weight.is_finite(),
            "tail_weight",
            tail_weight,
            "at least 0",
            "leave it out for 1.5",
        );
        self.unless(rate > 0.0 && rate.is_finite(), "rate", rate, "above 0", "leave it out for 0.05");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_named() {
        let fields = |a: Advantage| a.check().into_iter().map(|p| p.field).collect::<Vec<_>>();
        assert_eq!(fields(Advantage::GroupZScore { eps: -1.0 }), ["eps"]);
        assert_eq!(fields(Advantage::Gae { gamma: 2.0, lambda: -1.0, whiten: false }), ["gamma", "lambda"]);
        let risk = Advantage::Risk { bundle: 0, low: 0.9, high: 0.8, tail_weight: -1.0, rate: 0.0 };
        assert_eq!(fields(risk), ["bundle", "low", "high", "tail_weight", "rate"]);
        assert_eq!(fields(Advantage::PassAtK { k: 0, threshold: f64::NAN, eps: f64::NAN }), ["eps", "k", "threshold"]);
        assert_eq!(Advantage::PassAtK { k: 9, threshold: 0.5, eps: 0.0 }.check_round(4, 8)[0].field, "k");
        assert_eq!(Advantage::BestOf { keep: 8 }.check_round(4, 8)[0].field, "keep");
        let risk = Advantage::Risk { bundle: 5, low: 0.2, high: 0.8, tail_weight: 1.5, rate: 0.05 };
        assert_eq!((risk.check().len(), risk.check_round(8, 8).len(), risk.check_round(10, 8).len()), (0, 1, 0));
    }
}
