//! Scoring: log-probabilities of given tokens, in batches of bounded size.

use crate::batch::{Batch, ScoredSequence};
use crate::error::Result;
use crate::model::{Attend, Model, Weights};
use temper_tensor::{HeadSpec, HeadTerms, Ops, Tape, Tensor};

/// Log-probabilities of one sequence's scored tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scored {
    /// Log-probability of each scored token.
    pub logp: Vec<f32>,
    /// Their weights.
    pub weight: Vec<f64>,
}

impl Scored {
    /// `sum(weight * logp)`.
    pub fn total(&self) -> f64 {
        self.logp.iter().zip(&self.weight).map(|(&l, w)| w * f64::from(l)).sum()
    }
}

impl Model {
    /// The hidden row that predicts each of the batch's scored tokens, `[M, C]` row-major.
    pub fn hidden_rows(&self, ops: &dyn Ops, batch: &Batch) -> Result<Vec<f32>> {
        let tape = Tape::new(ops, &self.params, false);
        let hidden = self.hidden(&tape, &batch.ids, Attend::Segments(&batch.segments), false)?;
        Ok(ops.to_host(tape.gather_rows(&hidden, &batch.src)?.tensor())?)
    }

    /// The same rows on the device, of the model as it is or with its adapter off: what a KL over the vocabulary compares with, beside
    /// [`Model::head`], which no adapter changes.
    pub fn scored_rows(&self, ops: &dyn Ops, batch: &Batch, adapter: bool) -> Result<Tensor> {
        let weights = if adapter { Weights::Whole } else { Weights::Base };
        let tape = Tape::new(ops, &self.params, false);
        let hidden = self.hidden_of(weights, &tape, &batch.ids, Attend::Segments(&batch.segments), false)?;
        Ok(ops.gather_rows(hidden.tensor(), &batch.src)?)
    }

    /// What the head says of a batch's scored tokens; no gradient.
    pub fn terms(&self, ops: &dyn Ops, batch: &Batch, spec: &HeadSpec) -> Result<HeadTerms> {
        self.terms_of(Weights::Whole, ops, batch, spec)
    }

    /// The same with the adapter off: what the base model says, without a second copy of it.
    pub fn base_terms(&self, ops: &dyn Ops, batch: &Batch, spec: &HeadSpec) -> Result<HeadTerms> {
        self.terms_of(Weights::Base, ops, batch, spec)
    }

    fn terms_of(&self, weights: Weights, ops: &dyn Ops, batch: &Batch, spec: &HeadSpec) -> Result<HeadTerms> {
        if batch.scored() == 0 {
            let none = spec.entropy.then(Vec::new);
            return Ok(HeadTerms { entropy: none, argmax: spec.argmax.then(Vec::new), ..HeadTerms::default() });
        }
        let tape = Tape::new(ops, &self.params, false);
        let hidden = self.hidden_of(weights, &tape, &batch.ids, Attend::Segments(&batch.segments), false)?;
        let scored = tape.gather_rows(&hidden, &batch.src)?;
        drop(hidden);
        Ok(ops.head_terms(scored.tensor(), self.params.matrix("head", self.head())?, &batch.tgt, spec)?)
    }

    /// Scores sequences at a temperature, packed into batches of about `max_rows` rows (a longer sequence is a batch of
    /// its own). The packing changes no bit of the result.
    pub fn score(
        &self,
        ops: &dyn Ops,
        sequences: &[ScoredSequence<'_>],
        temperature: f32,
        max_rows: usize,
    ) -> Result<Vec<Scored>> {
        let spec = HeadSpec { temperature, ..HeadSpec::default() };
        let mut all = Vec::with_capacity(sequences.len());
        let mut rest = sequences;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(fitting(rest, max_rows));
            let (batch, weights) = Batch::sequences(now)?;
            let logp = self.terms(ops, &batch, &spec)?.logp;
            let mut terms = logp.into_iter().zip(weights);
            for s in now {
                let n = s.scored.iter().skip(1).filter(|w| **w != 0.0).count();
                let (logp, weight) = terms.by_ref().take(n).unzip();
                all.push(Scored { logp, weight });
            }
            rest = later;
        }
        Ok(all)
    }
}

/// How many of the sequences, at least one, have at most `max_rows` tokens together.
fn fitting(sequences: &[ScoredSequence<'_>], max_rows: usize) -> usize {
    let mut rows = 0;
    let fits = sequences.iter().take_while(|s| {
        rows += s.ids.len();
        rows <= max_rows
    });
    fits.count().max(1)
}
