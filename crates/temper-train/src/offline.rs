//! The offline loop: training on given examples.
//!
//! Read top to bottom: prepare rows, then for each optimiser step draw rows, weigh their tokens, run the micro-batches,
//! update, log, checkpoint.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use temper_algo::{Coupling, Needs, SequenceMask, SupervisedObjective, SupervisedRows, SupervisedTerms, split_seed};
use temper_data::Encoded;
use temper_model::{Batch, Model, ScoredSequence};
use temper_tensor::{HeadCoef, HeadSpec, HeadTerms, Tensor};

use crate::adapter::{self, Reference};
use crate::context::{Context, Outcome};
use crate::error::{Error, Result};
use crate::examples::{self, Order, Rows};
use crate::input;
use crate::learner::{self, Learner};
use crate::metrics::{self as names, Metrics};
use crate::plan;
use crate::recipe::OfflineStage;
use crate::sensitivity::Sensitive;
use crate::state::Progress;
use crate::transform::Asked;
use crate::watch::Event;

/// What the step's tokens added up to.
#[derive(Debug, Default, Clone)]
struct Sums {
    loss: f64,
    parts: Vec<f64>,
    entropy: f64,
    ref_log_ratio: f64,
    correct: u64,
    scored: u64,
    tokens: u64,
    /// Mean negative log-likelihood of each row of the step, by its mask's weights.
    nll: Vec<f64>,
}

/// The stage's rows, for the model that it starts from.
pub fn rows(ctx: &Context, stage: &OfflineStage, start: &Model) -> Result<Rows> {
    let asked = Asked { ops: ctx.ops(), model: start, micro_tokens: stage.micro_tokens };
    let context = start.config.max_position_embeddings;
    examples::prepare(stage, ctx.tokenizer()?, context, Some(asked), ctx.stage_seed(&stage.id))
}

/// Forward passes that a step makes besides training's own.
pub fn extra_passes(stage: &OfflineStage) -> Vec<&'static str> {
    let loss = stage.loss();
    let passes = [
        (loss.needs().contains(Needs::LOGP_REF), "log-probabilities of the reference model"),
        (loss.needs().contains(Needs::KL_REF), "the reference's head for every trained token: KL over the vocabulary"),
        (loss.coupling() > Coupling::Token, "log-probabilities first: a term's coefficients are a whole sequence's"),
        (stage.input.as_ref().is_some_and(|i| i.own_guess.is_some()), "the model's own guesses for the input"),
        (stage.sensitivity.is_some(), "now and then: the probe of `sensitivity`"),
        (
            stage.transform.iter().any(crate::transform::Transform::asks_model),
            "before training: the data asks the model",
        ),
    ];
    passes.into_iter().filter(|(there, _)| *there).map(|(_, pass)| pass).collect()
}

/// Runs the stage from where `progress` says. `reference` is there when the objective needs it.
pub fn run(
    ctx: &mut Context,
    learner: &mut Learner,
    reference: Option<&Reference>,
    rows: &Rows,
    stage: &OfflineStage,
    progress: &mut Progress,
) -> Result<Outcome> {
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
    for note in examples::notes(stage, rows) {
        ctx.data_note(&stage.id, &note);
    }
    let (longest, all) = rows.tokens();
    temper_tensor::buf::expect_rows(plan::offline_sizes(ctx.recipe, stage, longest, all).micro_tokens);
    let changed = input::Change::new(stage, ctx.tokenizer()?, total, seed)?;
    while progress.step < total {
        let begun = Instant::now();
        let knobs = stage.knobs.values(&progress.knobs, progress.step as u64, total as u64);
        let loss = stage.knobs.fix(stage, &knobs).loss();
        let picked = draw(stage, rows, &mut order, progress);
        let batch: Vec<&(String, Encoded)> = picked.iter().map(|&i| &rows.rows[i]).collect();
        let multipliers: Option<Vec<f64>> =
            stage.constraint.map(|_| picked.iter().map(|&i| progress.multipliers[i]).collect());
        let sensitive = &progress.sensitive;
        let step =
            Step { ctx, reference, stage, loss: &loss, input: &changed, sensitive, rows: &batch, index: progress.step };
        let sums = step.run(learner, multipliers.as_deref())?;
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
        term_metrics(&loss, &sums, &mut metrics);
        metrics.knobs(&knobs);
        stage.knobs.observe(&mut progress.knobs, None, metrics.get(names::ENTROPY));
        constrain(stage, progress, &picked, &sums.nll, &mut metrics);
        if stage.sensitivity.is_some() {
            metrics.set(names::SENSITIVE, progress.sensitive.dropped_share(&learner.model));
        }
        progress.sensitive.after(ctx.ops(), &learner.model, stage, &rows.rows, progress.step)?;
        ctx.log_step(&stage.id, progress.step, total, &metrics, begun.elapsed(), sums.tokens)?;

        let stop = ctx.stop_requested();
        if stop || progress.step == total || progress.step.is_multiple_of(stage.checkpoint_every) {
            progress.order = Some(order.clone());
            ctx.checkpoint(learner, None, progress)?;
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

/// One optimiser step: weights for the whole step first, then micro-batch by micro-batch.
struct Step<'a, 'c> {
    ctx: &'a Context<'c>,
    reference: Option<&'a Reference>,
    stage: &'a OfflineStage,
    loss: &'a SupervisedObjective,
    input: &'a input::Change,
    sensitive: &'a Sensitive,
    rows: &'a [&'a (String, Encoded)],
    index: usize,
}

impl Step<'_, '_> {
    /// Adds the step's gradients.
    fn run(&self, learner: &mut Learner, multipliers: Option<&[f64]>) -> Result<Sums> {
        let rows = self.rows;
        let masks: Vec<SequenceMask> =
            rows.iter().enumerate().map(|(i, (_, row))| SequenceMask::new(i as u64, &row.weights)).collect();
        let weights = self.stage.weighting.weights(&masks)?;
        let mut sums = Sums { parts: vec![0.0; 1 + self.loss.terms.len()], ..Sums::default() };
        for part in micro_batches(rows.iter().map(|(_, row)| row.ids.len()), self.stage.micro_tokens) {
            let micro = Micro::new(self, learner, part, &weights, multipliers)?;
            sums.tokens += micro.batch.ids.len() as u64;
            if micro.batch.src.is_empty() {
                sums.nll.extend(std::iter::repeat_n(0.0, micro.sequences.len()));
                continue;
            }
            micro.run(self, learner, &mut sums)?;
        }
        finite("loss", sums.loss, self.stage, self.index, rows)?;
        Ok(sums)
    }

    /// Log-probs of the scored tokens under the reference, and its hidden rows where a term reads its whole distributions.
    fn of_reference(&self, learner: &Learner, batch: &Batch) -> Result<(Option<Vec<f64>>, Option<Tensor>)> {
        let (ops, policy, spec) = (self.ctx.ops(), &learner.model, HeadSpec::default());
        let Some(reference) = self.reference.filter(|_| batch.scored() > 0) else { return Ok((None, None)) };
        if !self.loss.needs().contains(Needs::KL_REF) {
            return Ok((Some(wide(&reference.terms(ops, policy, batch, &spec)?.logp)), None));
        }
        let rows = reference.rows(ops, policy, batch)?;
        let own = policy.params.matrix("head", policy.head())?;
        let terms = ops.head_terms(&rows, reference.head()?.unwrap_or(own), &batch.tgt, &spec)?;
        Ok((Some(wide(&terms.logp)), Some(rows)))
    }
}

/// The host arrays of one micro-batch, scored tokens in batch order.
struct Micro {
    batch: Batch,
    hooks: temper_tensor::Hooks,
    /// Weights from the masks alone.
    share: Vec<f64>,
    /// What the loss is weighted by: the same, times the rows' multipliers.
    weight: Vec<f64>,
    sequences: Vec<usize>,
    logp_ref: Option<Vec<f64>>,
    /// The reference's hidden rows, where the objective compares over the vocabulary.
    rows_ref: Option<Tensor>,
}

impl Micro {
    fn new(
        step: &Step,
        learner: &Learner,
        part: Range<usize>,
        weights: &[Vec<f64>],
        multipliers: Option<&[f64]>,
    ) -> Result<Self> {
        let sequences: Vec<ScoredSequence> =
            part.clone().map(|i| ScoredSequence { ids: &step.rows[i].1.ids, scored: &weights[i] }).collect();
        let (mut batch, share) = Batch::sequences(&sequences)?;
        let scored = |s: &ScoredSequence| s.scored.iter().skip(1).filter(|w| **w != 0.0).count();
        let lengths: Vec<usize> = sequences.iter().map(scored).collect();
        let (logp_ref, rows_ref) = step.of_reference(learner, &batch)?;
        let mut hooks =
            step.input.apply(step.ctx.ops(), &learner.model, &mut batch, &sequences, step.index, part.start)?;
        step.sensitive.leave_out(step.ctx.ops(), &learner.model, &mut hooks)?;
        let seed = step.ctx.stage_seed(&step.stage.id);
        let items = input::with_rows(&sequences).map(|i| part.start + i);
        if let Some(rule) = adapter::dropout(step.stage.adapter.as_ref(), seed, step.index as u64, &batch, items) {
            hooks.drop_out(rule);
        }
        let of_rows = part.zip(&lengths).flat_map(|(i, n)| std::iter::repeat_n(multipliers.map_or(1.0, |m| m[i]), *n));
        let weight = share.iter().zip(of_rows).map(|(w, m)| w * m).collect();
        Ok(Self { batch, hooks, share, weight, sequences: lengths, logp_ref, rows_ref })
    }

    /// Forward, objective and backward; adds to the sums.
    fn run(&self, step: &Step, learner: &mut Learner, sums: &mut Sums) -> Result<()> {
        let (ops, loss) = (step.ctx.ops(), step.loss);
        let mean_logp = loss.needs().contains(Needs::MEAN_LOGP);
        let spec = HeadSpec { entropy: true, argmax: true, mean_logp, ..HeadSpec::default() };
        let head = step.reference.map(Reference::head).transpose()?.flatten();
        let other = self.rows_ref.as_ref().map(|rows| (rows, head));
        let asked = learner::Asked { spec: &spec, hooks: &self.hooks, other };
        let known = if loss.coupling() == Coupling::Token {
            None
        } else {
            let head = learner.terms_with(ops, &self.batch, &asked)?;
            Some(self.terms(loss, 0..self.weight.len(), &head))
        };
        let mut failed = None;
        let mut total = SupervisedTerms { parts: vec![0.0; sums.parts.len()], ..SupervisedTerms::default() };
        let mut coef = |at: Range<usize>, head: &HeadTerms| {
            // Wider couplings have all coefficients already; this chunk's are a slice of them.
            let terms = match &known {
                Some(known) => known.as_ref().map(|k| slice(k, at.clone())).map_err(Clone::clone),
                None => self.terms(loss, at.clone(), head),
            };
            match terms {
                Ok(terms) => {
                    add(&mut total, &terms);
                    coefficients(&terms)
                }
                Err(error) => {
                    failed = Some(error);
                    HeadCoef { d_logp: vec![0.0; at.len()], ..HeadCoef::default() }
                }
            }
        };
        let head = learner.accumulate_with(ops, &self.batch, &asked, step.stage.recompute, &mut coef)?;
        match failed {
            Some(temper_algo::Error::NotFinite { .. }) => total.loss = f64::NAN,
            Some(error) => return Err(error.into()),
            None => {}
        }
        if let Some(Ok(known)) = &known {
            add(&mut total, known);
        }
        self.sum(&head, &total, sums);
        Ok(())
    }

    /// The objective's terms for the scored tokens `at`.
    fn terms(
        &self,
        loss: &SupervisedObjective,
        at: Range<usize>,
        head: &HeadTerms,
    ) -> Result<SupervisedTerms, temper_algo::Error> {
        let [entropy, mean_logp, kl_ref] = [&head.entropy, &head.mean_logp, &head.kl].map(|v| v.as_deref().map(wide));
        let whole = at.len() == self.weight.len();
        loss.token_terms(&SupervisedRows {
            logp: &wide(&head.logp),
            logp_ref: self.logp_ref.as_ref().map(|l| &l[at.clone()]),
            entropy: entropy.as_deref(),
            mean_logp: mean_logp.as_deref(),
            kl_ref: kl_ref.as_deref(),
            weight: &self.weight[at],
            sequences: if whole { &self.sequences } else { &[] },
        })
    }

    fn sum(&self, head: &HeadTerms, total: &SupervisedTerms, sums: &mut Sums) {
        sums.loss += total.loss;
        sums.parts.iter_mut().zip(&total.parts).for_each(|(sum, part)| *sum += part);
        sums.scored += self.batch.tgt.len() as u64;
        sums.entropy += wide(head.entropy.as_deref().unwrap_or_default()).iter().sum::<f64>();
        let right = head.argmax.iter().flatten().zip(&self.batch.tgt).filter(|(a, t)| a == t).count();
        sums.correct += right as u64;
        let logp = wide(&head.logp);
        if let Some(reference) = &self.logp_ref {
            sums.ref_log_ratio += logp.iter().zip(reference).map(|(now, then)| now - then).sum::<f64>();
        }
        let mut start = 0;
        for length in &self.sequences {
            let rows = start..start + length;
            start += length;
            let weight: f64 = self.share[rows.clone()].iter().sum();
            let nll: f64 = self.share[rows.clone()].iter().zip(&logp[rows]).map(|(w, l)| -w * l).sum();
            sums.nll.push(if weight > 0.0 { nll / weight } else { 0.0 });
        }
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

fn add(total: &mut SupervisedTerms, terms: &SupervisedTerms) {
    total.loss += terms.loss;
    total.parts.iter_mut().zip(&terms.parts).for_each(|(sum, part)| *sum += part);
}

/// The derivatives of some rows, without the sums, which count once.
fn slice(terms: &SupervisedTerms, at: Range<usize>) -> SupervisedTerms {
    let part = |d: &Option<Vec<f64>>| d.as_ref().map(|d| d[at.clone()].to_vec());
    SupervisedTerms {
        d_logp: terms.d_logp[at.clone()].to_vec(),
        d_entropy: part(&terms.d_entropy),
        d_mean_logp: part(&terms.d_mean_logp),
        d_kl_ref: part(&terms.d_kl_ref),
        ..SupervisedTerms::default()
    }
}

fn coefficients(terms: &SupervisedTerms) -> HeadCoef {
    let narrow = |d: &Vec<f64>| d.iter().map(|&x| x as f32).collect();
    HeadCoef {
        d_logp: narrow(&terms.d_logp),
        d_entropy: terms.d_entropy.as_ref().map(narrow),
        d_mean_logp: terms.d_mean_logp.as_ref().map(narrow),
        d_kl: terms.d_kl_ref.as_ref().map(narrow),
    }
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
