//! Every fused operation against central differences, inputs and parameters alike.

mod common;

use std::sync::Arc;

use common::{Arg, Rng, check};
use temper_tensor::{AttnShape, HeadCoef, HeadSpec, Ops, RopeTable, Segments};

fn arg(rng: &mut Rng, rows: usize, cols: usize) -> Arg {
    (rows, cols, rng.normals(rows * cols, 0.8))
}

#[test]
fn row_operations() {
    let mut rng = Rng(21);
    let x = [arg(&mut rng, 3, 5)];
    let w = [arg(&mut rng, 7, 5)];
    check("embedding", &[], &w, |t, _, p| t.embedding(p[0], &[6, 0, 6]));
    check("linear", &x, &w, |t, v, p| t.linear(&v[0], p[0]));
    let b = [arg(&mut rng, 1, 5)];
    check("bias", &x, &b, |t, v, p| t.bias(&v[0], p[0]));
    check("rms_norm", &x, &b, |t, v, p| t.rms_norm(&v[0], p[0], 1e-5));
    check("rms_norm then linear", &x, &[b[0].clone(), w[0].clone()], |t, v, p| {
        t.linear(&t.rms_norm(&v[0], p[0], 1e-5)?, p[1])
    });
    let pair = [arg(&mut rng, 3, 5), arg(&mut rng, 3, 5)];
    check("swiglu", &pair, &[], |t, v, _| t.swiglu(&v[0], &v[1]));
    check("geglu", &pair, &[], |t, v, _| t.geglu(&v[0], &v[1]));
    check("swiglu then linear", &pair, &w, |t, v, p| t.linear(&t.swiglu(&v[0], &v[1])?, p[0]));
}

#[test]
fn rope() {
    let mut rng = Rng(22);
    let positions: Arc<[u32]> = [0, 3, 500].into();
    let ops = temper_tensor::Cpu::new();
    let (params, _) = common::make_params(&[]);
    let table = RopeTable::new(vec![1.0, 0.1, 0.01], 1.0, 512);
    let x = arg(&mut rng, 3, 12);
    let tape = temper_tensor::Tape::new(&ops, &params, true);
    let v = tape.input(common::tensor(3, 12, &x.2), true);
    let y = tape.rope(&v, 2, &table, &positions).expect("fits");
    let mut grads = temper_tensor::Grads::zeros(&ops, &params).expect("none");
    let d = common::loss_gradient(&y);
    let back = tape.backward(&y, d, &mut temper_tensor::GradSink::Accumulate(&mut grads)).expect("backward");
    // A rotation: the gradient is the weights rotated back, so <dx, x> = <weights, y>.
    let dx = common::host(back.get(&v).expect("a gradient"));
    let inner: f64 = dx.iter().zip(&x.2).map(|(a, b)| f64::from(a * b)).sum();
    assert!((inner - common::weighted(&common::host(y.tensor()))).abs() < 1e-5);
    let far: Arc<[u32]> = [0, 3, 512].into();
    assert!(tape.rope(&v.detach(), 2, &table, &far).expect_err("too far").to_string().contains("512"));
}

#[test]
fn attention() {
    let mut rng = Rng(23);
    let segments = Arc::new(Segments::group(3, &[2, 3]).expect("valid"));
    let shape = AttnShape { heads: 2, kv_heads: 1, head_dim: 16, scale: 0.3, bf16: false };
    let inputs = [arg(&mut rng, 8, 32), arg(&mut rng, 8, 16), arg(&mut rng, 8, 16)];
    check("attention", &inputs, &[], |t, v, _| t.attention(&v[0], &v[1], &v[2], &segments, shape));
}

#[test]
fn checkpointed_blocks() {
    let mut rng = Rng(24);
    let params = [arg(&mut rng, 1, 4), arg(&mut rng, 4, 4)];
    check("checkpoint", &[arg(&mut rng, 3, 4), arg(&mut rng, 3, 4)], &params, |t, v, p| {
        let (norm, w) = (p[0], p[1]);
        t.checkpoint(&[&v[0], &v[1]], move |t, v| {
            let h = t.linear(&t.rms_norm(&v[0], norm, 1e-5)?, w)?;
            t.mul(&h, &v[1])
        })
    });
}

/// The head's gradient for an arbitrary function of log-probability and entropy, two targets a row.
#[test]
fn head() {
    let ops = temper_tensor::Cpu::new();
    let mut rng = Rng(25);
    let (m, c, v) = (3, 6, 21);
    let (hidden, w) = (rng.normals(m * c, 0.7), rng.normals(v * c, 0.7));
    let targets = [3, 4, 20, 0, 7, 7];
    let spec = HeadSpec { temperature: 1.3, targets_per_row: 2, entropy: true, ..HeadSpec::default() };
    let loss = |hidden: &[f32], w: &[f32]| {
        let w = temper_tensor::Weight::from_rows(w, v, c);
        let terms = ops.head_terms(&common::tensor(m, c, hidden), &w, &targets, &spec).expect("head");
        let square: f64 = terms.logp.iter().map(|l| 0.5 * f64::from(*l) * f64::from(*l)).sum();
        square + terms.entropy.expect("asked for").iter().map(|e| 2.0 * f64::from(*e)).sum::<f64>()
    };
    let (mut params, ids) = common::make_params(&[(v, c, w.clone())]);
    let mut grads = temper_tensor::Grads::zeros(&ops, &params).expect("memory");
    let mut d_hidden = ops.zeros(m, c).expect("memory");
    let mut coef = |rows: std::ops::Range<usize>, terms: &temper_tensor::HeadTerms| HeadCoef {
        d_logp: terms.logp.clone(),
        d_entropy: Some(vec![2.0; rows.len()]),
        ..HeadCoef::default()
    };
    let weight = params.matrix("head", ids[0]).expect("a matrix").clone();
    let x = common::tensor(m, c, &hidden);
    ops.head_backward(&x, &weight, &targets, &spec, &mut coef, &mut d_hidden, grads.get_mut(ids[0])).expect("head");
    let numeric = |values: &[f32], f: &dyn Fn(&[f32]) -> f64| -> Vec<f32> {
        let moved = |i: usize, delta: f32| {
            let mut values = values.to_vec();
            values[i] += delta;
            f(&values)
        };
        (0..values.len()).map(|i| ((moved(i, 1e-2) - moved(i, -1e-2)) / 2e-2) as f32).collect()
    };
    common::assert_close("d_hidden", &common::host(&d_hidden), &numeric(&hidden, &|h| loss(h, &w)), 2e-3);
    let dw = grads.get(ids[0]).expect("trainable").values(&ops).expect("readable");
    common::assert_close("dw", &dw, &numeric(&w, &|w| loss(&hidden, w)), 2e-3);
    params.get_mut(ids[0]).trainable = false;
}
