//! The online loop: training on what the model samples.
//!
//! Read top to bottom: draw tasks, sample groups, score and shape them, turn rewards into advantages, weigh the tokens of each
//! optimiser step, run the micro-batches, update, log, checkpoint.

mod pass;
mod update;

use std::time::Instant;

use temper_algo::stats::Running;
use temper_algo::{Fate, GroupShaper, is_constant, sample_std, split_seed};
use temper_env::Scorer;
use temper_model::Model;

use crate::adapter::Reference;
use crate::context::{Context, Outcome};
use crate::error::Result;
use crate::learner::Learner;
use crate::metrics::{self as names, Metrics};
use crate::recipe::OnlineStage;
use crate::rollout::{self, Group, RolloutLine, Sources};
use crate::state::Progress;
use crate::watch::Event;

/// Runs the stage from where `progress` says. `reference` is there when the objective needs it.
pub fn run(
    ctx: &mut Context,
    learner: &mut Learner,
    reference: Option<&Reference>,
    stage: &OnlineStage,
    progress: &mut Progress,
) -> Result<Outcome> {
    let seed = ctx.stage_seed(&stage.id);
    let sources = Sources::open(stage, seed, progress)?;
    let mut scorer = Scorer::new(&stage.rewards)?;
    let context = learner.model.config.max_position_embeddings;
    ctx.stage_begin(&stage.id, "online", stage.steps, progress.step);
    while progress.step < stage.steps {
        let begun = Instant::now();
        let mut sampling = Sampling { sources: &sources, scorer: &mut scorer, stage, seed, context };
        let (mut groups, replaced) = sampling.round(ctx, &learner.model, progress)?;
        rollout::advantages(stage, &mut groups, progress)?;
        let sampled: Vec<&Group> = groups.iter().chain(&replaced).collect();
        remember(ctx, progress.step, &sampled);
        log_rollouts(ctx, stage, progress.step, &sampled)?;

        let mut metrics = Metrics::default();
        let tokens = reward_metrics(stage, &sampled, &mut metrics);
        group_metrics(stage, &groups, replaced.len(), progress, &mut metrics);
        drop(sampled);
        let trained: Vec<Group> = groups.into_iter().filter_map(Group::trained).collect();
        let update = update::run(ctx, learner, reference, stage, &trained.iter().collect::<Vec<_>>(), progress)?;

        progress.step += 1;
        progress.num_tokens += tokens;
        metrics.set(names::NUM_TOKENS, progress.num_tokens as f64);
        update.write(&mut metrics);
        ctx.log_step(&stage.id, progress.step, stage.steps, &metrics, begun.elapsed(), tokens + update.tokens)?;

        let stop = ctx.stop_requested();
        if stop || progress.step == stage.steps || progress.step.is_multiple_of(stage.checkpoint_every) {
            ctx.checkpoint(learner, progress)?;
            ctx.emit(&Event::Checkpoint { stage: &stage.id, step: progress.step });
        }
        if stop && progress.step < stage.steps {
            return Ok(Outcome::Interrupted);
        }
    }
    Ok(Outcome::Done)
}

/// What a round of sampling works with.
struct Sampling<'a> {
    sources: &'a Sources,
    scorer: &'a mut Scorer,
    stage: &'a OnlineStage,
    seed: u64,
    context: usize,
}

impl Sampling<'_> {
    /// The groups of a round, and those that others were sampled in place of. Groups that stay dropped after the last refill are
    /// among the first.
    fn round(&mut self, ctx: &mut Context, model: &Model, progress: &mut Progress) -> Result<(Vec<Group>, Vec<Group>)> {
        let mut groups = self.groups(ctx, model, progress, self.stage.prompts_per_step, 0)?;
        let mut replaced = vec![];
        for attempt in 1..=self.stage.refill() {
            let dropped: Vec<usize> = (0..groups.len()).filter(|i| groups[*i].dropped()).collect();
            if dropped.is_empty() {
                break;
            }
            let new = self.groups(ctx, model, progress, dropped.len(), attempt)?;
            replaced.extend(dropped.into_iter().zip(new).map(|(i, group)| std::mem::replace(&mut groups[i], group)));
        }
        Ok((groups, replaced))
    }

    /// `n` groups, scored and shaped. Their randomness is a function of (round, attempt, slot, sample).
    fn groups(
        &mut self,
        ctx: &mut Context,
        model: &Model,
        progress: &mut Progress,
        n: usize,
        attempt: u32,
    ) -> Result<Vec<Group>> {
        let tasks = self.sources.draw(ctx, self.stage, self.context, n, progress)?;
        let mut path = vec![rollout::SAMPLE, progress.step as u64];
        path.extend((attempt > 0).then_some(u64::from(attempt)));
        let mut groups = rollout::sample(ctx, model, self.stage, tasks, split_seed(self.seed, &path))?;
        rollout::score(self.scorer, &mut groups)?;
        path[0] = rollout::NOISE;
        rollout::shape(self.stage, &mut groups, progress.step as u64, split_seed(self.seed, &path))?;
        Ok(groups)
    }
}

/// Rewards, lengths and shares of the round; returns the tokens that were computed in sampling.
fn reward_metrics(stage: &OnlineStage, groups: &[&Group], metrics: &mut Metrics) -> u64 {
    let rollouts = || groups.iter().flat_map(|g| &g.rollouts);
    let collect = |value: &dyn Fn(&rollout::Rollout) -> f64| {
        let mut all = Running::default();
        rollouts().for_each(|r| all.push(value(r)));
        all
    };
    let share =
        |value: &dyn Fn(&rollout::Rollout) -> bool| collect(&|r| f64::from(u8::from(value(r)))).mean().unwrap_or(0.0);
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
    let length = collect(&|r| r.tokens.len() as f64);
    metrics.set(names::LENGTH_MEAN, length.mean().unwrap_or(0.0));
    metrics.set(names::LENGTH_MIN, length.min().unwrap_or(0.0));
    metrics.set(names::LENGTH_MAX, length.max().unwrap_or(0.0));
    metrics.set(names::CLIPPED_RATIO, share(&rollout::Rollout::truncated));
    metrics.set(names::UNPARSED, share(&rollout::Rollout::unparsed));
    if stage.sampling.truncates() {
        metrics.set(names::LOST_MASS, collect(&|r| r.lost_mass).mean().unwrap_or(0.0));
    }
    groups.iter().map(|g| g.sampled_tokens()).sum()
}

/// What shaping did: rewards after it, and what is left out of the update.
fn group_metrics(stage: &OnlineStage, groups: &[Group], replaced: usize, progress: &Progress, metrics: &mut Metrics) {
    let dropped = groups.iter().filter(|g| g.dropped()).count();
    metrics.set(names::GROUPS_DROPPED, (dropped + replaced) as f64 / (groups.len() + replaced).max(1) as f64);
    if stage.refill() > 0 {
        metrics.set(names::GROUPS_REFILLED, replaced as f64);
        metrics.set(names::GROUPS_MISSING, dropped as f64);
    }
    let mean = |values: &mut dyn Iterator<Item = f64>| values.collect::<Running>().mean().unwrap_or(0.0);
    if stage.group.iter().any(|g| !matches!(g, GroupShaper::DropConstant { .. })) {
        let fates = groups.iter().filter(|g| !g.dropped()).flat_map(|g| &g.fates);
        let left_out = mean(&mut fates.map(|f| f64::from(u8::from(*f != Fate::Kept))));
        metrics.set(names::ROLLOUTS_LEFT_OUT, left_out);
    }
    if !stage.shaping.is_empty() {
        metrics.set(names::REWARD_SHAPED, mean(&mut groups.iter().flat_map(|g| &g.shaped).copied()));
    }
    if stage.needs_greedy() {
        metrics.set(names::REWARD_GREEDY, mean(&mut groups.iter().filter_map(|g| Some(g.greedy.as_ref()?.reward()))));
    }
    if let Some([low, high]) = progress.advantage.quantiles {
        metrics.set(names::QUANTILE_LOW, low);
        metrics.set(names::QUANTILE_HIGH, high);
    }
}

/// What samplers and curricula will want to know about each task.
fn remember(ctx: &mut Context, step: usize, groups: &[&Group]) {
    for group in groups {
        let id = &group.task.id;
        let passes = group.passes();
        ctx.state.history.saw(id, step as u64 + 1);
        ctx.state.history.graded(id, passes as u64, group.rollouts.len() as u64);
        for i in 0..group.rollouts.len() {
            ctx.state.history.advantage(id, group.mean_adv(i));
        }
    }
}

fn log_rollouts(ctx: &mut Context, stage: &OnlineStage, step: usize, groups: &[&Group]) -> Result<()> {
    let due = step.is_multiple_of(stage.log_rollouts_every) || step + 1 == stage.steps;
    for group in groups.iter().filter(|_| due) {
        for rollout in &group.rollouts {
            ctx.logs.rollouts.append(&RolloutLine::new(stage, step + 1, group, rollout))?;
        }
    }
    Ok(())
}
