//! AdamW, gradient norm and clipping, and restoring the optimiser's state.

mod common;

use common::{Rng, assert_close, bits};
use temper_tensor::{AdamState, AdamW, Cpu, Grads, ParamId, Params, adamw_step, clip_scale, grad_norm};

fn setup(seed: u64) -> (Params, [ParamId; 2]) {
    let (mut params, mut rng) = (Params::new(), Rng(seed));
    let w = params.add_matrix("w", 37, 19, &rng.normals(37 * 19, 1.0)).expect("new");
    let b = params.add_vector(&Cpu::new(), "b", &rng.normals(23, 1.0)).expect("new");
    (params, [w, b])
}

fn set(grads: &mut Grads, id: ParamId, values: &[f32]) {
    grads.get_mut(id).expect("trainable").set_values(&Cpu::new(), values).expect("fits");
}

/// The published algorithm in f64, one value at a time.
fn reference(w: &mut [f64], m: &mut [f64], v: &mut [f64], g: &[f32], t: i32, h: &AdamW, decay: f64, scale: f64) {
    let (lr, b1, b2) = (f64::from(h.lr), f64::from(h.beta1), f64::from(h.beta2));
    for i in 0..w.len() {
        let g = f64::from(g[i]) * scale;
        m[i] = b1 * m[i] + (1.0 - b1) * g;
        v[i] = b2 * v[i] + (1.0 - b2) * g * g;
        let (m_hat, v_hat) = (m[i] / (1.0 - b1.powi(t)), v[i] / (1.0 - b2.powi(t)));
        w[i] -= lr * (m_hat / (v_hat.sqrt() + f64::from(h.eps)) + decay * w[i]);
    }
}

#[test]
fn adamw_follows_the_scalar_reference_with_and_without_decay_of_vectors() {
    let ops = Cpu::new();
    for decay_vectors in [false, true] {
        let (mut params, ids) = setup(1);
        let mut grads = Grads::zeros(&ops, &params).expect("memory");
        let mut state = AdamState::new(&ops, &params).expect("memory");
        let hyper = AdamW { lr: 0.03, weight_decay: 0.2, decay_vectors, ..AdamW::default() };
        let start = |id: ParamId| params.values(&ops, id).expect("readable").iter().map(|x| f64::from(*x)).collect();
        let mut w: [Vec<f64>; 2] = ids.map(start);
        let (mut m, mut v) = (w.clone().map(|w| vec![0.0; w.len()]), w.clone().map(|w| vec![0.0; w.len()]));
        let mut rng = Rng(2);
        for t in 1..=20 {
            for (i, id) in ids.into_iter().enumerate() {
                let g = rng.normals(w[i].len(), 0.5);
                set(&mut grads, id, &g);
                let decay = if i == 0 || decay_vectors { 0.2f32.into() } else { 0.0 };
                reference(&mut w[i], &mut m[i], &mut v[i], &g, t, &hyper, decay, 0.25);
            }
            adamw_step(&ops, &mut params, &grads, &mut state, &hyper, 0.25).expect("a step");
        }
        for (id, w) in ids.into_iter().zip(&w) {
            let want: Vec<f32> = w.iter().map(|x| *x as f32).collect();
            assert_close("adamw", &params.values(&ops, id).expect("readable"), &want, 2e-6);
        }
    }
}

#[test]
fn restored_state_continues_bitwise() {
    let ops = Cpu::new();
    let (mut params, ids) = setup(3);
    params.get_mut(ids[1]).trainable = false;
    let mut grads = Grads::zeros(&ops, &params).expect("memory");
    let mut state = AdamState::new(&ops, &params).expect("memory");
    let hyper = AdamW { lr: 0.01, weight_decay: 0.1, ..AdamW::default() };
    let mut rng = Rng(4);
    let mut step = |params: &mut Params, state: &mut AdamState, g: &[f32]| {
        set(&mut grads, ids[0], g);
        adamw_step(&ops, params, &grads, state, &hyper, 1.0).expect("a step");
    };
    step(&mut params, &mut state, &rng.normals(37 * 19, 1.0));
    let (m, v) = state.moments(ids[0]).expect("trainable");
    let [m, v] = [m, v].map(|moment| moment.values(&ops).expect("readable"));
    assert!(state.moments(ids[1]).is_none());
    let (mut again, _) = setup(99);
    again.get_mut(ids[1]).trainable = false;
    again.set_values(&ops, ids[0], &params.values(&ops, ids[0]).expect("readable")).expect("fits");
    let mut restored = AdamState::new(&ops, &again).expect("memory");
    restored.set_step(state.step());
    restored.set_moments(&ops, &again, ids[0], &m, &v).expect("fits");
    assert!(restored.set_moments(&ops, &again, ids[0], &m[1..], &v).expect_err("refused").to_string().contains("703"));
    assert!(restored.set_moments(&ops, &again, ids[1], &[], &[]).expect_err("refused").to_string().contains("`b`"));
    for _ in 0..3 {
        let g = rng.normals(37 * 19, 1.0);
        step(&mut params, &mut state, &g);
        step(&mut again, &mut restored, &g);
    }
    let of = |p: &Params| bits(&p.values(&ops, ids[0]).expect("readable"));
    assert_eq!(of(&params), of(&again));
}

#[test]
fn the_norm_is_exact_and_independent_of_threads() {
    let ops = Cpu::new();
    let mut params = Params::new();
    let w = params.add_matrix("w", 700, 400, &vec![0.0; 280_000]).expect("new");
    let b = params.add_vector(&ops, "b", &[0.0; 5]).expect("new");
    let mut grads = Grads::zeros(&ops, &params).expect("memory");
    let values = [Rng(5).normals(280_000, 1.0), vec![3.0; 5]];
    set(&mut grads, w, &values[0]);
    set(&mut grads, b, &values[1]);
    let want = values.iter().flatten().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    let norm = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| grad_norm(&ops, &grads).expect("finite"))
    };
    assert!((norm(1) - want).abs() < 1e-9 * want);
    assert_eq!(norm(1).to_bits(), norm(3).to_bits());
}

#[test]
fn clipping_scales_to_the_bound_and_leaves_small_gradients_alone() {
    assert_eq!(clip_scale(4.0, 1.0), 0.25);
    assert_eq!(clip_scale(0.5, 1.0), 1.0);
    assert_eq!(clip_scale(0.0, 1.0), 1.0);
}

#[test]
fn gradients_add_and_reset() {
    let ops = Cpu::new();
    let (params, ids) = setup(6);
    let (mut a, mut b) = (Grads::zeros(&ops, &params).expect("memory"), Grads::zeros(&ops, &params).expect("memory"));
    set(&mut a, ids[1], &[1.0; 23]);
    set(&mut b, ids[1], &[2.0; 23]);
    a.add_scaled(&ops, &b, -0.25).expect("same layout");
    assert_eq!(a.get(ids[1]).expect("trainable").values(&ops).expect("readable"), vec![0.5; 23]);
    a.zero(&ops).expect("zero");
    assert_eq!(grad_norm(&ops, &a).expect("finite"), 0.0);
}

#[test]
fn parameters_refuse_doubled_names_and_wrong_counts() {
    let ops = Cpu::new();
    let (mut params, ids) = setup(7);
    assert!(params.add_vector(&ops, "b", &[0.0]).expect_err("refused").to_string().contains("`b`"));
    assert!(params.add_matrix("x", 2, 2, &[0.0; 3]).expect_err("refused").to_string().contains("expected 4"));
    assert!(params.set_values(&ops, ids[0], &[0.0; 3]).is_err());
    assert_eq!((params.count(false), params.by_name("b")), (37 * 19 + 23, Some(ids[1])));
    params.get_mut(ids[0]).trainable = false;
    assert_eq!(params.count(true), 23);
}
