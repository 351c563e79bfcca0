//! AdamW over one tensor in one pass.

use crate::optim::AdamStep;

/// One update of the values `w` with gradient `g` and moments `m`, `v`; see [`AdamStep`] for the equations.
pub fn adamw(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], s: &AdamStep) {
    for i in 0..w.len() {
        let g = g[i] * s.grad_scale;
        m[i] += (1.0 - s.beta1) * (g - m[i]);
        v[i] += (1.0 - s.beta2) * (g * g - v[i]);
        w[i] -= s.lr * s.weight_decay * w[i];
        w[i] -= s.step_size * m[i] / (v[i].sqrt() * s.inv_bias2_sqrt + s.eps);
    }
}
