//! The offline loop: training on given examples.
//!
//! Read top to bottom: prepare rows, then for each optimiser step draw rows, weigh their tokens, run the micro-batches,
//! update, log, checkpoint.

use std::time::Instant;

use temper_algo::{SequenceMask, TokenObjective, split_seed};
use temper_data::Encoded;
use temper_model::{Batch, ScoredSequence};
use temper_tensor::{HeadCoef, HeadSpec, HeadTerms};

use crate::context::{Context, Outcome};
use crate::error::{Error, Result};
use crate::examples::{self, Order, Rows};
use crate::learner::Learner;
use crate::metrics::{self as names, Metrics};
use crate::recipe::OfflineStage;
use crate::state::Progress;
use crate::watch::Event;

/// What the step's tokens added up to.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    loss: f64,
    entropy: f64,
    correct: u64,
    scored: u64,
    tokens: u64,
}

/// Runs the stage from where `progress` says.
pub fn run(ctx: &mut Context, learner: &mut Learner, stage: &OfflineStage, progress: &mut Progress) -> Result<Outcome> {
    let seed = ctx.stage_seed(&stage.id);
    let rows = examples::prepare(stage, ctx.tokenizer()?, learner.model.config.max_position_embeddings, seed)?;
    progress.same_data(&stage.id, &rows.sizes, rows.digest())?;
    let mut order = match progress.order.take() {
        Some(order) => order,
        None => new_order(&rows, seed)?,
    };
    let total = total_steps(stage, &rows, seed)?;
    ctx.stage_begin(&stage.id, "offline", total, progress.step);
    for note in examples::notes(stage, &rows) {
        ctx.data_note(&stage.id, &note);
    }
    while progress.step < total {
        let begun = Instant::now();
        let picked = draw(stage, &rows, &mut order, progress);
        let batch: Vec<&(String, Encoded)> = picked.iter().map(|&i| &rows.rows[i]).collect();
        let sums = step(ctx, learner, stage, &batch, progress.step)?;
        let factor = stage.schedule.value(progress.step as u64, total as u64);
        let norm = learner.update(ctx.ops(), &stage.optimizer, factor, stage.clip_norm)?;
        finite("grad_norm", norm, stage, progress.step, &batch)?;

        progress.step += 1;
        progress.drawn += picked.len() as u64;
        for (id, _) in &batch {
            ctx.state.history.saw(id, progress.step as u64);
        }
        progress.num_tokens += sums.tokens;
        let mut metrics = Metrics::default();
        metrics.set(names::LOSS, sums.loss);
        metrics.set(names::GRAD_NORM, norm);
        metrics.set(names::LEARNING_RATE, stage.optimizer.lr() * factor);
        metrics.set(names::EPOCH, progress.drawn as f64 / rows.rows.len() as f64);
        metrics.set(names::NUM_TOKENS, progress.num_tokens as f64);
        metrics.set(names::ENTROPY, sums.entropy / sums.scored.max(1) as f64);
        metrics.set(names::MEAN_TOKEN_ACCURACY, sums.correct as f64 / sums.scored.max(1) as f64);
        ctx.log_step(&stage.id, progress.step, total, &metrics, begun.elapsed(), sums.tokens)?;

        let stop = ctx.stop_requested();
        if stop || progress.step == total || progress.step.is_multiple_of(stage.checkpoint_every) {
            progress.order = Some(order.clone());
            ctx.checkpoint(learner, progress)?;
            ctx.emit(&Event::Checkpoint { stage: &stage.id, step: progress.step });
        }
        if stop && progress.step < total {
            return Ok(Outcome::Interrupted);
        }
    }
    Ok(Outcome::Done)
}

const ORDER: u64 = 1;

/// One optimiser step's gradients: weights for the whole step first, then micro-batch by micro-batch.
fn step(
    ctx: &Context,
    learner: &mut Learner,
    stage: &OfflineStage,
    rows: &[&(String, Encoded)],
    step: usize,
) -> Result<Sums> {
    let masks: Vec<SequenceMask> =
        rows.iter().enumerate().map(|(i, (_, row))| SequenceMask::new(i as u64, &row.weights)).collect();
    let weights = stage.weighting.weights(&masks)?;
    let mut sums = Sums::default();
    for part in micro_batches(rows.iter().map(|(_, row)| row.ids.len()), stage.micro_tokens) {
        let sequences: Vec<ScoredSequence> =
            part.clone().map(|i| ScoredSequence { ids: &rows[i].1.ids, scored: &weights[i] }).collect();
        let (batch, weight) = Batch::sequences(&sequences)?;
        sums.tokens += batch.ids.len() as u64;
        if batch.src.is_empty() {
            continue;
        }
        micro_step(ctx, learner, stage, &batch, &weight, &mut sums)?;
    }
    finite("loss", sums.loss, stage, step, rows)?;
    Ok(sums)
}

fn micro_step(
    ctx: &Context,
    learner: &mut Learner,
    stage: &OfflineStage,
    batch: &Batch,
    weight: &[f64],
    sums: &mut Sums,
) -> Result<()> {
    let objective: TokenObjective = stage.objective;
    let mut failed = None;
    let spec = HeadSpec { entropy: true, argmax: true, ..HeadSpec::default() };
    let mut coef = |at: std::ops::Range<usize>, terms: &HeadTerms| {
        let logp: Vec<f64> = terms.logp.iter().map(|&x| f64::from(x)).collect();
        match objective.terms(&logp, &weight[at]) {
            Ok(found) => {
                sums.loss += found.loss;
                HeadCoef { d_logp: found.d_logp.iter().map(|&x| x as f32).collect(), d_entropy: None }
            }
            Err(error) => {
                failed = Some(error);
                HeadCoef { d_logp: vec![0.0; logp.len()], d_entropy: None }
            }
        }
    };
    let terms = learner.accumulate(ctx.ops(), batch, &spec, stage.recompute, &mut coef)?;
    if failed.is_some() {
        sums.loss = f64::NAN;
    }
    sums.scored += batch.tgt.len() as u64;
    sums.entropy += terms.entropy.iter().flatten().map(|&e| f64::from(e)).sum::<f64>();
    let right = terms.argmax.iter().flatten().zip(&batch.tgt).filter(|(a, t)| a == t).count();
    sums.correct += right as u64;
    Ok(())
}

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

fn finite(
    what: &'static str,
    value: f64,
    stage: &OfflineStage,
    step: usize,
    rows: &[&(String, Encoded)],
) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    let ids: Vec<&str> = rows.iter().take(8).map(|(id, _)| id.as_str()).collect();
    let more = if rows.len() > ids.len() { format!(" and {} more", rows.len() - ids.len()) } else { String::new() };
    let batch = format!("the batch holds the examples {}{more}", ids.join(", "));
    Err(Error::NotFinite { what, value, stage: stage.id.clone(), step: step + 1, batch })
}

fn new_order(rows: &Rows, seed: u64) -> Result<Order> {
    Order::new(rows, split_seed(seed, &[ORDER]))
}

/// Optimiser steps of a stage: as given, or as many as it takes to draw the epochs' rows, found by drawing them.
pub fn total_steps(stage: &OfflineStage, rows: &Rows, seed: u64) -> Result<usize> {
    if let Some(steps) = stage.steps {
        return Ok(steps);
    }
    let wanted = (stage.epochs.unwrap_or(1.0) * rows.rows.len() as f64).round().max(1.0) as usize;
    if let Some(examples) = stage.batch.examples {
        return Ok(wanted.div_ceil(examples));
    }
    let (mut order, mut progress) = (new_order(rows, seed)?, Progress::default());
    let (mut drawn, mut steps) = (0, 0);
    while drawn < wanted {
        drawn += draw(stage, rows, &mut order, &mut progress).len();
        steps += 1;
    }
    Ok(steps)
}

/// The rows of the next step. With a token budget, the row that no longer fits waits for the next step.
fn draw(stage: &OfflineStage, rows: &Rows, order: &mut Order, progress: &mut Progress) -> Vec<usize> {
    if let Some(examples) = stage.batch.examples {
        return (0..examples).map(|_| order.draw(&rows.sizes)).collect();
    }
    let budget = stage.batch.tokens.unwrap_or(1);
    let (mut picked, mut tokens) = (vec![], 0);
    loop {
        let row = progress.waiting.take().unwrap_or_else(|| order.draw(&rows.sizes));
        tokens += rows.rows[row].1.ids.len();
        if tokens > budget && !picked.is_empty() {
            progress.waiting = Some(row);
            return picked;
        }
        picked.push(row);
    }
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
