//! The optimiser's side of the online loop: from groups with advantages to updated parameters.

use temper_algo::stats::Running;
use temper_algo::{PolicyMetrics, SequenceMask};
use temper_data::Encoded;
use temper_tensor::HeadSpec;

use super::pass::{Micro, Pass};
use super::value::ValueUpdate;
use crate::adapter::{self, Reference};
use crate::context::Context;
use crate::critic::Critic;
use crate::error::{Error, Result};
use crate::learner::{self, Learner, Updated};
use crate::metrics::{self as names, Metrics};
use crate::offline::micro_batches;
use crate::recipe::OnlineStage;
use crate::rollout::Group;
use crate::slots;
use crate::state::Progress;
use crate::streams::{self, Shown, Streams};
use crate::supervised::Settings;

/// What the optimiser steps of one round added up to.
#[derive(Debug, Default)]
pub(super) struct Update {
    loss: f64,
    grad_norm: f64,
    /// From the start, before the last step.
    distance: Option<f64>,
    lr: f64,
    pub(super) entropy: Running,
    pub(super) policy: PolicyMetrics,
    /// Tokens computed in training.
    pub tokens: u64,
    updates: usize,
    /// The critic's share.
    pub(super) value: ValueUpdate,
    /// The streams' share.
    pub(super) beside: streams::Beside,
}

/// What a round's optimiser steps train on besides its groups.
pub(super) struct Beside<'a> {
    pub streams: &'a Streams,
    /// Of each stream the demonstrations that it shows in this round.
    pub shown: &'a [Vec<(String, Encoded)>],
    /// Tasks of the round.
    pub tasks: usize,
}

impl Beside<'_> {
    /// Demonstrations of minibatch `part` of `parts`.
    fn shown(&self, part: usize, parts: usize) -> Vec<Shown<'_>> {
        let share = |n: usize| n as f64 * parts as f64 / self.tasks.max(1) as f64;
        let rows = self.shown.iter().map(|rows| &rows[deal(rows.len(), parts)[part].clone()]);
        rows.map(|rows| Shown { rows, share: share(rows.len()) }).collect()
    }
}

impl Update {
    /// One optimiser step of the policy, number `at` of `total`; none where there is nothing to train on.
    fn policy_step(
        &mut self,
        ctx: &Context,
        learner: &mut Learner,
        stage: &OnlineStage,
        groups: &[&Group],
        (beside, shown): (&Beside, &[Shown]),
        reference: Option<&mut Reference>,
        (at, total): (u64, u64),
        progress: &mut Progress,
    ) -> Result<()> {
        let (factor, round) = (stage.schedule.value(at, total), progress.step);
        let mut loss = if groups.is_empty() { 0.0 } else { optimiser_step(ctx, learner, stage, groups, at, self)? };
        finite("loss", loss, stage, round, groups)?;
        let settings = Settings::of(ctx, &stage.training(), at, round);
        let others = beside.streams.step(&stage.streams, shown, settings, learner, reference.as_deref(), progress)?;
        if groups.is_empty() && others.is_empty() {
            return Ok(());
        }
        loss += others.loss();
        self.beside.add(others);
        let update = learner::Update::of(&stage.training(), factor);
        let Updated { norm, distance } = learner.update(ctx.ops(), &update)?;
        if let Some(reference) = reference {
            slots::sync(ctx.ops(), &stage.after_update, learner.adam.step(), &learner.model, reference)?;
        }
        finite("grad_norm", norm, stage, round, groups)?;
        self.updates += 1;
        self.loss += loss;
        self.grad_norm += norm;
        self.distance = distance.or(self.distance);
        self.lr = stage.optimizer.lr() * factor;
        Ok(())
    }

    /// Mean KL to the reference, where the loss has one.
    pub(super) fn kl(&self) -> Option<f64> {
        self.policy.kl.map(temper_algo::Sum::mean)
    }

    /// Mean entropy of the policy, nats a token; nothing of a round without an optimiser step.
    pub(super) fn entropy(&self) -> Option<f64> {
        self.entropy.mean()
    }

    /// A round whose groups were all constant takes no optimiser step, unless streams do, and has none of these numbers.
    pub(super) fn write(&self, metrics: &mut Metrics) {
        if self.updates == 0 {
            return;
        }
        let mean = |sum: f64| sum / self.updates as f64;
        metrics.set(names::LOSS, mean(self.loss));
        metrics.set(names::GRAD_NORM, mean(self.grad_norm));
        metrics.set(names::LEARNING_RATE, self.lr);
        if let Some(distance) = self.distance {
            metrics.set(names::DISTANCE, distance);
        }
        self.beside.write(metrics);
        let Some(entropy) = self.entropy.mean() else { return };
        metrics.set(names::ENTROPY, entropy);
        for (name, value) in self.policy.entries() {
            match name {
                names::ENTROPY => {}
                "policy_loss" => metrics.set(name, mean(value)),
                _ => metrics.set(name, value),
            }
        }
    }
}

/// The round's optimiser steps: `inner_epochs` passes of `minibatches` each, of the critic where there is one and of the policy.
pub(super) fn run(
    ctx: &Context,
    learner: &mut Learner,
    mut critic: Option<&mut Critic>,
    mut reference: Option<&mut Reference>,
    stage: &OnlineStage,
    groups: &[&Group],
    beside: &Beside,
    progress: &mut Progress,
) -> Result<Update> {
    let mut done = Update::default();
    let total = (stage.steps * stage.inner_epochs * stage.minibatches) as u64;
    let policy_trains = stage.critic.as_ref().is_none_or(|c| c.objective.policy_trains(progress.step as u64));
    let minibatches = deal(groups.len(), stage.minibatches);
    let passes = std::iter::repeat_n(minibatches.into_iter().enumerate(), stage.inner_epochs);
    for (part, range) in passes.flatten() {
        let (step, at) = (&groups[range], progress.updates);
        progress.updates += 1;
        let settings = stage.critic.as_ref().filter(|_| !step.is_empty());
        if let (Some(critic), Some(settings)) = (critic.as_deref_mut(), settings) {
            let factor = settings.schedule.value(at, total);
            let (loss, norm) = done.value.step(ctx, critic, stage, settings, step, factor)?;
            finite("value_loss", loss, stage, progress.step, step)?;
            finite("value/grad_norm", norm, stage, progress.step, step)?;
        }
        if policy_trains {
            let shown = beside.shown(part, stage.minibatches);
            done.policy_step(
                ctx,
                learner,
                stage,
                step,
                (beside, &shown),
                reference.as_deref_mut(),
                (at, total),
                progress,
            )?;
        }
    }
    Ok(done)
}

/// The gradients of one optimiser step's groups; returns their loss.
fn optimiser_step(
    ctx: &Context,
    learner: &mut Learner,
    stage: &OnlineStage,
    groups: &[&Group],
    update: u64,
    done: &mut Update,
) -> Result<f64> {
    let masks: Vec<Vec<f32>> = groups.iter().flat_map(|g| g.rollouts.iter().map(|r| vec![1.0; r.scored()])).collect();
    let owners = groups.iter().enumerate().flat_map(|(i, g)| g.rollouts.iter().map(move |r| (i as u64, r.weight)));
    let sequences: Vec<SequenceMask> =
        owners.zip(&masks).map(|((group, weight), mask)| SequenceMask { group, weight, mask }).collect();
    let weights = stage.objective.weighting.weights(&sequences)?;
    let mut weights = weights.into_iter();
    let weights: Vec<Vec<f64>> = groups
        .iter()
        .map(|g| weights.by_ref().take(g.rollouts.len()).flatten().map(|w| w * stage.weight).collect())
        .collect();

    let seed = ctx.stage_seed(&stage.id);
    let micros = micro_batches(groups.iter().map(|g| g.tokens()), stage.micro_tokens)
        .into_iter()
        .map(|part| {
            let mut micro = Micro::new(&groups[part.clone()], &weights[part.clone()], stage.kl_turns.as_deref())?;
            if let Some(rule) = adapter::dropout(stage.adapter.as_ref(), seed, update, &micro.batch, part) {
                micro.hooks.drop_out(rule);
            }
            Ok(micro)
        })
        .collect::<Result<Vec<Micro>>>()?;
    done.tokens += micros.iter().map(|m| m.batch.ids.len() as u64).sum::<u64>();
    let spec = HeadSpec { temperature: stage.sampling.temperature, entropy: true, ..HeadSpec::default() };
    let pass = Pass { ops: ctx.ops(), stage, spec };
    match pass.gradients(learner, &micros, done) {
        Err(Error::Algo(temper_algo::Error::NotFinite { .. })) => Ok(f64::NAN),
        loss => loss,
    }
}

/// `n` items dealt out into `parts` runs whose lengths differ by one at most.
fn deal(n: usize, parts: usize) -> Vec<std::ops::Range<usize>> {
    (0..parts).map(|i| i * n / parts..(i + 1) * n / parts).collect()
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
