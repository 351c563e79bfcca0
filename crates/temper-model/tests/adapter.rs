//! LoRA against PEFT in f64 (tests/golden/adapter.py), and what must hold bit for bit with an adapter.

mod common;

use common::{
    Sequences, adapter_dir, golden_dir, gradients, ids, logits, no_further_than_pytorch, relative, small, values,
};
use std::path::PathBuf;
use temper_format::{ArraySource, SafetensorsFile};
use temper_model::{Attend, Batch, Engine, Lora, Model, Request, Sampling, ScoredSequence, adapter_base, is_adapter};
use temper_tensor::{Cpu, Dropout, GradSink, Grads, HeadSpec, Hooks, Ops, ParamValue, Tape, Weight};

struct Golden {
    model: Model,
    file: SafetensorsFile,
    sequences: Sequences,
}

/// The base model with PEFT's adapter on it.
fn golden(base: &str, name: &str) -> Golden {
    let mut model = Model::load(&Cpu::new(), golden_dir(base)).unwrap();
    let dir = adapter_dir(name);
    assert!(is_adapter(&dir) && !is_adapter(&golden_dir(base)));
    assert_eq!(adapter_base(&dir).unwrap().unwrap(), format!("../../model/{base}"));
    model.load_adapter(&dir).unwrap();
    let file = SafetensorsFile::open(dir.join("golden.safetensors")).unwrap();
    Golden { model, sequences: Sequences::read(&file), file }
}

fn check(base: &str, name: &str) {
    let mut g = golden(base, name);
    let expected: Vec<f32> = (0..3).flat_map(|i| g.file.read_f32(&format!("logits.{i}")).unwrap()).collect();
    let error = relative(&logits(&g.model, &g.sequences.ids), &expected);
    assert!(error < 2e-6, "{name}: logits {error:e}");

    let (batch, weight) = g.sequences.batch();
    for recompute in [false, true] {
        let (terms, grads) = gradients(&g.model, &batch, &weight, &HeadSpec::default(), recompute);
        let loss: f64 = terms.logp.iter().zip(&weight).map(|(&l, w)| -w * f64::from(l)).sum();
        let expected = f64::from(g.file.read_f32("loss").unwrap()[0]);
        assert!((loss / expected - 1.0).abs() < 1e-6, "{name}: loss {loss}, expected {expected}");
        for (id, param) in g.model.params.iter() {
            assert_eq!(grads.get(id).is_some(), param.name.contains(".lora_"), "{}", param.name);
            if param.trainable {
                let expected = g.file.read_f32(&format!("grad.{}", param.name)).unwrap();
                let error = relative(&values(&grads, id), &expected);
                assert!(error < 1e-5, "{name}: gradient of {} {error:e}", param.name);
            }
        }
    }

    g.model.merge_adapter(&Cpu::new()).unwrap();
    assert!(g.model.adapter().is_none() && g.model.params.iter().all(|(_, p)| p.trainable));
    let error = relative(&logits(&g.model, &g.sequences.ids), &expected);
    assert!(error < 2e-6, "{name}: merged logits {error:e}");
    let mut compared = 0;
    for (id, param) in g.model.params.iter().filter(|(_, p)| p.name.contains("_proj.weight")) {
        let expected = g.file.read_f32(&format!("merged.{}", param.name)).unwrap();
        let error = relative(&g.model.params.values(&Cpu::new(), id).unwrap(), &expected);
        assert!(error < 1e-7, "{name}: merged {} {error:e}", param.name);
        compared += 1;
    }
    assert_eq!(compared, 14);
}

#[test]
fn three_projections_agree_with_peft() {
    check("llama", "plain");
}

#[test]
fn every_projection_with_biases_and_rslora_agrees_with_peft() {
    check("short", "rslora");
}

/// PEFT keeps the adapter of a bf16 model in f32; here it is computed in bf16 over f32 values, as everything is.
#[test]
fn bf16_is_no_further_from_f64_than_peft() {
    for (base, name) in [("llama", "plain"), ("short", "rslora")] {
        let mut model = Model::load(&Cpu::new(), golden_dir(base)).unwrap().in_bf16();
        model.load_adapter(&adapter_dir(name)).unwrap();
        let mut adapters = model.params.iter().filter(|(_, param)| param.trainable).peekable();
        assert!(adapters.peek().is_some());
        assert!(adapters.all(|(_, param)| matches!(param.value, ParamValue::Matrix(Weight::Bf16(_)))));
        let open = |dir: PathBuf| SafetensorsFile::open(dir.join("bf16.safetensors")).unwrap();
        let sequences = Sequences::read(&open(golden_dir(base)));
        no_further_than_pytorch(name, &model, &open(adapter_dir(name)), &sequences);
    }
}

fn lora(rank: usize, targets: &[&str]) -> Lora {
    Lora { rank, alpha: 8.0, dropout: 0.0, targets: targets.iter().map(ToString::to_string).collect(), rslora: false }
}

/// A model whose adapter is far from zero.
fn adapted(seed: u64) -> Model {
    let mut model = small(seed);
    model.attach(&lora(3, &["all_linear"]), 9).unwrap();
    let names: Vec<_> = model.params.iter().filter(|(_, p)| p.name.contains("lora_B")).map(|(id, _)| id).collect();
    for id in names {
        let n = model.params.get(id).count();
        let values: Vec<f32> = (0..n).map(|i| ((i * 37 + id.index() * 11) % 101) as f32 / 101.0 - 0.5).collect();
        model.params.set_values(&Cpu::new(), id, &values).unwrap();
    }
    model
}

fn bits(logp: &[f32]) -> Vec<u32> {
    logp.iter().map(|l| l.to_bits()).collect()
}

#[test]
fn an_adapter_begins_at_zero_and_freezes_the_base() {
    let (mut model, base) = (small(1), small(1));
    model.attach(&lora(4, &["q_proj", "layers.1.mlp.*"]), 5).unwrap();
    let tokens = [ids(1, 30), ids(2, 70)];
    assert_eq!(bits(&logits(&model, &tokens)), bits(&logits(&base, &tokens)));
    let trained: Vec<&str> = model.params.iter().filter(|(_, p)| p.trainable).map(|(_, p)| p.name.as_str()).collect();
    assert_eq!(trained.len(), 10);
    assert!(trained.contains(&"base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"));
    assert_eq!(model.params.count(true), 4 * (2 * (64 + 64) + 3 * (64 + 176)));
    let mut again = small(1);
    again.attach(&lora(4, &["q_proj", "layers.1.mlp.*"]), 5).unwrap();
    for ((id, param), (_, other)) in model.params.iter().zip(again.params.iter()) {
        assert_eq!(param.name, other.name);
        let of = |m: &Model| m.params.values(&Cpu::new(), id).unwrap();
        assert_eq!(of(&model), of(&again));
    }
    model.merge_adapter(&Cpu::new()).unwrap();
    assert_eq!(bits(&logits(&model, &tokens)), bits(&logits(&base, &tokens)));
    assert_eq!(model.params.len(), base.params.len());
}

#[test]
fn sampled_logp_is_the_trainers_with_an_adapter_and_the_reference_is_the_base() {
    sampled_logp_is_the_trainers(&adapted(2), &small(2));
    sampled_logp_is_the_trainers(&adapted(2).in_bf16(), &small(2).in_bf16());
}

fn sampled_logp_is_the_trainers(model: &Model, base: &Model) {
    let ops = Cpu::new();
    let requests: Vec<Request> =
        [5, 64, 23].iter().map(|&n| Request { prompt: ids(n as u64, n), seeds: vec![1, 2] }).collect();
    let rules = Sampling { temperature: 0.8, max_tokens: 70, ..Sampling::default() };
    let spec = HeadSpec { temperature: 0.8, ..HeadSpec::default() };
    for max_batch in [1, 4] {
        let engine = Engine::new(&ops, model, &rules).unwrap().max_batch(max_batch).unwrap();
        let done = engine.generate(&requests, &mut |_| ()).unwrap();
        let groups: Vec<(&[u32], Vec<&[u32]>)> = requests
            .iter()
            .zip(&done)
            .map(|(r, group)| (r.prompt.as_slice(), group.iter().map(|c| c.tokens.as_slice()).collect()))
            .collect();
        let batch = Batch::groups(&groups).unwrap();
        let sampled: Vec<u32> = done.iter().flatten().flat_map(|c| bits(&c.logp_gen)).collect();
        let weight = vec![1.0; batch.scored()];
        for recompute in [false, true] {
            assert_eq!(bits(&gradients(model, &batch, &weight, &spec, recompute).0.logp), sampled);
        }
        let off = model.base_terms(&ops, &batch, &spec).unwrap().logp;
        assert_eq!(bits(&off), bits(&base.terms(&ops, &batch, &spec).unwrap().logp));
        assert_ne!(bits(&off), sampled);
    }
}

/// Gradients of all A and B with dropout, each sequence in a micro-batch of its own or all in one.
fn dropped(model: &Model, sequences: &[Vec<u32>], cut: usize, recompute: bool, seed: u64) -> (Vec<u32>, Vec<Vec<f32>>) {
    let (ops, mut logp) = (Cpu::new(), Vec::new());
    let mut grads = Grads::zeros(&ops, &model.params).unwrap();
    for (first, part) in sequences.chunks(cut).enumerate().map(|(i, part)| (i * cut, part)) {
        let ones: Vec<Vec<f64>> = part.iter().map(|s| vec![1.0; s.len()]).collect();
        let scored: Vec<ScoredSequence> =
            part.iter().zip(&ones).map(|(ids, scored)| ScoredSequence { ids, scored }).collect();
        let (batch, weight) = Batch::sequences(&scored).unwrap();
        let keys =
            part.iter().enumerate().flat_map(|(i, s)| (0..s.len() - 1).map(move |t| ((first + i) << 32 | t) as u64));
        let mut hooks = Hooks::new();
        hooks.drop_out(Dropout { p: 0.3, seed, rows: keys.collect() });
        let tape = Tape::new(&ops, &model.params, true).with_hooks(&hooks);
        let hidden = model.hidden(&tape, &batch.ids, Attend::Segments(&batch.segments), recompute).unwrap();
        let rows = tape.gather_rows(&hidden, &batch.src).unwrap();
        let mut d = ops.zeros(rows.rows(), rows.cols()).unwrap();
        let w = model.params.matrix("head", model.head()).unwrap();
        let mut coef = |rows: std::ops::Range<usize>, _: &temper_tensor::HeadTerms| temper_tensor::HeadCoef {
            d_logp: weight[rows].iter().map(|&w| -w as f32).collect(),
            ..temper_tensor::HeadCoef::default()
        };
        let terms =
            ops.head_backward(rows.tensor(), w, &batch.tgt, &HeadSpec::default(), &mut coef, &mut d, None).unwrap();
        logp.extend(bits(&terms.logp));
        tape.backward(&rows, d, &mut GradSink::Accumulate(&mut grads)).unwrap();
    }
    let trained = model.params.iter().filter(|(_, p)| p.trainable);
    (logp, trained.map(|(id, _)| values(&grads, id)).collect())
}

#[test]
fn dropout_follows_positions_whatever_the_cut_and_is_off_without_hooks() {
    let model = adapted(3);
    let sequences = [ids(1, 20), ids(2, 33), ids(3, 9)];
    let whole = dropped(&model, &sequences, 3, false, 7);
    let again = dropped(&model, &sequences, 3, true, 7);
    assert!(whole.0 == again.0 && whole.1 == again.1, "recomputation sees the same masks");
    let parts = dropped(&model, &sequences, 1, false, 7);
    assert_eq!(whole.0, parts.0);
    for (a, b) in whole.1.iter().zip(&parts.1) {
        assert!(relative(a, b) < 1e-6);
    }
    assert_ne!(whole.0, dropped(&model, &sequences, 3, false, 8).0);
    let plain = logits(&model, &sequences);
    assert_eq!(plain, logits(&model, &sequences));
}

/// With dropout the gradient is that of the masked function: a central difference along a random direction.
#[test]
fn the_gradient_with_dropout_is_a_finite_difference() {
    let mut model = adapted(4);
    let sequences = [ids(5, 25), ids(6, 18)];
    let (_, grads) = dropped(&model, &sequences, 2, false, 11);
    let trained: Vec<_> = model.params.iter().filter(|(_, p)| p.trainable).map(|(id, _)| id).collect();
    let direction = |i: usize, j: usize| (((i * 31 + j * 17) % 13) as f32 - 6.0) / 13.0;
    let start: Vec<Vec<f32>> = trained.iter().map(|&id| model.params.values(&Cpu::new(), id).unwrap()).collect();
    let slope: f64 = grads
        .iter()
        .enumerate()
        .flat_map(|(i, g)| g.iter().enumerate().map(move |(j, &g)| f64::from(g) * f64::from(direction(i, j))))
        .sum();
    let mut loss = |step: f32| {
        for (i, (&id, start)) in trained.iter().zip(&start).enumerate() {
            let moved: Vec<f32> = start.iter().enumerate().map(|(j, &x)| x + step * direction(i, j)).collect();
            model.params.set_values(&Cpu::new(), id, &moved).unwrap();
        }
        let (logp, _) = dropped(&model, &sequences, 2, false, 11);
        -logp.into_iter().map(|b| f64::from(f32::from_bits(b))).sum::<f64>()
    };
    let h = 1e-3;
    let difference = (loss(h) - loss(-h)) / (2.0 * f64::from(h));
    assert!((difference / slope - 1.0).abs() < 5e-3, "{difference} {slope}");
}

#[test]
fn what_is_saved_is_loaded_with_equal_logits() {
    let (model, ops) = (adapted(6), Cpu::new());
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter_into(&ops, dir.path(), "owner/base").unwrap();
    assert_eq!(adapter_base(dir.path()).unwrap().as_deref(), Some("owner/base"));
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["peft_type"], &config["r"], &config["lora_alpha"]), (&"LORA".into(), &3.into(), &8.into()));
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 7);
    let mut read = small(6);
    read.load_adapter(dir.path()).unwrap();
    let tokens = [ids(1, 30), ids(2, 70)];
    assert_eq!(bits(&logits(&read, &tokens)), bits(&logits(&model, &tokens)));
    assert!(model.save(&ops, dir.path().join("model"), temper_format::DType::F32).is_err());
    assert!(small(6).save_adapter_into(&ops, dir.path(), "x").is_err());
}

#[test]
fn adapters_that_do_not_fit_are_named() {
    let wrong = |model: &mut Model, dir: &std::path::Path, parts: &[&str]| {
        let before = model.params.len();
        let message = model.load_adapter(dir).unwrap_err().to_string();
        assert!(parts.iter().all(|p| message.contains(p)), "{message}");
        assert!(model.adapter().is_none() && model.params.len() == before);
    };
    wrong(&mut small(1), &adapter_dir("rslora"), &["adapter_model.safetensors", "lora_A", "[3, 21]", "[3, 64]"]);
    wrong(&mut small(1), &golden_dir("llama"), &["adapter_config.json"]);
    let (model, ops, place) = (adapted(6), Cpu::new(), tempfile::tempdir().unwrap());
    model.save_adapter_into(&ops, place.path(), "x").unwrap();
    let config = place.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let change = |old: &str, new: &str, parts: &[&str]| {
        assert!(text.contains(old));
        std::fs::write(&config, text.replace(old, new)).unwrap();
        wrong(&mut small(6), place.path(), parts);
    };
    change("\"use_dora\": false", "\"use_dora\": true", &["use_dora", "true", "merge_and_unload"]);
    change("\"r\": 3", "\"r\": 2", &["rank 2", "[3, 64]"]);
    change("LORA", "IA3", &["peft_type", "IA3"]);
    change("{", "", &["adapter_config.json"]);
    std::fs::write(&config, &text).unwrap();
    std::fs::remove_file(place.path().join("adapter_model.safetensors")).unwrap();
    wrong(&mut small(6), place.path(), &["adapter_model.safetensors", "save_pretrained"]);
    // Fewer blocks than the adapter has.
    model.save_adapter_into(&ops, place.path(), "x").unwrap();
    let mut config = small(6).config;
    config.num_hidden_layers = 1;
    wrong(&mut Model::init(&ops, &config, 1).unwrap(), place.path(), &["layers.1", "1 blocks"]);
    assert!(small(1).attach(&lora(4, &["lm_head"]), 1).unwrap_err().to_string().contains("`lm_head`"));
    assert!(adapted(1).attach(&lora(4, &["q_proj"]), 1).unwrap_err().to_string().contains("merge"));
}
