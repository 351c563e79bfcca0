//! BIG-Bench Hard (Suzgun et al. 2022): the verifier follows from what a file's answers look like.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rows::{self, Row};
use super::{Subset, file_task, user_prompt};
use crate::verify::choice::letter_of;
use crate::{Error, Task, Verifier};

/// A JSON file with `examples`, each with `input` and `target`. Targets such as `(B)` are letters of the options in the
/// input; whole numbers are compared by value; up to four different words (`Yes`, `No`) are labels; the rest must match
/// exactly, case and spacing aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BbhSource {
    /// The file, or `hf:datasets/owner/name/file`.
    pub path: String,
    /// A line added below every input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// How many examples to use; without it all from `start` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Examples to pass over first.
    #[serde(default)]
    pub start: usize,
    /// Shuffle the examples by this seed before `start` and `n` apply; without it they keep the file's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shuffle_seed: Option<u64>,
}

/// More different answers than this are not a fixed set of words.
const MOST_LABELS: usize = 4;

impl BbhSource {
    pub(super) fn load(&self) -> Result<Vec<Task>, Error> {
        let rows = rows::read(&self.path)?;
        let targets = rows.iter().map(|row| row.text("target").map(str::trim)).collect::<Result<BTreeSet<_>, _>>()?;
        let tasks = rows.iter().map(|row| self.task(row, &targets)).collect::<Result<_, _>>()?;
        Subset { path: &self.path, n: self.n, start: self.start, shuffle_seed: self.shuffle_seed }.apply(tasks)
    }

    fn task(&self, row: &Row, targets: &BTreeSet<&str>) -> Result<Task, Error> {
        let (input, target) = (row.text("input")?, row.text("target")?.trim());
        let verifier = verifier(input, targets);
        let mut task = file_task(row, user_prompt(input, self.instruction.as_deref()), target.to_owned(), verifier)?;
        task.demonstration = Some(target.to_owned());
        Ok(task)
    }
}

fn verifier(input: &str, targets: &BTreeSet<&str>) -> Verifier {
    if targets.iter().all(|target| is_option(target)) {
        Verifier::MultipleChoice { choices: options(input) }
    } else if targets.iter().all(|target| target.parse::<i64>().is_ok()) {
        Verifier::NUMERIC
    } else if targets.len() <= MOST_LABELS && targets.iter().all(|target| target.chars().all(char::is_alphabetic)) {
        Verifier::Label { labels: targets.iter().map(|&target| target.to_owned()).collect() }
    } else {
        Verifier::Exact { trim: true, ignore_case: true, collapse_spaces: true }
    }
}

/// `(B)`.
fn is_option(target: &str) -> bool {
    matches!(target.as_bytes(), [b'(', b'A'..=b'Z', b')'])
}

/// The words of the lines `(A) ...`, `(B) ...` in order.
fn options(input: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in input.lines() {
        let head = format!("({})", letter_of(found.len()));
        found.extend(line.trim().strip_prefix(&head).map(|words| words.trim().to_owned()));
    }
    found
}
