//! What a round says about itself: metrics, the history of tasks, and the rollouts that are kept.

use temper_algo::stats::Running;
use temper_algo::{Fate, GroupShaper, is_constant, sample_std};

use super::{Group, Origin, Rollout, RolloutLine};
use crate::context::Context;
use crate::error::Result;
use crate::metrics::{self as names, Metrics};
use crate::recipe::OnlineStage;
use crate::state::Progress;

/// Rewards, lengths and shares of the round; returns the tokens that were computed in sampling.
pub fn rewards(stage: &OnlineStage, groups: &[&Group], metrics: &mut Metrics) -> u64 {
    let rollouts = || groups.iter().flat_map(|g| g.sampled());
    let collect = |value: &dyn Fn(&Rollout) -> f64| {
        let mut all = Running::default();
        rollouts().for_each(|r| all.push(value(r)));
        all
    };
    let share = |value: &dyn Fn(&Rollout) -> bool| collect(&|r| f64::from(u8::from(value(r)))).mean().unwrap_or(0.0);
    let reward = collect(&|r| r.reward());
    let stds: Vec<f64> = groups.iter().map(|g| sample_std(&g.rewards())).collect();
    let constant = groups.iter().filter(|g| is_constant(&g.rewards())).count();
    let n = groups.len().max(1) as f64;
    metrics.set(names::REWARD, reward.mean().unwrap_or(0.0));
    metrics.set(names::REWARD_STD, stds.iter().sum::<f64>() / n);
    metrics.set(names::FRAC_REWARD_ZERO_STD, constant as f64 / n);
    for (k, part) in stage.rewards.iter().enumerate() {
        let values = collect(&|r| r.part(k));
        metrics.set(names::reward_part_mean(&part.name), values.mean().unwrap_or(0.0));
        metrics.set(names::reward_part_std(&part.name), values.std().unwrap_or(0.0));
    }
    let length = collect(&|r| r.scored() as f64);
    metrics.set(names::LENGTH_MEAN, length.mean().unwrap_or(0.0));
    metrics.set(names::LENGTH_MIN, length.min().unwrap_or(0.0));
    metrics.set(names::LENGTH_MAX, length.max().unwrap_or(0.0));
    if stage.environment.is_some() {
        let first = |r: &Rollout| r.earlier.first().map_or(r.last_reward, |turn| turn.reward);
        metrics.set(names::FIRST_TURN, collect(&first).mean().unwrap_or(0.0));
        metrics.set(names::LAST_TURN, collect(&|r| r.last_reward).mean().unwrap_or(0.0));
    }
    metrics.set(names::CLIPPED_RATIO, share(&Rollout::truncated));
    metrics.set(names::UNPARSED, share(&Rollout::unparsed));
    if stage.sampling.truncates() {
        metrics.set(names::LOST_MASS, collect(&|r| r.lost_mass).mean().unwrap_or(0.0));
    }
    groups.iter().map(|g| g.sampled_tokens()).sum()
}

/// What shaping did: rewards after it, and what is left out of the update.
pub fn shaping(stage: &OnlineStage, groups: &[Group], replaced: usize, progress: &Progress, metrics: &mut Metrics) {
    let dropped = groups.iter().filter(|g| g.dropped()).count();
    metrics.set(names::GROUPS_DROPPED, (dropped + replaced) as f64 / (groups.len() + replaced).max(1) as f64);
    if stage.refill() > 0 {
        metrics.set(names::GROUPS_REFILLED, replaced as f64);
        metrics.set(names::GROUPS_MISSING, dropped as f64);
    }
    let mean = |values: &mut dyn Iterator<Item = f64>| values.collect::<Running>().mean().unwrap_or(0.0);
    let leaves_out = |g: &GroupShaper| matches!(g, GroupShaper::MaskTruncated { .. } | GroupShaper::DownSample { .. });
    if stage.group.iter().any(leaves_out) {
        let fates = groups.iter().filter(|g| !g.dropped()).flat_map(|g| &g.fates);
        let left_out = mean(&mut fates.map(|f| f64::from(u8::from(*f != Fate::Kept))));
        metrics.set(names::ROLLOUTS_LEFT_OUT, left_out);
    }
    if !stage.shaping.is_empty() {
        metrics.set(names::REWARD_SHAPED, mean(&mut groups.iter().flat_map(|g| &g.shaped.rewards).copied()));
    }
    if stage.needs_greedy() {
        metrics.set(names::REWARD_GREEDY, mean(&mut groups.iter().filter_map(|g| Some(g.greedy.as_ref()?.reward()))));
    }
    if let Some([low, high]) = progress.advantage.quantiles {
        metrics.set(names::QUANTILE_LOW, low);
        metrics.set(names::QUANTILE_HIGH, high);
    }
}

/// What came into the groups from elsewhere, and what a budget in stages saved.
pub fn members(stage: &OnlineStage, groups: &[Group], progress: &Progress, metrics: &mut Metrics) {
    let share = |of: f64| of / groups.len().max(1) as f64;
    if stage.inject.is_some() {
        let with = groups.iter().filter(|g| g.rollouts.len() > g.sampled().count());
        metrics.set(names::GROUPS_INJECTED, share(with.count() as f64));
    }
    if stage.shared.is_some() {
        let theirs = groups.iter().filter(|g| g.rollouts.iter().all(|r| r.origin == Origin::Shared));
        metrics.set(names::GROUPS_SHARED, theirs.count() as f64);
    }
    if stage.stores().is_some() {
        metrics.set(names::STORED_ANSWERS, progress.answers.len() as f64);
    }
    if stage.episodic().is_some() {
        let [right, wrong] = progress.memory.len();
        metrics.set(names::MEMORY_RIGHT, right as f64);
        metrics.set(names::MEMORY_WRONG, wrong as f64);
    }
    if stage.budget.is_some() {
        let spent = |g: &Group| g.sampled().count() as f64 / stage.samples_per_prompt as f64;
        metrics.set(names::BUDGET_SAVED, 1.0 - share(groups.iter().map(spent).sum()));
    }
}

/// What samplers and curricula will want to know about each task.
pub fn remember(ctx: &mut Context, step: usize, groups: &[&Group]) {
    for group in groups {
        let id = &group.task.id;
        let passes = group.passes();
        ctx.state.history.saw(id, step as u64 + 1);
        ctx.state.history.graded(id, passes as u64, group.sampled().count() as u64);
        for i in (0..group.rollouts.len()).filter(|i| group.rollouts[*i].origin == Origin::Sampled) {
            ctx.state.history.advantage(id, group.mean_adv(i));
        }
    }
}

/// Keeps the rollouts of every so many rounds, and of the last one.
pub fn log(ctx: &mut Context, stage: &OnlineStage, step: usize, groups: &[&Group]) -> Result<()> {
    let due = step.is_multiple_of(stage.log_rollouts_every) || step + 1 == stage.steps;
    for group in groups.iter().filter(|_| due) {
        for rollout in &group.rollouts {
            ctx.logs.rollouts.append(&RolloutLine::new(stage, step + 1, group, rollout))?;
        }
    }
    Ok(())
}
