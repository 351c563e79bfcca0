//! Gated units ("GLU Variants Improve Transformer", Shazeer, 2020): `silu(gate) * up` and `gelu_tanh(gate) * up`,
//! forward and backward.
#![allow(clippy::inline_always)] // bodies are compiled into each instruction-set level's function

use super::math::sigmoid;
use super::par;
use crate::isa::{mul_add, multiversion};

/// `2 sqrt(2 / pi)`: gelu in its tanh form is `x * sigmoid(2 u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
const TWO_ROOT: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715;

/// `x sigmoid(x)` and its derivative.
#[inline(always)]
fn silu<const FMA: bool>(x: f32) -> (f32, f32) {
    let s = sigmoid::<FMA>(x);
    (x * s, s * mul_add::<FMA>(x, 1.0 - s, 1.0))
}

/// gelu in its tanh form and its derivative.
#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> (f32, f32) {
    // Past 16 the sigmoid is exactly 0 or 1; the bound keeps the cube finite. Comparisons this way round keep NaN.
    let near = if x < -16.0 { -16.0 } else { x };
    let near = if near > 16.0 { 16.0 } else { near };
    let cubic = CUBIC * near * near;
    let s = sigmoid::<FMA>(TWO_ROOT * mul_add::<FMA>(cubic, near, near));
    let inner = TWO_ROOT * mul_add::<FMA>(3.0, cubic, 1.0);
    (x * s, s * mul_add::<FMA>(near * (1.0 - s), inner, 1.0))
}

#[inline(always)]
fn swiglu_body<const FMA: bool>(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
        *y = silu::<FMA>(*g).0 * u;
    }
}

#[inline(always)]
fn geglu_body<const FMA: bool>(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
        *y = gelu::<FMA>(*g).0 * u;
    }
}

#[inline(always)]
fn backward<const FMA: bool>(
    act: impl Fn(f32) -> (f32, f32),
    dy: &[f32],
    gate: &[f32],
    up: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    for ((((dg, du), dy), g), u) in d_gate.iter_mut().zip(d_up).zip(dy).zip(gate).zip(up) {
        let (value, slope) = act(*g);
        *du = dy * value;
        *dg = dy * u * slope;
    }
}

#[inline(always)]
fn swiglu_dx_body<const FMA: bool>(dy: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    backward::<FMA>(silu::<FMA>, dy, gate, up, d_gate, d_up);
}

#[inline(always)]
fn geglu_dx_body<const FMA: bool>(dy: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    backward::<FMA>(gelu::<FMA>, dy, gate, up, d_gate, d_up);
}

multiversion! {
    fn swiglu_part(gate: &[f32], up: &[f32], y: &mut [f32]) = swiglu_body, swiglu_part_at;
    fn geglu_part(gate: &[f32], up: &[f32], y: &mut [f32]) = geglu_body, geglu_part_at;
    fn swiglu_dx(dy: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32])
        = swiglu_dx_body, swiglu_dx_at;
    fn geglu_dx(dy: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) = geglu_dx_body, geglu_dx_at;
}

/// `y = silu(gate) * up`.
pub fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
    let len = same_length(&[gate, up, y]);
    par::rows1(len, (y, 1), |i, y| swiglu_part(&gate[i.clone()], &up[i], y));
}

/// `y = gelu_tanh(gate) * up`.
pub fn geglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
    let len = same_length(&[gate, up, y]);
    par::rows1(len, (y, 1), |i, y| geglu_part(&gate[i.clone()], &up[i], y));
}

/// Gradients of [`swiglu`].
pub fn swiglu_backward(dy: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    let len = same_length(&[dy, gate, up, d_gate, d_up]);
    par::rows2(len, (d_gate, 1), (d_up, 1), |i, d_gate, d_up| {
        swiglu_dx(&dy[i.clone()], &gate[i.clone()], &up[i], d_gate, d_up);
    });
}

/// Gradients of [`geglu`].
pub fn geglu_backward(dy: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    let len = same_length(&[dy, gate, up, d_gate, d_up]);
    par::rows2(len, (d_gate, 1), (d_up, 1), |i, d_gate, d_up| {
        geglu_dx(&dy[i.clone()], &gate[i.clone()], &up[i], d_gate, d_up);
    });
}

fn same_length(all: &[&[f32]]) -> usize {
    let len = all[0].len();
    assert!(all.iter().all(|x| x.len() == len), "operands of a gated unit have one length");
    len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::{distance, random};
    use crate::isa::{Isa, levels};

    fn silu64(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    fn gelu64(x: f64) -> f64 {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
    }

    type Forward = fn(Isa, &[f32], &[f32], &mut [f32]);
    type Backward = fn(Isa, &[f32], &[f32], &[f32], &mut [f32], &mut [f32]);

    fn check(act: fn(f64) -> f64, forward: Forward, backward: Backward) {
        let n = 1003;
        let gate: Vec<f32> = random(n, 1).iter().map(|x| 6.0 * x).collect();
        let (up, dy) = (random(n, 2), random(n, 3));
        let at = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
            (0..n).map(|i| f(f64::from(gate[i]), f64::from(up[i]), f64::from(dy[i]))).collect()
        };
        let h = 1e-6;
        for isa in levels() {
            let (mut y, mut dg, mut du) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
            forward(isa, &gate, &up, &mut y);
            backward(isa, &dy, &gate, &up, &mut dg, &mut du);
            assert!(distance(&y, &at(&|g, u, _| act(g) * u)) < 1e-6);
            assert!(distance(&du, &at(&|g, _, d| act(g) * d)) < 1e-6);
            assert!(distance(&dg, &at(&|g, u, d| d * u * (act(g + h) - act(g - h)) / (2.0 * h))) < 1e-6);
            let (far, one) = ([90.0, -90.0, 1e20, -1e20, 3e38, -3e38], [1.0; 6]);
            let (mut y, mut dg, mut du) = ([0.0; 6], [0.0; 6], [0.0; 6]);
            forward(isa, &far, &one, &mut y);
            backward(isa, &one, &far, &one, &mut dg, &mut du);
            assert_eq!((y, dg), ([90.0, 0.0, 1e20, 0.0, 3e38, 0.0], [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]), "{isa:?}");
        }
    }

    #[test]
    fn swiglu_agrees_with_f64() {
        check(silu64, swiglu_part_at, swiglu_dx_at);
    }

    #[test]
    fn geglu_agrees_with_f64() {
        check(gelu64, geglu_part_at, geglu_dx_at);
    }

    #[test]
    fn pieces_do_not_change_bits() {
        let n = 70_001;
        let (gate, up, dy) = (random(n, 1), random(n, 2), random(n, 3));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            pool.install(|| {
                let (mut y, mut dg, mut du) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
                swiglu(&gate, &up, &mut y);
                geglu_backward(&dy, &gate, &up, &mut dg, &mut du);
                (y, dg, du)
            })
        };
        assert_eq!(run(1), run(2));
    }
}
