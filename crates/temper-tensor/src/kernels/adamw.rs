//! AdamW over one tensor in one pass.
#![allow(clippy::inline_always)] // bodies are compiled into each instruction-set level's function

use super::par;
use crate::isa::{mul_add, multiversion};
use crate::optim::AdamStep;

#[inline(always)]
fn body<const FMA: bool>(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], s: &AdamStep) {
    let keep = 1.0 - s.lr * s.weight_decay;
    let (rate1, rate2) = (1.0 - s.beta1, 1.0 - s.beta2);
    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * s.grad_scale;
        *m = mul_add::<FMA>(rate1, g - *m, *m);
        *v = mul_add::<FMA>(rate2, mul_add::<FMA>(g, g, -*v), *v);
        let step = s.step_size * *m / mul_add::<FMA>(v.sqrt(), s.inv_bias2_sqrt, s.eps);
        *w = mul_add::<FMA>(*w, keep, -step);
    }
}

multiversion! {
    fn part(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], s: &AdamStep) = body, part_at;
}

/// One update of the values `w` with gradient `g` and moments `m`, `v`; see [`AdamStep`] for the equations.
pub fn adamw(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], s: &AdamStep) {
    assert_eq!(w.len(), g.len(), "one gradient value for each parameter value");
    par::values3(w, m, v, |i, w, m, v| part(w, &g[i], m, v, s));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::{distance, random};
    use crate::isa::levels;

    /// The settings as f32 holds them, which is what both sides use.
    const BETAS: (f32, f32) = (0.9, 0.999);
    const LR: f32 = 1e-2;

    fn bias(beta: f32, t: i32) -> f64 {
        1.0 - f64::from(beta).powi(t)
    }

    fn numbers(t: i32) -> AdamStep {
        AdamStep {
            lr: LR,
            beta1: BETAS.0,
            beta2: BETAS.1,
            eps: 1e-8,
            weight_decay: 0.1,
            step_size: (f64::from(LR) / bias(BETAS.0, t)) as f32,
            inv_bias2_sqrt: (1.0 / bias(BETAS.1, t).sqrt()) as f32,
            grad_scale: 0.5,
        }
    }

    /// PyTorch's `AdamW` in f64 on the scaled gradient.
    fn reference(w: &mut f64, g: f64, m: &mut f64, v: &mut f64, t: i32) {
        let (lr, beta1, beta2) = (f64::from(LR), f64::from(BETAS.0), f64::from(BETAS.1));
        let g = 0.5 * g;
        *w *= 1.0 - lr * 0.1;
        *m = beta1 * *m + (1.0 - beta1) * g;
        *v = beta2 * *v + (1.0 - beta2) * g * g;
        let denominator = v.sqrt() / bias(BETAS.1, t).sqrt() + 1e-8;
        *w -= lr / bias(BETAS.0, t) * *m / denominator;
    }

    #[test]
    fn ten_steps_follow_the_definition() {
        let n = 1009;
        let start = random(n, 1);
        let mut exact: Vec<(f64, f64, f64)> = start.iter().map(|w| (f64::from(*w), 0.0, 0.0)).collect();
        for isa in levels() {
            let (mut w, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
            exact.iter_mut().zip(&start).for_each(|(e, w)| *e = (f64::from(*w), 0.0, 0.0));
            for t in 1..=10 {
                let g = random(n, 100 + t as u64);
                part_at(isa, &mut w, &g, &mut m, &mut v, &numbers(t));
                for ((w, m, v), g) in exact.iter_mut().zip(&g) {
                    reference(w, f64::from(*g), m, v, t);
                }
            }
            assert!(distance(&w, &exact.iter().map(|e| e.0).collect::<Vec<_>>()) < 1e-6);
            assert!(distance(&m, &exact.iter().map(|e| e.1).collect::<Vec<_>>()) < 1e-6);
            assert!(distance(&v, &exact.iter().map(|e| e.2).collect::<Vec<_>>()) < 1e-5);
        }
    }

    #[test]
    fn zeros_stay_zero_so_that_padding_does() {
        for isa in levels() {
            let (mut w, mut m, mut v) = (vec![0.0; 16], vec![0.0; 16], vec![0.0; 16]);
            part_at(isa, &mut w, &[0.0; 16], &mut m, &mut v, &numbers(1));
            assert!(w.iter().chain(&m).chain(&v).all(|x| *x == 0.0));
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let n = 100_003;
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            let (mut w, mut m, mut v) = (random(n, 1), vec![0.0; n], vec![0.0; n]);
            pool.install(|| adamw(&mut w, &random(n, 2), &mut m, &mut v, &numbers(1)));
            (w, m, v)
        };
        assert_eq!(run(1), run(2));
    }
}
