//! From scored groups to what is trained on: shaped rewards, fates, advantages, weights.

use temper_algo::group_reuse::{self, injected_reward, shaped_weight};
use temper_algo::seed::SplitMix64;
use temper_algo::{Fate, GroupRewards, Rollouts, Shaped, ShapingInput, StepReward, fates, split_seed};

use super::{Group, Origin, REDRAW, Rollout};
use crate::error::Result;
use crate::recipe::OnlineStage;
use crate::state::Progress;

/// Shapes the rewards of scored groups and decides which completions are trained on. Noise is a function of (`seed`, slot,
/// sample).
pub(super) fn shape(stage: &OnlineStage, groups: &mut [Group], step: u64, seed: u64) -> Result<()> {
    for (slot, group) in groups.iter_mut().enumerate() {
        group.success = group.passes() as f64 / group.sampled().count().max(1) as f64;
        group.shaped = shaped(stage, group, step, split_seed(seed, &[slot as u64]))?;
        neutral(group);
        let truncated: Vec<bool> = group.rollouts.iter().map(Rollout::truncated).collect();
        let Shaped { rewards, parts } = &group.shaped;
        let names = &stage.reward_names();
        group.fates = fates(&stage.group, &Rollouts { rewards, truncated: &truncated, names, parts });
    }
    Ok(())
}

fn shaped(stage: &OnlineStage, group: &Group, step: u64, seed: u64) -> Result<Shaped> {
    let names = stage.reward_names();
    let weights: Vec<f64> = stage.rewards.iter().map(|r| r.weight).collect();
    let lengths = group.lengths();
    let draw = |i: usize| SplitMix64::new(split_seed(seed, &[i as u64])).next_f64();
    let draws: Vec<f64> = (0..group.rollouts.len()).map(draw).collect();
    // A member from elsewhere has no part in a majority.
    let answer = |r: &Rollout| (r.origin == Origin::Sampled).then(|| r.said().map(str::to_owned)).flatten();
    let answers: Vec<Option<String>> = group.rollouts.iter().map(answer).collect();
    let answers: Vec<Option<&str>> = answers.iter().map(Option::as_deref).collect();
    let texts: Vec<&str> = group.rollouts.iter().map(|r| r.text.as_str()).collect();
    let intrinsic: Vec<f64> = group.rollouts.iter().map(|r| r.intrinsic).collect();
    let input = ShapingInput {
        names: &names,
        weights: &weights,
        lengths: &lengths,
        greedy: group.greedy.as_ref().map(Rollout::reward),
        answers: &answers,
        texts: &texts,
        intrinsic: &intrinsic,
        draws: &draws,
        group_draw: SplitMix64::new(seed).next_f64(),
        step,
    };
    let rewards = group.rollouts.iter().map(Rollout::reward).collect();
    let mut shaped = Shaped { rewards, parts: group.parts(names.len()) };
    stage.shaping.iter().try_for_each(|s| s.apply(&mut shaped, &input))?;
    Ok(shaped)
}

/// Once a rollout does as well as a member that was not sampled here, the member's reward is the mean of the rollouts.
fn neutral(group: &mut Group) {
    let foreign = |r: &Rollout| r.origin != Origin::Sampled;
    let own = group.rollouts.iter().zip(&group.shaped.rewards).filter(|(r, _)| !foreign(r));
    let own: Vec<f64> = own.map(|(_, reward)| *reward).collect();
    for (_, reward) in group.rollouts.iter().zip(&mut group.shaped.rewards).filter(|(r, _)| foreign(r)) {
        *reward = injected_reward(*reward, &own);
    }
}

/// Advantages of all tokens that are trained on, over the completions of the round that count.
pub fn advantages(stage: &OnlineStage, groups: &mut [Group], progress: &mut Progress) -> Result<()> {
    // A group without any is not there: neither bundles nor means see it.
    let counted: Vec<Counted> =
        (0..groups.len()).map(|index| Counted::new(index, &groups[index])).filter(|c| !c.members.is_empty()).collect();
    for group in &mut *groups {
        group.adv = vec![vec![]; group.rollouts.len()];
    }
    let views: Vec<GroupRewards> = counted.iter().map(Counted::view).collect();
    let part_weights: Vec<f64> = stage.rewards.iter().map(|r| r.weight).collect();
    let round = temper_algo::Round { groups: &views, part_weights: &part_weights, state: progress.advantage };
    let all = stage.objective.advantage.advantages(&round)?;
    progress.advantage = stage.objective.advantage.remember(&round);
    for (g, counted) in counted.iter().enumerate() {
        let group = &mut groups[counted.index];
        for (i, &rollout) in counted.members.iter().enumerate() {
            if group.fates[rollout] == Fate::Kept {
                group.adv[rollout] = all.tokens(g, i, counted.lengths[i]);
                weigh_shaped(stage, group, rollout);
            }
        }
    }
    Ok(())
}

/// The advantages of a member's tokens, by how likely the policy finds them, where the stage asks for it.
fn weigh_shaped(stage: &OnlineStage, group: &mut Group, i: usize) {
    let rollout = &group.rollouts[i];
    let gamma = stage.inject.as_ref().and_then(|inject| inject.gamma);
    if let Some(gamma) = gamma.filter(|_| rollout.origin != Origin::Sampled) {
        let logp = rollout.logp_old().iter().map(|l| f64::from(*l));
        group.adv[i].iter_mut().zip(logp).for_each(|(adv, logp)| *adv *= shaped_weight(logp, gamma));
    }
}

/// Draws the step anew from the rollouts that are trained on, by their advantages. Returns the share of the units that were drawn,
/// nothing without a redraw.
pub fn redrawn(stage: &OnlineStage, groups: &mut [Group], step: usize, seed: u64) -> Option<f64> {
    let redraw = stage.redraw?;
    let seed = split_seed(seed, &[REDRAW, step as u64]);
    let mut units: Vec<(usize, Vec<usize>)> = vec![];
    for (g, group) in groups.iter().enumerate() {
        let kept: Vec<usize> = (0..group.rollouts.len()).filter(|i| group.fates[*i] == Fate::Kept).collect();
        let rewards: Vec<f64> = kept.iter().map(|i| group.shaped.rewards[*i]).collect();
        let of_group = redraw.unit.units(&rewards);
        units.extend(of_group.into_iter().map(|unit| (g, unit.into_iter().map(|i| kept[i]).collect())));
    }
    let strength = |(g, unit): &(usize, Vec<usize>)| unit.iter().map(|i| groups[*g].mean_adv(*i).abs()).sum();
    let weights: Vec<f64> = units.iter().map(strength).collect();
    let counts = group_reuse::redraw(&weights, units.len(), seed);
    for ((g, unit), count) in units.iter().zip(&counts) {
        for i in unit {
            groups[*g].rollouts[*i].weight = f64::from(*count);
            if *count == 0 {
                groups[*g].fates[*i] = Fate::Dropped;
            }
        }
    }
    Some(counts.iter().filter(|c| **c > 0).count() as f64 / units.len().max(1) as f64)
}

/// The completions of a group that count where it is compared.
struct Counted {
    index: usize,
    members: Vec<usize>,
    rewards: Vec<f64>,
    parts: Vec<Vec<f64>>,
    lengths: Vec<usize>,
    greedy: Option<f64>,
    values: Vec<Vec<f64>>,
    steps: Vec<Vec<StepReward>>,
}

/// One list a member; nothing where nobody has any.
fn given<'a, T: Clone + 'a>(members: &[usize], of: impl Fn(usize) -> &'a Vec<T>) -> Vec<Vec<T>> {
    let all: Vec<Vec<T>> = members.iter().map(|i| of(*i).clone()).collect();
    if all.iter().all(Vec::is_empty) { vec![] } else { all }
}

impl Counted {
    fn new(index: usize, group: &Group) -> Self {
        let members: Vec<usize> = (0..group.rollouts.len()).filter(|i| group.fates[*i] != Fate::Dropped).collect();
        let lengths = group.lengths();
        Self {
            index,
            rewards: members.iter().map(|i| group.shaped.rewards[*i] - group.rollouts[*i].read.cost).collect(),
            parts: members.iter().map(|i| group.shaped.parts[*i].clone()).collect(),
            lengths: members.iter().map(|i| lengths[*i]).collect(),
            greedy: group.greedy.as_ref().map(Rollout::reward),
            values: given(&members, |i| &group.rollouts[i].read.values),
            steps: given(&members, |i| &group.rollouts[i].read.steps),
            members,
        }
    }

    fn view(&self) -> GroupRewards<'_> {
        GroupRewards {
            parts: &self.parts,
            lengths: &self.lengths,
            greedy: self.greedy,
            values: &self.values,
            steps: &self.steps,
            ..GroupRewards::new(&self.rewards)
        }
    }
}
