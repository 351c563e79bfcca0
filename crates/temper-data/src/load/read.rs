//! From a file to rows: decompression, text encoding, JSON.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::Path;

use serde_json::Value;

use super::{Columns, rows};
use crate::Error;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Keys under which a JSON file may hold its rows.
const CONTAINERS: [&str; 4] = ["examples", "data", "rows", "train"];

/// What a file holds.
pub(super) enum Contents {
    /// Plain text.
    Text(String),
    /// JSON values; `unit` is what their numbers count.
    Rows { rows: Vec<Row>, unit: &'static str, blank_lines: usize },
}

/// A row or what is wrong with it.
pub(super) struct Row {
    /// Line of a JSON Lines file, element of an array; from 1.
    pub(super) number: usize,
    pub(super) value: Result<Value, String>,
}

impl Row {
    /// A row's columns; whatever is no object is not a row.
    pub(super) fn columns(self) -> Result<Columns, String> {
        match self.value? {
            Value::Object(columns) => Ok(columns),
            other => Err(format!("expected an object, found {}", rows::kind_of(&other))),
        }
    }
}

/// The file's name without its extensions.
pub(super) fn stem(path: &Path) -> String {
    let name = name(path);
    let inner = decompressed_name(&name);
    inner.rsplit_once('.').map_or(inner, |(stem, _)| stem).to_owned()
}

fn decompressed_name(name: &str) -> &str {
    name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn contents(path: &Path) -> Result<Contents, Error> {
    if path.is_dir() {
        return Err(Error::content(path, "a directory; expected one data file"));
    }
    let name = name(path);
    let inner = decompressed_name(&name);
    let extension = inner.rsplit_once('.').map_or("", |(_, extension)| extension);
    let is_text = match extension {
        "jsonl" | "ndjson" | "json" => false,
        "txt" | "md" => true,
        other => {
            let why = format!("unknown extension {other:?}; expected .jsonl, .json or .txt, perhaps with .gz or .zst");
            return Err(Error::content(path, why));
        }
    };
    let bytes = bytes(path)?;
    let contents = if is_text { Contents::Text(whole_text(path, bytes)?) } else { json(path, &bytes, extension)? };
    let empty = match &contents {
        Contents::Text(text) => text.trim().is_empty(),
        Contents::Rows { rows, .. } => rows.is_empty(),
    };
    if empty { Err(Error::content(path, "no examples in it: the file is empty")) } else { Ok(contents) }
}

/// The decompressed bytes without a byte order mark. What the first bytes say wins over the name.
fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    let raw = fs::metadata(path).and_then(|_| head(path)).map_err(|e| Error::file(path, e))?;
    let name = name(path);
    let mut bytes = Vec::new();
    let read = |why: &str| {
        let why = why.to_owned();
        move |e: std::io::Error| Error::file(path, format!("{why}: {e}"))
    };
    let mut file = BufReader::new(File::open(path).map_err(|e| Error::file(path, e))?);
    if raw.starts_with(&GZIP) {
        let mut decoder = flate2::bufread::MultiGzDecoder::new(file);
        decoder.read_to_end(&mut bytes).map_err(read("truncated or corrupt gzip data"))?;
    } else if raw.starts_with(&ZSTD) {
        let decoder = zstd::Decoder::with_buffer(file);
        let result = decoder.and_then(|mut decoder| decoder.read_to_end(&mut bytes));
        result.map_err(read("truncated or corrupt zstd data"))?;
    } else if decompressed_name(&name) != name && !raw.is_empty() {
        return Err(Error::content(path, "the name says compressed, but the data is neither gzip nor zstd"));
    } else {
        file.read_to_end(&mut bytes).map_err(|e| Error::file(path, e))?;
    }
    if bytes.starts_with("\u{feff}".as_bytes()) {
        bytes.drain(..3);
    }
    Ok(bytes)
}

fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut head)?;
    Ok(head)
}

fn whole_text(path: &Path, bytes: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..valid].split(|byte| *byte == b'\n').count();
        Error::content(path, format!("line {line} is not UTF-8; convert the file first"))
    })
}

fn json(path: &Path, bytes: &[u8], extension: &str) -> Result<Contents, Error> {
    match bytes.trim_ascii_start().first() {
        _ if extension != "json" => Ok(lines(bytes)),
        Some(b'[') => array(path, bytes),
        Some(b'{') if !is_lines(bytes) => document(path, bytes),
        _ => Ok(lines(bytes)),
    }
}

/// Whether the first line is a JSON value of its own and not the only one with rows in it.
fn is_lines(bytes: &[u8]) -> bool {
    let mut lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let first = lines.next().and_then(|line| serde_json::from_slice::<Value>(line).ok());
    first.is_some_and(|first| lines.next().is_some() || container(&first).is_none())
}

fn container(value: &Value) -> Option<&'static str> {
    CONTAINERS.into_iter().find(|key| value.get(*key).is_some_and(Value::is_array))
}

fn array(path: &Path, bytes: &[u8]) -> Result<Contents, Error> {
    let values: Vec<Value> = serde_json::from_slice(bytes).map_err(|e| not_json(path, &e))?;
    Ok(numbered(values))
}

fn document(path: &Path, bytes: &[u8]) -> Result<Contents, Error> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|e| not_json(path, &e))?;
    let Some(key) = container(&value) else {
        let why = format!("one object without rows; expected an array or an object with one of {CONTAINERS:?}");
        return Err(Error::content(path, why));
    };
    match value[key].take() {
        Value::Array(values) => Ok(numbered(values)),
        _ => Ok(numbered(Vec::new())),
    }
}

fn not_json(path: &Path, error: &serde_json::Error) -> Error {
    Error::content(path, format!("not valid JSON: {error}"))
}

fn numbered(values: Vec<Value>) -> Contents {
    let rows = (1..).zip(values).map(|(number, value)| Row { number, value: Ok(value) }).collect();
    Contents::Rows { rows, unit: "item", blank_lines: 0 }
}

fn lines(bytes: &[u8]) -> Contents {
    let (mut rows, mut blank_lines) = (Vec::new(), 0);
    let ended = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    for (number, line) in (1..).zip(ended.split(|byte| *byte == b'\n')) {
        match line.trim_ascii() {
            [] => blank_lines += 1,
            line => rows.push(Row { number, value: parse(line) }),
        }
    }
    Contents::Rows { rows, unit: "line", blank_lines }
}

fn parse(line: &[u8]) -> Result<Value, String> {
    if line.starts_with(b"[") {
        return Err("expected an object, found an array; a file that is one JSON array must be called .json".to_owned());
    }
    let text = std::str::from_utf8(line).map_err(|e| format!("not UTF-8 after byte {}", e.valid_up_to()))?;
    serde_json::from_str(text).map_err(|e| {
        // serde_json counts lines within this one; only the column says something.
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        format!("not valid JSON: {message} (column {})", e.column())
    })
}
