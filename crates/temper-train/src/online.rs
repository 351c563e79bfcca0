//! The online loop: training on what the model samples.
//!
//! Read top to bottom: draw tasks, sample groups, score them, turn rewards into advantages, weigh the tokens of each
//! optimiser step, run the micro-batches, update, log, checkpoint.

use std::time::Instant;

use temper_algo::stats::Running;
use temper_algo::{
    Coupling, Needs, PolicyMetrics, PolicyTerms, Rows, SequenceMask, is_constant, sample_std, split_seed,
};
use temper_env::Scorer;
use temper_model::{Batch, Model};
use temper_tensor::{HeadCoef, HeadSpec, HeadTerms};

use crate::context::{Context, Outcome};
use crate::error::{Error, Result};
use crate::learner::Learner;
use crate::metrics::{self as names, Metrics};
use crate::offline::micro_batches;
use crate::recipe::OnlineStage;
use crate::rollout::{self, Group, RolloutLine, Sources};
use crate::state::Progress;
use crate::watch::Event;

/// Runs the stage from where `progress` says. `reference` is there when the objective needs it.
pub fn run(
    ctx: &mut Context,
    learner: &mut Learner,
    reference: Option<&Model>,
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
        let round = progress.step as u64;
        let tasks = sources.draw(ctx, stage, context, progress)?;
        let mut groups =
            rollout::sample(ctx, &learner.model, stage, tasks, split_seed(seed, &[rollout::SAMPLE, round]))?;
        rollout::score(&mut scorer, &mut groups)?;
        for group in &mut groups {
            group.adv = stage.objective.advantage.advantages(&group.rewards());
        }
        remember(ctx, progress.step, &groups);
        log_rollouts(ctx, stage, progress.step, &groups)?;

        let mut metrics = Metrics::default();
        let tokens = reward_metrics(stage, &groups, &mut metrics);
        let kept: Vec<&Group> =
            groups.iter().filter(|g| !(stage.drop_constant_groups && is_constant(&g.rewards()))).collect();
        let update = update(ctx, learner, reference, stage, &kept, progress)?;

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

/// What the optimiser steps of one round added up to.
#[derive(Debug, Default)]
struct Update {
    loss: f64,
    grad_norm: f64,
    lr: f64,
    entropy: Running,
    policy: PolicyMetrics,
    tokens: u64,
    updates: usize,
}

impl Update {
    /// A round whose groups were all constant takes no optimiser step and has none of these numbers.
    fn write(&self, metrics: &mut Metrics) {
        if self.updates == 0 {
            return;
        }
        let mean = |sum: f64| sum / self.updates as f64;
        metrics.set(names::LOSS, mean(self.loss));
        metrics.set(names::GRAD_NORM, mean(self.grad_norm));
        metrics.set(names::LEARNING_RATE, self.lr);
        metrics.set(names::ENTROPY, self.entropy.mean().unwrap_or(0.0));
        for (name, value) in self.policy.entries() {
            match name {
                names::ENTROPY => {}
                "policy_loss" => metrics.set(name, mean(value)),
                _ => metrics.set(name, value),
            }
        }
    }
}

/// The round's optimiser steps: `inner_epochs` passes of `minibatches` each.
fn update(
    ctx: &Context,
    learner: &mut Learner,
    reference: Option<&Model>,
    stage: &OnlineStage,
    groups: &[&Group],
    progress: &mut Progress,
) -> Result<Update> {
    let mut done = Update::default();
    let needs = stage.objective.needs();
    let temperature = stage.sampling.temperature;
    let total = (stage.steps * stage.inner_epochs * stage.minibatches) as u64;
    let minibatches = deal(groups.len(), stage.minibatches);
    let logp_ref = match reference.filter(|_| needs.contains(Needs::LOGP_REF)) {
        Some(model) => Some(reference_logp(ctx, model, stage, groups)?),
        None => None,
    };
    for _ in 0..stage.inner_epochs {
        for range in &minibatches {
            let step = &groups[range.clone()];
            if step.is_empty() {
                progress.updates += 1;
                continue;
            }
            let logp_ref = logp_ref.as_ref().map(|l| &l[range.clone()]);
            let loss = optimiser_step(ctx, learner, stage, step, logp_ref, temperature, &mut done)?;
            let factor = stage.schedule.value(progress.updates, total);
            let norm = learner.update(ctx.ops(), &stage.optimizer, factor, stage.clip_norm)?;
            for (what, value) in [("loss", loss), ("grad_norm", norm)] {
                finite(what, value, stage, progress.step, step)?;
            }
            progress.updates += 1;
            done.updates += 1;
            done.loss += loss;
            done.grad_norm += norm;
            done.lr = stage.optimizer.lr() * factor;
        }
    }
    Ok(done)
}

/// One optimiser step's gradients; returns its loss.
fn optimiser_step(
    ctx: &Context,
    learner: &mut Learner,
    stage: &OnlineStage,
    groups: &[&Group],
    logp_ref: Option<&[Vec<f64>]>,
    temperature: f32,
    done: &mut Update,
) -> Result<f64> {
    let masks: Vec<Vec<f32>> =
        groups.iter().flat_map(|g| g.rollouts.iter().map(|r| vec![1.0; r.tokens.len()])).collect();
    let owners = groups.iter().enumerate().flat_map(|(i, g)| g.rollouts.iter().map(move |_| i as u64));
    let sequences: Vec<SequenceMask> = owners.zip(&masks).map(|(g, mask)| SequenceMask::new(g, mask)).collect();
    let weights = stage.objective.weighting.weights(&sequences)?;
    let mut weights = weights.into_iter();
    let weights: Vec<Vec<f64>> =
        groups.iter().map(|g| weights.by_ref().take(g.rollouts.len()).flatten().collect()).collect();

    let mut loss = 0.0;
    for part in micro_batches(groups.iter().map(|g| g.tokens()), stage.micro_tokens) {
        let micro = Micro::new(&groups[part.clone()], &weights[part.clone()], logp_ref.map(|l| &l[part.clone()]))?;
        done.tokens += micro.batch.ids.len() as u64;
        loss += micro.run(ctx, learner, stage, temperature, done)?;
    }
    Ok(loss)
}

/// The host arrays of one micro-batch, scored tokens in batch order.
struct Micro {
    batch: Batch,
    logp_old: Vec<f64>,
    logp_ref: Option<Vec<f64>>,
    adv: Vec<f64>,
    weight: Vec<f64>,
    sequences: Vec<usize>,
}

impl Micro {
    fn new(groups: &[&Group], weights: &[Vec<f64>], logp_ref: Option<&[Vec<f64>]>) -> Result<Self> {
        let rollouts = || groups.iter().flat_map(|g| g.rollouts.iter().zip(&g.adv));
        Ok(Self {
            batch: group_batch(groups)?,
            logp_old: rollouts().flat_map(|(r, _)| r.logp_gen.iter().map(|&x| f64::from(x))).collect(),
            logp_ref: logp_ref.map(<[std::vec::Vec<f64>]>::concat),
            adv: rollouts().flat_map(|(r, &adv)| std::iter::repeat_n(adv, r.tokens.len())).collect(),
            weight: weights.concat(),
            sequences: rollouts().map(|(r, _)| r.tokens.len()).collect(),
        })
    }

    /// Forward, objective and backward; returns the micro-batch's share of the loss.
    fn run(
        &self,
        ctx: &Context,
        learner: &mut Learner,
        stage: &OnlineStage,
        temperature: f32,
        done: &mut Update,
    ) -> Result<f64> {
        let spec = HeadSpec { temperature, entropy: true, ..HeadSpec::default() };
        let known = match stage.objective.coupling() {
            Coupling::Token => None,
            _ => Some(self.terms(stage, 0..self.adv.len(), &learner.model.terms(ctx.ops(), &self.batch, &spec)?)),
        };
        let (mut loss, mut failed) = (0.0, None);
        let mut coef = |at: std::ops::Range<usize>, head: &HeadTerms| {
            // Wider couplings have all coefficients already; this chunk's are a slice of them.
            let terms = match &known {
                Some(known) => known.as_ref().map(|k| slice(k, at.clone())).map_err(Clone::clone),
                None => self.terms(stage, at.clone(), head),
            };
            match terms {
                Ok(terms) => {
                    if known.is_none() {
                        loss += terms.loss;
                        done.policy = done.policy.merge(terms.metrics);
                    }
                    coefficients(&terms)
                }
                Err(error) => {
                    failed = Some(error);
                    HeadCoef { d_logp: vec![0.0; at.len()], ..HeadCoef::default() }
                }
            }
        };
        let head = learner.accumulate(ctx.ops(), &self.batch, &spec, stage.recompute, &mut coef)?;
        if let Some(error) = failed {
            return if matches!(error, temper_algo::Error::NotFinite { .. }) {
                Ok(f64::NAN)
            } else {
                Err(error.into())
            };
        }
        if let Some(Ok(known)) = known {
            loss = known.loss;
            done.policy = done.policy.merge(known.metrics);
        }
        head.entropy.iter().flatten().for_each(|&e| done.entropy.push(f64::from(e)));
        Ok(loss)
    }

    /// The objective's terms for the scored tokens `at`.
    fn terms(
        &self,
        stage: &OnlineStage,
        at: std::ops::Range<usize>,
        head: &HeadTerms,
    ) -> Result<PolicyTerms, temper_algo::Error> {
        let logp: Vec<f64> = head.logp.iter().map(|&x| f64::from(x)).collect();
        let entropy: Option<Vec<f64>> = head.entropy.as_ref().map(|e| e.iter().map(|&x| f64::from(x)).collect());
        let whole = at.len() == self.adv.len();
        stage.objective.token_terms(&Rows {
            logp: &logp,
            logp_old: Some(&self.logp_old[at.clone()]),
            logp_ref: self.logp_ref.as_ref().map(|l| &l[at.clone()]),
            entropy: entropy.as_deref(),
            adv: &self.adv[at.clone()],
            weight: &self.weight[at],
            sequences: if whole { &self.sequences } else { &[] },
        })
    }
}

fn slice(terms: &PolicyTerms, at: std::ops::Range<usize>) -> PolicyTerms {
    PolicyTerms {
        d_logp: terms.d_logp[at.clone()].to_vec(),
        d_entropy: terms.d_entropy.as_ref().map(|d| d[at].to_vec()),
        ..PolicyTerms::default()
    }
}

fn coefficients(terms: &PolicyTerms) -> HeadCoef {
    let narrow = |d: &Vec<f64>| d.iter().map(|&x| x as f32).collect();
    HeadCoef { d_logp: narrow(&terms.d_logp), d_entropy: terms.d_entropy.as_ref().map(narrow), ..HeadCoef::default() }
}

fn group_batch(groups: &[&Group]) -> Result<Batch> {
    let shapes: Vec<(&[u32], Vec<&[u32]>)> = groups
        .iter()
        .map(|g| (g.prompt.as_slice(), g.rollouts.iter().map(|r| r.tokens.as_slice()).collect()))
        .collect();
    Ok(Batch::groups(&shapes)?)
}

/// Log-probabilities of every group's tokens under the reference, at the sampling temperature.
fn reference_logp(ctx: &Context, model: &Model, stage: &OnlineStage, groups: &[&Group]) -> Result<Vec<Vec<f64>>> {
    let spec = HeadSpec { temperature: stage.sampling.temperature, ..HeadSpec::default() };
    let mut all = vec![];
    for part in micro_batches(groups.iter().map(|g| g.tokens()), stage.micro_tokens) {
        let terms = model.terms(ctx.ops(), &group_batch(&groups[part.clone()])?, &spec)?;
        let mut logp = terms.logp.iter().map(|&x| f64::from(x));
        for group in &groups[part] {
            all.push(logp.by_ref().take(group.scored()).collect());
        }
    }
    Ok(all)
}

/// `n` items dealt out into `parts` runs whose lengths differ by one at most.
fn deal(n: usize, parts: usize) -> Vec<std::ops::Range<usize>> {
    (0..parts).map(|i| i * n / parts..(i + 1) * n / parts).collect()
}

/// Rewards, lengths and shares of the round; returns the tokens that were computed in sampling.
fn reward_metrics(stage: &OnlineStage, groups: &[Group], metrics: &mut Metrics) -> u64 {
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
    groups.iter().map(|g| g.tokens() as u64).sum()
}

/// What samplers and curricula will want to know about each task.
fn remember(ctx: &mut Context, step: usize, groups: &[Group]) {
    for group in groups {
        let id = &group.task.id;
        let passes = group.rollouts.iter().filter(|r| r.reward() > 0.0).count();
        ctx.state.history.saw(id, step as u64 + 1);
        ctx.state.history.graded(id, passes as u64, group.rollouts.len() as u64);
        group.adv.iter().for_each(|&adv| ctx.state.history.advantage(id, adv));
    }
}

fn log_rollouts(ctx: &mut Context, stage: &OnlineStage, step: usize, groups: &[Group]) -> Result<()> {
    let due = step.is_multiple_of(stage.log_rollouts_every) || step + 1 == stage.steps;
    for group in groups.iter().filter(|_| due) {
        for rollout in &group.rollouts {
            ctx.logs.rollouts.append(&RolloutLine::new(stage, step + 1, group, rollout))?;
        }
    }
    Ok(())
}

fn finite(what: &'static str, value: f64, stage: &OnlineStage, step: usize, groups: &[&Group]) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    let ids: Vec<&str> = groups.iter().take(8).map(|g| g.task.id.as_str()).collect();
    let batch = format!("the batch holds the tasks {}", ids.join(", "));
    Err(Error::NotFinite { what, value, stage: stage.id.clone(), step: step + 1, batch })
}

#[cfg(test)]
mod tests {
    use super::deal;

    #[test]
    fn groups_are_dealt_out_evenly() {
        assert_eq!(deal(5, 2), [0..2, 2..5]);
        assert_eq!(deal(1, 3), [0..0, 0..0, 0..1]);
    }
}
