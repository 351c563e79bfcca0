//! Rows of jsonl and JSON files, as temper-data reads them, with their places for messages.

use serde_json::{Map, Value};
use temper_data::RawRow;

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

/// The rows of a `.jsonl` file, or of a `.json` file that holds a list or an object with one.
pub(super) fn read(path: &str) -> Result<Vec<Row<'_>>, Error> {
    if path.starts_with("hf:") {
        return Err(Error::Unresolved { path: path.into() });
    }
    let rows = temper_data::raw_rows(path).map_err(|error| Error::Read { path: path.into(), why: why(error) })?;
    rows.into_iter().map(|row| Row::new(path, row)).collect()
}

/// What is wrong, without the path.
fn why(error: temper_data::Error) -> String {
    match error {
        temper_data::Error::File { why, .. } | temper_data::Error::Content { why, .. } => why,
        other => other.to_string(),
    }
}

fn row_error(path: &str, unit: &str, number: usize, why: String) -> Error {
    Error::Row { path: path.into(), place: format!("{unit} {number}"), why }
}

impl<'a> Row<'a> {
    fn new(path: &'a str, RawRow { number, unit, columns }: RawRow) -> Result<Self, Error> {
        let columns = columns.map_err(|why| row_error(path, unit, number, why))?;
        Ok(Self { path, number, unit, columns })
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
