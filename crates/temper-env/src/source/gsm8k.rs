//! GSM8K (Cobbe et al. 2021): grade-school word problems with worked answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rows::{self, Row};
use super::{Subset, file_task, user_prompt};
use crate::{Error, Task, Verifier};

/// A jsonl file with `question` and `answer`; each answer ends in `#### N`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gsm8kSource {
    /// The file, or `hf:datasets/owner/name/file`.
    pub path: String,
    /// How many rows to use; without it all from `start` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Rows to pass over first.
    #[serde(default)]
    pub start: usize,
    /// Shuffle the rows by this seed before `start` and `n` apply; without it they keep the file's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shuffle_seed: Option<u64>,
    /// Keep only problems whose worked answer has at most this many calculations: an easier subset. Applies first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_calculations: Option<usize>,
    /// A line added below every question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// Leave the `<<48/2=24>>` annotations in the demonstrations.
    #[serde(default)]
    pub keep_calculator: bool,
    /// An answer counts only after `####`; otherwise the last number of the text is taken where there is no `####`.
    #[serde(default)]
    pub strict: bool,
}

impl Gsm8kSource {
    pub(super) fn load(&self) -> Result<Vec<Task>, Error> {
        let mut tasks = Vec::new();
        for row in rows::read(&self.path, "rows")? {
            let easy =
                self.max_calculations.is_none_or(|most| calculations(row.text("answer").unwrap_or_default()) <= most);
            let task = self.task(&row)?;
            tasks.extend(easy.then_some(task));
        }
        if let (true, Some(most)) = (tasks.is_empty(), self.max_calculations) {
            let hint = format!(" with at most {most} calculations: raise `max_calculations`");
            return Err(Error::Empty { path: self.path.as_str().into(), hint });
        }
        Subset { path: &self.path, n: self.n, start: self.start, shuffle_seed: self.shuffle_seed }.apply(tasks)
    }

    fn task(&self, row: &Row) -> Result<Task, Error> {
        let prompt = user_prompt(row.text("question")?, self.instruction.as_deref());
        let worked = row.text("answer")?;
        let marked = worked.rsplit_once("####").map(|(_, gold)| gold.trim());
        let gold = marked.ok_or_else(|| row.error("the answer has no `####` before its number"))?;
        let mut task = file_task(row, prompt, gold.to_owned(), Verifier::Gsm8k { strict: self.strict })?;
        task.demonstration = Some(if self.keep_calculator { worked.to_owned() } else { without_calculator(worked) });
        Ok(task)
    }
}

/// How many calculations an answer works through: its annotations, or its lines where it has none.
fn calculations(worked: &str) -> usize {
    match worked.matches("<<").count() {
        0 => worked.lines().filter(|line| !line.trim().is_empty() && !line.contains("####")).count(),
        annotated => annotated,
    }
}

/// The text without its `<<...>>` parts. An opening that is never closed stays.
fn without_calculator(worked: &str) -> String {
    let mut rest = worked;
    let mut text = String::with_capacity(worked.len());
    while let Some((before, after)) = rest.split_once("<<") {
        let Some((_, behind)) = after.split_once(">>") else { break };
        text.push_str(before);
        rest = behind;
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_cut_and_counted() {
        let worked = "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 72";
        assert_eq!(without_calculator(worked), "She sold 48/2 = 24 clips.\nIn all 48+24 = 72.\n#### 72");
        assert_eq!(without_calculator("a << b"), "a << b");
        assert_eq!(without_calculator("<<1>><<2>> << 3"), " << 3");
        assert_eq!(calculations(worked), 2);
        assert_eq!(calculations("one\n\ntwo\n#### 2"), 2);
    }
}
