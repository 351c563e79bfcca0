//! Gated units: `silu(gate) * up` and `gelu_tanh(gate) * up`, forward and backward.

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `y = silu(gate) * up`.
pub fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for i in 0..y.len() {
        y[i] = gate[i] * sigmoid(gate[i]) * up[i];
    }
}

/// Gradients of [`swiglu`].
pub fn swiglu_backward(dy: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    for i in 0..dy.len() {
        let (g, s) = (gate[i], sigmoid(gate[i]));
        d_up[i] = dy[i] * g * s;
        d_gate[i] = dy[i] * up[i] * s * (1.0 + g * (1.0 - s));
    }
}

const ROOT: f32 = 0.797_884_6; // sqrt(2 / pi)
const CUBIC: f32 = 0.044_715;

/// `y = gelu_tanh(gate) * up`.
pub fn geglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for i in 0..y.len() {
        let g = gate[i];
        y[i] = 0.5 * g * (1.0 + (ROOT * (g + CUBIC * g * g * g)).tanh()) * up[i];
    }
}

/// Gradients of [`geglu`].
pub fn geglu_backward(dy: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    for i in 0..dy.len() {
        let g = gate[i];
        let t = (ROOT * (g + CUBIC * g * g * g)).tanh();
        let slope = 0.5 * (1.0 + t) + 0.5 * g * (1.0 - t * t) * ROOT * (1.0 + 3.0 * CUBIC * g * g);
        d_up[i] = dy[i] * 0.5 * g * (1.0 + t);
        d_gate[i] = dy[i] * up[i] * slope;
    }
}
