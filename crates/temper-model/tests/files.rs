//! Loading and saving: round trips, and files that are wrong.

mod common;

use common::gguf::write_gguf_of;
use common::{golden_dir, ids, short_heads, small};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use temper_format::{ArrayData, ArrayRef, ArraySource, DType, GgufValue, SafetensorsDir, write_safetensors};
use temper_model::{Config, Error, Model, ScoredSequence};
use temper_tensor::{Cpu, Ops};

type Arrays = Vec<(String, Vec<usize>, Vec<f32>)>;

fn logp(model: &Model) -> Vec<f32> {
    let ids = ids(3, 50);
    let scored = vec![1.0; 50];
    model.score(&Cpu::new(), &[ScoredSequence { ids: &ids, scored: &scored }], 1.0, 64).unwrap().remove(0).logp
}

fn all_values(model: &Model) -> Vec<(String, Vec<f32>)> {
    let ops = Cpu::new();
    model.params.iter().map(|(id, p)| (p.name.clone(), model.params.values(&ops, id).unwrap())).collect()
}

/// All arrays of a model directory.
fn arrays(dir: &Path) -> Arrays {
    let source = SafetensorsDir::open(dir).unwrap();
    let one = |name: String| (name.clone(), source.info(&name).unwrap().shape, source.read_f32(&name).unwrap());
    source.names().into_iter().map(one).collect()
}

fn write(dir: &Path, arrays: &Arrays) {
    let refs: Vec<ArrayRef> = arrays
        .iter()
        .map(|(name, shape, data)| ArrayRef { name, dtype: DType::F32, shape, data: ArrayData::F32(data) })
        .collect();
    write_safetensors(dir.join("model.safetensors"), &refs, &std::collections::BTreeMap::new()).unwrap();
}

/// A copy of a golden model whose config and arrays can be spoilt.
fn spoilt(name: &str, config: impl FnOnce(&mut Value), change: impl FnOnce(&mut Arrays)) -> Result<Model, Error> {
    let dir = tempfile::tempdir().unwrap();
    let from = golden_dir(name);
    let mut json: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    config(&mut json);
    fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    let mut all = arrays(&from);
    change(&mut all);
    write(dir.path(), &all);
    Model::load(&Cpu::new(), dir.path())
}

fn message(result: Result<Model, Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn saving_and_loading_gives_the_same_bits() {
    let (ops, dir) = (Cpu::new(), tempfile::tempdir().unwrap());
    for name in ["llama", "mistral", "short"] {
        let model = Model::load(&ops, golden_dir(name)).unwrap();
        // The golden models are bf16 and f16, so nothing is lost in their own type either.
        for dtype in [DType::F32, if name == "llama" { DType::BF16 } else { DType::F16 }] {
            let path = dir.path().join(name);
            model.save(&ops, &path, dtype).unwrap();
            let again = Model::load(&ops, &path).unwrap();
            assert_eq!((&again.config, all_values(&again)), (&model.config, all_values(&model)));
            assert_eq!(logp(&again), logp(&model));
            assert_eq!(SafetensorsDir::open(&path).unwrap().info("model.norm.weight").unwrap().dtype, dtype);
        }
    }
    for (i, model) in short_heads(5).iter().enumerate() {
        let path = dir.path().join(format!("heads{i}"));
        model.save(&ops, &path, DType::F32).unwrap();
        let again = Model::load(&ops, &path).unwrap();
        assert_eq!((&again.config, all_values(&again)), (&model.config, all_values(model)));
        assert_eq!(logp(&again), logp(model));
    }
    let config: Value = serde_json::from_slice(&fs::read(dir.path().join("llama/config.json")).unwrap()).unwrap();
    assert_eq!((&config["dtype"], &config["torch_dtype"]), (&json!("bfloat16"), &json!("bfloat16")));
    assert_eq!(config["rope_theta"], config["rope_parameters"]["rope_theta"]);
    assert_eq!(config["rope_scaling"]["rope_type"], "llama3");
    let generation = fs::read(dir.path().join("llama/generation_config.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&generation).unwrap()["eos_token_id"], 2);
}

#[test]
fn shards_are_read_as_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let from = golden_dir("mistral");
    fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
    let (mut first, all) = (arrays(&from), arrays(&from));
    let second = first.split_off(7);
    let mut map = serde_json::Map::new();
    for (part, file) in [(first, "a.safetensors"), (second, "b.safetensors")] {
        map.extend(part.iter().map(|a| (a.0.clone(), json!(file))));
        write(dir.path(), &part);
        fs::rename(dir.path().join("model.safetensors"), dir.path().join(file)).unwrap();
    }
    assert_eq!(map.len(), all.len());
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let model = Model::load(&Cpu::new(), dir.path()).unwrap();
    assert_eq!(all_values(&model), all_values(&Model::load(&Cpu::new(), from).unwrap()));
}

#[test]
fn saving_as_bf16_rounds_to_the_nearest() {
    let (ops, dir) = (Cpu::new(), tempfile::tempdir().unwrap());
    let model = small(1);
    model.save(&ops, dir.path().join("m"), DType::BF16).unwrap();
    let again = Model::load(&ops, dir.path().join("m")).unwrap();
    for ((name, a), (_, b)) in all_values(&model).iter().zip(&all_values(&again)) {
        let rounded: Vec<f32> = a.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
        assert_eq!(&rounded, b, "{name}");
    }
    let error = model.save(&ops, dir.path().join("q"), DType::Q8_0).unwrap_err().to_string();
    assert!(error.contains("Q8_0") && !dir.path().join("q").exists(), "{error}");
}

#[test]
fn the_same_seed_makes_the_same_model() {
    assert_eq!(all_values(&small(5)), all_values(&small(5)));
    assert_ne!(all_values(&small(5)), all_values(&small(6)));
    let copy = small(5).frozen_copy();
    assert!(copy.params.iter().all(|(_, p)| !p.trainable));
    assert_eq!(logp(&copy), logp(&small(5)));
}

#[test]
fn gguf_names_and_interleaved_heads_are_undone() {
    for name in ["llama", "mistral", "short"] {
        let model = Model::load(&Cpu::new(), golden_dir(name)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let ids = [("bos", 1), ("eos", 2), ("eot", 9)];
        let ids = ids.map(|(name, id)| (format!("tokenizer.ggml.{name}_token_id"), GgufValue::U32(id)));
        let ids = ids.each_ref().map(|(key, id)| (key.as_str(), id.clone()));
        write_gguf_of(&model, &path, DType::F32, &ids);
        let again = Model::load(&Cpu::new(), &path).unwrap();
        assert_eq!(all_values(&again), all_values(&model), "{name}");
        assert_eq!((again.config.attention_bias, again.config.mlp_bias), (name == "short", name == "short"));
        assert_eq!(again.config.rms_norm_eps, model.config.rms_norm_eps);
        assert_eq!(again.config.rope_theta, model.config.rope_theta);
        assert_eq!((again.config.bos_token_id, again.config.eos_token_ids.as_slice()), (Some(1), &[2, 9][..]));
    }
}

#[test]
fn gguf_files_of_other_models_are_refused() {
    let model = Model::load(&Cpu::new(), golden_dir("mistral")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let cases = [
        ("general.architecture", GgufValue::String("qwen2".into()), "`qwen2` is not supported"),
        ("llama.expert_count", GgufValue::U32(8), "mixture of 8 experts"),
        ("llama.rope.scaling.type", GgufValue::String("yarn".into()), "\"yarn\""),
        ("llama.rope.dimension_count", GgufValue::U32(16), "the head size (32)"),
        ("llama.block_count", GgufValue::U32(u32::MAX), "num_hidden_layers"),
        ("llama.block_count", GgufValue::U32(3), "`blk.2.attn_norm.weight`"),
        ("llama.embedding_length", GgufValue::U32(0), "hidden_size"),
        ("llama.embedding_length", GgufValue::U32(64), "[97, 48], the config asks for [97, 64]"),
        ("llama.context_length", GgufValue::String("long".into()), "llama.context_length"),
    ];
    for (key, value, expected) in cases {
        write_gguf_of(&model, &path, DType::F32, &[(key, value)]);
        let message = message(Model::load(&Cpu::new(), &path));
        assert!(message.contains(expected), "{key}: {message}");
    }
}

#[test]
fn tied_heads_may_be_repeated_but_not_differ() {
    let head = |arrays: &mut Arrays, factor: f32| {
        let (_, shape, values) = arrays.iter().find(|a| a.0 == "model.embed_tokens.weight").unwrap().clone();
        arrays.push(("lm_head.weight".into(), shape, values.iter().map(|v| v * factor).collect()));
    };
    spoilt("llama", |_| (), |a| head(a, 1.0)).unwrap();
    let differs = message(spoilt("llama", |_| (), |a| head(a, 2.0)));
    assert!(differs.contains("lm_head.weight") && differs.contains("tie_word_embeddings"), "{differs}");
}

#[test]
fn wrong_tensors_are_named() {
    let missing = message(spoilt("mistral", |_| (), |a| a.retain(|x| !x.0.contains("layers.1.mlp.up"))));
    assert!(missing.contains("1 missing: `model.layers.1.mlp.up_proj.weight`"), "{missing}");
    let extra = |a: &mut Arrays| {
        a.push(("model.layers.0.self_attn.q_proj.bias".into(), vec![2], vec![0.0; 2]));
        a.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![2], vec![0.0; 2]));
    };
    let unexpected = message(spoilt("mistral", |_| (), extra));
    assert!(unexpected.contains("1 unexpected: `model.layers.0.self_attn.q_proj.bias`"), "{unexpected}");
    let shape = message(spoilt("mistral", |c| c["intermediate_size"] = json!(48), |_| ()));
    let expected = "mlp.gate_proj.weight` has shape [40, 48], the config asks for [48, 48]";
    assert!(shape.contains(expected), "{shape}");
    let nan = message(spoilt("mistral", |_| (), |a| a[3].2[7] = f32::NAN));
    assert!(nan.contains("holds NaN"), "{nan}");
    let untied = message(spoilt("llama", |c| c["tie_word_embeddings"] = json!(false), |_| ()));
    assert!(untied.contains("`lm_head.weight`"), "{untied}");
}

#[test]
fn hostile_configs_are_errors_before_anything_is_read() {
    let huge = [("vocab_size", json!(1u64 << 60)), ("hidden_size", json!(1 << 19)), ("num_hidden_layers", json!(4000))];
    for (key, value) in huge {
        message(spoilt("mistral", |c| c[key] = value, |_| ()));
    }
    let named = message(spoilt("mistral", |c| c["num_key_value_heads"] = json!(0), |_| ()));
    assert!(named.contains("config.json") && named.contains("num_key_value_heads"), "{named}");
    let mut config = Config::llama(97, 64, 2, 4);
    config.num_hidden_layers = usize::MAX;
    assert!(Model::init(&Cpu::new(), &config, 0).is_err());
}

#[test]
fn missing_and_broken_files_are_named() {
    let (ops, dir) = (Cpu::new(), tempfile::tempdir().unwrap());
    let load = |ops: &dyn Ops, path: &Path| Model::load(ops, path).unwrap_err().to_string();
    let nowhere = load(&ops, &dir.path().join("nowhere"));
    assert!(nowhere.contains("nowhere") && nowhere.contains("Hugging Face"), "{nowhere}");
    assert!(load(&ops, dir.path()).contains("config.json"));
    let config = dir.path().join("config.json");
    for (text, expected) in [
        ("", "EOF"),
        ("[]", "none named"),
        ("7", "invalid type"),
        ("{\"architectures\": [\"GPT2LMHeadModel\"]}", "GPT2"),
    ] {
        fs::write(&config, text).unwrap();
        let error = load(&ops, dir.path());
        assert!(error.contains(expected) && error.contains("config.json"), "{error}");
    }
    fs::copy(golden_dir("llama").join("config.json"), &config).unwrap();
    assert!(load(&ops, dir.path()).contains("model.safetensors"));
    let whole = fs::read(golden_dir("llama").join("model.safetensors")).unwrap();
    for len in [0, 7, 100, whole.len() - 1] {
        fs::write(dir.path().join("model.safetensors"), &whole[..len]).unwrap();
        assert!(load(&ops, dir.path()).contains("model.safetensors"));
    }
    fs::write(dir.path().join("model.safetensors"), &whole).unwrap();
    Model::load(&ops, dir.path()).unwrap();
    fs::write(dir.path().join("generation_config.json"), "{").unwrap();
    assert!(load(&ops, dir.path()).contains("generation_config.json"));
    fs::write(dir.path().join("not.gguf"), b"GGUF and then nothing of use").unwrap();
    assert!(load(&ops, &dir.path().join("not.gguf")).contains("not.gguf"));
}
