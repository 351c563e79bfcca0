//! AdamW over all parameters, gradient norm and clipping.

use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::params::{Grad, Grads, ParamId, ParamValue, Params};

/// AdamW's settings ("Decoupled Weight Decay Regularization", Loshchilov and Hutter, 2019).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f32,
    /// Whether vectors (norm weights, biases) decay too; usually not.
    pub decay_vectors: bool,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, decay_vectors: false }
    }
}

/// One update's numbers, the same for every value of a parameter:
/// `g = grad * grad_scale; m += (1 - beta1)(g - m); v += (1 - beta2)(g^2 - v);
/// w -= lr * weight_decay * w; w -= step_size * m / (sqrt(v) * inv_bias2_sqrt + eps)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// `lr / (1 - beta1^t)`.
    pub step_size: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub inv_bias2_sqrt: f32,
    /// Factor on the gradient (clipping, accumulation).
    pub grad_scale: f32,
}

impl AdamStep {
    /// The numbers of step `t` (counted from 1) with the gradient scaled by `grad_scale`.
    pub fn new(hyper: &AdamW, t: u64, grad_scale: f32) -> Self {
        let bias = |beta: f32| 1.0 - f64::from(beta).powf(t as f64);
        Self {
            lr: hyper.lr,
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            eps: hyper.eps,
            weight_decay: hyper.weight_decay,
            step_size: (f64::from(hyper.lr) / bias(hyper.beta1)) as f32,
            inv_bias2_sqrt: (1.0 / bias(hyper.beta2).sqrt()) as f32,
            grad_scale,
        }
    }
}

/// AdamW's state: two moments per trainable parameter and the number of steps taken.
#[derive(Debug, Clone)]
pub struct AdamState {
    m: Grads,
    v: Grads,
    step: u64,
}

impl AdamState {
    /// Zero moments, no steps taken.
    pub fn new(ops: &dyn Ops, params: &Params) -> Result<Self> {
        Ok(Self { m: Grads::zeros(ops, params)?, v: Grads::zeros(ops, params)?, step: 0 })
    }

    /// Steps taken.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Restores the number of steps taken.
    pub fn set_step(&mut self, step: u64) {
        self.step = step;
    }

    /// Of a parameter's moments (m, v), the gradients in their layout that hold them; none when it is frozen.
    pub fn moments(&self, id: ParamId) -> Option<(&Grad, &Grad)> {
        self.m.get(id).zip(self.v.get(id))
    }

    /// Restores the moments of a parameter from row-major values.
    pub fn set_moments(&mut self, ops: &dyn Ops, params: &Params, id: ParamId, m: &[f32], v: &[f32]) -> Result<()> {
        let missing = || Error::NoGrad { name: params.get(id).name.clone() };
        self.m.get_mut(id).ok_or_else(missing)?.set_values(ops, m)?;
        self.v.get_mut(id).ok_or_else(missing)?.set_values(ops, v)
    }
}

/// One AdamW step over all trainable parameters; the gradient is multiplied by `grad_scale` on the way in.
pub fn adamw_step(
    ops: &dyn Ops,
    params: &mut Params,
    grads: &Grads,
    state: &mut AdamState,
    hyper: &AdamW,
    grad_scale: f32,
) -> Result<()> {
    state.step += 1;
    let numbers = AdamStep::new(hyper, state.step, grad_scale);
    for (id, grad) in grads.iter() {
        let (Some(m), Some(v)) = (state.m.get_mut(id), state.v.get_mut(id)) else {
            return Err(Error::NoGrad { name: params.get(id).name.clone() });
        };
        let param = params.get_mut(id);
        let decays = hyper.decay_vectors || matches!(param.value, ParamValue::Matrix(_));
        let weight_decay = if decays { numbers.weight_decay } else { 0.0 };
        ops.adamw(&mut param.value, grad, m, v, &AdamStep { weight_decay, ..numbers })?;
    }
    Ok(())
}

/// Euclidean norm over all gradients, in f64 and in a fixed order.
pub fn grad_norm(ops: &dyn Ops, grads: &Grads) -> Result<f64> {
    let sums = grads.iter().map(|(_, g): (_, &Grad)| ops.grad_sum_sq(g));
    Ok(sums.sum::<Result<f64>>()?.sqrt())
}

/// Factor that brings a gradient of norm `norm` down to at most `max_norm` (1 when it already is).
pub fn clip_scale(norm: f64, max_norm: f64) -> f32 {
    if norm > max_norm { (max_norm / norm) as f32 } else { 1.0 }
}
