//! Models computed on the quantised blocks of a GGUF file, against the same file widened to f32.

mod common;

use common::gguf::write_gguf_of;
use common::{ids, relative, small};
use std::path::Path;
use temper_format::DType;
use temper_model::{Batch, Config, Engine, Model, Request, Sampling, ScoredSequence};
use temper_tensor::{Cpu, GradSink, Grads, HeadCoef, HeadSpec, Ops, Tape};

const TYPES: [DType; 3] = [DType::Q4_0, DType::Q4_1, DType::Q8_0];

/// A model whose rows are whole blocks, with or without a head of its own.
fn blocky(tied: bool) -> Model {
    let mut config = Config::llama(97, 64, 2, 4);
    (config.num_key_value_heads, config.intermediate_size) = (2, 96);
    (config.max_position_embeddings, config.initializer_range) = (200, 0.2);
    config.tie_word_embeddings = tied;
    Model::init(&Cpu::new(), &config, 7).unwrap()
}

/// The file of a model, in blocks and widened.
fn both(model: &Model, dtype: DType, path: &Path) -> [Model; 2] {
    write_gguf_of(model, path, dtype, &[]);
    [Model::load_quantised(&Cpu::new(), path).unwrap(), Model::load(&Cpu::new(), path).unwrap()]
}

fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let ops = Cpu::new();
    let batch = Batch::sequences(&[ScoredSequence { ids, scored: &vec![1.0; ids.len()] }]).unwrap().0;
    let tape = Tape::new(&ops, &model.params, false);
    let hidden = model.hidden(&tape, &batch.ids, temper_model::Attend::Segments(&batch.segments), false).unwrap();
    let head = model.params.matrix("head", model.head()).unwrap();
    ops.to_host(&ops.head_logits(hidden.tensor(), head).unwrap()).unwrap()
}

#[test]
fn blocks_hold_the_values_of_the_widened_file() {
    let dir = tempfile::tempdir().unwrap();
    let ops = Cpu::new();
    for dtype in TYPES {
        let [blocks, wide] = both(&blocky(false), dtype, &dir.path().join("m.gguf"));
        assert!(blocks.params.any_quantised() && !wide.params.any_quantised());
        assert!(blocks.params.iter().all(|(_, p)| !p.trainable));
        for ((id, a), (_, b)) in blocks.params.iter().zip(wide.params.iter()) {
            assert_eq!((&a.name, a.shape()), (&b.name, b.shape()));
            assert_eq!(blocks.params.values(&ops, id).unwrap(), wide.params.values(&ops, id).unwrap(), "{}", a.name);
        }
    }
}

/// The two differ by the rounding of activations to 8 bits alone. A step of the codes is 1/127 of a block's largest value, some 2.5 times
/// its root mean square, so that a product is off by `2.5 / 127 / sqrt(12)` = 0.6%, and 15 products after each other by 2 to 3%.
#[test]
fn logits_are_near_those_of_the_widened_file() {
    let dir = tempfile::tempdir().unwrap();
    for (dtype, tied) in TYPES.into_iter().flat_map(|t| [(t, false), (t, true)]) {
        let [blocks, wide] = both(&blocky(tied), dtype, &dir.path().join("m.gguf"));
        let tokens = ids(3, 60);
        let (got, want) = (logits(&blocks, &tokens), logits(&wide, &tokens));
        let error = relative(&got, &want);
        assert!(error > 0.0 && error < 0.04, "{dtype} tied {tied}: {error}");
        let top = |row: &[f32]| (0..97).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
        let same = got.chunks(97).zip(want.chunks(97)).filter(|(a, b)| top(a) == top(b)).count();
        assert!(same >= 54, "{dtype} tied {tied}: {same} of 60");
    }
}

fn sample(model: &Model, max_batch: usize, prefill_rows: usize) -> Vec<Vec<f32>> {
    let (ops, rules) = (Cpu::new(), Sampling { max_tokens: 40, temperature: 0.8, ..Sampling::default() });
    let requests: Vec<Request> =
        [5, 64, 1].iter().map(|&len| Request { prompt: ids(len as u64, len), seeds: vec![1, 2, 3] }).collect();
    let engine = Engine::new(&ops, model, &rules).unwrap().max_batch(max_batch).unwrap();
    let done = engine.prefill_rows(prefill_rows).unwrap().generate(&requests, &mut |_| ()).unwrap();
    for (request, completions) in requests.iter().zip(&done) {
        for c in completions {
            // As a packed sequence, all at once.
            let whole = [request.prompt.as_slice(), &c.tokens].concat();
            let mut scored = vec![0.0; request.prompt.len()];
            scored.resize(whole.len(), 1.0);
            let one = ScoredSequence { ids: &whole, scored: &scored };
            assert_eq!(model.score(&ops, &[one], 0.8, 1000).unwrap()[0].logp, c.logp_gen);
        }
    }
    done.into_iter().flatten().map(|c| c.logp_gen).collect()
}

#[test]
fn sampled_logp_is_that_of_a_forward_pass_in_any_batch_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    for dtype in TYPES {
        let [model, _] = both(&blocky(true), dtype, &dir.path().join("m.gguf"));
        let want = sample(&model, 9, 256);
        for (max_batch, prefill_rows) in [(1, 256), (2, 1), (3, 7)] {
            assert_eq!(sample(&model, max_batch, prefill_rows), want, "{dtype} {max_batch} {prefill_rows}");
        }
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| sample(&model, 4, 16)), want, "{dtype} on {threads} threads");
        }
    }
}

#[test]
fn what_needs_other_weights_is_refused() {
    let (ops, dir) = (Cpu::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("m.gguf");
    let [mut model, _] = both(&blocky(true), DType::Q4_1, &path);
    let error = model.save(&ops, dir.path().join("out"), DType::F32).unwrap_err().to_string();
    assert!(error.contains("quantised blocks") && error.contains("f32"), "{error}");
    assert!(!dir.path().join("out").exists());
    let targets = vec!["*.q_proj".into()];
    let lora = temper_model::Lora { rank: 2, alpha: 4.0, dropout: 0.0, targets, rslora: false };
    let error = model.attach(&lora, 1).unwrap_err().to_string();
    assert!(error.contains("quantised blocks"), "{error}");
    let head = model.head();
    let values = model.params.values(&ops, head).unwrap();
    let error = model.params.set_values(&ops, head, &values).unwrap_err().to_string();
    assert!(error.contains("`set_rows`") && error.contains("quantised blocks"), "{error}");
    // A gradient: of the head at once, of a layer in backward.
    model.params.set_trainable(true);
    let batch = Batch::sequences(&[ScoredSequence { ids: &ids(1, 8), scored: &[1.0; 8] }]).unwrap().0;
    let tape = Tape::new(&ops, &model.params, true);
    let hidden = model.hidden(&tape, &batch.ids, temper_model::Attend::Segments(&batch.segments), false).unwrap();
    let scored = tape.gather_rows(&hidden, &batch.src).unwrap();
    let mut d = ops.zeros(7, 64).unwrap();
    let w = model.params.matrix("head", head).unwrap();
    let mut coef =
        |rows: std::ops::Range<usize>, _: &_| HeadCoef { d_logp: vec![1.0; rows.len()], ..HeadCoef::default() };
    let spec = HeadSpec::default();
    let error = ops.head_backward(scored.tensor(), w, &batch.tgt, &spec, &mut coef, &mut d, None).unwrap_err();
    assert!(error.to_string().contains("`head_backward`: the matrix is in quantised blocks"), "{error}");
    let mut grads = Grads::zeros(&ops, &model.params).unwrap();
    let error = tape.backward(&scored, d, &mut GradSink::Accumulate(&mut grads)).unwrap_err().to_string();
    assert!(error.contains("quantised blocks"), "{error}");
}

#[test]
fn files_without_blocks_and_broken_blocks_are_named() {
    let (ops, dir) = (Cpu::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("m.gguf");
    write_gguf_of(&small(1), &path, DType::F16, &[]);
    let error = Model::load_quantised(&ops, &path).unwrap_err().to_string();
    assert!(error.contains("m.gguf") && error.contains("Q4_1"), "{error}");
    let error = Model::load_quantised(&ops, common::golden_dir("llama")).unwrap_err().to_string();
    assert!(error.contains("llama") && error.contains(".gguf file"), "{error}");

    write_gguf_of(&blocky(true), &path, DType::Q8_0, &[]);
    let mut bytes = std::fs::read(&path).unwrap();
    // The scale of one block becomes infinite.
    let file = temper_format::Gguf::open(&path).unwrap();
    let raw = file.read_bytes("blk.1.ffn_down.weight").unwrap();
    let at = bytes.windows(raw.len()).position(|w| w == raw).unwrap();
    bytes[at..at + 2].copy_from_slice(&[0, 0x7c]);
    std::fs::write(&path, &bytes).unwrap();
    let error = Model::load_quantised(&ops, &path).unwrap_err().to_string();
    assert!(error.contains("`blk.1.ffn_down.weight` holds inf"), "{error}");
}
