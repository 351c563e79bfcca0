//! Logits, loss and gradients against PyTorch in f64 (tests/golden/model.py).

mod common;

use common::{golden_dir, gradients, relative, values};
use std::sync::Arc;
use temper_format::{ArraySource, SafetensorsFile};
use temper_model::{Attend, Batch, Model, ScoredSequence};
use temper_tensor::{Cpu, HeadSpec, Ops, Segments, Tape};

struct Golden {
    model: Model,
    file: SafetensorsFile,
    ids: Vec<Vec<u32>>,
    weights: Vec<Vec<f64>>,
}

fn golden(name: &str, file: &str) -> Golden {
    let dir = golden_dir(name);
    let file = SafetensorsFile::open(dir.join(file)).unwrap();
    let read = |key: &str| (0..).map_while(|i| file.read_f32(&format!("{key}.{i}")).ok()).collect::<Vec<_>>();
    let ids = read("ids").into_iter().map(|ids| ids.into_iter().map(|x| x as u32).collect()).collect();
    let weights = read("weight").into_iter().map(|weight| weight.into_iter().map(f64::from).collect()).collect();
    Golden { model: Model::load(&Cpu::new(), &dir).unwrap(), file, ids, weights }
}

impl Golden {
    fn sequences(&self) -> (Batch, Vec<f64>) {
        let pairs = self.ids.iter().zip(&self.weights);
        Batch::sequences(&pairs.map(|(ids, scored)| ScoredSequence { ids, scored }).collect::<Vec<_>>()).unwrap()
    }
}

/// Logits of every row of independent sequences.
fn logits(model: &Model, ids: &[Vec<u32>]) -> Vec<f32> {
    let ops = Cpu::new();
    let segments = Arc::new(Segments::sequences(&ids.iter().map(Vec::len).collect::<Vec<_>>()).unwrap());
    let tape = Tape::new(&ops, &model.params, false);
    let hidden = model.hidden(&tape, &ids.concat(), Attend::Segments(&segments), false).unwrap();
    let w = model.params.matrix("head", model.head()).unwrap();
    ops.to_host(&ops.head_logits(hidden.tensor(), w).unwrap()).unwrap()
}

fn check(name: &str) {
    let g = golden(name, "golden.safetensors");
    let expected: Vec<f32> = (0..3).flat_map(|i| g.file.read_f32(&format!("logits.{i}")).unwrap()).collect();
    let error = relative(&logits(&g.model, &g.ids), &expected);
    assert!(error < 2e-6, "{name}: logits {error:e}");

    let (batch, weight) = g.sequences();
    let (terms, grads) = gradients(&g.model, &batch, &weight, &HeadSpec::default(), false);
    let loss: f64 = terms.logp.iter().zip(&weight).map(|(&l, w)| -w * f64::from(l)).sum();
    let expected = f64::from(g.file.read_f32("loss").unwrap()[0]);
    assert!((loss / expected - 1.0).abs() < 1e-6, "{name}: loss {loss}, expected {expected}");
    for (id, param) in g.model.params.iter() {
        let expected = g.file.read_f32(&format!("grad.{}", param.name)).unwrap();
        let error = relative(&values(&grads, id), &expected);
        assert!(error < 1e-5, "{name}: gradient of {} {error:e}", param.name);
    }
}

/// bf16 is at most 1.1 times as far from f64 as PyTorch's bf16 (tests/golden/model_bf16.py), tensor by tensor.
#[test]
fn bf16_is_no_further_from_f64_than_pytorch() {
    let text = std::fs::read_to_string(golden_dir("bf16.json")).unwrap();
    let pytorch: serde_json::Value = serde_json::from_str(&text).unwrap();
    for name in ["llama", "mistral", "short"] {
        let g = golden(name, "bf16.safetensors");
        let (batch, weight) = g.sequences();
        let model = g.model.in_bf16();
        let within = |what: &str, got: &[f32]| {
            let error = relative(got, &g.file.read_f32(what).unwrap());
            let theirs = pytorch[name][what].as_f64().unwrap();
            assert!(error < 1.1 * theirs && error > 1e-4, "{name}: {what} is {error:e} off, in PyTorch {theirs:e}");
        };
        within("logits", &logits(&model, &g.ids[..3]));
        let (_, grads) = gradients(&model, &batch, &weight, &HeadSpec::default(), false);
        for (id, param) in model.params.iter() {
            within(&param.name, &values(&grads, id));
        }
    }
}

#[test]
fn llama_with_scaled_rope_and_tied_head_agrees_with_pytorch() {
    check("llama");
}

#[test]
fn llama_with_short_heads_biases_and_yarn_agrees_with_pytorch() {
    check("short");
}

#[test]
fn mistral_with_wide_heads_and_own_head_agrees_with_pytorch() {
    check("mistral");
}
