//! Which settings and combinations make sense.

use super::{KlPenalty, PolicyObjective};
use crate::correction::Level;
use crate::{Advantage, Correction, KlEstimator, KlReward, Needs, OffPolicyMask, Problem, Surrogate, TopEntropy};

impl PolicyObjective {
    /// Everything that is wrong with the settings, for groups of `group_size` rollouts.
    pub fn check(&self, group_size: usize) -> Vec<Problem> {
        let mut problems = self.check_parts();
        problems.extend(self.check_ratio());
        problems.extend(self.check_group(group_size));
        problems.extend(self.check_advantage());
        problems.extend(self.check_correction());
        problems.extend(self.check_drift());
        problems.extend(self.kl.and_then(check_beta));
        problems.extend(self.check_kl_effect());
        problems.extend(self.check_kl_reward());
        problems.extend(self.check_entropy());
        problems
    }

    fn check_parts(&self) -> Vec<Problem> {
        let within = |field: &'static str, found: Vec<Problem>| found.into_iter().map(move |p| p.within(field));
        within("advantage", self.advantage.check())
            .chain(within("ratio", self.ratio.check()))
            .chain(within("surrogate", self.surrogate.check()))
            .chain(within("correction", self.correction.map_or(vec![], Correction::check)))
            .chain(within("top_entropy", self.top_entropy.map_or(vec![], TopEntropy::check)))
            .chain(within("off_policy_mask", self.off_policy_mask.map_or(vec![], OffPolicyMask::check)))
            .chain(within("kl_reward", self.kl_reward.iter().flat_map(KlReward::check).collect()))
            .chain(within("weighting", self.weighting.check()))
            .collect()
    }

    fn check_ratio(&self) -> Option<Problem> {
        let only_kl = self.uses_ratio() && !self.surrogate.uses_ratio();
        if only_kl { None } else { self.surrogate.check_ratio(self.ratio) }
    }

    fn check_group(&self, group_size: usize) -> Option<Problem> {
        let compares = self.needs().contains(Needs::GROUP) && group_size < 2;
        compares.then(|| {
            Problem::new(
                "advantage",
                format!("the advantage compares the rollouts of a group, and a group has {group_size}"),
                "sample at least 2 rollouts a prompt",
            )
        })
    }

    fn check_advantage(&self) -> Option<Problem> {
        let unread = !self.surrogate.uses_adv() && self.advantage != Advantage::default();
        let message = || format!("the surrogate `{}` reads no advantage", self.surrogate.name());
        unread.then(|| Problem::new("advantage", message(), "remove `advantage`, or use the surrogate `reinforce`"))
    }

    fn check_correction(&self) -> Option<Problem> {
        let correction = self.correction?;
        match self.surrogate {
            Surrogate::Gvpo { .. } | Surrogate::None {} => Some(Problem::new(
                "correction",
                format!("the surrogate `{}` is not weighted by a correction", self.surrogate.name()),
                "remove `correction`",
            )),
            Surrogate::Vespo { .. } if correction.level() == Level::Sequence => Some(Problem::new(
                "correction.level",
                "`vespo` multiplies the corrections of a sequence's tokens itself, and the level is `sequence`",
                "set correction.level = \"token\"",
            )),
            _ => None,
        }
    }

    /// Selections select nothing of a surrogate that is not a sum over tokens, or of none.
    fn check_drift(&self) -> Vec<Problem> {
        let idle = matches!(self.surrogate, Surrogate::Gvpo { .. } | Surrogate::None {});
        let given = [("top_entropy", self.top_entropy.is_some()), ("off_policy_mask", self.off_policy_mask.is_some())];
        let problem = |field: &str| {
            let message =
                format!("the surrogate `{}` has no policy gradient by token to select from", self.surrogate.name());
            Problem::new(field, message, format!("remove `{field}`"))
        };
        given.into_iter().filter(|(_, given)| idle && *given).map(|(field, _)| problem(field)).collect()
    }

    /// The gradient of `k1` alone has mean zero on policy: it is the score function.
    fn check_kl_effect(&self) -> Option<Problem> {
        let kl = self.kl.filter(|kl| kl.estimator == (KlEstimator::K1 {}) && !kl.importance)?;
        let message = format!("kl.beta = {} has no effect with `k1` in the loss: its mean gradient is zero", kl.beta);
        Some(Problem::new(
            "kl.estimator",
            message,
            "use `k3` or `k2`, set kl.importance = true, or put k1 in the reward",
        ))
    }

    /// A cost that no advantage sees.
    fn check_kl_reward(&self) -> Option<Problem> {
        let kl = self.kl_reward?;
        let problem = |field: &str, what: String, hint: &str| Some(Problem::new(field, what, hint).within("kl_reward"));
        if !self.surrogate.uses_adv() {
            let message = format!("the surrogate `{}` reads no advantage, so no reward either", self.surrogate.name());
            return problem("beta", message, "put the KL in the loss: `kl`");
        }
        if kl.level == Level::Token && !self.advantage.reads_token_rewards() {
            let message = "level is `token`, and the advantage compares total rewards".into();
            return problem(
                "level",
                message,
                "use `sequence`, or an advantage of token rewards: `reinforce_plus_plus`, `returns`, `gae`",
            );
        }
        None
    }

    fn check_entropy(&self) -> Vec<Problem> {
        let mut problems = vec![];
        if let Some(bonus) = self.entropy.filter(|bonus| !(bonus.coef.is_finite() && bonus.coef != 0.0)) {
            let message = format!("entropy.coef is {}, expected a finite number other than 0", bonus.coef);
            problems.push(Problem::new("entropy.coef", message, "remove the `entropy` table to go without"));
        }
        if self.surrogate == (Surrogate::None {}) && self.entropy.is_none() && self.kl.is_none() {
            let message =
                "the surrogate is `none`, and there is no KL penalty and no entropy term: nothing is trained on";
            problems.push(Problem::new("surrogate", message, "give `entropy` or `kl`, or another surrogate"));
        }
        problems
    }
}

fn check_beta(kl: KlPenalty) -> Option<Problem> {
    Problem::unless_positive("kl.beta", kl.beta, "remove the `kl` table to go without")
}
