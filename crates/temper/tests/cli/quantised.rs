//! `--dtype quantised`: a model computed on the blocks of its GGUF file.

#[path = "../../../temper-model/tests/common/gguf.rs"]
mod gguf;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;
use temper_format::{DType, GgufValue};
use temper_model::Model;
use temper_tensor::Cpu;

use super::{Place, finished};

const MODEL: &str = "done/model";

/// The model and its tokenizer as one file, as llama.cpp's converter and quantiser would write them.
fn write_quantised(dir: &Path, to: &Path, dtype: DType) {
    let model = Model::load(&Cpu::new(), dir).expect("the model");
    let text = |s: &str| GgufValue::String(s.to_owned());
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
    let tokenizer = [
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("default")),
        ("tokenizer.ggml.tokens", GgufValue::Array(tokens.values().map(|t| text(t)).collect())),
        ("tokenizer.ggml.token_type", GgufValue::Array(tokens.values().map(kind).collect())),
        ("tokenizer.ggml.merges", GgufValue::Array(merges)),
    ];
    gguf::write_gguf_of(&model, to, dtype, &tokenizer);
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
