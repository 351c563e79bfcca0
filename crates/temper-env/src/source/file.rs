//! Any file with prompts and answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use temper_data::Message;

use super::rows::{self, Row};
use super::{Subset, file_task, user_prompt};
use crate::{Error, Task, Verifier};

/// A `.jsonl` or `.json` file (also `.gz`, `.zst`) whose rows have a prompt and an answer column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    /// The file, or `hf:datasets/owner/name/file`.
    pub path: String,
    /// Column of the prompt: text, or a list of messages.
    #[serde(default = "prompt_column")]
    pub prompt: String,
    /// Column of the gold answer: text, a number or a boolean.
    #[serde(default = "answer_column")]
    pub answer: String,
    /// Column of a worked solution; without it the answer is what supervised training shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demonstration: Option<String>,
    /// How a completion is compared with the answer.
    pub verifier: Verifier,
    /// A line added below every prompt (below its last turn).
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

fn prompt_column() -> String {
    "prompt".to_owned()
}

fn answer_column() -> String {
    "answer".to_owned()
}

impl FileSource {
    pub(super) fn load(&self) -> Result<Vec<Task>, Error> {
        let tasks = rows::read(&self.path)?.iter().map(|row| self.task(row)).collect::<Result<_, _>>()?;
        Subset { path: &self.path, n: self.n, start: self.start, shuffle_seed: self.shuffle_seed }.apply(tasks)
    }

    fn task(&self, row: &Row) -> Result<Task, Error> {
        row.column(&self.answer)?;
        let answer = row.text_or_number(&self.answer);
        let answer = answer
            .ok_or_else(|| row.error(format!("column `{}`: expected text, a number or a boolean", self.answer)))?;
        let mut task = file_task(row, self.prompt(row)?, answer, self.verifier.clone())?;
        task.demonstration = Some(match &self.demonstration {
            Some(column) => row.text(column)?.to_owned(),
            None => task.answer.clone(),
        });
        Ok(task)
    }

    fn prompt(&self, row: &Row) -> Result<Vec<Message>, Error> {
        let instruction = self.instruction.as_deref();
        if !row.column(&self.prompt)?.is_array() {
            return Ok(user_prompt(row.text(&self.prompt)?, instruction));
        }
        let mut messages = messages(row, &self.prompt)?;
        if let (Some(instruction), Some(last)) = (instruction, messages.last_mut()) {
            last.content = format!("{}\n{instruction}", last.content.trim_end());
        }
        Ok(messages)
    }
}

fn messages(row: &Row, column: &str) -> Result<Vec<Message>, Error> {
    let value: Value = row.column(column)?.clone();
    let messages: Vec<Message> =
        serde_json::from_value(value).map_err(|error| row.error(format!("column `{column}`: {error}")))?;
    match messages.last() {
        Some(last) if !last.is_model() => Ok(messages),
        _ => Err(row.error(format!("column `{column}`: expected messages that end before the model's turn"))),
    }
}
