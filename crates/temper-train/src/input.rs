//! Changes of the model's input in training: hidden tokens, noise on embeddings, the model's own guesses.

use temper_algo::input::{hidden, neftune, ramped};
use temper_algo::split_seed;
use temper_data::Tokenizer;
use temper_model::{Batch, Model, ScoredSequence};
use temper_tensor::{HeadSpec, Hooks, Ops, Tensor};

use crate::error::{Error, Result};
use crate::recipe::{Input, OfflineStage};

/// Branches of a stage's seed.
const MASK: u64 = 6;
const NOISE: u64 = 7;

/// The changes of one stage, resolved. Randomness is a function of (stage, step, place of the row in the step), so that it
/// does not depend on micro-batches.
#[derive(Debug)]
pub(crate) struct Change {
    input: Input,
    mask_id: u32,
    total: usize,
    seed: u64,
}

/// One sequence's rows in the batch.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: usize,
    rows: usize,
}

impl Change {
    /// The changes that the stage asks for.
    pub(crate) fn new(stage: &OfflineStage, tokenizer: &Tokenizer, total: usize, seed: u64) -> Result<Self> {
        let input = stage.input.clone().unwrap_or_default();
        let mask_id = match &input.mask {
            None => 0,
            Some(mask) => {
                let named = mask.token.as_deref().map(|t| tokenizer.token_to_id(t));
                named.unwrap_or(tokenizer.pad_id()).ok_or_else(|| {
                    let name = mask.token.as_deref().unwrap_or("padding");
                    Error::user(
                        format!("the vocabulary has no `{name}` token to mask with"),
                        "set `input.mask.token` to a token that it has, best one that the data never uses",
                    )
                })?
            }
        };
        Ok(Self { input, mask_id, total, seed })
    }

    /// Hides tokens in the batch, and returns what is added to the embeddings. `first` is the place of the batch's first
    /// sequence in the step.
    pub(crate) fn apply(
        &self,
        ops: &dyn Ops,
        model: &Model,
        batch: &mut Batch,
        sequences: &[ScoredSequence],
        step: usize,
        first: usize,
    ) -> Result<Hooks> {
        let mut hooks = Hooks::new();
        if self.input == Input::default() || batch.src.is_empty() {
            return Ok(hooks);
        }
        let places = places(sequences);
        let seed = |branch: u64, i: usize| split_seed(self.seed, &[branch, step as u64, (first + i) as u64]);
        let mut added = self.guesses(ops, model, batch)?;
        if let Some(mask) = &self.input.mask {
            let share = ramped(mask.share, mask.ramp, step, self.total);
            for (i, (place, s)) in places.iter().zip(sequences).enumerate() {
                let drawn = hidden(s.ids.len(), share, seed(MASK, i));
                for t in (1..place.rows).filter(|t| drawn[*t] && s.scored[*t] != 0.0) {
                    batch.ids[place.start + t] = self.mask_id;
                }
            }
        }
        if let Some(alpha) = self.input.neftune_alpha {
            let width = model.config.hidden_size;
            let mut noise = Vec::with_capacity(batch.ids.len() * width);
            for (i, (place, s)) in places.iter().zip(sequences).enumerate() {
                let whole = neftune(alpha, s.ids.len(), width, seed(NOISE, i));
                noise.extend_from_slice(&whole[..place.rows * width]);
            }
            let noise = ops.upload(batch.ids.len(), width, &noise)?;
            match &mut added {
                Some(sum) => ops.add_scaled(sum, &noise, 1.0)?,
                None => added = Some(noise),
            }
        }
        if let Some(added) = added {
            hooks.inject("embed", added);
        }
        Ok(hooks)
    }

    /// `share (e(guess) - e(token))` for the trained tokens that are input, 0 for the others.
    fn guesses(&self, ops: &dyn Ops, model: &Model, batch: &Batch) -> Result<Option<Tensor>> {
        let Some(share) = self.input.own_guess else { return Ok(None) };
        let spec = HeadSpec { argmax: true, ..HeadSpec::default() };
        let guesses = model.terms(ops, batch, &spec)?.argmax.unwrap_or_default();
        let mut guessed = batch.ids.clone();
        let ends: std::collections::BTreeSet<usize> = batch.segments.list().iter().map(|s| s.start + s.len).collect();
        // Row r predicts the token that is input in row r + 1, unless its segment ends there.
        for (src, guess) in batch.src.iter().zip(guesses) {
            let row = *src as usize + 1;
            if !ends.contains(&row) {
                guessed[row] = guess;
            }
        }
        let table = model.params.matrix("embedding", model.embedding())?;
        let mut change = ops.zeros(batch.ids.len(), model.config.hidden_size)?;
        ops.add_scaled(&mut change, &ops.embedding(table, &guessed)?, share as f32)?;
        ops.add_scaled(&mut change, &ops.embedding(table, &batch.ids)?, -share as f32)?;
        Ok(Some(change))
    }
}

/// Where each sequence's rows lie: a batch keeps those before a sequence's last scored token.
fn places(sequences: &[ScoredSequence]) -> Vec<Place> {
    let mut start = 0;
    let mut place = |s: &ScoredSequence| {
        let rows = (1..s.ids.len()).rfind(|t| s.scored[*t] != 0.0).unwrap_or(0);
        start += rows;
        Place { start: start - rows, rows }
    };
    sequences.iter().map(&mut place).collect()
}

/// The sequences that have rows in the batch.
pub(crate) fn with_rows(sequences: &[ScoredSequence]) -> impl Iterator<Item = usize> {
    places(sequences).into_iter().enumerate().filter(|(_, place)| place.rows > 0).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_batch() {
        let sequences = [
            ScoredSequence { ids: &[1, 2, 3, 4], scored: &[0.0, 0.0, 1.0, 0.0] },
            ScoredSequence { ids: &[5, 6], scored: &[0.0, 0.0] },
            ScoredSequence { ids: &[7, 8, 9], scored: &[0.0, 1.0, 1.0] },
        ];
        let (batch, _) = Batch::sequences(&sequences).unwrap();
        let found: Vec<&[u32]> = places(&sequences).iter().map(|p| &batch.ids[p.start..p.start + p.rows]).collect();
        assert_eq!(found, [&[1, 2][..], &[], &[7, 8]]);
        assert_eq!(batch.ids.len(), 4);
        assert_eq!(with_rows(&sequences).collect::<Vec<_>>(), [0, 2]);
    }
}
