//! What the loops need of adapters: the reference that is the policy with its adapter off, and dropout.

use temper_algo::split_seed;
use temper_model::{Batch, Model};
use temper_tensor::{Dropout, HeadSpec, HeadTerms, Ops, Tensor, Weight};

use crate::error::Result;
use crate::recipe::Adapter;

/// Branches of a stage's seed: A's first values, and dropout.
pub(crate) const INIT: u64 = 8;
const DROPOUT: u64 = 9;

/// The frozen model that an objective compares with.
#[derive(Debug)]
pub enum Reference {
    /// A model of its own.
    Model(Box<Model>),
    /// The policy with its adapter off, so that no second copy of the weights exists.
    AdapterOff,
}

impl Reference {
    /// What it says of a batch's scored tokens.
    pub fn terms(&self, ops: &dyn Ops, policy: &Model, batch: &Batch, spec: &HeadSpec) -> Result<HeadTerms> {
        Ok(match self {
            Self::Model(model) => model.terms(ops, batch, spec)?,
            Self::AdapterOff => policy.base_terms(ops, batch, spec)?,
        })
    }

    /// The hidden rows that predict a batch's scored tokens, `[M, C]`.
    pub fn rows(&self, ops: &dyn Ops, policy: &Model, batch: &Batch) -> Result<Tensor> {
        Ok(match self {
            Self::Model(model) => model.scored_rows(ops, batch, true)?,
            Self::AdapterOff => policy.scored_rows(ops, batch, false)?,
        })
    }

    /// Its head; nothing where it is the policy's own, which an adapter leaves as it is.
    pub fn head(&self) -> Result<Option<&Weight>> {
        Ok(match self {
            Self::Model(model) => Some(model.params.matrix("head", model.head())?),
            Self::AdapterOff => None,
        })
    }
}

/// The masks of a micro-batch, functions of (stage, optimiser step, item of the step, segment of the item, position), so that no cut
/// into micro-batches changes them. `items` are the numbers in the step of the batch's root segments.
pub(crate) fn dropout(
    adapter: Option<&Adapter>,
    stage_seed: u64,
    step: u64,
    batch: &Batch,
    items: impl Iterator<Item = usize>,
) -> Option<Dropout> {
    let p = adapter.map(Adapter::dropout).filter(|p| *p > 0.0)?;
    let seed = split_seed(stage_seed, &[DROPOUT, step]);
    let (mut rows, mut items, mut at) = (Vec::with_capacity(batch.ids.len()), items, (0, 0));
    for segment in batch.segments.list() {
        at = match segment.parent {
            None => (items.next().unwrap_or(at.0 + 1), 0),
            Some(_) => (at.0, at.1 + 1),
        };
        rows.extend((0..segment.len).map(|t| split_seed(0, &[at.0 as u64, at.1, t as u64])));
    }
    Some(Dropout { p: p as f32, seed, rows: rows.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora(dropout: f64) -> Adapter {
        let text = format!("kind = \"lora\"\ndropout = {dropout}");
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn the_keys_of_a_group_do_not_depend_on_the_micro_batch() {
        let groups: Vec<(&[u32], Vec<&[u32]>)> =
            vec![(&[1, 2, 3], vec![&[4, 5, 6], &[7], &[8, 9]]), (&[1, 2], vec![&[2, 2], &[3, 3]])];
        let keys = |from: usize, to: usize| {
            let batch = Batch::groups(&groups[from..to]).unwrap();
            dropout(Some(&lora(0.1)), 7, 3, &batch, from..to).unwrap()
        };
        let (whole, first, second) = (keys(0, 2), keys(0, 1), keys(1, 2));
        assert_eq!(whole.rows.to_vec(), [&first.rows[..], &second.rows[..]].concat());
        assert_eq!((whole.p, whole.seed), (0.1, first.seed));
        let distinct: std::collections::BTreeSet<u64> = whole.rows.iter().copied().collect();
        assert_eq!(distinct.len(), whole.rows.len(), "every row has masks of its own");
        let batch = Batch::groups(&groups).unwrap();
        assert!(dropout(Some(&lora(0.0)), 7, 3, &batch, 0..2).is_none() && dropout(None, 7, 3, &batch, 0..2).is_none());
        assert_ne!(dropout(Some(&lora(0.1)), 7, 4, &batch, 0..2).unwrap().seed, whole.seed);
    }
}
