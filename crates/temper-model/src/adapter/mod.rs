//! Adapters: a few trained parameters beside frozen weights. Today LoRA; further kinds are variants of [`Attached`].

mod lora;
mod peft;
mod targets;

pub use lora::Lora;
pub use peft::{adapter_base, is_adapter};
pub use targets::{linear_layers, matches_target};

use crate::error::{Error, Result};
use crate::model::Model;
use temper_tensor::{Ops, ParamId, Tape, Var};

/// What is added to one linear layer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Attached {
    /// `scaling * B A dropout(x)` with `A [R, k]` and `B [n, R]`.
    Lora {
        /// A.
        a: ParamId,
        /// B.
        b: ParamId,
        /// s.
        scaling: f32,
        /// The layer's place in the model, for dropout.
        place: u64,
    },
}

impl Attached {
    /// `y` with the adapter's part added; `x` is the layer's input.
    pub(crate) fn apply(self, tape: &Tape, x: &Var, y: Var) -> temper_tensor::Result<Var> {
        let Self::Lora { a, b, scaling, place } = self;
        // Scaled where it is narrow, R values a row.
        let low = tape.scale(&tape.linear(&tape.dropout(x, place)?, a)?, scaling)?;
        tape.linear_onto(y, &low, b)
    }
}

/// The adapter of a model.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    pub(crate) lora: Lora,
    /// Parameters of the base, which come first.
    pub(crate) base: usize,
}

impl Model {
    /// Adds a LoRA that begins at zero: A uniform in `±1/sqrt(k)` (Kaiming with `a = sqrt(5)`, as PEFT), B zero. The weights that were
    /// there are frozen. The same seed gives the same A.
    ///
    /// # Errors
    /// Settings out of range, a pattern that matches no linear layer, a model that has an adapter already.
    pub fn attach(&mut self, lora: &Lora, seed: u64) -> Result<()> {
        lora.validate(Some(self.config.num_hidden_layers))?;
        let layers = targets::matched(&lora.targets, self.config.num_hidden_layers);
        self.begin_adapter(lora)?;
        for (stream, (layer, part)) in layers.into_iter().enumerate() {
            let (n, k) = self.linear_shape(layer, part);
            let a = lora::kaiming_uniform(seed, stream as u64, lora.rank, k);
            self.add_pair(layer, part, &a, &vec![0.0; n * lora.rank])?;
        }
        Ok(())
    }

    /// The settings of its adapter, if it has one.
    pub fn adapter(&self) -> Option<&Lora> {
        self.adapter.as_ref().map(|a| &a.lora)
    }

    /// Adds the adapter's products to the weights, `W += s B A`, and takes the adapter off; all weights are trainable again. Without an
    /// adapter nothing happens.
    pub fn merge_adapter(&mut self, ops: &dyn Ops) -> Result<()> {
        let Some(Adapter { base, .. }) = self.adapter.take() else { return Ok(()) };
        for (layer, part) in linear_layers(self.config.num_hidden_layers) {
            let Some(projection) = self.projection_mut(layer, part) else { continue };
            let (w, attached) = (projection.w, projection.adapter.take());
            if let Some(Attached::Lora { a, b, scaling, .. }) = attached {
                self.merge_pair(ops, w, a, b, scaling)?;
            }
        }
        self.params.truncate(base);
        self.params.set_trainable(true);
        Ok(())
    }

    fn merge_pair(&mut self, ops: &dyn Ops, w: ParamId, a: ParamId, b: ParamId, scaling: f32) -> Result<()> {
        let matrix = |id: ParamId| {
            let (rows, cols) = self.params.get(id).shape();
            Ok::<_, Error>(ops.upload(rows, cols, &self.params.values(ops, id)?)?)
        };
        let product = ops.matmul(&matrix(b)?, &matrix(a)?)?;
        let mut merged = matrix(w)?;
        ops.add_scaled(&mut merged, &product, scaling)?;
        Ok(self.params.set_values(ops, w, &ops.to_host(&merged)?)?)
    }

    /// Freezes what is there and notes the settings.
    fn begin_adapter(&mut self, lora: &Lora) -> Result<()> {
        if self.adapter.is_some() {
            return Err(Error::adapter("the model has an adapter already", "merge it first"));
        }
        if self.params.any_quantised() {
            return Err(Error::adapter("the base is held in quantised blocks", "load the base in f32"));
        }
        self.adapter = Some(Adapter { lora: lora.clone(), base: self.params.len() });
        self.params.set_trainable(false);
        Ok(())
    }

    /// Adds A and B (row-major) of one layer under PEFT's names.
    fn add_pair(&mut self, layer: usize, part: &'static str, a: &[f32], b: &[f32]) -> Result<()> {
        let (n, k) = self.linear_shape(layer, part);
        let (rank, scaling) = self.adapter().map_or((0, 0.0), |lora| (lora.rank, lora.scaling()));
        let a = self.params.add_matrix(&peft::tensor_name(layer, part, "A"), rank, k, a)?;
        let b = self.params.add_matrix(&peft::tensor_name(layer, part, "B"), n, rank, b)?;
        let place = targets::place(layer, part);
        if self.shape.bf16 {
            self.params.store_in_bf16();
        }
        if let Some(projection) = self.projection_mut(layer, part) {
            projection.adapter = Some(Attached::Lora { a, b, scaling: scaling as f32, place });
        }
        Ok(())
    }

    /// `(outputs, inputs)` of a linear layer.
    fn linear_shape(&mut self, layer: usize, part: &str) -> (usize, usize) {
        let w = self.projection_mut(layer, part).map(|p| p.w);
        w.map_or((0, 0), |w| self.params.get(w).shape())
    }
}
