//! Rows of jsonl and JSON files, plain or compressed, with their places for messages.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::Error;
use crate::task::shorten;

/// One row and where it stands.
pub(super) struct Row<'a> {
    pub(super) path: &'a str,
    /// From 1: the line of a jsonl file, the item of a list.
    pub(super) number: usize,
    unit: &'static str,
    columns: Map<String, Value>,
}

/// The rows of a `.jsonl` file, or of a `.json` file that holds a list (or an object with one under `list`).
pub(super) fn read<'a>(path: &'a str, list: &str) -> Result<Vec<Row<'a>>, Error> {
    let text = read_text(path)?;
    let bare = path.trim_end_matches(".gz").trim_end_matches(".zst");
    if Path::new(bare).extension().is_some_and(|ending| ending == "json") {
        let value = serde_json::from_str(&text)
            .map_err(|error| Error::Read { path: path.into(), why: format!("not JSON: {error}") })?;
        return items(path, value, list);
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            let parsed = serde_json::from_str(line);
            let value = parsed.map_err(|error| row_error(path, "line", at + 1, format!("not JSON: {error}")))?;
            Row::new(path, "line", at + 1, value)
        })
        .collect()
}

fn items<'a>(path: &'a str, value: Value, list: &str) -> Result<Vec<Row<'a>>, Error> {
    let found = match value {
        Value::Array(items) => Some(items),
        Value::Object(mut object) => match object.remove(list) {
            Some(Value::Array(items)) => Some(items),
            _ => None,
        },
        _ => None,
    };
    let why = || format!("expected a list of rows, or an object with such a list under `{list}`");
    let items = found.ok_or_else(|| Error::Read { path: path.into(), why: why() })?;
    items.into_iter().enumerate().map(|(at, value)| Row::new(path, "item", at + 1, value)).collect()
}

fn read_text(path: &str) -> Result<String, Error> {
    if path.starts_with("hf:") {
        return Err(Error::Unresolved { path: path.into() });
    }
    let fail = |error: std::io::Error| Error::Read { path: path.into(), why: error.to_string() };
    let mut bytes = std::fs::read(path).and_then(|raw| decompress(&raw)).map_err(fail)?;
    if bytes.starts_with("\u{feff}".as_bytes()) {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|&byte| byte == b'\n').count();
        row_error(path, "line", line, "not UTF-8 text".into())
    })
}

/// What the first bytes say counts, not the file's name.
fn decompress(raw: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if raw.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(raw).read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    if raw.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        zstd::Decoder::new(raw)?.read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    Ok(raw.to_vec())
}

fn row_error(path: &str, unit: &str, number: usize, why: String) -> Error {
    Error::Row { path: path.into(), place: format!("{unit} {number}"), why }
}

impl<'a> Row<'a> {
    fn new(path: &'a str, unit: &'static str, number: usize, value: Value) -> Result<Self, Error> {
        match value {
            Value::Object(columns) => Ok(Self { path, number, unit, columns }),
            other => Err(row_error(
                path,
                unit,
                number,
                format!("expected an object, found {}", shorten(&other.to_string(), 60)),
            )),
        }
    }

    pub(super) fn error(&self, why: impl Into<String>) -> Error {
        row_error(self.path, self.unit, self.number, why.into())
    }

    pub(super) fn column(&self, name: &str) -> Result<&Value, Error> {
        self.columns.get(name).ok_or_else(|| {
            let there: Vec<&str> = self.columns.keys().map(String::as_str).collect();
            self.error(format!("no column `{name}`; there are {}", there.join(", ")))
        })
    }

    /// A column that holds text with something in it.
    pub(super) fn text(&self, name: &str) -> Result<&str, Error> {
        match self.column(name)? {
            Value::String(text) if !text.trim().is_empty() => Ok(text),
            other => {
                Err(self.error(format!("column `{name}`: expected text, found {}", shorten(&other.to_string(), 60))))
            }
        }
    }

    /// Text as it is, a number or a boolean as it is spelled; `None` for anything else.
    pub(super) fn text_or_number(&self, name: &str) -> Option<String> {
        match self.columns.get(name)? {
            Value::String(text) => Some(text.clone()),
            value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string()),
            _ => None,
        }
    }
}
