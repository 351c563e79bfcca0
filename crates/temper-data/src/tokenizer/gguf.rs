//! Tokenizers in GGUF metadata, rebuilt as the `tokenizer.json` that the same model has on the Hub.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};
use temper_format::{Gguf, GgufValue};
use tokenizers::Tokenizer as Inner;

use super::{Parts, Tokenizer};
use crate::Error;

/// `tokenizer.ggml.token_type`, by number.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// Word patterns of byte-level tokenizers. They are data that the models were trained with.
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a byte-level tokenizer cuts text into words (`tokenizer.ggml.pre`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pre {
    /// GPT-2's words.
    Gpt2,
    /// GPT-2's words, every digit alone.
    Digits,
    Llama3,
    Qwen2,
    Tekken,
}

impl Pre {
    fn named(name: &str) -> Result<Self, Error> {
        Ok(match name {
            "default" | "gpt-2" | "gpt2" | "phi-2" | "olmo" | "jais" | "mpt" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => Self::Digits,
            "llama-bpe" | "llama-v3" | "llama3" | "smaug-bpe" | "dbrx" | "falcon3" => Self::Llama3,
            "qwen2" | "deepseek-r1-qwen" | "megrez" => Self::Qwen2,
            "tekken" => Self::Tekken,
            other => {
                let known = "default, gpt-2, smollm, starcoder, llama-bpe, qwen2, tekken";
                let why = format!(
                    "the GGUF file's tokenizer.ggml.pre = {other:?} is not supported (known: {known}); \
                    use the model's Hugging Face directory"
                );
                return Err(Error::Tokenizer(why));
            }
        })
    }

    fn pre_tokenizer(self) -> Value {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let sequence = |steps: [Value; 2]| json!({"type": "Sequence", "pretokenizers": steps});
        match self {
            Self::Gpt2 => bytes(true),
            Self::Digits => sequence([json!({"type": "Digits", "individual_digits": true}), bytes(true)]),
            Self::Llama3 => sequence([split(LLAMA_3), bytes(false)]),
            Self::Qwen2 => sequence([split(QWEN_2), bytes(false)]),
            Self::Tekken => sequence([split(TEKKEN), bytes(false)]),
        }
    }

    fn normalizer(self) -> Value {
        if self == Self::Qwen2 { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// Whether a word that is a token is taken whole, whatever the merges say.
    fn ignores_merges(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }
}

impl Tokenizer {
    /// Rebuilds the tokenizer of a GGUF file: `gpt2` (byte-level BPE) with the usual word patterns, and `llama`
    /// (SentencePiece BPE with byte fallback).
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, Error> {
        Self::from_metadata(&|key| gguf.metadata(key))
    }

    fn from_metadata<'a>(metadata: &dyn Fn(&str) -> Option<&'a GgufValue>) -> Result<Self, Error> {
        let file = Metadata { metadata };
        let vocabulary = Vocabulary::read(&file)?;
        let (layout, adds_bos) = match file.text("tokenizer.ggml.model")? {
            "gpt2" => byte_level(&file, &vocabulary)?,
            "llama" => (pieces(&file, &vocabulary)?, true),
            other => {
                let why = format!(
                    "the GGUF file's tokenizer.ggml.model = {other:?} is not supported (known: gpt2, \
                    llama); use the model's Hugging Face directory"
                );
                return Err(Error::Tokenizer(why));
            }
        };
        let inner: Inner = serde_json::from_value(layout)
            .map_err(|e| Error::Tokenizer(format!("the GGUF file's vocabulary and merges do not fit: {e}")))?;
        let text = |key: &str| file.get(key).and_then(GgufValue::as_str).map(str::to_owned);
        let parts = Parts {
            specials: specials(&file, &vocabulary)?,
            chat: text("tokenizer.chat_template"),
            tool_use: text("tokenizer.chat_template.tool_use"),
            stop_ids: stop_ids(&file, &vocabulary)?,
            adds_bos: Some(file.flag("tokenizer.ggml.add_bos_token").unwrap_or(adds_bos)),
            config: Map::new(),
        };
        Self::assemble(inner, parts)
    }
}

struct Metadata<'f, 'a> {
    metadata: &'f dyn Fn(&str) -> Option<&'a GgufValue>,
}

impl<'a> Metadata<'_, 'a> {
    fn get(&self, key: &str) -> Option<&'a GgufValue> {
        (self.metadata)(key)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(GgufValue::as_bool)
    }

    fn text(&self, key: &str) -> Result<&'a str, Error> {
        self.get(key).and_then(GgufValue::as_str).ok_or_else(|| missing(key, "a string"))
    }

    /// An array whose every element passes `read`.
    fn list<T>(&self, key: &str, what: &str, read: impl Fn(&'a GgufValue) -> Option<T>) -> Result<Vec<T>, Error> {
        let items = self.get(key).and_then(GgufValue::as_array).ok_or_else(|| missing(key, what))?;
        items.iter().map(|item| read(item).ok_or_else(|| missing(key, what))).collect()
    }
}

fn missing(key: &str, what: &str) -> Error {
    Error::Tokenizer(format!("the GGUF file's {key} is missing or not {what}"))
}

/// Tokens by id.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<i64>,
    ids: HashMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &Metadata<'_, 'a>) -> Result<Self, Error> {
        let tokens = file.list("tokenizer.ggml.tokens", "a list of strings", GgufValue::as_str)?;
        let kinds = match file.get("tokenizer.ggml.token_type") {
            Some(_) => file.list("tokenizer.ggml.token_type", "a list of integers", GgufValue::as_i64)?,
            None => vec![1; tokens.len()],
        };
        if kinds.len() != tokens.len() {
            let why = format!("the GGUF file has {} tokens but {} token types", tokens.len(), kinds.len());
            return Err(Error::Tokenizer(why));
        }
        let ids: HashMap<_, _> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
        if ids.len() != tokens.len() {
            return Err(Error::Tokenizer("the GGUF file's tokenizer.ggml.tokens has the same token twice".into()));
        }
        Ok(Self { tokens, kinds, ids })
    }

    /// Tokens that are looked for in the raw text.
    fn added(&self) -> Vec<Value> {
        let marks =
            self.kinds.iter().enumerate().filter(|(_, kind)| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED));
        marks
            .map(|(id, kind)| {
                json!({"id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": *kind != USER_DEFINED})
            })
            .collect()
    }

    fn map(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect()
    }
}

/// The layout of a byte-level BPE tokenizer, and whether its texts start with BOS by default.
fn byte_level(file: &Metadata<'_, '_>, vocabulary: &Vocabulary<'_>) -> Result<(Value, bool), Error> {
    let pre = match file.get("tokenizer.ggml.pre") {
        Some(_) => Pre::named(file.text("tokenizer.ggml.pre")?)?,
        None => Pre::Gpt2,
    };
    let pairs = |value: &GgufValue| {
        let (left, right) = value.as_str()?.split_once(' ')?;
        Some(json!([left, right]))
    };
    let merges = file.list("tokenizer.ggml.merges", "a list of pairs", pairs)?;
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "ignore_merges": pre.ignores_merges(), "vocab": vocabulary.map(), "merges": merges,
    });
    let layout = layout(vocabulary, [pre.normalizer(), pre.pre_tokenizer(), bytes.clone(), bytes, model]);
    Ok((layout, pre == Pre::Llama3))
}

/// The layout of a SentencePiece BPE tokenizer, as transformers converts it: spaces become U+2581, one stands before
/// each text, unknown characters fall back to bytes, and the merges are read off the scores.
fn pieces(file: &Metadata<'_, '_>, vocabulary: &Vocabulary<'_>) -> Result<Value, Error> {
    let scores = file.list("tokenizer.ggml.scores", "a list of numbers", GgufValue::as_f64)?;
    if scores.len() != vocabulary.tokens.len() {
        let why = format!("the GGUF file has {} tokens but {} scores", vocabulary.tokens.len(), scores.len());
        return Err(Error::Tokenizer(why));
    }
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let mut normalizers = vec![spaces];
    if file.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true) {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = vocabulary.kinds.iter().position(|kind| *kind == UNKNOWN).map(|id| vocabulary.tokens[id]);
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocabulary.map(), "merges": merges_by_score(vocabulary, &scores),
    });
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    Ok(layout(vocabulary, [normalizer, Value::Null, Value::Null, decoder, model]))
}

/// Every way to make a piece of two pieces, the best-scored piece first.
fn merges_by_score(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Vec<Value> {
    let text = |id: usize| (!matches!(vocabulary.kinds[id], UNKNOWN | CONTROL | BYTE)).then(|| vocabulary.tokens[id]);
    let find = |part: &str| vocabulary.ids.get(part).copied().filter(|id| text(*id).is_some());
    let mut merges: Vec<(f64, usize, usize)> = Vec::new();
    for (id, &score) in scores.iter().enumerate() {
        let Some(piece) = text(id) else { continue };
        let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let mut ways: Vec<_> = cuts.filter_map(|(left, right)| Some((find(left)?, find(right)?))).collect();
        ways.sort_unstable();
        merges.extend(ways.into_iter().map(|(left, right)| (score, left, right)));
    }
    let length = |id: usize| vocabulary.tokens[id].chars().count();
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(length(b.1).cmp(&length(a.1))).then(length(b.2).cmp(&length(a.2))));
    merges.iter().map(|(_, left, right)| json!([vocabulary.tokens[*left], vocabulary.tokens[*right]])).collect()
}

fn layout(vocabulary: &Vocabulary<'_>, [normalizer, pre, post, decoder, model]: [Value; 5]) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added(),
        "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model,
    })
}

fn specials(file: &Metadata<'_, '_>, vocabulary: &Vocabulary<'_>) -> Result<BTreeMap<String, String>, Error> {
    let names = [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
    ];
    let mut specials = BTreeMap::new();
    for (name, key) in names {
        if let Some(id) = token_id(file, key, vocabulary)? {
            specials.insert(name.to_owned(), vocabulary.tokens[id as usize].to_owned());
        }
    }
    Ok(specials)
}

fn stop_ids(file: &Metadata<'_, '_>, vocabulary: &Vocabulary<'_>) -> Result<Vec<u32>, Error> {
    let keys = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
    let ids: Result<Vec<_>, _> = keys.iter().map(|key| token_id(file, key, vocabulary)).collect();
    Ok(ids?.into_iter().flatten().collect())
}

fn token_id(file: &Metadata<'_, '_>, key: &str, vocabulary: &Vocabulary<'_>) -> Result<Option<u32>, Error> {
    let Some(value) = file.get(key) else { return Ok(None) };
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    let size = vocabulary.tokens.len();
    match id {
        Some(id) if (id as usize) < size => Ok(Some(id)),
        _ => Err(Error::Tokenizer(format!("the GGUF file's {key} is not the id of one of its {size} tokens"))),
    }
}
