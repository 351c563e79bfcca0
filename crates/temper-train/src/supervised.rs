//! Given rows in training: one optimiser step's gradient of a supervised objective, micro-batch by micro-batch. An offline stage's own
//! data goes through here, and every stream of either loop.

use std::borrow::Cow;
use std::ops::Range;

use temper_algo::{Coupling, Needs, SequenceMask, SupervisedObjective, SupervisedRows, SupervisedTerms, Weighting};
use temper_data::Encoded;
use temper_model::{Batch, ScoredSequence};
use temper_tensor::{HeadCoef, HeadSpec, HeadTerms, Hooks, Ops, Tensor};

use crate::adapter::{self, Reference};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::input;
use crate::learner::{Asked, Learner};
use crate::offline::micro_batches;
use crate::recipe::{Adapter, Training};
use crate::sensitivity::Sensitive;

/// What a step's tokens added up to.
#[derive(Debug, Default, Clone)]
pub(crate) struct Sums {
    /// `sum(weight * x)`, coefficient and multipliers included.
    pub loss: f64,
    /// Each term's own sum, before its coefficient in the objective.
    pub parts: Vec<f64>,
    /// Entropies, nats.
    pub entropy: f64,
    /// `logp - logp_ref`, with a reference.
    pub ref_log_ratio: f64,
    /// Tokens that are the argmax.
    pub correct: u64,
    /// Tokens scored.
    pub scored: u64,
    /// Tokens computed.
    pub tokens: u64,
    /// Mean negative log-likelihood of each row of the step, by its mask's weights.
    pub nll: Vec<f64>,
}

/// How a stage trains, whatever the rows.
#[derive(Clone, Copy)]
pub(crate) struct Settings<'a> {
    pub ops: &'a dyn Ops,
    /// The stage, for messages.
    pub stage: &'a str,
    pub micro_tokens: usize,
    pub recompute: bool,
    pub adapter: Option<&'a Adapter>,
    /// Units that are left out.
    pub sensitive: Option<&'a Sensitive>,
    /// Seed of what is random in the step.
    pub seed: u64,
    /// Number of the optimiser step: its randomness.
    pub index: u64,
    /// Rounds done, for messages.
    pub round: usize,
}

impl<'a> Settings<'a> {
    /// Of a stage's optimiser step `index`, after `round` rounds.
    pub(crate) fn of<'c: 'a>(ctx: &Context<'c>, stage: &Training<'a>, index: u64, round: usize) -> Self {
        Self {
            ops: ctx.ops(),
            stage: stage.id,
            micro_tokens: stage.micro_tokens,
            recompute: stage.recompute,
            adapter: stage.adapter,
            sensitive: None,
            seed: ctx.stage_seed(stage.id),
            index,
            round,
        }
    }
}

/// One optimiser step: weights for the whole step first, then micro-batch by micro-batch.
pub(crate) struct Step<'a> {
    pub settings: Settings<'a>,
    pub reference: Option<&'a Reference>,
    pub loss: &'a SupervisedObjective,
    pub weighting: Weighting,
    /// Factor of the whole loss.
    pub coefficient: f64,
    /// What is done to the model's input.
    pub input: Option<&'a input::Change>,
    pub rows: &'a [&'a (String, Encoded)],
}

impl Step<'_> {
    /// Adds the step's gradients.
    pub(crate) fn run(&self, learner: &mut Learner, multipliers: Option<&[f64]>) -> Result<Sums> {
        let rows = self.rows;
        let masks: Vec<SequenceMask> =
            rows.iter().enumerate().map(|(i, (_, row))| SequenceMask::new(i as u64, &row.weights)).collect();
        let weights = self.weighting.weights(&masks)?;
        let mut sums = Sums { parts: vec![0.0; 1 + self.loss.terms.len()], ..Sums::default() };
        for part in micro_batches(rows.iter().map(|(_, row)| row.ids.len()), self.settings.micro_tokens) {
            let micro = Micro::new(self, learner, part, &weights, multipliers)?;
            sums.tokens += micro.batch.ids.len() as u64;
            if micro.batch.src.is_empty() {
                sums.nll.extend(std::iter::repeat_n(0.0, micro.sequences.len()));
                continue;
            }
            micro.run(self, learner, &mut sums)?;
        }
        finite("loss", sums.loss, self.settings.stage, self.settings.round, rows)?;
        Ok(sums)
    }

    /// What is asked of the reference before the policy's pass.
    fn of_reference(&self, learner: &Learner, batch: &Batch) -> Result<OfReference> {
        let (ops, policy) = (self.settings.ops, &learner.model);
        Ok(match self.reference.filter(|_| batch.scored() > 0) {
            None => OfReference::Nothing,
            Some(reference) if self.loss.needs().contains(Needs::KL_REF) => {
                OfReference::Rows(reference.rows(ops, policy, batch)?)
            }
            Some(reference) => {
                OfReference::Logp(wide(&reference.terms(ops, policy, batch, &HeadSpec::default())?.logp))
            }
        })
    }
}

/// What the reference says of a micro-batch's scored tokens.
enum OfReference {
    Nothing,
    /// Their log-probabilities.
    Logp(Vec<f64>),
    /// The hidden rows that predict them, where the objective compares over the vocabulary: the policy's head then reads their
    /// log-probabilities too.
    Rows(Tensor),
}

/// The host arrays of one micro-batch, scored tokens in batch order.
struct Micro {
    batch: Batch,
    hooks: Hooks,
    /// Weights from the masks alone.
    share: Vec<f64>,
    /// What the loss is weighted by: the same, times the step's coefficient and the rows' multipliers.
    weight: Vec<f64>,
    sequences: Vec<usize>,
    reference: OfReference,
}

impl Micro {
    fn new(
        step: &Step,
        learner: &Learner,
        part: Range<usize>,
        weights: &[Vec<f64>],
        multipliers: Option<&[f64]>,
    ) -> Result<Self> {
        let Settings { ops, adapter, seed, index, .. } = step.settings;
        let sequences: Vec<ScoredSequence> =
            part.clone().map(|i| ScoredSequence { ids: &step.rows[i].1.ids, scored: &weights[i] }).collect();
        let (mut batch, share) = Batch::sequences(&sequences)?;
        let scored = |s: &ScoredSequence| s.scored.iter().skip(1).filter(|w| **w != 0.0).count();
        let lengths: Vec<usize> = sequences.iter().map(scored).collect();
        let reference = step.of_reference(learner, &batch)?;
        let mut hooks = match step.input {
            Some(input) => input.apply(ops, &learner.model, &mut batch, &sequences, index as usize, part.start)?,
            None => Hooks::new(),
        };
        if let Some(sensitive) = step.settings.sensitive {
            sensitive.leave_out(ops, &learner.model, &mut hooks)?;
        }
        let items = input::with_rows(&sequences).map(|i| part.start + i);
        if let Some(rule) = adapter::dropout(adapter, seed, index, &batch, items) {
            hooks.drop_out(rule);
        }
        let factor = |i: usize| step.coefficient * multipliers.map_or(1.0, |m| m[i]);
        let of_rows = part.zip(&lengths).flat_map(|(i, n)| std::iter::repeat_n(factor(i), *n));
        let weight = share.iter().zip(of_rows).map(|(w, m)| w * m).collect();
        Ok(Self { batch, hooks, share, weight, sequences: lengths, reference })
    }

    /// Forward, objective and backward; adds to the sums.
    fn run(&self, step: &Step, learner: &mut Learner, sums: &mut Sums) -> Result<()> {
        let (ops, loss) = (step.settings.ops, step.loss);
        let mean_logp = loss.needs().contains(Needs::MEAN_LOGP);
        let spec = HeadSpec { entropy: true, argmax: true, mean_logp, ..HeadSpec::default() };
        let other = match (&self.reference, step.reference) {
            (OfReference::Rows(rows), Some(reference)) => Some((rows, reference.head()?)),
            _ => None,
        };
        let asked = Asked { spec: &spec, hooks: &self.hooks, other };
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
        let head = learner.accumulate_with(ops, &self.batch, &asked, step.settings.recompute, &mut coef)?;
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
        let (logp_ref, whole) = (self.logp_ref(at.clone(), head), at.len() == self.weight.len());
        loss.token_terms(&SupervisedRows {
            logp: &wide(&head.logp),
            logp_ref: logp_ref.as_deref(),
            entropy: entropy.as_deref(),
            mean_logp: mean_logp.as_deref(),
            kl_ref: kl_ref.as_deref(),
            weight: &self.weight[at],
            sequences: if whole { &self.sequences } else { &[] },
        })
    }

    /// Log-probabilities of the scored tokens `at` under the reference; `head` is what the head says of these alone.
    fn logp_ref<'a>(&'a self, at: Range<usize>, head: &HeadTerms) -> Option<Cow<'a, [f64]>> {
        match &self.reference {
            OfReference::Nothing => None,
            OfReference::Logp(logp) => Some(Cow::Borrowed(&logp[at])),
            OfReference::Rows(_) => head.logp_other.as_deref().map(|logp| Cow::Owned(wide(logp))),
        }
    }

    fn sum(&self, head: &HeadTerms, total: &SupervisedTerms, sums: &mut Sums) {
        sums.loss += total.loss;
        sums.parts.iter_mut().zip(&total.parts).for_each(|(sum, part)| *sum += part);
        sums.scored += self.batch.tgt.len() as u64;
        sums.entropy += wide(head.entropy.as_deref().unwrap_or_default()).iter().sum::<f64>();
        let right = head.argmax.iter().flatten().zip(&self.batch.tgt).filter(|(a, t)| a == t).count();
        sums.correct += right as u64;
        let logp = wide(&head.logp);
        if let Some(reference) = self.logp_ref(0..logp.len(), head) {
            sums.ref_log_ratio += logp.iter().zip(&*reference).map(|(now, then)| now - then).sum::<f64>();
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

/// A number of the step that is one.
///
/// # Errors
/// One that is none, with the step's examples.
pub(crate) fn finite(
    what: &'static str,
    value: f64,
    stage: &str,
    round: usize,
    rows: &[&(String, Encoded)],
) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    let ids: Vec<&str> = rows.iter().take(8).map(|(id, _)| id.as_str()).collect();
    let more = if rows.len() > ids.len() { format!(" and {} more", rows.len() - ids.len()) } else { String::new() };
    let batch = format!("the batch holds the examples {}{more}", ids.join(", "));
    Err(Error::NotFinite { what, value, stage: stage.into(), step: round + 1, batch })
}
