//! What several tests share.
#![allow(dead_code, missing_docs, unreachable_pub)] // each test file uses its own part

pub mod gguf;

use std::path::PathBuf;

use temper_model::{Batch, Config, Model};
use temper_tensor::{Cpu, GradSink, Grads, HeadCoef, HeadSpec, HeadTerms, Ops, ParamId, Tape};

/// The directory of a golden model.
pub fn golden_dir(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/model").join(name)
}

/// A small model with large weights, so that its distributions are far from uniform.
pub fn small(seed: u64) -> Model {
    let mut config = Config::llama(97, 64, 2, 4);
    config.num_key_value_heads = 2;
    config.max_position_embeddings = 200;
    config.initializer_range = 0.2;
    Model::init(&Cpu::new(), &config, seed).unwrap()
}

/// Models of shapes that fill no vector: heads of 8 and of 20, odd widths, one kv head, an own head, biases.
pub fn short_heads(seed: u64) -> [Model; 2] {
    let mut even = Config::llama(97, 48, 2, 6);
    (even.num_key_value_heads, even.max_position_embeddings, even.initializer_range) = (2, 200, 0.2);
    let odd = Config {
        hidden_size: 37,
        intermediate_size: 11,
        num_attention_heads: 3,
        num_key_value_heads: 1,
        head_dim: 20,
        attention_bias: true,
        mlp_bias: true,
        tie_word_embeddings: false,
        ..even.clone()
    };
    [even, odd].map(|config| Model::init(&Cpu::new(), &config, seed).unwrap())
}

/// Pseudo-random token ids.
pub fn ids(seed: u64, len: usize) -> Vec<u32> {
    (0..len as u64).map(|i| ((seed * 7919 + i * 104_729 + i * i * 31) % 97) as u32).collect()
}

/// `sqrt(sum (a - b)^2 / sum b^2)`.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(&x, &y)| f(f64::from(x), f64::from(y))).sum::<f64>();
    (sum(&|x, y| (x - y).powi(2)) / sum(&|_, y| y * y)).sqrt()
}

/// As the trainer does it: terms and gradients of `-sum(weight * logp)` over a batch.
pub fn gradients(model: &Model, batch: &Batch, weight: &[f64], spec: &HeadSpec, recompute: bool) -> (HeadTerms, Grads) {
    let ops = Cpu::new();
    let mut grads = Grads::zeros(&ops, &model.params).unwrap();
    let terms = accumulate(model, batch, weight, spec, recompute, &mut grads);
    (terms, grads)
}

/// The same, added to `grads`.
pub fn accumulate(
    model: &Model,
    batch: &Batch,
    weight: &[f64],
    spec: &HeadSpec,
    recompute: bool,
    grads: &mut Grads,
) -> HeadTerms {
    let ops = Cpu::new();
    let tape = Tape::new(&ops, &model.params, true);
    let attend = temper_model::Attend::Segments(&batch.segments);
    let hidden = model.hidden(&tape, &batch.ids, attend, recompute).unwrap();
    let scored = tape.gather_rows(&hidden, &batch.src).unwrap();
    let (rows, cols) = scored.tensor().shape();
    let mut d = ops.zeros(rows, cols).unwrap();
    let w = model.params.matrix("head", model.head()).unwrap();
    let mut coef = |rows: std::ops::Range<usize>, _: &HeadTerms| HeadCoef {
        d_logp: weight[rows].iter().map(|&w| -w as f32).collect(),
        ..HeadCoef::default()
    };
    let dw = grads.get_mut(model.head());
    let terms = ops.head_backward(scored.tensor(), w, &batch.tgt, spec, &mut coef, &mut d, dw).unwrap();
    tape.backward(&scored, d, &mut GradSink::Accumulate(grads)).unwrap();
    terms
}

/// A gradient's values, row-major.
pub fn values(grads: &Grads, id: ParamId) -> Vec<f32> {
    grads.get(id).unwrap().values(&Cpu::new()).unwrap()
}
