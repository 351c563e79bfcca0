//! Files of questions with options.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::rows::{self, Row};
use super::{Subset, file_task, user_prompt};
use crate::verify::choice::{letter, letter_of};
use crate::{Error, Task, Verifier};

/// A file of questions with options. The prompt is the question with one line `(A) ...` for each option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MultipleChoiceSource {
    /// The file, or `hf:datasets/owner/name/file`.
    pub path: String,
    /// Column of the question.
    #[serde(default = "question_column")]
    pub question: String,
    /// Column of the options: a list of texts, or ARC's `{"text": [...], "label": [...]}`.
    #[serde(default = "choices_column")]
    pub choices: String,
    /// Column of the right option: its letter or label, its place from 0 as a number, or its text.
    #[serde(default = "answer_column")]
    pub answer: String,
    /// A line added below the options.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// How many rows to use; without it all from `start` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Rows to pass over first.
    #[serde(default)]
    pub start: usize,
    /// Shuffle the rows by this seed before `start` and `n` apply; without it they keep the file's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shuffle_seed: Option<u64>,
}

fn question_column() -> String {
    "question".to_owned()
}

fn choices_column() -> String {
    "choices".to_owned()
}

fn answer_column() -> String {
    "answer".to_owned()
}

/// The options of one row, with labels where the row gives them.
struct Options {
    texts: Vec<String>,
    labels: Vec<String>,
}

impl MultipleChoiceSource {
    pub(super) fn load(&self) -> Result<Vec<Task>, Error> {
        let tasks = rows::read(&self.path)?.iter().map(|row| self.task(row)).collect::<Result<_, _>>()?;
        Subset { path: &self.path, n: self.n, start: self.start, shuffle_seed: self.shuffle_seed }.apply(tasks)
    }

    fn task(&self, row: &Row) -> Result<Task, Error> {
        let options = self.options(row)?;
        let answer = letter_of(self.right(row, &options)?).to_string();
        let mut question = row.text(&self.question)?.trim_end().to_owned();
        for (index, text) in options.texts.iter().enumerate() {
            let _ = write!(question, "\n({}) {text}", letter_of(index));
        }
        let prompt = user_prompt(&question, self.instruction.as_deref());
        let shown = format!("({answer})");
        let mut task = file_task(row, prompt, answer, Verifier::MultipleChoice { choices: options.texts })?;
        task.demonstration = Some(shown);
        Ok(task)
    }

    fn options(&self, row: &Row) -> Result<Options, Error> {
        let value = row.column(&self.choices)?;
        let texts = texts(value).or_else(|| texts(value.get("text")?));
        let labels = value.get("label").and_then(texts_of).unwrap_or_default();
        match texts {
            Some(texts) if (2..=26).contains(&texts.len()) => Ok(Options { texts, labels }),
            Some(texts) => {
                Err(row.error(format!("column `{}`: expected 2 to 26 options, found {}", self.choices, texts.len())))
            }
            None => Err(row.error(format!("column `{}`: expected a list of texts", self.choices))),
        }
    }

    /// The place of the right option.
    fn right(&self, row: &Row, options: &Options) -> Result<usize, Error> {
        let n = options.texts.len();
        let place = match row.column(&self.answer)? {
            Value::Number(index) => index.as_u64().map(|index| index as usize).filter(|&index| index < n),
            Value::String(text) => {
                let text = text.trim();
                let among = |list: &[String]| list.iter().position(|one| one.trim() == text);
                let by_letter = || letter(text.trim_matches(['(', ')', '.']), n);
                among(&options.labels).or_else(|| among(&options.texts)).or_else(by_letter)
            }
            _ => None,
        };
        place.ok_or_else(|| {
            row.error(format!(
                "column `{}`: expected the letter, the place from 0 or the text of one of {n} options",
                self.answer
            ))
        })
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    texts_of(value).filter(|texts| texts.iter().all(|text| !text.trim().is_empty()))
}

fn texts_of(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
}
