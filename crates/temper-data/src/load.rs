//! Data files to examples: JSON, JSON Lines and plain text, as they are or in gzip or zstd.

mod read;
mod rows;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Example, Payload};
use read::{Contents, Row};
use rows::Shape;

/// A row by column.
type Columns = Map<String, Value>;

/// How many bad rows an error shows.
const SHOWN: usize = 10;

/// What the rows of a file are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Told by the columns of the first row that is an object.
    #[default]
    Auto,
    /// `messages` with `role` and `content`, or ShareGPT's `conversations` with `from` and `value`; `tools`, `system`.
    Messages,
    /// `instruction`, `input`, `output`, and perhaps `system` and `history`.
    Alpaca,
    /// `prompt` and `completion`: texts that are joined as they are, or lists of messages.
    PromptCompletion,
    /// `text`.
    Text,
    /// A prompt and the answer for a verifier.
    Task,
}

/// How a plain text file is cut into examples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleBy {
    /// Every line that is not blank.
    #[default]
    Line,
    /// What stands between blank lines.
    Paragraph,
    /// The whole file.
    Document,
}

/// How to read a data file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Format {
    /// What the rows are.
    pub kind: Kind,
    /// The column of the prompt, for tasks and prompt-completion pairs. Dots reach into objects.
    pub prompt_column: Option<String>,
    /// The column of the answer (tasks) or of the completion (pairs), such as `reward_model.ground_truth`.
    pub answer_column: Option<String>,
    /// The column of the text.
    pub text_column: Option<String>,
    /// A system turn before each task's prompt.
    pub system: Option<String>,
    /// How `.txt` files are cut.
    pub sample_by: SampleBy,
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Rows of the file, all of which became examples.
    pub rows: usize,
    /// What the rows were taken for.
    pub kind: Kind,
    /// Blank lines between the rows.
    pub blank_lines: usize,
    /// Rows whose `id` an earlier row has too; they got `#2`, `#3` ... behind it.
    pub repeated_ids: usize,
}

/// Reads a file of examples: `.jsonl` (one object a line, never an array of them), `.json` (an array of rows, or an
/// object with the rows under `examples` or `data`), `.txt`, each also with `.gz` or `.zst` behind it.
///
/// Ids are the rows' own `id`, or `<file stem>:<line or element>`. Every row must be readable: bad ones make the whole
/// file an error that names the first ten with their lines.
pub fn load(path: impl AsRef<Path>, format: &Format) -> Result<(Vec<Example>, LoadReport), Error> {
    let path = path.as_ref();
    let contents = read::contents(path)?;
    let stem = read::stem(path);
    match contents {
        Contents::Text(text) => Ok(plain(&stem, &text, format)?),
        Contents::Rows { rows, blank_lines, .. } => {
            let (examples, mut report) = examples(path, &stem, rows, format)?;
            report.blank_lines = blank_lines;
            Ok((examples, report))
        }
    }
}

/// A row of a file as it is, or what is wrong with it.
#[derive(Debug, Clone, PartialEq)]
pub struct RawRow {
    /// Its line, or its place in the list; from 1.
    pub number: usize,
    /// `line` or `item`: what the number counts.
    pub unit: &'static str,
    /// Its columns.
    pub columns: Result<Map<String, Value>, String>,
}

/// Reads a file of rows as [`load`] does, but takes them for nothing yet. Blank lines are left out.
pub fn raw_rows(path: impl AsRef<Path>) -> Result<Vec<RawRow>, Error> {
    let path = path.as_ref();
    let Contents::Rows { rows, unit, .. } = read::contents(path)? else {
        return Err(Error::content(path, "plain text; expected rows in a .jsonl or .json file"));
    };
    Ok(rows.into_iter().map(|row| RawRow { number: row.number, unit, columns: row.columns() }).collect())
}

fn plain(stem: &str, text: &str, format: &Format) -> Result<(Vec<Example>, LoadReport), Error> {
    if !matches!(format.kind, Kind::Auto | Kind::Text) {
        return Err(Error::Format(format!("{stem} is plain text; kind must be auto or text, not {:?}", format.kind)));
    }
    let texts = cut(text, format.sample_by);
    let example = |(line, text): (usize, String)| Example {
        id: format!("{stem}:{line}"),
        payload: Payload::Text(text),
        tags: vec![stem.to_owned()],
    };
    let report = LoadReport { rows: texts.len(), kind: Kind::Text, ..LoadReport::default() };
    Ok((texts.into_iter().map(example).collect(), report))
}

/// Texts with the line each starts on.
fn cut(text: &str, by: SampleBy) -> Vec<(usize, String)> {
    let lines: Vec<(usize, &str)> = (1..).zip(text.lines()).collect();
    let blank = |line: &str| line.trim().is_empty();
    let whole = |run: &[(usize, &str)]| {
        let texts: Vec<&str> = run.iter().map(|(_, line)| *line).collect();
        run.first().map(|(number, _)| (*number, texts.join("\n")))
    };
    match by {
        SampleBy::Line => lines.into_iter().filter(|(_, l)| !blank(l)).map(|(n, l)| (n, l.to_owned())).collect(),
        SampleBy::Paragraph => {
            let runs = lines.chunk_by(|(_, a), (_, b)| blank(a) == blank(b));
            runs.filter(|run| !blank(run[0].1)).filter_map(whole).collect()
        }
        SampleBy::Document => vec![(1, text.to_owned())],
    }
}

fn examples(path: &Path, stem: &str, rows: Vec<Row>, format: &Format) -> Result<(Vec<Example>, LoadReport), Error> {
    let read = rows.len();
    let rows: Vec<(usize, Result<Columns, String>)> = rows.into_iter().map(|row| (row.number, row.columns())).collect();
    let shape = shape(path, &rows, format)?;
    let mut ids = Ids::default();
    let (mut examples, mut bad) = (Vec::with_capacity(read), Vec::new());
    for (number, row) in rows {
        match row.and_then(|row| example(&shape, stem, number, row, &mut ids)) {
            Ok(example) => examples.push(example),
            Err(why) => bad.push((number, why)),
        }
    }
    if !bad.is_empty() {
        return Err(bad_rows(path, read, bad));
    }
    Ok((examples, LoadReport { rows: read, kind: shape.kind(), repeated_ids: ids.repeated, ..LoadReport::default() }))
}

/// What the first object tells. Rows that cannot be read are named first: they may be why nothing can be told.
fn shape(path: &Path, rows: &[(usize, Result<Columns, String>)], format: &Format) -> Result<Shape, Error> {
    rows::check(format).map_err(|why| Error::content(path, why))?;
    let unreadable = || -> Vec<(usize, String)> {
        rows.iter().filter_map(|(number, row)| Some((*number, row.as_ref().err()?.clone()))).collect()
    };
    let Some((number, first)) = rows.iter().find_map(|(number, row)| Some((number, row.as_ref().ok()?))) else {
        return Err(bad_rows(path, rows.len(), unreadable()));
    };
    Shape::of(first, format).map_err(|why| match unreadable() {
        none if none.is_empty() => Error::content(path, format!("row {number}: {why}")),
        bad => bad_rows(path, rows.len(), bad),
    })
}

fn bad_rows(path: &Path, read: usize, mut bad: Vec<(usize, String)>) -> Error {
    let count = bad.len();
    bad.truncate(SHOWN);
    Error::BadRows { path: path.to_owned(), count, read, first: bad }
}

fn example(shape: &Shape, stem: &str, number: usize, row: Columns, ids: &mut Ids) -> Result<Example, String> {
    let given = match row.get("id") {
        Some(Value::String(id)) if !id.is_empty() => Some(id.clone()),
        Some(Value::Number(id)) => Some(id.to_string()),
        _ => None,
    };
    let payload = shape.payload(row)?;
    let id = ids.unique(given.unwrap_or_else(|| format!("{stem}:{number}")));
    Ok(Example { id, payload, tags: vec![stem.to_owned()] })
}

/// Keeps ids apart.
#[derive(Default)]
struct Ids {
    seen: BTreeMap<String, usize>,
    repeated: usize,
}

impl Ids {
    fn unique(&mut self, id: String) -> String {
        let times = self.seen.entry(id.clone()).or_insert(0);
        *times += 1;
        if *times == 1 {
            return id;
        }
        self.repeated += 1;
        let again = format!("{id}#{times}");
        self.unique(again)
    }
}
