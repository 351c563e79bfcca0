//! `--dtype quantised`: a model computed on the blocks of its GGUF file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;
use temper_format::{ArrayData, ArrayRef, DType, GgufValue, write_gguf};
use temper_model::Model;
use temper_tensor::Cpu;

use super::{Place, finished};

const MODEL: &str = "done/model";

/// The model and its tokenizer as one file, as llama.cpp's converter and quantiser would write them.
fn write_quantised(dir: &Path, to: &Path, dtype: DType) {
    let model = Model::load(&Cpu::new(), dir).expect("the model");
    let (c, ops) = (&model.config, Cpu::new());
    let text = |s: &str| GgufValue::String(s.to_owned());
    let int = |n: usize| GgufValue::U32(n as u32);
    let layout: Value =
        serde_json::from_slice(&std::fs::read(dir.join("tokenizer.json")).expect("read")).expect("JSON");
    let added: HashMap<&str, u64> =
        layout["added_tokens"].as_array().expect("a list").iter().fold(HashMap::new(), |mut all, token| {
            all.insert(token["content"].as_str().expect("text"), token["id"].as_u64().expect("an id"));
            all
        });
    let vocab = layout["model"]["vocab"].as_object().expect("a map").iter();
    let mut tokens: BTreeMap<u64, &str> = vocab.map(|(t, id)| (id.as_u64().expect("an id"), t.as_str())).collect();
    tokens.extend(added.iter().map(|(t, id)| (*id, *t)));
    let merge = |m: &Value| text(&format!("{} {}", m[0].as_str().expect("text"), m[1].as_str().expect("text")));
    let merges = layout["model"]["merges"].as_array().expect("a list").iter().map(merge).collect();
    let kind = |t: &&str| GgufValue::I32(if added.contains_key(*t) { 3 } else { 1 });
    let metadata: BTreeMap<String, GgufValue> = [
        ("general.architecture", text("llama")),
        ("llama.context_length", int(c.max_position_embeddings)),
        ("llama.embedding_length", int(c.hidden_size)),
        ("llama.block_count", int(c.num_hidden_layers)),
        ("llama.feed_forward_length", int(c.intermediate_size)),
        ("llama.attention.head_count", int(c.num_attention_heads)),
        ("llama.attention.head_count_kv", int(c.num_key_value_heads)),
        ("llama.attention.key_length", int(c.head_dim)),
        ("llama.attention.layer_norm_rms_epsilon", GgufValue::F32(c.rms_norm_eps as f32)),
        ("llama.rope.freq_base", GgufValue::F32(c.rope_theta as f32)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("default")),
        ("tokenizer.ggml.tokens", GgufValue::Array(tokens.values().map(|t| text(t)).collect())),
        ("tokenizer.ggml.token_type", GgufValue::Array(tokens.values().map(kind).collect())),
        ("tokenizer.ggml.merges", GgufValue::Array(merges)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.layers", "blk"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ];
    // Rows of query and key heads stay as they are: some model comes out, and which one is no business of this test.
    let arrays: Vec<(String, DType, Vec<usize>, Vec<f32>)> = model
        .params
        .iter()
        .map(|(id, p)| {
            let name = names.iter().fold(p.name.clone(), |n, (from, to)| n.replace(from, to));
            let ((n, k), values) = (p.shape(), model.params.values(&ops, id).expect("values"));
            if n == 1 { (name, DType::F32, vec![k], values) } else { (name, dtype, vec![n, k], values) }
        })
        .collect();
    let refs: Vec<ArrayRef> = arrays
        .iter()
        .map(|(name, dtype, shape, data)| ArrayRef { name, dtype: *dtype, shape, data: ArrayData::F32(data) })
        .collect();
    write_gguf(to, &metadata, &refs).expect("written");
}

#[test]
fn a_file_of_blocks_is_computed_in_them() {
    let place = Place::new();
    write_quantised(&finished().path(MODEL), &place.path("m.gguf"), DType::Q8_0);
    let args =
        |dtype| ["generate", "m.gguf", "--prompt", "a=1", "--raw", "--max-tokens", "8", "--json", "--dtype", dtype];
    let logp = |dtype| {
        let object: Value = serde_json::from_str(&place.good(&args(dtype))).expect("one object");
        object["logp"].as_f64().expect("a number")
    };
    // Near, and not the same: each type computes by itself.
    let (f32, bf16, blocks) = (logp("f32"), logp("bf16"), logp("quantised"));
    assert!((f32 - blocks).abs() < 0.2 && (f32 - bf16).abs() < 0.2, "{f32} {bf16} {blocks}");
    assert!(f32 != blocks && f32 != bf16 && bf16 != blocks, "{f32} {bf16} {blocks}");
    place.write("text.txt", "a=1 b=2 a?\n");
    let nll = place.good(&["eval", "m.gguf", "--data", "text.txt", "--json", "--dtype", "quantised"]);
    let nll: Value = serde_json::from_str(&nll).expect("one object");
    assert!(nll["nll"].as_f64().is_some_and(|nll| nll > 0.0 && nll < 20.0), "{nll}");
}

#[test]
fn what_blocks_can_do_is_measured() {
    let place = Place::new();
    write_quantised(&finished().path(MODEL), &place.path("m.gguf"), DType::Q4_1);
    let report = place.good(&["bench", "m.gguf", "--dtype", "quantised", "--json"]);
    let report: Value = serde_json::from_str(&report).expect("one object");
    let work = report["work"].as_array().expect("a list");
    let part = |name: &str| work.iter().filter(|w| w["part"] == name).count();
    assert!(part("products") > 0 && part("decoding") == 3 && part("products") + 3 == work.len(), "{report}");
    assert!(work.iter().all(|w| w["gbytes"].as_f64() > Some(0.0)), "{report}");
}

#[test]
fn a_model_without_blocks_is_refused_by_name_with_what_would_do() {
    let place = finished();
    let parts = [MODEL, "no quantised blocks", ".gguf file", "Q4_1", "f32"];
    place.bad(&["generate", MODEL, "--prompt", "a", "--dtype", "quantised"], &parts);
    place.bad(&["eval", MODEL, "--task", "chains", "--dtype", "quantised"], &parts);
    place.bad(&["bench", MODEL, "--dtype", "quantised"], &parts);
    place.bad(&["bench", "--dtype", "quantised"], &["no model", ".gguf file"]);
    place.bad(&["generate", MODEL, "--prompt", "a", "--dtype", "q4"], &["q4", "quantised"]);
}
