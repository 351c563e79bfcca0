//! Advantages: from the rewards of a round to one number a rollout, or a token.

mod batch;
mod check;
mod group;
mod pass_at_k;
mod risk;
mod round;
mod token;
mod trice;

use serde::{Deserialize, Serialize};

use crate::{Error, Needs};

pub use group::{is_constant, sample_std};
pub use round::{AdvantageState, GroupRewards, Round, RoundAdvantages, StepReward, token_rewards};
pub use token::{gae, returns_to_go};

use risk::Risk;

/// How the rewards of a round become advantages. `r` are total rewards, G rollouts a prompt; means and standard deviations are
/// over the group unless said otherwise, the latter with divisor n - 1 as `torch.std`.
///
/// A group whose rewards are all equal (also a group of one) gives exact zeros in every variant that compares within the group,
/// not rounding noise over `eps`. (verl leaves the rewards of a group of one as they are; here such a setting is refused.)
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Advantage {
    /// `(r - mean) / (std + eps)`, the GRPO advantage; TRL's `scale_rewards = "group"`, verl's `grpo`.
    /// Source: DeepSeekMath, arXiv 2402.03300, section 4.1.2.
    GroupZScore {
        /// Added to the standard deviation. TRL uses 1e-4 (the default), verl 1e-6.
        #[serde(default = "default_eps")]
        eps: f64,
    },
    /// `r - mean`: no division, so easy and hard prompts weigh as their spread says; TRL's `scale_rewards = "none"`.
    /// Source: Dr. GRPO, arXiv 2503.20783, section 3.2.
    GroupMean {},
    /// `(r - mean) / (std of all rewards of the round + eps)`; TRL's `scale_rewards = "batch"`. Source: the local mean with the
    /// global standard deviation of "Tricks or Traps", arXiv 2508.08221, section 4.
    BatchZScore {
        /// Added to the standard deviation.
        #[serde(default = "default_eps")]
        eps: f64,
    },
    /// `r_i - mean of the other rollouts`: an unbiased baseline, G / (G - 1) times the mean-centred reward. Source: RLOO,
    /// arXiv 2402.14740, equation 8. TRL and verl agree; TRL's `normalize_advantages` is `whiten = "rollout"`.
    Rloo {
        /// Standardise the result over the round.
        #[serde(default)]
        whiten: Whiten,
    },
    /// The return of each token, standardised over all tokens of the round. Source: REINFORCE++, arXiv 2501.03262; verl's
    /// `reinforce_plus_plus`, and `reinforce_plus_plus_baseline` with `group_mean = true`. The whitening weighs rollouts by their
    /// length, so a group of equal rewards does not have zeros here.
    ReinforcePlusPlus {
        /// Take the group mean off the total reward first.
        #[serde(default)]
        group_mean: bool,
        /// Discount per token.
        #[serde(default = "one")]
        gamma: f64,
    },
    /// `r - r(greedy rollout)`. Source: ReMax, arXiv 2310.10505, equation 3; verl's `remax`.
    Remax {
        /// Multiply each token's advantage by the critic's value at the token: CodeRL's policy gradient (arXiv 2207.01780,
        /// equation 9), where the critic's probability of the actual outcome weighs the tokens.
        #[serde(default)]
        token_values: bool,
    },
    /// `r - sum(length r) / sum(length)`: the baseline of least variance when the squared gradient norm grows with the length.
    /// Source: OPO, arXiv 2505.23585, equation 9; verl's `opo`.
    Opo {},
    /// `alpha (r - mean)` with `alpha = rollouts / rollouts that count`, which makes up for those without a signal.
    /// Source: GPG, arXiv 2504.02546, with F_norm = 1.
    Gpg {
        /// Which rollouts count.
        #[serde(default)]
        count: GpgCount,
    },
    /// `(r - mean) / mean`, zeros where the mean is not above 0. For 0/1 rewards an unbiased gradient of the maximum-likelihood
    /// objective `log p` cut off at order G. Source: MaxRL, arXiv 2602.02710; prime-rl's `max_rl`.
    MaxRl {},
    /// `whiten(sum_k w_k (r_k - mean_k) / (std_k + eps))`: each reward part is standardised in its group, so that none drowns the
    /// others. Source: GDPO, arXiv 2601.05242; TRL's `normalize_then_sum`. verl whitens over tokens.
    Gdpo {
        /// Added to each part's standard deviation. TRL uses 1e-4 (the default), verl 1e-6.
        #[serde(default = "default_eps")]
        eps: f64,
        /// Over what the sum is standardised.
        #[serde(default = "per_rollout")]
        whiten: Whiten,
    },
    /// The advantage of "at least one of k samples is right", averaged over all sets of k from the group in closed form; with
    /// k = 1 the z-score with the population deviation. Source: Pass@k Training, arXiv 2508.10751, equations 14 and 15.
    PassAtK {
        /// Samples that may be tried, at most G.
        k: u32,
        /// A rollout is right when its reward is above this.
        #[serde(default = "half")]
        threshold: f64,
        /// Added to the standard deviation.
        #[serde(default = "small_eps")]
        eps: f64,
    },
    /// `best - second best` for the best rollout and 0 for the rest. Source: arXiv 2503.19595; verl's `grpo_passk`.
    GrpoPassk {
        /// Divide by `std + eps`.
        #[serde(default = "yes")]
        scale: bool,
        /// Added to the standard deviation.
        #[serde(default = "small_eps")]
        eps: f64,
    },
    /// 1 for the best rollouts of the group (of equals the earlier ones), 0 for the rest: with the surrogate `reinforce`
    /// supervised training on the best of G. Source: RAFT, arXiv 2304.06767 (A093); with a KL term SuperHF, arXiv 2310.16763
    /// (A089). The weighting still averages over all rollouts; to average over the best alone use the group shaper `down_sample`
    /// with the rule `best`.
    BestOf {
        /// Rollouts that count as best.
        #[serde(default = "first")]
        keep: u32,
    },
    /// `R_t - baseline`, the discounted return less a constant: plain REINFORCE. With rewards of +-1 and a share p of +1 the
    /// baseline makes the share of positive weight `p (1 - c) / (1 + (1 - 2p) c)` (TOPR, arXiv 2503.14286, A069). Feedback that is
    /// an advantage by itself is `baseline = 0`, with `gamma` as the decay of the eligibility trace of late feedback (COACH, arXiv
    /// 1701.06049, B274).
    Returns {
        /// The constant c.
        #[serde(default)]
        baseline: f64,
        /// Discount per token.
        #[serde(default = "one")]
        gamma: f64,
    },
    /// Generalised advantage estimation with a critic's values ([`gae`]), the total reward on the last token. Source: PPO, arXiv
    /// 1707.06347; rewards of partial completions (IRCoCo, arXiv 2401.16637, A076) come in as steps.
    Gae {
        /// Discount per token.
        #[serde(default = "one")]
        gamma: f64,
        /// 1: returns minus values; 0: one-step differences. Below 1 with a terminal reward, the mean advantage over tokens shrinks
        /// with the length: longer answers dilute a negative return (B220, arXiv 2504.05185).
        #[serde(default = "one")]
        lambda: f64,
        /// Standardise over the tokens of the round, as verl does (default true).
        #[serde(default = "yes")]
        whiten: bool,
    },
    /// Rewards of steps standardised over all steps of the group; a token's advantage is the sum over the steps that end at or
    /// after it. Source: process supervision with GRPO, DeepSeekMath, arXiv 2402.03300, section 4.1.3. With
    /// [`progress`](crate::reward_shaping::progress) as step rewards and `outcome = true` it is MRT (arXiv 2503.07572, A094).
    Process {
        /// Count the total reward as one more step, at the last token.
        #[serde(default)]
        outcome: bool,
        /// Added to the standard deviation.
        #[serde(default = "default_eps")]
        eps: f64,
    },
    /// Mixed value at risk over bundles of prompts: with s the summed reward of a bundle's i-th rollouts and `q` tracked quantiles
    /// of s, `[max(s - q_low, 0) - max(s - q_high, 0) + q_low - q_high] / (high - low)` plus `w` times the lower tail
    /// `-max(q_low - s, 0) / low`, over `1 + w`. Never above 0: hard prompts get more gradient, mastered ones none.
    /// Source: RiskPO, arXiv 2510.00911 (B043) and its released code, in its `track` mode and with equal credit within a bundle.
    /// The first round takes its own quantiles. Bundles are neighbours in the order of the step.
    Risk {
        /// Prompts in a bundle.
        #[serde(default = "five")]
        bundle: u32,
        /// Level of the lower quantile.
        #[serde(default = "fifth")]
        low: f64,
        /// Level of the upper quantile.
        #[serde(default = "four_fifths")]
        high: f64,
        /// Weight of the lower tail.
        #[serde(default = "tail_weight")]
        tail_weight: f64,
        /// Step size of the quantile tracker, in units of the bundle score.
        #[serde(default = "tracker_rate")]
        rate: f64,
    },
    /// Coefficients of the log-probs of a right rationale kept in memory (1) and of a fresh proposal (`-beta`, the control variate; an
    /// accepted proposal is the memory and has `1 - beta`). `beta` is the share of accepted proposals among the *other* prompts with a right
    /// rationale, so that the control variate has mean zero, and once everything is accepted all coefficients vanish. The first
    /// rollout of a group is the proposal, the second the memory where the proposal is wrong: sample one rollout a prompt, with
    /// `inject = { from = "stored" }`, `group = [{ kind = "drop_unsolved" }]`, the surrogate `reinforce` and the weighting `group_sum`.
    /// Source: TRICE, arXiv 2312.02179, section 2 (A073), and the released notebook's weights without subsampling.
    Trice {
        /// A rollout is right when its reward is above this (default 0.5).
        #[serde(default = "half")]
        threshold: f64,
    },
}

/// Over what advantages are standardised, `(a - mean) / deviation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Whiten {
    /// Not at all.
    #[default]
    None,
    /// Over the rollouts of the round, deviation `std + 1e-4` (TRL).
    Rollout,
    /// Over the tokens of the round, deviation `sqrt(variance + 1e-8)` (verl's `masked_whiten`).
    Token,
}

/// Which rollouts count in GPG's `alpha`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GpgCount {
    /// Those in groups whose rewards differ: the paper's `alpha = B / (B - M)`.
    #[default]
    Informative,
    /// Those whose reward is not 0 (verl's `gpg`, which departs from the paper where right and wrong are mixed).
    NonzeroReward,
}

fn default_eps() -> f64 {
    1e-4
}
fn small_eps() -> f64 {
    1e-6
}
fn one() -> f64 {
    1.0
}
fn half() -> f64 {
    0.5
}
fn yes() -> bool {
    true
}
fn first() -> u32 {
    1
}
fn five() -> u32 {
    5
}
fn fifth() -> f64 {
    0.2
}
fn four_fifths() -> f64 {
    0.8
}
fn tail_weight() -> f64 {
    1.5
}
fn tracker_rate() -> f64 {
    0.05
}
fn per_rollout() -> Whiten {
    Whiten::Rollout
}

impl Default for Advantage {
    fn default() -> Self {
        Self::GroupZScore { eps: default_eps() }
    }
}

impl Advantage {
    /// The advantages of all groups of a round at once.
    ///
    /// # Errors
    /// Arrays that do not fit together, an input that [`needs`](Self::needs) names but is absent, and rewards that are no numbers.
    ///
    /// ```
    /// use temper_algo::{Advantage, GroupRewards, Round, RoundAdvantages};
    /// let round = Round { groups: &[GroupRewards::new(&[1.0, 0.0, 0.0, 1.0])], ..Round::default() };
    /// let adv = Advantage::GroupMean {}.advantages(&round).unwrap();
    /// assert_eq!(adv, RoundAdvantages::Rollouts(vec![vec![0.5, -0.5, -0.5, 0.5]]));
    /// ```
    pub fn advantages(&self, round: &Round) -> Result<RoundAdvantages, Error> {
        round::validate(round)?;
        self.given(round)?;
        let groups = round.groups;
        let by_group = |f: &dyn Fn(&GroupRewards) -> Vec<f64>| groups.iter().map(f).collect::<Vec<_>>();
        let rollouts = match *self {
            Self::GroupZScore { eps } => by_group(&|g| group::z_score(g.rewards, eps)),
            Self::GroupMean {} => by_group(&|g| group::centred(g.rewards)),
            Self::BatchZScore { eps } => batch::z_scores(groups, eps),
            Self::Rloo { whiten } => {
                return Ok(batch::whiten(by_group(&|g| group::leave_one_out(g.rewards)), whiten, groups));
            }
            Self::ReinforcePlusPlus { group_mean, gamma } => {
                let baseline = |g: &GroupRewards| if group_mean { group::mean(g.rewards) } else { 0.0 };
                return Ok(batch::whiten_tokens(&token::returns(groups, gamma, baseline)));
            }
            Self::Remax { token_values: false } => by_group(&group::over_greedy),
            Self::Remax { token_values: true } => return Ok(token::weighed_by_values(groups)),
            Self::Opo {} => by_group(&|g| group::length_weighted(g.rewards, g.lengths)),
            Self::Gpg { count } => batch::gpg(groups, count),
            Self::MaxRl {} => by_group(&|g| group::max_likelihood(g.rewards)),
            Self::Gdpo { eps, whiten } => return Ok(batch::whiten(batch::decoupled(round, eps), whiten, groups)),
            Self::PassAtK { k, threshold, eps } => {
                by_group(&|g| pass_at_k::analytical(g.rewards, k as usize, threshold, eps))
            }
            Self::GrpoPassk { scale, eps } => by_group(&|g| pass_at_k::best_minus_second(g.rewards, scale, eps)),
            Self::BestOf { keep } => by_group(&|g| group::best_of(g.rewards, keep as usize)),
            Self::Returns { baseline, gamma } => return Ok(token::plain_returns(groups, baseline, gamma)),
            Self::Gae { gamma, lambda, whiten } => return Ok(token::estimated(groups, gamma, lambda, whiten)),
            Self::Process { outcome, eps } => {
                return Ok(RoundAdvantages::Tokens(groups.iter().map(|g| token::process(g, outcome, eps)).collect()));
            }
            Self::Trice { threshold } => trice::coefficients(groups, threshold),
            Self::Risk { .. } => self.risk().map_or_else(Vec::new, |r| r.advantages(groups, round.state.quantiles)),
        };
        Ok(RoundAdvantages::Rollouts(rollouts))
    }

    /// What a critic learns to predict at every token of a rollout `[T]`, from the rewards of its tokens and the values that made
    /// the advantages: GAE's `A_t + V_t`, and the undiscounted return for advantages that are no estimate from values.
    ///
    /// ```
    /// use temper_algo::Advantage;
    /// let gae = Advantage::Gae { gamma: 1.0, lambda: 0.0, whiten: true };
    /// assert_eq!(gae.value_targets(&[0.0, 1.0], &[0.5, 0.25]), [0.25, 1.0]);
    /// assert_eq!(Advantage::default().value_targets(&[0.0, 1.0], &[0.5, 0.25]), [1.0, 1.0]);
    /// ```
    pub fn value_targets(&self, rewards: &[f64], values: &[f64]) -> Vec<f64> {
        match *self {
            Self::Gae { gamma, lambda, .. } => gae(rewards, values, gamma, lambda).1,
            _ => returns_to_go(rewards, 1.0),
        }
    }

    /// What to remember for the next round.
    pub fn remember(&self, round: &Round) -> AdvantageState {
        match (*self, self.risk()) {
            (Self::Risk { rate, .. }, Some(risk)) => {
                AdvantageState { quantiles: risk.track(round.groups, round.state.quantiles, rate) }
            }
            _ => round.state,
        }
    }

    fn risk(&self) -> Option<Risk> {
        match *self {
            Self::Risk { bundle, low, high, tail_weight, .. } => {
                Some(Risk { bundle: bundle.max(1) as usize, low, high, tail_weight })
            }
            _ => None,
        }
    }

    /// Whether each token of a rollout may have another advantage.
    pub fn per_token(&self) -> bool {
        matches!(
            self,
            Self::ReinforcePlusPlus { .. }
                | Self::Remax { token_values: true }
                | Self::Rloo { whiten: Whiten::Token }
                | Self::Gdpo { whiten: Whiten::Token, .. }
                | Self::Gae { .. }
                | Self::Process { .. }
        ) || matches!(self, Self::Returns { gamma, .. } if *gamma != 1.0)
    }

    /// Whether a reward on a token counts for this token and those before it (and not, as steps do, against other steps).
    pub fn reads_token_rewards(&self) -> bool {
        matches!(self, Self::ReinforcePlusPlus { .. } | Self::Returns { .. } | Self::Gae { .. })
    }

    /// What it reads.
    pub fn needs(&self) -> Needs {
        match self {
            Self::GroupZScore { .. }
            | Self::GroupMean {}
            | Self::BatchZScore { .. }
            | Self::Rloo { .. }
            | Self::Opo {}
            | Self::Gpg { .. }
            | Self::MaxRl {}
            | Self::Gdpo { .. }
            | Self::PassAtK { .. }
            | Self::GrpoPassk { .. }
            | Self::BestOf { .. }
            | Self::ReinforcePlusPlus { group_mean: true, .. } => Needs::GROUP,
            Self::ReinforcePlusPlus { group_mean: false, .. }
            | Self::Returns { .. }
            | Self::Risk { .. }
            | Self::Trice { .. } => Needs::NONE,
            Self::Remax { token_values: false } => Needs::GREEDY,
            Self::Remax { token_values: true } => Needs::GREEDY | Needs::VALUE,
            Self::Gae { .. } => Needs::VALUE,
            Self::Process { .. } => Needs::GROUP | Needs::STEPS,
        }
    }

    /// The inputs that it reads are there for every group.
    fn given(&self, round: &Round) -> Result<(), Error> {
        let needs = self.needs();
        let lengths = self.per_token() || matches!(self, Self::Opo {});
        for g in round.groups.iter().filter(|g| !g.rewards.is_empty()) {
            let absent = [
                ("lengths", lengths && g.lengths.is_empty()),
                ("greedy", needs.contains(Needs::GREEDY) && g.greedy.is_none()),
                ("values", needs.contains(Needs::VALUE) && g.values.is_empty()),
                ("steps", needs.contains(Needs::STEPS) && g.steps.is_empty()),
                ("parts", matches!(self, Self::Gdpo { .. }) && g.parts.is_empty()),
            ];
            if let Some((name, _)) = absent.into_iter().find(|(_, absent)| *absent) {
                return Err(Error::Missing { name, part: "advantage" });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_decides_the_share_of_positive_weight() {
        // TOPR: 3 of 4 rewards +1, c = 0.5: p(1-c) / (1 + (1-2p)c) = 0.375 / 0.75 = 1/2.
        let rewards = [1.0, 1.0, 1.0, -1.0];
        let round = Round { groups: &[GroupRewards::new(&rewards)], ..Round::default() };
        let RoundAdvantages::Rollouts(adv) =
            Advantage::Returns { baseline: 0.5, gamma: 1.0 }.advantages(&round).unwrap()
        else {
            panic!()
        };
        let positive: f64 = adv[0].iter().filter(|a| **a > 0.0).sum();
        let all: f64 = adv[0].iter().map(|a| a.abs()).sum();
        assert_eq!(positive / all, 0.5);
    }
}
