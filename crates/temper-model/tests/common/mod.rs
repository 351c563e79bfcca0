//! What several tests share.
#![allow(dead_code, missing_docs, unreachable_pub)] // each test file uses its own part

pub mod gguf;

use std::path::PathBuf;
use std::sync::Arc;

use temper_format::{ArraySource, SafetensorsFile};
use temper_model::{Attend, Batch, Config, Model, ScoredSequence};
use temper_tensor::{Cpu, GradSink, Grads, HeadCoef, HeadSpec, HeadTerms, Ops, ParamId, Segments, Tape};

/// The directory of a golden model.
pub fn golden_dir(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/model").join(name)
}

/// The directory of a golden adapter.
pub fn adapter_dir(name: &str) -> PathBuf {
    golden_dir(".").join("../adapter").join(name)
}

/// Sequences of a golden file, and the weights of their tokens.
pub struct Sequences {
    pub ids: Vec<Vec<u32>>,
    pub weights: Vec<Vec<f64>>,
}

impl Sequences {
    pub fn read(file: &SafetensorsFile) -> Self {
        let read = |key: &str| (0..).map_while(|i| file.read_f32(&format!("{key}.{i}")).ok()).collect::<Vec<_>>();
        let ids = read("ids").into_iter().map(|ids| ids.into_iter().map(|x| x as u32).collect()).collect();
        let weights = read("weight").into_iter().map(|weight| weight.into_iter().map(f64::from).collect()).collect();
        Self { ids, weights }
    }

    pub fn batch(&self) -> (Batch, Vec<f64>) {
        let pairs = self.ids.iter().zip(&self.weights);
        Batch::sequences(&pairs.map(|(ids, scored)| ScoredSequence { ids, scored }).collect::<Vec<_>>()).unwrap()
    }
}

/// Logits of every row of independent sequences.
pub fn logits(model: &Model, ids: &[Vec<u32>]) -> Vec<f32> {
    let ops = Cpu::new();
    let segments = Arc::new(Segments::sequences(&ids.iter().map(Vec::len).collect::<Vec<_>>()).unwrap());
    let tape = Tape::new(&ops, &model.params, false);
    let hidden = model.hidden(&tape, &ids.concat(), Attend::Segments(&segments), false).unwrap();
    let w = model.params.matrix("head", model.head()).unwrap();
    ops.to_host(&ops.head_logits(hidden.tensor(), w).unwrap()).unwrap()
}

/// Asserts that logits and gradients in bf16 are at most 1.1 times as far from f64 as PyTorch's (tests/golden/model_bf16.py), tensor by
/// tensor. `file` holds those of what is trained.
pub fn no_further_than_pytorch(name: &str, model: &Model, file: &SafetensorsFile, sequences: &Sequences) {
    let text = std::fs::read_to_string(golden_dir("bf16.json")).unwrap();
    let pytorch: serde_json::Value = serde_json::from_str(&text).unwrap();
    let within = |what: &str, got: &[f32]| {
        let error = relative(got, &file.read_f32(what).unwrap());
        let theirs = pytorch[name][what].as_f64().unwrap();
        assert!(error < 1.1 * theirs && error > 1e-4, "{name}: {what} is {error:e} off, in PyTorch {theirs:e}");
    };
    within("logits", &logits(model, &sequences.ids[..3]));
    let (batch, weight) = sequences.batch();
    let (_, grads) = gradients(model, &batch, &weight, &HeadSpec::default(), false);
    for (id, param) in model.params.iter().filter(|(_, param)| param.trainable) {
        within(&param.name, &values(&grads, id));
    }
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
    let attend = Attend::Segments(&batch.segments);
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
