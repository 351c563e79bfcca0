//! The critic: a model of its own that tells the value of every state, trained beside the policy.

use temper_model::{Attend, Batch, Model};
use temper_tensor::{GradSink, Ops, ParamId, Tape};

use crate::error::Result;
use crate::learner::Learner;

/// The value head's parameter, `[1, C]`: Hugging Face's name for the head of a sequence classifier.
const HEAD: &str = "score.weight";

/// A model with a value head, and the state of its optimiser.
#[derive(Debug)]
pub struct Critic {
    /// Model, gradients and moments. The language head is not trained, unless it is the embedding.
    pub learner: Learner,
    head: ParamId,
}

impl Critic {
    /// A critic with the body of a language model. Its value head is zero, and so is every value at first.
    pub fn new(ops: &dyn Ops, mut model: Model) -> Result<Self> {
        let (width, language) = (model.config.hidden_size, model.head());
        if language != model.embedding() {
            model.params.get_mut(language).trainable = false;
        }
        let head = model.params.add_matrix(HEAD, 1, width, &vec![0.0; width])?;
        Ok(Self { learner: Learner::new(ops, model)?, head })
    }

    /// The values of the states before a batch's scored tokens, `[M]`: of the hidden rows that predict these tokens.
    pub fn values(&self, ops: &dyn Ops, batch: &Batch) -> Result<Vec<f64>> {
        if batch.scored() == 0 {
            return Ok(vec![]);
        }
        let model = &self.learner.model;
        let tape = Tape::new(ops, &model.params, false);
        let hidden = model.hidden(&tape, &batch.ids, Attend::Segments(&batch.segments), false)?;
        let value = tape.linear(&tape.gather_rows(&hidden, &batch.src)?, self.head)?;
        Ok(ops.to_host(value.tensor())?.into_iter().map(f64::from).collect())
    }

    /// Forward and backward of one micro-batch, adding to the gradients. `slopes` gets the values `[M]` and returns d(loss)/d(value).
    pub fn accumulate(
        &mut self,
        ops: &dyn Ops,
        batch: &Batch,
        recompute: bool,
        slopes: &mut dyn FnMut(&[f64]) -> Vec<f64>,
    ) -> Result<()> {
        let Learner { model, grads, .. } = &mut self.learner;
        let tape = Tape::new(ops, &model.params, true);
        let hidden = model.hidden(&tape, &batch.ids, Attend::Segments(&batch.segments), recompute)?;
        let value = tape.linear(&tape.gather_rows(&hidden, &batch.src)?, self.head)?;
        drop(hidden);
        let now: Vec<f64> = ops.to_host(value.tensor())?.into_iter().map(f64::from).collect();
        let d: Vec<f32> = slopes(&now).into_iter().map(|d| d as f32).collect();
        tape.backward(&value, ops.upload(d.len(), 1, &d)?, &mut GradSink::Accumulate(grads))?;
        Ok(())
    }
}
