//! The offline loop: training on given examples.
//!
//! Read top to bottom: prepare rows, then for each optimiser step draw rows, weigh their tokens, run the micro-batches,
//! update, log, checkpoint.

use std::collections::BTreeMap;
use std::time::Instant;

use temper_algo::{Coupling, Needs, SupervisedObjective, split_seed};
use temper_data::Encoded;
use temper_model::Model;

use crate::adapter::Reference;
use crate::context::{Context, Outcome};
use crate::error::{Error, Result};
use crate::examples::{self, Order, Rows};
use crate::input;
use crate::learner::{Learner, Update, Updated};
use crate::metrics::{self as names, Metrics};
use crate::plan;
use crate::recipe::OfflineStage;
use crate::sensitivity;
use crate::slots;
use crate::state::Progress;
use crate::streams::Streams;
use crate::supervised::{Settings, Step, Sums, finite};
use crate::transform::Asked;
use crate::watch::Event;

/// The stage's rows, for the model that it starts from.
pub fn rows(ctx: &Context, stage: &OfflineStage, start: &Model) -> Result<Rows> {
    let asked = Asked { ops: ctx.ops(), model: start, micro_tokens: stage.micro_tokens };
    let context = start.config.max_position_embeddings;
    examples::prepare(stage, ctx.tokenizer()?, context, Some(asked), ctx.stage_seed(&stage.id))
}

/// Forward passes that a step makes besides training's own.
pub fn extra_passes(stage: &OfflineStage) -> Vec<&'static str> {
    let passes = [
        (stage.input.as_ref().is_some_and(|i| i.own_guess.is_some()), "the model's own guesses for the input"),
        (stage.sensitivity.is_some(), "now and then: the probe of `sensitivity`"),
        (
            stage.transform.iter().any(crate::transform::Transform::asks_model),
            "before training: the data asks the model",
        ),
    ];
    let own = passes.into_iter().filter(|(there, _)| *there).map(|(_, pass)| pass);
    loss_passes(&stage.loss()).into_iter().chain(own).collect()
}

/// Those that a loss asks for.
pub(crate) fn loss_passes(loss: &SupervisedObjective) -> Vec<&'static str> {
    let passes = [
        (loss.needs().contains(Needs::LOGP_REF), "log-probabilities of the reference model"),
        (loss.needs().contains(Needs::KL_REF), "the reference's head for every trained token: KL over the vocabulary"),
        (loss.coupling() > Coupling::Token, "log-probabilities first: a term's coefficients are a whole sequence's"),
    ];
    passes.into_iter().filter(|(there, _)| *there).map(|(_, pass)| pass).collect()
}

/// Runs the stage from where `progress` says. `reference` is there when the objective needs it.
pub fn run(
    ctx: &mut Context,
    learner: &mut Learner,
    mut reference: Option<&mut Reference>,
    rows: &Rows,
    stage: &OfflineStage,
    progress: &mut Progress,
) -> Result<Outcome> {
    sensitivity::fits(&learner.model, stage)?;
    let seed = ctx.stage_seed(&stage.id);
    progress.same_data(&stage.id, &rows.sizes, rows.digest())?;
    let mut order = match progress.order.take() {
        Some(order) => order,
        None => new_order(rows, seed)?,
    };
    if let Some(constraint) = &stage.constraint {
        progress.multipliers.resize(rows.rows.len(), constraint.init);
    }
    let total = total_steps(stage, rows, seed)?;
    ctx.stage_begin(&stage.id, "offline", total, progress.step);
    for note in examples::notes(&stage.data, rows) {
        ctx.data_note(&stage.id, &note);
    }
    let context = learner.model.config.max_position_embeddings;
    let streams = Streams::open(ctx, &stage.id, &stage.streams, context, progress)?;
    let of_streams = streams.tokens(&stage.streams, context);
    temper_tensor::buf::expect_rows(plan::offline_sizes(ctx.recipe, stage, rows.tokens(), &of_streams).micro_tokens);
    let changed = input::Change::new(stage, ctx.tokenizer()?, total, seed)?;
    let training = stage.training();
    while progress.step < total {
        let begun = Instant::now();
        let knobs = stage.knobs.values(&progress.knobs, progress.step as u64, total as u64);
        let now = stage.knobs.fix(stage, &knobs);
        let loss = now.loss();
        let picked = rows.draw(&stage.batch, &mut order, &mut progress.waiting);
        let batch: Vec<&(String, Encoded)> = picked.iter().map(|&i| &rows.rows[i]).collect();
        let multipliers: Option<Vec<f64>> =
            stage.constraint.map(|_| picked.iter().map(|&i| progress.multipliers[i]).collect());
        let sensitive = progress.sensitive.clone();
        let settings = Settings::of(ctx, &training, progress.step as u64, progress.step);
        let settings = Settings { sensitive: Some(&sensitive), ..settings };
        let step = Step {
            settings,
            reference: reference.as_deref().filter(|_| loss.needs().contains(Needs::LOGP_REF)),
            loss: &loss,
            weighting: stage.weighting,
            coefficient: now.weight,
            input: Some(&changed),
            rows: &batch,
        };
        let sums = step.run(learner, multipliers.as_deref())?;
        let beside = streams.step(&now.streams, &[], settings, learner, reference.as_deref(), progress)?;
        let factor = stage.schedule.value(progress.step as u64, total as u64);
        let Updated { norm, distance } = learner.update(ctx.ops(), &Update::of(&now.training(), factor))?;
        if let Some(reference) = reference.as_deref_mut() {
            slots::sync(ctx.ops(), training.after_update, learner.adam.step(), &learner.model, reference)?;
        }
        finite("grad_norm", norm, &stage.id, progress.step, &batch)?;

        progress.step += 1;
        progress.drawn += picked.len() as u64;
        for (id, _) in &batch {
            ctx.state.history.saw(id, progress.step as u64);
        }
        progress.num_tokens += sums.tokens;
        let mut metrics = Metrics::default();
        metrics.set(names::LOSS, sums.loss + beside.loss());
        metrics.set(names::GRAD_NORM, norm);
        if let Some(distance) = distance {
            metrics.set(names::DISTANCE, distance);
        }
        metrics.set(names::LEARNING_RATE, stage.optimizer.lr() * factor);
        metrics.set(names::EPOCH, progress.drawn as f64 / rows.rows.len() as f64);
        metrics.set(names::NUM_TOKENS, progress.num_tokens as f64);
        metrics.set(names::ENTROPY, sums.entropy / sums.scored.max(1) as f64);
        metrics.set(names::MEAN_TOKEN_ACCURACY, sums.correct as f64 / sums.scored.max(1) as f64);
        term_metrics(&loss, &sums, &mut metrics);
        beside.write(&mut metrics);
        metrics.knobs(&knobs);
        stage.knobs.observe(&mut progress.knobs, None, metrics.get(names::ENTROPY));
        constrain(stage, progress, &picked, &sums.nll, &mut metrics);
        if stage.sensitivity.is_some() {
            metrics.set(names::SENSITIVE, sensitive.dropped_share(&learner.model));
        }
        progress.sensitive.after(ctx.ops(), &learner.model, stage, &rows.rows, progress.step)?;
        ctx.log_step(&stage.id, progress.step, total, &metrics, begun.elapsed(), sums.tokens + beside.tokens())?;

        let stop = ctx.stop_requested();
        if stop || progress.step == total || progress.step.is_multiple_of(stage.checkpoint_every) {
            progress.order = Some(order.clone());
            ctx.checkpoint(learner, None, reference.as_deref().filter(|_| training.syncs_reference()), progress)?;
            ctx.emit(&Event::Checkpoint { stage: &stage.id, step: progress.step });
        }
        if stop && progress.step < total {
            return Ok(Outcome::Interrupted);
        }
    }
    Ok(Outcome::Done)
}

/// What an objective of several terms, or one with a reference, measures itself.
fn term_metrics(loss: &SupervisedObjective, sums: &Sums, metrics: &mut Metrics) {
    if loss.needs().contains(Needs::LOGP_REF) {
        metrics.set(names::REF_LOG_RATIO, sums.ref_log_ratio / sums.scored.max(1) as f64);
    }
    if loss.terms.is_empty() {
        return;
    }
    let mut count = BTreeMap::<&str, usize>::new();
    for ((_, objective), part) in loss.weighted().zip(&sums.parts) {
        let nth = count.entry(objective.name()).or_default();
        *nth += 1;
        metrics.set(names::term_loss(objective.name(), *nth), *part);
    }
}

/// Moves the multipliers of the step's rows by their losses.
fn constrain(stage: &OfflineStage, progress: &mut Progress, picked: &[usize], nll: &[f64], metrics: &mut Metrics) {
    let Some(constraint) = &stage.constraint else { return };
    let n = picked.len().max(1) as f64;
    metrics.set(names::MULTIPLIER, picked.iter().map(|&i| progress.multipliers[i]).sum::<f64>() / n);
    metrics.set(names::VIOLATED, nll.iter().filter(|l| **l > constraint.epsilon).count() as f64 / n);
    for (&row, loss) in picked.iter().zip(nll) {
        progress.multipliers[row] = constraint.update(progress.multipliers[row], *loss);
    }
}

const ORDER: u64 = 1;

/// Cuts items of these lengths, in order, into runs of at most `limit` tokens; a longer item is a run of its own.
pub fn micro_batches(lengths: impl Iterator<Item = usize>, limit: usize) -> Vec<std::ops::Range<usize>> {
    let mut runs = vec![];
    let (mut start, mut tokens, mut end) = (0, 0, 0);
    for (i, length) in lengths.enumerate() {
        if tokens > 0 && tokens + length > limit {
            runs.push(start..i);
            (start, tokens) = (i, 0);
        }
        tokens += length;
        end = i + 1;
    }
    if start < end {
        runs.push(start..end);
    }
    runs
}

fn new_order(rows: &Rows, seed: u64) -> Result<Order> {
    Order::new(rows, split_seed(seed, &[ORDER]))
}

/// Optimiser steps of a stage: as given, or as many as it takes to draw the epochs' rows, found by drawing them.
///
/// # Errors
/// Settings that have no effect in so many, which `check` finds where the steps are given.
pub fn total_steps(stage: &OfflineStage, rows: &Rows, seed: u64) -> Result<usize> {
    let steps = stage.steps.map_or_else(|| steps_of_epochs(stage, rows, seed), Ok)?;
    let after = stage.after_update.iter().enumerate();
    let after = after.filter_map(|(i, after)| Some(after.never(steps)?.within(&format!("after_update.{i}"))));
    let sensitivity = stage.sensitivity.iter().filter_map(|s| Some(s.never(steps)?.within("sensitivity")));
    match after.chain(sensitivity).next() {
        None => Ok(steps),
        Some(never) => {
            Err(Error::user(format!("stage `{}`, `{}`: {}", stage.id, never.field, never.message), never.hint))
        }
    }
}

fn steps_of_epochs(stage: &OfflineStage, rows: &Rows, seed: u64) -> Result<usize> {
    let wanted = (stage.epochs.unwrap_or(1.0) * rows.rows.len() as f64).round().max(1.0) as usize;
    if let Some(examples) = stage.batch.examples {
        return Ok(wanted.div_ceil(examples));
    }
    let (mut order, mut waiting) = (new_order(rows, seed)?, None);
    let (mut drawn, mut steps) = (0, 0);
    while drawn < wanted {
        drawn += rows.draw(&stage.batch, &mut order, &mut waiting).len();
        steps += 1;
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::micro_batches;

    #[test]
    fn micro_batches_keep_order_and_respect_the_limit() {
        let cut = |lengths: &[usize], limit| micro_batches(lengths.iter().copied(), limit);
        assert_eq!(cut(&[3, 3, 3], 6), [0..2, 2..3]);
        assert_eq!(cut(&[9, 1, 1], 6), [0..1, 1..3]);
        assert!(cut(&[], 6).is_empty());
        assert_eq!(cut(&[1, 9], 6), [0..1, 1..2]);
    }
}
