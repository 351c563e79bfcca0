//! Sensitivity dropout: looks at the probe, the choice of units, and their place in training.

use serde::{Deserialize, Serialize};
use temper_data::Encoded;
use temper_model::{Attend, Batch, Model, ScoredSequence};
use temper_tensor::{Hooks, Ops, Tape};

use crate::error::{Error, Result};
use crate::offline::micro_batches;
use crate::recipe::{OfflineStage, Sensitivity};

/// What the looks since the last choice saw, and what it chose; part of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sensitive {
    looks: Vec<Vec<f64>>,
    dropped: Vec<usize>,
}

impl Sensitive {
    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.looks.is_empty() && self.dropped.is_empty()
    }

    /// Share of the model's units that are left out.
    pub fn dropped_share(&self, model: &Model) -> f64 {
        self.dropped.len() as f64 / model.config.hidden_size as f64
    }

    /// Leaves the chosen units out where the hooks are used.
    pub fn leave_out(&self, ops: &dyn Ops, model: &Model, hooks: &mut Hooks) -> Result<()> {
        if !self.dropped.is_empty() {
            let mut factors = vec![1.0; model.config.hidden_size];
            self.dropped.iter().for_each(|unit| factors[*unit] = 0.0);
            hooks.scale(&point(model)?, ops.upload(1, factors.len(), &factors)?);
        }
        Ok(())
    }

    /// Looks at the probe where `step` (steps done) says so, and chooses anew after enough looks.
    pub fn after(
        &mut self,
        ops: &dyn Ops,
        model: &Model,
        stage: &OfflineStage,
        rows: &[(String, Encoded)],
        step: usize,
    ) -> Result<()> {
        let Some(Sensitivity { share, every, looks, probe }) = stage.sensitivity.clone() else { return Ok(()) };
        if !step.is_multiple_of(every) {
            return Ok(());
        }
        self.looks.push(look(ops, model, &rows[..probe.min(rows.len())], stage.micro_tokens)?);
        if self.looks.len() == looks {
            self.dropped = temper_algo::sensitive(&std::mem::take(&mut self.looks), share)?;
        }
        Ok(())
    }
}

/// Whether a model has what the stage's `sensitivity` looks at.
pub(crate) fn fits(model: &Model, stage: &OfflineStage) -> Result<()> {
    stage.sensitivity.iter().try_for_each(|_| point(model).map(drop))
}

/// The residual stream behind the last block but one.
fn point(model: &Model) -> Result<String> {
    let layers = model.config.num_hidden_layers;
    let layer = layers.checked_sub(2).ok_or_else(|| {
        Error::user(
            format!("`sensitivity` looks at the last block but one, and the model has {layers}"),
            "remove it, or use a model of at least two blocks",
        )
    })?;
    Ok(format!("layers.{layer}"))
}

/// Mean activations `[C]` over the examples, each at the row that predicts its last trained token.
fn look(ops: &dyn Ops, model: &Model, rows: &[(String, Encoded)], micro_tokens: usize) -> Result<Vec<f64>> {
    let (width, point) = (model.config.hidden_size, point(model)?);
    let weights: Vec<Vec<f64>> =
        rows.iter().map(|(_, row)| row.weights.iter().map(|w| f64::from(*w)).collect()).collect();
    let (mut sum, mut count) = (vec![0.0; width], 0);
    for part in micro_batches(rows.iter().map(|(_, row)| row.ids.len()), micro_tokens) {
        let sequences: Vec<ScoredSequence> =
            part.map(|i| ScoredSequence { ids: &rows[i].1.ids, scored: &weights[i] }).collect();
        let (batch, _) = Batch::sequences(&sequences)?;
        let mut hooks = Hooks::new();
        hooks.capture(&point);
        let tape = Tape::new(ops, &model.params, false).with_hooks(&hooks);
        model.hidden(&tape, &batch.ids, Attend::Segments(&batch.segments), false)?;
        let Some(seen) = hooks.captured(&point) else { continue };
        let seen = ops.to_host(&seen)?;
        for segment in batch.segments.list() {
            let row = segment.start + segment.len - 1;
            sum.iter_mut().zip(&seen[row * width..]).for_each(|(sum, x)| *sum += f64::from(*x));
            count += 1;
        }
    }
    Ok(sum.into_iter().map(|sum| sum / f64::from(count.max(1))).collect())
}
