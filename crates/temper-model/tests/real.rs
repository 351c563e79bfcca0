//! A real model against PyTorch in f64; by hand, see tests/golden/smollm2.py.
#![allow(clippy::print_stderr)] // measurements, for whoever runs these by hand

mod common;

use common::{gradients, relative, values};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use temper_format::{ArraySource, SafetensorsFile};
use temper_model::{Attend, Batch, Engine, Model, Request, Sampling, ScoredSequence, generate};
use temper_tensor::{Cpu, HeadSpec, Ops, Segments, Tape};

fn path(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("set {variable}")).into()
}

fn ids(file: &SafetensorsFile, name: &str) -> Vec<u32> {
    file.read_f32(name).unwrap().into_iter().map(|x| x as u32).collect()
}

#[test]
#[ignore = "needs a model: TEMPER_SMOLLM2 and TEMPER_SMOLLM2_GOLDEN"]
fn agrees_with_pytorch() {
    let ops = Cpu::new();
    let golden = SafetensorsFile::open(path("TEMPER_SMOLLM2_GOLDEN")).unwrap();
    let start = Instant::now();
    let model = Model::load(&ops, path("TEMPER_SMOLLM2")).unwrap();
    eprintln!("loaded {} parameters in {:?}", model.params.count(false), start.elapsed());

    let text = ids(&golden, "ids");
    let tape = Tape::new(&ops, &model.params, false);
    let segments = Arc::new(Segments::sequences(&[text.len()]).unwrap());
    let hidden = model.hidden(&tape, &text, Attend::Segments(&segments), false).unwrap();
    let head = model.params.matrix("head", model.head()).unwrap();
    let logits = ops.to_host(&ops.head_logits(hidden.tensor(), head).unwrap()).unwrap();
    let error = relative(&logits, &golden.read_f32("logits").unwrap());
    eprintln!("{} tokens, logits differ by {error:e}", text.len());
    assert!(error < 1e-4, "{error:e}");

    let weights = vec![1.0; text.len()];
    let (batch, ones) = Batch::sequences(&[ScoredSequence { ids: &text, scored: &weights }]).unwrap();
    let (_, grads) = gradients(&model, &batch, &ones, &HeadSpec::default(), false);
    for (id, param) in model.params.iter() {
        if let Ok(expected) = golden.read_f32(&format!("grad.{}", param.name)) {
            let error = relative(&values(&grads, id), &expected);
            eprintln!("gradient of {} differs by {error:e}", param.name);
            assert!(error < 5e-5, "{}: {error:e}", param.name);
        }
    }

    let (prompt, answer) = (ids(&golden, "prompt"), ids(&golden, "answer"));
    let rules = Sampling { stop_ids: model.config.eos_token_ids.clone(), ..Sampling::greedy(32) };
    let request = Request { prompt, seeds: vec![0] };
    let done = generate(&ops, &model, &[request], &rules, 1, &|_: &[u32]| false, &mut |_, _| ()).unwrap();
    assert_eq!(done[0][0].tokens, answer);
}

#[test]
#[ignore = "needs a model: TEMPER_SMOLLM2"]
fn sampled_logp_is_the_trainers() {
    let ops = Cpu::new();
    let model = Model::load(&ops, path("TEMPER_SMOLLM2")).unwrap();
    let rules = Sampling { temperature: 0.9, max_tokens: 40, ..Sampling::default() };
    let prompt = |i: u32, len: u32| (0..len).map(|t| 100 + (i * 977 + t * 31) % 20_000).collect::<Vec<u32>>();
    let requests: Vec<Request> =
        [90, 7].iter().zip(0..).map(|(&len, i)| Request { prompt: prompt(i, len), seeds: vec![1, 2, 3] }).collect();
    let engine = Engine::new(&ops, &model, &rules).unwrap().max_batch(5).unwrap();
    let done = engine.generate(&requests, &mut |_| ()).unwrap();
    let groups: Vec<(&[u32], Vec<&[u32]>)> = requests
        .iter()
        .zip(&done)
        .map(|(r, group)| (r.prompt.as_slice(), group.iter().map(|c| c.tokens.as_slice()).collect()))
        .collect();
    let batch = Batch::groups(&groups).unwrap();
    let spec = HeadSpec { temperature: 0.9, ..HeadSpec::default() };
    let ones = vec![1.0; batch.scored()];
    let expected: Vec<f32> = done.iter().flatten().flat_map(|c| c.logp_gen.clone()).collect();
    assert_eq!(gradients(&model, &batch, &ones, &spec, true).0.logp, expected);
    assert_eq!(model.terms(&ops, &batch, &spec).unwrap().logp, expected);
}

#[test]
#[ignore = "needs a model: TEMPER_SMOLLM2; prints speeds"]
fn speeds() {
    let ops = Cpu::new();
    let model = Model::load(&ops, path("TEMPER_SMOLLM2")).unwrap();
    let prompt = |i: u32, len: u32| (0..len).map(|t| 100 + (i * 977 + t * 31) % 20_000).collect::<Vec<u32>>();
    for (sequences, prompt_len, max_tokens) in [(1, 16, 128), (4, 16, 128), (16, 16, 128), (32, 16, 64), (1, 1024, 1)] {
        let rules = Sampling { max_tokens, ..Sampling::default() };
        let requests: Vec<Request> =
            (0..sequences).map(|i| Request { prompt: prompt(i, prompt_len), seeds: vec![u64::from(i)] }).collect();
        let engine = Engine::new(&ops, &model, &rules).unwrap().max_batch(sequences as usize).unwrap();
        let start = Instant::now();
        let done = engine.generate(&requests, &mut |_| ()).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let tokens: usize = done.iter().flatten().map(|c| c.tokens.len()).sum();
        let prompts = sequences * prompt_len;
        eprintln!(
            "{sequences} sequences of {prompt_len}+{max_tokens}: {seconds:.2} s, {:.1} sampled tokens/s, {:.0} tokens/s in all",
            tokens as f64 / seconds,
            (tokens + prompts as usize) as f64 / seconds
        );
    }
}
