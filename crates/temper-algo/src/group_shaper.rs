//! Group shapers: which rollouts of a scored group stay in the update, and whether the group is worth replacing.

use serde::{Deserialize, Serialize};

use crate::{Problem, is_constant};

/// One step of shaping. Several are applied in order, each to the rollouts that the ones before left in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum GroupShaper {
    /// Leave out groups whose rewards are all equal: they carry no signal within the group. With `refill` the dynamic sampling of
    /// DAPO (arXiv 2503.14476, equation 11): other prompts are sampled in their place.
    DropConstant {
        /// How many more times a round may sample to replace what it dropped; a cap, so that a task that is all solved or
        /// unsolvable ends the round and does not hang it. 0: leave them out and go on with fewer.
        #[serde(default)]
        refill: u32,
        /// The reward part that has to differ within the group (default: the shaped total). DAPO looks at accuracy, whatever the
        /// penalty of the length; verl's `filter_groups.metric`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<String>,
    },
    /// Leave out groups in which no reward is above `threshold`: there is no right answer to learn from.
    DropUnsolved {
        /// A rollout is right when its reward is above this (default 0.5).
        #[serde(default = "half")]
        threshold: f64,
    },
    /// Train on no completion that was cut off: DAPO's overlong filtering (arXiv 2503.14476, section 3.4), TRL's
    /// `mask_truncated_completions`.
    MaskTruncated {
        /// Whether their rewards still count in the group's mean and deviation (default true, as TRL; both are compared in
        /// Skywork-OR1, arXiv 2505.22312, section 3.2).
        #[serde(default = "yes")]
        counts: bool,
    },
    /// Train on `keep` rollouts of a larger group. Source: PODS, arXiv 2504.13818.
    DownSample {
        /// Rollouts that stay.
        keep: u32,
        /// Which ones.
        #[serde(default)]
        rule: DownSampleRule,
        /// Whether the others still count in the group's mean and deviation (default false, as PODS; Shuffle-R1: true).
        #[serde(default)]
        counts: bool,
    },
}

/// Which rollouts a smaller group consists of. Of equal rewards the earlier rollout ranks higher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DownSampleRule {
    /// The subset of largest reward variance: some of the best and the rest of the worst (PODS, theorem 1).
    #[default]
    MaxVariance,
    /// As many of the best as of the worst: the pairs (best, worst), (second best, second worst), .. of highest contrast.
    /// `keep` is even. Source: pairwise trajectory sampling in Shuffle-R1, arXiv 2508.05612 (B014).
    Extremes,
    /// The best (rejection sampling, RAFT, arXiv 2304.06767).
    Best,
}

fn yes() -> bool {
    true
}
fn half() -> f64 {
    0.5
}

/// What shapers see of one group. All arrays are `[G]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rollouts<'a> {
    /// Total rewards.
    pub rewards: &'a [f64],
    /// Whether each completion was cut off.
    pub truncated: &'a [bool],
    /// Names of the reward parts `[K]`.
    pub names: &'a [&'a str],
    /// Reward parts `[G][K]`; read by shapers that name one.
    pub parts: &'a [Vec<f64>],
}

impl Rollouts<'_> {
    /// The part of this name `[G]`, or the total rewards.
    fn column(&self, part: Option<&str>) -> Vec<f64> {
        match part.and_then(|part| self.names.iter().position(|name| *name == part)) {
            Some(k) => self.parts.iter().map(|row| row[k]).collect(),
            None => self.rewards.to_vec(),
        }
    }
}

/// What becomes of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is trained on.
    Kept,
    /// It is not trained on, but its reward counts where its group is compared.
    Silent,
    /// It is as if it had not been sampled.
    Dropped,
}

/// The fate of every rollout `[G]` after all shapers.
///
/// ```
/// use temper_algo::{Fate, GroupShaper, Rollouts, fates};
/// let group = Rollouts { rewards: &[1.0, 0.0, 1.0], truncated: &[false, true, false], ..Rollouts::default() };
/// assert_eq!(fates(&[GroupShaper::MaskTruncated { counts: true }], &group), [Fate::Kept, Fate::Silent, Fate::Kept]);
/// ```
pub fn fates(shapers: &[GroupShaper], group: &Rollouts) -> Vec<Fate> {
    let mut fates = vec![Fate::Kept; group.rewards.len()];
    for shaper in shapers {
        shaper.apply(group, &mut fates);
    }
    fates
}

impl GroupShaper {
    fn apply(&self, group: &Rollouts, fates: &mut [Fate]) {
        let left: Vec<usize> = (0..fates.len()).filter(|i| fates[*i] == Fate::Kept).collect();
        let rewards: Vec<f64> = left.iter().map(|i| group.rewards[*i]).collect();
        let out = |counts: bool| if counts { Fate::Silent } else { Fate::Dropped };
        match *self {
            Self::DropConstant { ref part, .. } => {
                if is_constant(&counted(&group.column(part.as_deref()), fates)) {
                    fates.fill(Fate::Dropped);
                }
            }
            Self::DropUnsolved { threshold } => {
                if counted(group.rewards, fates).iter().all(|r| *r <= threshold) {
                    fates.fill(Fate::Dropped);
                }
            }
            Self::MaskTruncated { counts } => {
                left.iter().filter(|i| group.truncated.get(**i) == Some(&true)).for_each(|i| fates[*i] = out(counts));
            }
            Self::DownSample { keep, rule, counts } => {
                let stays = rule.choose(&rewards, keep as usize);
                left.iter().zip(stays).filter(|(_, stays)| !stays).for_each(|(i, _)| fates[*i] = out(counts));
            }
        }
    }

    /// How many more times a round may sample to replace groups that were dropped whole.
    pub fn refill(&self) -> u32 {
        match self {
            Self::DropConstant { refill, .. } => *refill,
            Self::DropUnsolved { .. } | Self::MaskTruncated { .. } | Self::DownSample { .. } => 0,
        }
    }

    /// Settings that make no sense for groups of `group_size` rollouts, given the names of the reward parts.
    pub fn check(&self, group_size: usize, names: &[&str]) -> Vec<Problem> {
        let problem = |message: String, hint: &str| vec![Problem::new("keep", message, hint)];
        match *self {
            Self::DropConstant { part: Some(ref part), .. } if !names.contains(&part.as_str()) => vec![Problem::new(
                "part",
                format!("there is no reward part `{part}`"),
                format!("the parts are {}", names.join(", ")),
            )],
            Self::DropUnsolved { threshold } if !threshold.is_finite() => {
                vec![Problem::new("threshold", "threshold is no number", "leave it out for 0.5")]
            }
            Self::DownSample { keep, .. } if keep == 0 || keep as usize >= group_size => problem(
                format!("keep is {keep}, expected 1 to {} of the group's {group_size}", group_size.saturating_sub(1)),
                "sample more rollouts than are trained on",
            ),
            Self::DownSample { keep, rule: DownSampleRule::Extremes, .. } if !keep.is_multiple_of(2) => {
                problem(format!("keep is {keep}, expected an even number with the rule `extremes`"), "it keeps pairs")
            }
            Self::DropConstant { .. }
            | Self::DropUnsolved { .. }
            | Self::MaskTruncated { .. }
            | Self::DownSample { .. } => vec![],
        }
    }
}

/// The values of the rollouts that count.
fn counted(values: &[f64], fates: &[Fate]) -> Vec<f64> {
    values.iter().zip(fates).filter(|(_, fate)| **fate != Fate::Dropped).map(|(v, _)| *v).collect()
}

impl DownSampleRule {
    /// Which of the rewards stay `[n]`.
    fn choose(self, rewards: &[f64], keep: usize) -> Vec<bool> {
        let order = by_reward(rewards);
        let keep = keep.min(order.len());
        let best = match self {
            Self::Best => keep,
            Self::Extremes => keep.div_ceil(2),
            Self::MaxVariance => best_of_max_variance(&order.iter().map(|i| rewards[*i]).collect::<Vec<_>>(), keep),
        };
        let mut stays = vec![false; rewards.len()];
        order[..best].iter().chain(&order[order.len() - (keep - best)..]).for_each(|i| stays[*i] = true);
        stays
    }
}

/// Indices from the highest reward to the lowest, of equals the earlier first.
pub(crate) fn by_reward(rewards: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rewards.len()).collect();
    order.sort_by(|a, b| rewards[*b].total_cmp(&rewards[*a]));
    order
}

/// How many of the best to take with the rest from the worst, for the largest variance of `keep` of the sorted rewards.
fn best_of_max_variance(sorted: &[f64], keep: usize) -> usize {
    let variance = |best: usize| {
        let chosen = || sorted[..best].iter().chain(&sorted[sorted.len() - (keep - best)..]);
        let mean = chosen().sum::<f64>() / keep.max(1) as f64;
        chosen().map(|r| (r - mean).powi(2)).sum::<f64>()
    };
    let mut best = 0;
    for candidate in 1..=keep {
        // A gain below rounding is none, so that equal choices do not depend on it.
        if variance(candidate) > variance(best) + 1e-12 {
            best = candidate;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept(shapers: &[GroupShaper], rewards: &[f64], truncated: &[bool]) -> Vec<usize> {
        let fates = fates(shapers, &Rollouts { rewards, truncated, ..Rollouts::default() });
        (0..fates.len()).filter(|i| fates[*i] == Fate::Kept).collect()
    }

    fn down(keep: u32, rule: DownSampleRule) -> [GroupShaper; 1] {
        [GroupShaper::DownSample { keep, rule, counts: false }]
    }

    #[test]
    fn by_hand() {
        let rewards = [0.0, 3.0, 1.0, 2.0, 9.0];
        assert_eq!(kept(&down(2, DownSampleRule::Best), &rewards, &[]), [1, 4]);
        assert_eq!(kept(&down(2, DownSampleRule::Extremes), &rewards, &[]), [0, 4]);
        assert_eq!(kept(&down(4, DownSampleRule::Extremes), &rewards, &[]), [0, 1, 2, 4]);
        // Of three: {9, 0, 1} has squares 48.67, {9, 3, 0} 42: the two worst and the best.
        assert_eq!(kept(&down(3, DownSampleRule::MaxVariance), &rewards, &[]), [0, 2, 4]);
        let drop = GroupShaper::DropConstant { refill: 2, part: None };
        assert_eq!(kept(std::slice::from_ref(&drop), &[0.5, 0.5], &[]), [0; 0]);
        assert_eq!(kept(std::slice::from_ref(&drop), &[0.5, 0.0], &[]), [0, 1]);
        assert_eq!(drop.refill(), 2);
        let unsolved = [GroupShaper::DropUnsolved { threshold: 0.5 }];
        assert_eq!((kept(&unsolved, &[0.5, 0.0], &[]), kept(&unsolved, &[0.0, 1.0], &[])), (vec![], vec![0, 1]));
    }

    /// DAPO: both right, one of them long. Their totals differ, their accuracy does not.
    #[test]
    fn a_named_part_decides_alone() {
        let (names, parts) = (["right", "length"], [vec![1.0, 0.0], vec![1.0, -0.5]]);
        let group = Rollouts { rewards: &[1.0, 0.5], names: &names, parts: &parts, ..Rollouts::default() };
        let drop = |part: Option<&str>| GroupShaper::DropConstant { refill: 0, part: part.map(String::from) };
        assert_eq!(fates(&[drop(None)], &group), [Fate::Kept; 2]);
        assert_eq!(fates(&[drop(Some("right"))], &group), [Fate::Dropped; 2]);
        assert_eq!(fates(&[drop(Some("length"))], &group), [Fate::Kept; 2]);
        assert_eq!(drop(Some("wrong")).check(2, &names)[0].field, "part");
    }

    #[test]
    fn order_and_what_counts_matter() {
        let mask = |counts| GroupShaper::MaskTruncated { counts };
        let drop = GroupShaper::DropConstant { refill: 0, part: None };
        let (rewards, truncated) = ([1.0, 1.0, 0.0], [false, false, true]);
        // Without the truncated one the rest is constant; where it counts it is not.
        assert_eq!(kept(&[mask(false), drop.clone()], &rewards, &truncated), [0; 0]);
        assert_eq!(kept(&[mask(true), drop.clone()], &rewards, &truncated), [0, 1]);
        assert_eq!(kept(&[drop, mask(false)], &rewards, &truncated), [0, 1]);
        let group = Rollouts { rewards: &rewards, truncated: &truncated, ..Rollouts::default() };
        assert_eq!(fates(&[mask(false)], &group)[2], Fate::Dropped);
        assert_eq!(fates(&[], &group), [Fate::Kept; 3]);
    }

    #[test]
    fn bad_settings_are_named() {
        let shaper = |keep, rule| GroupShaper::DownSample { keep, rule, counts: true };
        assert_eq!(shaper(8, DownSampleRule::Best).check(8, &[]).len(), 1);
        assert_eq!(shaper(0, DownSampleRule::Best).check(8, &[]).len(), 1);
        assert_eq!(shaper(3, DownSampleRule::Extremes).check(8, &[]).len(), 1);
        assert!(shaper(4, DownSampleRule::Extremes).check(8, &[]).is_empty());
    }

    proptest! {
        /// Against every subset.
        #[test]
        fn no_subset_has_a_larger_variance(rewards in prop::collection::vec(-3.0f64..3.0, 2..9), keep in 1usize..8) {
            let keep = keep.min(rewards.len());
            let squares = |chosen: &[f64]| {
                let mean = chosen.iter().sum::<f64>() / chosen.len() as f64;
                chosen.iter().map(|r| (r - mean).powi(2)).sum::<f64>()
            };
            let stays = DownSampleRule::MaxVariance.choose(&rewards, keep);
            let of = |stays: &dyn Fn(usize) -> bool| {
                squares(&(0..rewards.len()).filter(|i| stays(*i)).map(|i| rewards[i]).collect::<Vec<_>>())
            };
            let got = of(&|i| stays[i]);
            for set in 0u32..1 << rewards.len() {
                if set.count_ones() as usize == keep {
                    prop_assert!(of(&|i| set >> i & 1 == 1) <= got + 1e-9);
                }
            }
        }
    }
}
