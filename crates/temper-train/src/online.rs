//! The online loop: training on what the model samples.
//!
//! Read top to bottom: draw tasks, sample groups, score and shape them, turn rewards into advantages, weigh the tokens of each
//! optimiser step, run the micro-batches, update, log, checkpoint.

use std::ops::Range;
use std::time::Instant;

use temper_algo::stats::Running;
use temper_algo::{Coupling, Needs, PolicyMetrics, PolicyTerms, Rows, SequenceMask};
use temper_env::Scorer;
use temper_model::{Batch, Model};
use temper_tensor::{HeadCoef, HeadSpec, HeadTerms, Ops};

use crate::context::{Context, Outcome};
use crate::error::{Error, Result};
use crate::learner::Learner;
use crate::metrics::{self as names, Metrics};
use crate::offline::micro_batches;
use crate::recipe::OnlineStage;
use crate::rollout::{self, Group, Sampling, Sources, measure};
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
        let mut sampling = Sampling { sources: &sources, scorer: &mut scorer, stage, seed, context };
        let (mut groups, replaced) = sampling.round(ctx, &learner.model, progress)?;
        rollout::advantages(stage, &mut groups, progress)?;
        let drawn = rollout::redrawn(stage, &mut groups, progress.step, seed);
        let sampled: Vec<&Group> = groups.iter().chain(&replaced).collect();
        measure::remember(ctx, progress.step, &sampled);
        measure::log(ctx, stage, progress.step, &sampled)?;

        let mut metrics = Metrics::default();
        let tokens = measure::rewards(stage, &sampled, &mut metrics);
        measure::shaping(stage, &groups, replaced.len(), progress, &mut metrics);
        measure::members(stage, &groups, progress, &mut metrics);
        if let Some(share) = drawn {
            metrics.set(names::REDRAWN, share);
        }
        drop(sampled);
        let trained: Vec<Group> = groups.into_iter().filter_map(Group::trained).collect();
        let update = update(ctx, learner, reference, stage, &trained.iter().collect::<Vec<_>>(), progress)?;

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
    let owners = groups.iter().enumerate().flat_map(|(i, g)| g.rollouts.iter().map(move |r| (i as u64, r.weight)));
    let sequences: Vec<SequenceMask> =
        owners.zip(&masks).map(|((group, weight), mask)| SequenceMask { group, weight, mask }).collect();
    let weights = stage.objective.weighting.weights(&sequences)?;
    let mut weights = weights.into_iter();
    let weights: Vec<Vec<f64>> =
        groups.iter().map(|g| weights.by_ref().take(g.rollouts.len()).flatten().collect()).collect();

    let micros = micro_batches(groups.iter().map(|g| g.tokens()), stage.micro_tokens)
        .into_iter()
        .map(|part| Micro::new(&groups[part.clone()], &weights[part.clone()], logp_ref.map(|l| &l[part.clone()])))
        .collect::<Result<Vec<Micro>>>()?;
    done.tokens += micros.iter().map(|m| m.batch.ids.len() as u64).sum::<u64>();
    let pass = Pass { ops: ctx.ops(), stage, spec: HeadSpec { temperature, entropy: true, ..HeadSpec::default() } };
    match pass.gradients(learner, &micros, done) {
        Err(Error::Algo(temper_algo::Error::NotFinite { .. })) => Ok(f64::NAN),
        loss => loss,
    }
}

/// A micro-batch: the tokens, and the columns of those that are scored.
struct Micro {
    batch: Batch,
    scored: Scored,
}

/// Columns of scored tokens in batch order, `[M]` each, with the lengths of their sequences and groups.
#[derive(Default)]
struct Scored {
    logp_old: Vec<f64>,
    logp_gen: Vec<f64>,
    logp_ref: Option<Vec<f64>>,
    adv: Vec<f64>,
    success: Vec<f64>,
    weight: Vec<f64>,
    sequences: Vec<usize>,
    groups: Vec<usize>,
}

impl Micro {
    fn new(groups: &[&Group], weights: &[Vec<f64>], logp_ref: Option<&[Vec<f64>]>) -> Result<Self> {
        let rollouts = || groups.iter().flat_map(|g| g.rollouts.iter().zip(&g.adv));
        let scored = Scored {
            logp_old: rollouts().flat_map(|(r, _)| r.logp_old().iter().map(|&x| f64::from(x))).collect(),
            logp_gen: rollouts().flat_map(|(r, _)| r.logp_gen.iter().map(|&x| f64::from(x))).collect(),
            logp_ref: logp_ref.map(<[std::vec::Vec<f64>]>::concat),
            adv: rollouts().flat_map(|(_, adv)| adv.iter().copied()).collect(),
            success: groups.iter().flat_map(|g| std::iter::repeat_n(g.success, g.scored())).collect(),
            weight: weights.concat(),
            sequences: rollouts().map(|(r, _)| r.tokens.len()).collect(),
            groups: groups.iter().map(|g| g.rollouts.len()).collect(),
        };
        Ok(Self { batch: group_batch(groups)?, scored })
    }
}

impl Scored {
    fn len(&self) -> usize {
        self.adv.len()
    }

    /// The columns of all micro-batches of a step, one after the other.
    fn of_step(micros: &[Micro]) -> Self {
        let mut all = Self::default();
        for Micro { scored, .. } in micros {
            all.logp_old.extend(&scored.logp_old);
            all.logp_gen.extend(&scored.logp_gen);
            if let Some(logp_ref) = &scored.logp_ref {
                all.logp_ref.get_or_insert_default().extend(logp_ref);
            }
            all.adv.extend(&scored.adv);
            all.success.extend(&scored.success);
            all.weight.extend(&scored.weight);
            all.sequences.extend(&scored.sequences);
            all.groups.extend(&scored.groups);
        }
        all
    }

    /// The objective's terms for the scored tokens `at`.
    fn terms(
        &self,
        stage: &OnlineStage,
        at: Range<usize>,
        head: &HeadTerms,
    ) -> Result<PolicyTerms, temper_algo::Error> {
        let logp: Vec<f64> = head.logp.iter().map(|&x| f64::from(x)).collect();
        let entropy: Option<Vec<f64>> = head.entropy.as_ref().map(|e| e.iter().map(|&x| f64::from(x)).collect());
        let whole = at.len() == self.len();
        stage.objective.token_terms(&Rows {
            logp: &logp,
            logp_old: Some(&self.logp_old[at.clone()]),
            logp_gen: Some(&self.logp_gen[at.clone()]),
            logp_ref: self.logp_ref.as_ref().map(|l| &l[at.clone()]),
            entropy: entropy.as_deref(),
            success: Some(&self.success[at.clone()]),
            adv: &self.adv[at.clone()],
            weight: &self.weight[at],
            sequences: if whole { &self.sequences } else { &[] },
            groups: if whole { &self.groups } else { &[] },
            ..Rows::EMPTY
        })
    }
}

/// The passes of an optimiser step through the model: one where every token's coefficient follows from its own terms, and one
/// more, forward only, where it takes those of its sequence, its group or the whole step.
struct Pass<'a> {
    ops: &'a dyn Ops,
    stage: &'a OnlineStage,
    spec: HeadSpec,
}

impl Pass<'_> {
    /// Adds the gradients of all micro-batches; returns the step's loss.
    fn gradients(&self, learner: &mut Learner, micros: &[Micro], done: &mut Update) -> Result<f64> {
        let (mut loss, mut from) = (0.0, 0);
        let whole = match self.stage.objective.coupling() {
            Coupling::Step => Some(self.whole_step(learner, micros)?),
            _ => None,
        };
        for micro in micros {
            let at = from..from + micro.scored.len();
            from = at.end;
            let known = match (&whole, self.stage.objective.coupling()) {
                (Some(whole), _) => Some(slice(whole, at)),
                (None, Coupling::Token) => None,
                (None, _) => Some(micro.scored.terms(self.stage, 0..at.len(), &self.forward(learner, micro)?)?),
            };
            loss += self.backward(learner, micro, known.as_ref(), done)?;
        }
        if let Some(whole) = whole {
            loss += whole.loss;
            done.policy = done.policy.merge(whole.metrics);
        }
        Ok(loss)
    }

    fn forward(&self, learner: &Learner, micro: &Micro) -> Result<HeadTerms> {
        Ok(learner.model.terms(self.ops, &micro.batch, &self.spec)?)
    }

    /// The terms of every scored token of the step, for objectives that compare them all.
    fn whole_step(&self, learner: &Learner, micros: &[Micro]) -> Result<PolicyTerms> {
        let mut head = HeadTerms { entropy: Some(vec![]), ..HeadTerms::default() };
        for micro in micros {
            let terms = self.forward(learner, micro)?;
            head.logp.extend(terms.logp);
            head.entropy.get_or_insert_default().extend(terms.entropy.unwrap_or_default());
        }
        let scored = Scored::of_step(micros);
        Ok(scored.terms(self.stage, 0..scored.len(), &head)?)
    }

    /// Forward, coefficients (`known` ones, or those of each chunk's own terms) and backward; returns the micro-batch's share of
    /// the loss.
    fn backward(
        &self,
        learner: &mut Learner,
        micro: &Micro,
        known: Option<&PolicyTerms>,
        done: &mut Update,
    ) -> Result<f64> {
        let (mut loss, mut failed) = (0.0, None);
        let mut count = |terms: &PolicyTerms| {
            loss += terms.loss;
            done.policy = done.policy.merge(terms.metrics);
        };
        if let Some(known) = known {
            count(known);
        }
        let mut coef = |at: Range<usize>, head: &HeadTerms| match known {
            Some(known) => coefficients(&slice(known, at)),
            None => match micro.scored.terms(self.stage, at.clone(), head) {
                Ok(terms) => {
                    count(&terms);
                    coefficients(&terms)
                }
                Err(error) => {
                    failed = Some(error);
                    HeadCoef { d_logp: vec![0.0; at.len()], ..HeadCoef::default() }
                }
            },
        };
        let head = learner.accumulate(self.ops, &micro.batch, &self.spec, self.stage.recompute, &mut coef)?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        head.entropy.iter().flatten().for_each(|&e| done.entropy.push(f64::from(e)));
        Ok(loss)
    }
}

/// The coefficients of some tokens; loss and metrics stay with the whole.
fn slice(terms: &PolicyTerms, at: Range<usize>) -> PolicyTerms {
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
