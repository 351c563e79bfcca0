//! Tokenizers in Hugging Face directories: reading and writing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use temper_format::atomic;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::{Parts, Tokenizer};
use crate::{ChatTemplate, Error};

/// The special tokens with a name of their own, as templates and transformers know them.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Keys of `tokenizer_config.json` that stay true when the tokenizer is written again.
const KEPT: [&str; 5] =
    ["model_max_length", "padding_side", "truncation_side", "additional_special_tokens", "extra_special_tokens"];
/// Far beyond any vocabulary.
const LARGEST_ID: u64 = 1 << 30;
const TOOL_TEMPLATE: &str = "additional_chat_templates/tool_use.jinja";

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they exist, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `chat_template.jinja` (which wins over a template in the configuration) and the stop ids of
    /// `generation_config.json` (or, without one, of `config.json`).
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let mut inner = read_tokenizer(dir)?;
        let config = read_object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let map = read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
        add_listed_tokens(&mut inner, &config);
        let (chat, tool_use) = read_templates(dir, &config)?;
        let parts = Parts {
            specials: specials(&config, &map),
            chat,
            tool_use,
            stop_ids: stop_ids(dir)?,
            adds_bos: config.get("add_bos_token").and_then(Value::as_bool),
            config: kept(&config),
        };
        Self::assemble(inner, parts).map_err(|e| in_dir(dir, e))
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja` so that
    /// transformers' `AutoTokenizer` loads them. The directory is made if it is missing.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<(), Error> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(|e| Error::file(dir, e))?;
        let layout = self.inner.to_string(false).map_err(|e| Error::Tokenizer(e.to_string()))?;
        atomic::write(dir.join("tokenizer.json"), layout.as_bytes())?;
        write_json(&dir.join("special_tokens_map.json"), &json!(self.specials))?;
        write_json(&dir.join("tokenizer_config.json"), &self.config_file())?;
        write_or_remove(&dir.join("chat_template.jinja"), self.templates.chat.as_ref().map(ChatTemplate::source))?;
        let tool_use = self.templates.tool_use.as_ref().map(ChatTemplate::source);
        if tool_use.is_some() {
            let folder = dir.join("additional_chat_templates");
            fs::create_dir_all(&folder).map_err(|e| Error::file(&folder, e))?;
        }
        write_or_remove(&dir.join(TOOL_TEMPLATE), tool_use)
    }

    fn config_file(&self) -> Value {
        let mut config = self.config.clone();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        config.insert("model_input_names".into(), json!(["input_ids", "attention_mask"]));
        config.extend(self.specials.iter().map(|(name, text)| (name.clone(), json!(text))));
        Value::Object(config)
    }
}

fn in_dir(dir: &Path, error: Error) -> Error {
    match error {
        Error::TemplateSyntax(why) => Error::content(dir, format!("the chat template does not parse: {why}")),
        Error::Tokenizer(why) => Error::content(dir, why),
        other => other,
    }
}

fn read_tokenizer(dir: &Path) -> Result<Inner, Error> {
    let path = dir.join("tokenizer.json");
    let Some(bytes) = read(&path)? else {
        let why = if dir.join("tokenizer.model").exists() {
            "no tokenizer.json beside tokenizer.model; write one with transformers: \
             AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        } else {
            "no tokenizer.json; expected the directory of a Hugging Face model"
        };
        return Err(Error::content(dir, why));
    };
    // In steps: the tokenizers library panics on some texts that are not JSON, and on ids at the end of their range.
    let broken = |e: serde_json::Error| Error::content(&path, format!("not a tokenizer.json: {e}"));
    let layout: Value = serde_json::from_slice(&bytes).map_err(broken)?;
    let added = layout.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    if let Some(id) = added.filter_map(|token| token.get("id")?.as_u64()).find(|id| *id > LARGEST_ID) {
        return Err(Error::content(path, format!("added token with id {id}; expected at most {LARGEST_ID}")));
    }
    serde_json::from_value(layout).map_err(broken)
}

/// The bytes of a file, `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::file(path, e)),
    }
}

fn read_text(path: &Path) -> Result<Option<String>, Error> {
    let text = read(path)?.map(String::from_utf8).transpose();
    text.map_err(|_| Error::content(path, "not UTF-8 text"))
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let object = serde_json::from_slice(&bytes);
    object.map(Some).map_err(|e| Error::content(path, format!("not a JSON object: {e}")))
}

/// A special token is written as its text or as an object with `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str()).filter(|text| !text.is_empty())
}

fn specials(config: &Map<String, Value>, map: &Map<String, Value>) -> BTreeMap<String, String> {
    let find = |name: &&str| config.get(*name).and_then(token_text).or_else(|| map.get(*name).and_then(token_text));
    NAMES.iter().filter_map(|name| Some(((*name).to_owned(), find(name)?.to_owned()))).collect()
}

/// Tokens that `added_tokens_decoder` lists and `tokenizer.json` lacks, in the order of their ids.
fn add_listed_tokens(inner: &mut Inner, config: &Map<String, Value>) {
    let Some(listed) = config.get("added_tokens_decoder").and_then(Value::as_object) else { return };
    let mut tokens: Vec<(u32, AddedToken)> = listed
        .iter()
        .filter_map(|(id, token)| Some((id.parse().ok()?, serde_json::from_value(token.clone()).ok()?)))
        .filter(|(_, token): &(u32, AddedToken)| inner.token_to_id(&token.content).is_none())
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    inner.add_tokens(&tokens.into_iter().map(|(_, token)| token).collect::<Vec<_>>());
}

/// The default template and the one for tools.
fn read_templates(dir: &Path, config: &Map<String, Value>) -> Result<(Option<String>, Option<String>), Error> {
    let named = |name: &str| match config.get("chat_template") {
        Some(Value::String(text)) => Some(text.clone()).filter(|_| name == "default"),
        Some(Value::Array(list)) => {
            let entry = list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))?;
            Some(entry.get("template")?.as_str()?.to_owned())
        }
        _ => None,
    };
    let chat = read_text(&dir.join("chat_template.jinja"))?.or_else(|| named("default"));
    let tool_use = read_text(&dir.join(TOOL_TEMPLATE))?.or_else(|| named("tool_use"));
    Ok((chat, tool_use))
}

fn stop_ids(dir: &Path) -> Result<Vec<u32>, Error> {
    let generation = read_object(&dir.join("generation_config.json"))?;
    let config = match generation {
        Some(config) => Some(config),
        None => read_object(&dir.join("config.json"))?,
    };
    let ids = config.and_then(|mut config| config.remove("eos_token_id"));
    Ok(match ids {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(&value).into_iter().collect(),
        None => Vec::new(),
    })
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64()?.try_into().ok()
}

fn kept(config: &Map<String, Value>) -> Map<String, Value> {
    /// transformers writes 1e30 for "no limit"; it does not survive JSON as an integer.
    const NO_LIMIT: f64 = 1e15;
    let is_limit = |key: &str, value: &Value| key != "model_max_length" || value.as_f64().is_some_and(|n| n < NO_LIMIT);
    let pairs = KEPT.iter().filter_map(|key| Some(((*key).to_owned(), config.get(*key)?.clone())));
    pairs.filter(|(key, value)| is_limit(key, value)).collect()
}

fn write_json(path: &Path, value: &Value) -> Result<(), Error> {
    let text = format!("{value:#}\n");
    Ok(atomic::write(path, text.as_bytes())?)
}

/// Writes the text, or removes what an earlier save left.
fn write_or_remove(path: &Path, text: Option<&str>) -> Result<(), Error> {
    match text {
        Some(text) => Ok(atomic::write(path, text.as_bytes())?),
        None if path.exists() => fs::remove_file(path).map_err(|e| Error::file(path, e)),
        None => Ok(()),
    }
}
