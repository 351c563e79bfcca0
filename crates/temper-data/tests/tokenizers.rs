//! Tokenizers: reading, writing, training, and rebuilding from GGUF.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{golden, golden_tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use temper_data::{BpeOptions, ChatTemplate, Conversation, Message, Tokenizer, train_bpe};
use temper_format::{Gguf, GgufValue, write_gguf};

const TEXTS: [&str; 9] = [
    "",
    " ",
    "Hello world",
    "  two  spaces\n\n\nand\tlines \n",
    "12345 + 6,78 = 3.14",
    "naïve café 日本語 🙂👍🏽 \u{301}",
    "<|im_start|>user\nx<|im_end|>\n",
    "<s> x </s> [INST]",
    "it's we'll \u{a0}\u{2581}x \u{0}",
];

fn corpus() -> Vec<String> {
    (0..200)
        .map(|i| format!("user asks: what is {i} + {}? assistant says: it is {}, in 2024.\n", i * 7, i * 8))
        .collect()
}

fn small(vocab_size: usize) -> Tokenizer {
    train_bpe(corpus().into_iter(), &BpeOptions { vocab_size, ..BpeOptions::default() }).unwrap()
}

fn read(path: impl AsRef<Path>) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn training_is_deterministic_and_reloads_identically() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for dir in &dirs {
        small(280).save(dir.path()).unwrap();
    }
    let file = |i: usize, name: &str| std::fs::read(dirs[i].path().join(name)).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"] {
        assert_eq!(file(0, name), file(1, name), "{name}");
    }
    let (trained, loaded) = (small(280), Tokenizer::from_dir(dirs[0].path()).unwrap());
    same(&trained, &loaded);
    loaded.save(dirs[1].path()).unwrap();
    assert_eq!(file(0, "tokenizer.json"), file(1, "tokenizer.json"));
}

fn same(a: &Tokenizer, b: &Tokenizer) {
    for text in TEXTS {
        assert_eq!(a.encode_with_bos(text).unwrap(), b.encode_with_bos(text).unwrap(), "{text:?}");
    }
    assert_eq!((a.eos_ids(), a.bos_id(), a.pad_id()), (b.eos_ids(), b.bos_id(), b.pad_id()));
    assert_eq!((a.vocab_size(), a.adds_bos()), (b.vocab_size(), b.adds_bos()));
    assert_eq!(a.chat_template().map(ChatTemplate::source), b.chat_template().map(ChatTemplate::source));
}

#[test]
fn trained_tokenizers_have_the_layout_that_was_asked_for() {
    let tokenizer = small(280);
    assert_eq!(tokenizer.vocab_size(), 280);
    assert_eq!(tokenizer.token_to_id("<|endoftext|>"), Some(0));
    assert_eq!(tokenizer.eos_ids(), [2]);
    assert_eq!(tokenizer.pad_id(), Some(0));
    let digits = tokenizer.encode("2024").unwrap();
    assert_eq!(digits.len(), 4);
    let joined = BpeOptions { vocab_size: 280, individual_digits: false, ..BpeOptions::default() };
    assert!(train_bpe(corpus().into_iter(), &joined).unwrap().encode("2024").unwrap().len() < 4);
    let conversation = Conversation::new(vec![Message::user("a")]);
    let text = tokenizer.render(&conversation, true).unwrap();
    assert_eq!(text, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n");
    let ids = tokenizer.encode(&text).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), "user\na\nassistant\n");
}

#[test]
fn training_refuses_what_cannot_be_made() {
    let error = |options: BpeOptions| train_bpe(corpus().into_iter(), &options).unwrap_err().to_string();
    let default = BpeOptions::default;
    assert!(error(BpeOptions { vocab_size: 258, ..default() }).contains("at least 259"));
    assert!(error(BpeOptions { vocab_size: 100_000, ..default() }).contains("more text"));
    assert!(error(BpeOptions { eos_token: "</s>".into(), ..default() }).contains("special_tokens"));
    assert!(
        error(BpeOptions { vocab_size: 280, chat_template: "{% for".into(), ..default() }).contains("chat template")
    );
}

proptest! {
    #[test]
    fn bytes_survive_a_round_trip(text in "\\PC*|(.|\\n){0,40}") {
        let tokenizer = golden_tokenizer("bytes");
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

#[test]
fn ids_beyond_the_vocabulary_decode_to_nothing() {
    let tokenizer = golden_tokenizer("bytes");
    let mut ids = tokenizer.encode("Hello").unwrap();
    ids.extend([u32::MAX, 5_000]);
    assert_eq!(tokenizer.decode(&ids, false), "Hello");
}

#[test]
fn pieces_start_with_bos() {
    let tokenizer = golden_tokenizer("pieces");
    assert!(tokenizer.adds_bos());
    let ids = tokenizer.encode_with_bos("user").unwrap();
    assert_eq!(ids[0], tokenizer.bos_id().unwrap());
    assert_eq!(tokenizer.encode("user").unwrap(), ids[1..]);
    assert_eq!(tokenizer.decode(&ids, true), "user");
}

/// Copies a golden tokenizer and writes more files beside it.
fn altered(kind: &str, files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden(kind).join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    for (name, value) in files {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn directories_are_read_as_transformers_reads_them() {
    let config = json!({
        "bos_token": {"content": "<|endoftext|>", "lstrip": false},
        "chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}],
        "added_tokens_decoder": {"529": {"content": "<new>", "lstrip": false, "normalized": false, "rstrip": false,
                                         "single_word": false, "special": true}},
        "add_bos_token": true,
        "model_max_length": 1e30,
    });
    let map = json!({"eos_token": "<|im_end|>", "pad_token": {"content": "[PAD]"}});
    let generation = json!({"eos_token_id": [2, 3]});
    let files =
        [("tokenizer_config.json", config), ("special_tokens_map.json", map), ("generation_config.json", generation)];
    let dir = altered("bytes", &files);
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.pad_id()), (Some(0), Some(530)));
    assert_eq!(tokenizer.eos_ids(), [2, 3]);
    assert_eq!(tokenizer.token_to_id("<new>"), Some(529));
    assert_eq!(tokenizer.vocab_size(), 531);
    assert_eq!(tokenizer.encode_with_bos("").unwrap(), [0]);
    let plain = Conversation::new(vec![Message::user("a")]);
    let tooled = Conversation { tools: Some(json!([{}])), ..plain.clone() };
    assert_eq!(tokenizer.render(&plain, true).unwrap(), "D");
    assert_eq!(tokenizer.render(&tooled, true).unwrap(), "T");

    let saved = tempfile::tempdir().unwrap();
    tokenizer.save(saved.path()).unwrap();
    let again = Tokenizer::from_dir(saved.path()).unwrap();
    assert_eq!(again.eos_ids(), [2]);
    assert!(again.adds_bos());
    assert_eq!(again.render(&tooled, true).unwrap(), "T");
    let config = read(saved.path().join("tokenizer_config.json"));
    assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
    assert!(config.get("model_max_length").is_none());
    assert_eq!(read(saved.path().join("special_tokens_map.json"))["pad_token"], "[PAD]");

    std::fs::write(dir.path().join("chat_template.jinja"), "J").unwrap();
    assert_eq!(Tokenizer::from_dir(dir.path()).unwrap().render(&plain, true).unwrap(), "J");
}

#[test]
fn the_end_of_the_models_turn_stops_generation() {
    let config = json!({"eos_token": "<|endoftext|>", "chat_template":
        "{% for m in messages %}<|user|>{{ m.content }}<|end|>\n{% endfor %}"});
    let tokenizer = Tokenizer::from_dir(altered("bytes", &[("tokenizer_config.json", config)]).path()).unwrap();
    let ids = ["<|endoftext|>", "<|end|>"].map(|token| tokenizer.token_to_id(token).unwrap());
    assert_eq!(tokenizer.eos_ids(), ids);
}

/// Truncation, padding and dropout would make encoding depend on more than the text.
#[test]
fn encoding_ignores_truncation_and_dropout() {
    let mut layout = read(golden("bytes").join("tokenizer.json"));
    layout["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    layout["model"]["dropout"] = json!(0.9);
    let dir = altered("bytes", &[("tokenizer.json", layout)]);
    let (tokenizer, plain) = (Tokenizer::from_dir(dir.path()).unwrap(), golden_tokenizer("bytes"));
    let text = "The quick brown fox jumps over the lazy dog.";
    assert_eq!(tokenizer.encode(text).unwrap(), plain.encode(text).unwrap());
}

#[test]
fn broken_directories_say_what_is_wrong() {
    let error = |dir: &Path| Tokenizer::from_dir(dir).unwrap_err().to_string();
    let empty = tempfile::tempdir().unwrap();
    assert!(error(empty.path()).contains("no tokenizer.json"));
    std::fs::write(empty.path().join("tokenizer.model"), "x").unwrap();
    assert!(error(empty.path()).contains("save_pretrained"));
    let whole = std::fs::read_to_string(golden("bytes").join("tokenizer.json")).unwrap();
    let half = altered("bytes", &[("tokenizer.json", json!(whole[..whole.len() / 2]))]);
    assert!(error(half.path()).contains("not a tokenizer.json"));
    let mut layout: Value = serde_json::from_str(&whole).unwrap();
    layout["added_tokens"][0]["id"] = json!(u32::MAX);
    assert!(error(altered("bytes", &[("tokenizer.json", layout)]).path()).contains("id 4294967295"));
    let config = altered("bytes", &[("tokenizer_config.json", json!("[1]"))]);
    assert!(error(config.path()).contains("tokenizer_config.json"));
    let template = altered("bytes", &[("chat_template.jinja", json!("{% if %}"))]);
    assert!(error(template.path()).contains("does not parse"));
}

/// The metadata that llama.cpp's converter would write for a `tokenizer.json`.
fn metadata(layout: &Value, model: &str, scores: bool) -> BTreeMap<String, GgufValue> {
    let string = |value: &str| GgufValue::String(value.to_owned());
    let vocab = layout["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<(u64, &String)> = vocab.iter().map(|(token, id)| (id.as_u64().unwrap(), token)).collect();
    tokens.sort_unstable();
    let added = layout["added_tokens"].as_array().unwrap();
    let kind = |token: &String| match added.iter().any(|a| a["content"] == token.as_str()) {
        true if token == "<unk>" => 2,
        true => 3,
        false if token.starts_with("<0x") => 6,
        false => 1,
    };
    let merges = layout["model"]["merges"].as_array().unwrap();
    let pair = |merge: &Value| format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap());
    let mut map = BTreeMap::from([
        ("tokenizer.ggml.model".to_owned(), string(model)),
        ("tokenizer.ggml.tokens".to_owned(), GgufValue::Array(tokens.iter().map(|(_, t)| string(t)).collect())),
        (
            "tokenizer.ggml.token_type".to_owned(),
            GgufValue::Array(tokens.iter().map(|(_, t)| GgufValue::I32(kind(t))).collect()),
        ),
    ]);
    if scores {
        // Pieces are numbered in the order in which they were merged.
        let score = |(id, _): &(u64, &String)| GgufValue::F32(-(*id as f32));
        map.insert("tokenizer.ggml.scores".to_owned(), GgufValue::Array(tokens.iter().map(score).collect()));
    } else {
        map.insert(
            "tokenizer.ggml.merges".to_owned(),
            GgufValue::Array(merges.iter().map(|m| string(&pair(m))).collect()),
        );
    }
    map
}

fn from_gguf(map: &BTreeMap<String, GgufValue>) -> Result<Tokenizer, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write_gguf(&path, map, &[]).unwrap();
    Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).map_err(|e| e.to_string())
}

fn byte_metadata() -> BTreeMap<String, GgufValue> {
    let mut map = metadata(&read(golden("bytes").join("tokenizer.json")), "gpt2", false);
    map.insert("tokenizer.ggml.pre".into(), GgufValue::String("smollm".into()));
    map.insert("tokenizer.ggml.bos_token_id".into(), GgufValue::U32(0));
    map.insert("tokenizer.ggml.eos_token_id".into(), GgufValue::U32(2));
    map.insert("tokenizer.ggml.padding_token_id".into(), GgufValue::U32(0));
    map
}

#[test]
fn byte_level_tokenizers_of_gguf_equal_those_of_the_hub() {
    let mut map = byte_metadata();
    same(&from_gguf(&map).unwrap(), &golden_tokenizer("bytes"));
    map.insert("tokenizer.ggml.add_bos_token".into(), GgufValue::Bool(true));
    map.insert("tokenizer.chat_template".into(), GgufValue::String("{{ messages[0].content }}<|end|>".into()));
    let with_bos = from_gguf(&map).unwrap();
    assert_eq!(with_bos.encode_with_bos("").unwrap(), [0]);
    let saved = tempfile::tempdir().unwrap();
    with_bos.save(saved.path()).unwrap();
    same(&Tokenizer::from_dir(saved.path()).unwrap(), &with_bos);
    for pre in ["default", "llama-bpe", "qwen2", "tekken"] {
        map.insert("tokenizer.ggml.pre".into(), GgufValue::String(pre.into()));
        let tokenizer = from_gguf(&map).unwrap();
        for text in TEXTS.iter().filter(|text| pre != "qwen2" || !text.contains('\u{301}')) {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids, false), **text, "{pre}");
        }
    }
}

#[test]
fn piece_tokenizers_of_gguf_equal_those_of_the_hub() {
    let mut map = metadata(&read(golden("pieces").join("tokenizer.json")), "llama", true);
    for (key, id) in [("bos", 1), ("eos", 2), ("unknown", 0)] {
        map.insert(format!("tokenizer.ggml.{key}_token_id"), GgufValue::U32(id));
    }
    same(&from_gguf(&map).unwrap(), &golden_tokenizer("pieces"));
}

#[test]
fn hostile_metadata_is_refused() {
    let with = |key: &str, value: GgufValue| {
        let mut map = byte_metadata();
        map.insert(format!("tokenizer.ggml.{key}"), value);
        from_gguf(&map).unwrap_err()
    };
    let text = |text: &str| GgufValue::String(text.into());
    assert!(with("pre", text("deepseek-v9")).contains("deepseek-v9"));
    assert!(with("model", text("bert")).contains("bert"));
    assert!(with("eos_token_id", GgufValue::U32(529)).contains("529 tokens"));
    assert!(with("token_type", GgufValue::Array(vec![GgufValue::I32(1)])).contains("1 token types"));
    assert!(with("merges", GgufValue::Array(vec![text("nospace")])).contains("merges"));
    assert!(with("merges", GgufValue::Array(vec![text("zz zz")])).contains("do not fit"));
    assert!(with("tokens", GgufValue::Array(vec![text("a"); 529])).contains("twice"));
    assert!(from_gguf(&BTreeMap::new()).unwrap_err().contains("tokenizer.ggml.tokens"));
}
