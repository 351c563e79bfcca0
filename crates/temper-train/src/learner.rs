//! One model being trained: gradients, optimiser state, and the two things that both loops do with them.

use std::ops::Range;

use temper_model::{Attend, Batch, Model};
use temper_tensor::{
    AdamState, AdamW, GradSink, Grads, HeadCoef, HeadSpec, HeadTerms, Hooks, Ops, Tape, Tensor, Weight, adamw_step,
    clip_scale, grad_norm,
};

use crate::error::Result;
use crate::recipe::{AfterUpdate, GradientTransform, Optimizer, Training};
use crate::slots::Kept;

/// What is asked of a pass through a model beside the batch.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What the head says of the scored tokens.
    pub spec: &'a HeadSpec,
    /// What happens at named points of the model, such as noise on the embeddings.
    pub hooks: &'a Hooks,
    /// Another model's rows for the same tokens, and its head where it is not the model's own: the head then gives the KL to it.
    pub other: Option<(&'a Tensor, Option<&'a Weight>)>,
}

impl<'a> Asked<'a> {
    /// The other model's rows and head; `own` is the head of the model that is asked.
    fn other(&self, own: &'a Weight) -> Option<(&'a Tensor, &'a Weight)> {
        self.other.map(|(rows, head)| (rows, head.unwrap_or(own)))
    }
}

/// A model with its gradients and optimiser state.
#[derive(Debug)]
pub struct Learner {
    /// The model.
    pub model: Model,
    /// Gradients of the optimiser step in progress.
    pub(crate) grads: Grads,
    /// Moments and step count of the optimiser.
    pub adam: AdamState,
    /// Copies of the parameters that the stage asks for.
    pub(crate) kept: Kept,
}

/// One update of the parameters.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// The optimiser.
    pub optimizer: &'a Optimizer,
    /// Factor of its learning rate.
    pub lr_factor: f64,
    /// Largest gradient norm; 0 for none.
    pub clip_norm: f64,
    /// What changes the gradient first.
    pub gradient: &'a [GradientTransform],
    /// What follows.
    pub after: &'a [AfterUpdate],
}

impl<'a> Update<'a> {
    /// As a stage's settings say, at a factor of its learning rate.
    pub fn of(stage: &Training<'a>, lr_factor: f64) -> Self {
        Self {
            optimizer: stage.optimizer,
            lr_factor,
            clip_norm: stage.clip_norm,
            gradient: stage.gradient,
            after: stage.after_update,
        }
    }
}

/// What an update says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Updated {
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// Distance of the parameters from where a transform pulls them to, before the update.
    pub distance: Option<f64>,
}

impl Learner {
    /// A model whose training begins: zero gradients and moments.
    pub fn new(ops: &dyn Ops, model: Model) -> Result<Self> {
        let grads = Grads::zeros(ops, &model.params)?;
        let adam = AdamState::new(ops, &model.params)?;
        Ok(Self { model, grads, adam, kept: Kept::default() })
    }

    /// With the copies of its parameters that these settings ask for.
    pub fn keeping(mut self, ops: &dyn Ops, gradient: &[GradientTransform], after: &[AfterUpdate]) -> Result<Self> {
        self.kept = Kept::new(ops, &self.model.params, gradient, after)?;
        Ok(self)
    }

    /// The model that training ends with: the average where one is kept, everything trainable again.
    pub fn into_model(self, ops: &dyn Ops) -> Result<Model> {
        let Self { mut model, kept, .. } = self;
        kept.settle(ops, &mut model.params)?;
        Ok(model)
    }

    /// Forward, head and backward of one micro-batch, adding to the gradients.
    ///
    /// `coef` gets chunks of scored rows with their terms and returns d(loss)/d(logp) and d(loss)/d(entropy): the
    /// single-pass head, for objectives whose terms are coupled by token at most.
    pub fn accumulate(
        &mut self,
        ops: &dyn Ops,
        batch: &Batch,
        spec: &HeadSpec,
        recompute: bool,
        coef: &mut dyn FnMut(Range<usize>, &HeadTerms) -> HeadCoef,
    ) -> Result<HeadTerms> {
        let asked = Asked { spec, hooks: &Hooks::new(), other: None };
        self.accumulate_with(ops, batch, &asked, recompute, coef)
    }

    /// The same with more asked of the pass.
    pub fn accumulate_with(
        &mut self,
        ops: &dyn Ops,
        batch: &Batch,
        asked: &Asked,
        recompute: bool,
        coef: &mut dyn FnMut(Range<usize>, &HeadTerms) -> HeadCoef,
    ) -> Result<HeadTerms> {
        let tape = Tape::new(ops, &self.model.params, true).with_hooks(asked.hooks);
        let hidden = self.model.hidden(&tape, &batch.ids, Attend::Segments(&batch.segments), recompute)?;
        let scored = tape.gather_rows(&hidden, &batch.src)?;
        drop(hidden);
        let (rows, cols) = scored.tensor().shape();
        let mut d = ops.zeros(rows, cols)?;
        let head = self.model.head();
        let weight = self.model.params.matrix("head", head)?;
        let dw = self.grads.get_mut(head);
        let (spec, other) = (asked.spec, asked.other(weight));
        let terms = ops.head_backward_to(scored.tensor(), weight, &batch.tgt, spec, other, coef, &mut d, dw)?;
        tape.backward(&scored, d, &mut GradSink::Accumulate(&mut self.grads))?;
        Ok(terms)
    }

    /// What the head says of a batch's scored tokens; no gradient.
    pub fn terms_with(&self, ops: &dyn Ops, batch: &Batch, asked: &Asked) -> Result<HeadTerms> {
        let tape = Tape::new(ops, &self.model.params, false).with_hooks(asked.hooks);
        let hidden = self.model.hidden(&tape, &batch.ids, Attend::Segments(&batch.segments), false)?;
        let scored = tape.gather_rows(&hidden, &batch.src)?;
        drop(hidden);
        let weight = self.model.params.matrix("head", self.model.head())?;
        Ok(ops.head_terms_to(scored.tensor(), weight, &batch.tgt, asked.spec, asked.other(weight))?)
    }

    /// Transforms, clips, updates and clears the gradients, and does what follows. Nothing is updated when the norm is not finite.
    pub fn update(&mut self, ops: &dyn Ops, update: &Update) -> Result<Updated> {
        let distance = self.kept.pull(ops, &self.model.params, &mut self.grads, update.gradient)?;
        let norm = grad_norm(ops, &self.grads)?;
        if norm.is_finite() {
            let scale = if update.clip_norm > 0.0 { clip_scale(norm, update.clip_norm) } else { 1.0 };
            let hyper = hyper(update.optimizer, update.lr_factor);
            adamw_step(ops, &mut self.model.params, &self.grads, &mut self.adam, &hyper, scale)?;
            self.kept.follow(ops, &mut self.model.params, update.after, self.adam.step())?;
        }
        self.grads.zero(ops)?;
        Ok(Updated { norm, distance })
    }
}

fn hyper(optimizer: &Optimizer, lr_factor: f64) -> AdamW {
    let Optimizer::Adamw { lr, beta1, beta2, eps, weight_decay } = *optimizer;
    AdamW {
        lr: (lr * lr_factor) as f32,
        beta1: beta1 as f32,
        beta2: beta2 as f32,
        eps: eps as f32,
        weight_decay: weight_decay as f32,
        decay_vectors: false,
    }
}
