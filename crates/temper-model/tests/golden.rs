//! Logits, loss and gradients against PyTorch in f64 (tests/golden/model.py).

mod common;

use common::{Sequences, golden_dir, gradients, logits, no_further_than_pytorch, relative, values};
use temper_format::{ArraySource, SafetensorsFile};
use temper_model::Model;
use temper_tensor::{Cpu, HeadSpec};

struct Golden {
    model: Model,
    file: SafetensorsFile,
    sequences: Sequences,
}

fn golden(name: &str, file: &str) -> Golden {
    let dir = golden_dir(name);
    let file = SafetensorsFile::open(dir.join(file)).unwrap();
    Golden { model: Model::load(&Cpu::new(), &dir).unwrap(), sequences: Sequences::read(&file), file }
}

fn check(name: &str) {
    let g = golden(name, "golden.safetensors");
    let expected: Vec<f32> = (0..3).flat_map(|i| g.file.read_f32(&format!("logits.{i}")).unwrap()).collect();
    let error = relative(&logits(&g.model, &g.sequences.ids), &expected);
    assert!(error < 2e-6, "{name}: logits {error:e}");

    let (batch, weight) = g.sequences.batch();
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

#[test]
fn bf16_is_no_further_from_f64_than_pytorch() {
    for name in ["llama", "mistral", "short"] {
        let g = golden(name, "bf16.safetensors");
        no_further_than_pytorch(name, &g.model.in_bf16(), &g.file, &g.sequences);
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
