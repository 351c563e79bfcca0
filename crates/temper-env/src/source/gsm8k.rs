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
    /// How many rows of the file to use, counted before `max_calculations` leaves some out; without it all from `start` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Rows of the file to pass over first, whatever `max_calculations` says: a source with `start = 2000` and one with
    /// `n = 2000` share no row.
    #[serde(default)]
    pub start: usize,
    /// Shuffle the rows by this seed before `start` and `n` apply; without it they keep the file's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shuffle_seed: Option<u64>,
    /// Keep only problems whose worked answer has at most this many calculations: an easier subset.
    /// Applies last, to the rows that `start` and `n` choose, of which fewer may be left.
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
        let rows = rows::read(&self.path)?;
        let tasks = rows.iter().map(|row| Ok((calculations(row.text("answer")?), self.task(row)?)));
        let tasks = tasks.collect::<Result<Vec<_>, Error>>()?;
        let subset = Subset { path: &self.path, n: self.n, start: self.start, shuffle_seed: self.shuffle_seed };
        let chosen = subset.apply(tasks)?;
        let easy = |calculations| self.max_calculations.is_none_or(|most| calculations <= most);
        let from = chosen.len();
        let tasks: Vec<Task> = chosen.into_iter().filter(|(n, _)| easy(*n)).map(|(_, task)| task).collect();
        match self.max_calculations {
            Some(most) if tasks.is_empty() => Err(Error::Empty {
                path: self.path.as_str().into(),
                hint: format!(
                    " with at most {most} calculations among the {from} that `start` and `n` choose: raise \
                     `max_calculations`, or choose more rows"
                ),
            }),
            _ => Ok(tasks),
        }
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
