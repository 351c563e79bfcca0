//! Where tasks come from: the tables that recipes write, and the sets that loops read.

mod bbh;
mod file;
mod gsm8k;
mod multiple_choice;
mod pairs;
mod rows;
mod tiny;

use std::collections::BTreeSet;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_data::Message;

use crate::draw::Draw;
use crate::{Error, Pair, Task, TinyWorld, Verifier};
pub use bbh::BbhSource;
pub use file::FileSource;
pub use gsm8k::Gsm8kSource;
pub use multiple_choice::MultipleChoiceSource;
pub use pairs::BlimpSource;
pub use tiny::{Families, TinyWorldSource};

/// A source of tasks, as a recipe writes it: `kind` and that kind's keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TaskSource {
    /// Procedural tasks that a very small model can learn.
    TinyWorld(TinyWorldSource),
    /// GSM8K: grade-school word problems, answers after `####`.
    Gsm8k(Gsm8kSource),
    /// Any file with a prompt column and an answer column.
    File(FileSource),
    /// A file of questions with options.
    MultipleChoice(MultipleChoiceSource),
    /// A task file of BIG-Bench Hard.
    Bbh(BbhSource),
    /// BLiMP: pairs of an acceptable and an unacceptable sentence, scored by likelihood.
    Blimp(BlimpSource),
}

impl TaskSource {
    /// Every kind with one line about it, for listings.
    pub const KINDS: [(&'static str, &'static str); 6] = [
        ("tiny_world", "procedural task families with levels and train, test and ood splits"),
        ("gsm8k", "grade-school word problems from a jsonl file, answers after `####`"),
        ("file", "rows with a prompt and an answer column, and a verifier of your choice"),
        ("multiple_choice", "rows with a question, options and the right option"),
        ("bbh", "a task file of BIG-Bench Hard"),
        ("blimp", "minimal pairs of sentences, scored by likelihood"),
    ];

    /// Reads the files, or sets up the procedure. Every gold answer is checked against its verifier here.
    ///
    /// `seed` chooses the procedural problems unless the source has a seed of its own; files ignore it.
    ///
    /// # Errors
    /// A file that cannot be read or a row that is no task (named with its line), an answer its verifier cannot use,
    /// a setting without meaning, or a `hf:` name that nobody resolved.
    pub fn open(&self, seed: u64) -> Result<TaskSet, Error> {
        let items = match self {
            Self::TinyWorld(source) => source.open(seed)?,
            Self::Gsm8k(source) => Items::Tasks(source.load()?),
            Self::File(source) => Items::Tasks(source.load()?),
            Self::MultipleChoice(source) => Items::Tasks(source.load()?),
            Self::Bbh(source) => Items::Tasks(source.load()?),
            Self::Blimp(source) => Items::Pairs(source.load()?),
        };
        if let Items::Tasks(tasks) = &items {
            distinct_ids(self.paths()[0], tasks)?;
        }
        Ok(TaskSet { name: self.name(), items })
    }

    /// A short name: the kind, or the file's name without its ending.
    pub fn name(&self) -> String {
        self.paths().first().map_or_else(|| "tiny_world".to_owned(), |path| stem(path))
    }

    /// The options set here that change demonstrations and nothing else: no prompt, no answer, no verifier. They have no
    /// effect where completions are sampled and scored.
    pub fn demonstration_options(&self) -> Vec<&'static str> {
        let option = match self {
            Self::TinyWorld(source) => source.cot.then_some("cot"),
            Self::Gsm8k(source) => source.keep_calculator.then_some("keep_calculator"),
            Self::File(source) => source.demonstration.as_ref().map(|_| "demonstration"),
            Self::MultipleChoice(_) | Self::Bbh(_) | Self::Blimp(_) => None,
        };
        option.into_iter().collect()
    }

    /// The paths that the source reads.
    pub fn paths(&self) -> Vec<&str> {
        match self {
            Self::TinyWorld(_) => Vec::new(),
            Self::Gsm8k(source) => vec![&source.path],
            Self::File(source) => vec![&source.path],
            Self::MultipleChoice(source) => vec![&source.path],
            Self::Bbh(source) => vec![&source.path],
            Self::Blimp(source) => vec![&source.path],
        }
    }

    /// The same paths, to be replaced: `hf:` names are resolved by the caller before [`open`](Self::open).
    pub fn paths_mut(&mut self) -> Vec<&mut String> {
        match self {
            Self::TinyWorld(_) => Vec::new(),
            Self::Gsm8k(source) => vec![&mut source.path],
            Self::File(source) => vec![&mut source.path],
            Self::MultipleChoice(source) => vec![&mut source.path],
            Self::Bbh(source) => vec![&mut source.path],
            Self::Blimp(source) => vec![&mut source.path],
        }
    }
}

/// Tasks, ready to be drawn by index; or pairs.
#[derive(Debug, Clone)]
pub struct TaskSet {
    name: String,
    items: Items,
}

#[derive(Debug, Clone)]
pub(crate) enum Items {
    World { world: TinyWorld, n: Option<usize> },
    Tasks(Vec<Task>),
    Pairs(Vec<Pair>),
}

impl TaskSet {
    /// The source's short name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many tasks or pairs there are; `None` for a procedure without `n`, which never ends.
    pub fn len(&self) -> Option<usize> {
        match &self.items {
            Items::World { n, .. } => *n,
            Items::Tasks(tasks) => Some(tasks.len()),
            Items::Pairs(pairs) => Some(pairs.len()),
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Task `index`, always the same one.
    ///
    /// # Errors
    /// [`Error::NoTask`] past the end, or if the set holds pairs.
    pub fn get(&self, index: u64) -> Result<Task, Error> {
        let found = match &self.items {
            Items::World { world, n } => n.is_none_or(|n| index < n as u64).then(|| world.task(index)),
            Items::Tasks(tasks) => usize::try_from(index).ok().and_then(|index| tasks.get(index)).cloned(),
            Items::Pairs(_) => None,
        };
        found.ok_or_else(|| Error::NoTask { name: self.name.clone(), index, holds: self.holds() })
    }

    /// The pairs, if that is what the source holds.
    pub fn pairs(&self) -> Option<&[Pair]> {
        match &self.items {
            Items::Pairs(pairs) => Some(pairs),
            _ => None,
        }
    }

    fn holds(&self) -> String {
        let n = self.len().map_or_else(|| "endless".to_owned(), |n| n.to_string());
        format!("{n} {}", if self.pairs().is_some() { "pairs" } else { "tasks" })
    }
}

/// Histories are kept by id, so two rows must not share one.
fn distinct_ids(path: &str, tasks: &[Task]) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    match tasks.iter().find(|task| !seen.insert(task.id.as_str())) {
        Some(twice) => Err(Error::Read { path: path.into(), why: format!("two rows have the id `{}`", twice.id) }),
        None => Ok(()),
    }
}

/// The file's name without folders and endings.
fn stem(path: &str) -> String {
    let name = Path::new(path).file_name().map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned());
    name.split('.').find(|part| !part.is_empty()).unwrap_or(path).to_owned()
}

/// A user turn with an instruction below it.
fn user_prompt(text: &str, instruction: Option<&str>) -> Vec<Message> {
    let text = text.trim_end();
    vec![Message::user(instruction.map_or_else(|| text.to_owned(), |instruction| format!("{text}\n{instruction}")))]
}

/// Which rows of a file are used: all, or `n` from `start` on, in file order or shuffled by a seed of their own.
#[derive(Clone, Copy)]
struct Subset<'a> {
    path: &'a str,
    n: Option<usize>,
    start: usize,
    shuffle_seed: Option<u64>,
}

impl Subset<'_> {
    fn apply<T>(self, mut items: Vec<T>) -> Result<Vec<T>, Error> {
        if self.n == Some(0) {
            return Err(Error::Setting { option: "n".into(), why: "expected at least 1, found 0".into() });
        }
        if items.is_empty() {
            return Err(Error::Empty { path: self.path.into(), hint: String::new() });
        }
        if let Some(seed) = self.shuffle_seed {
            Draw::new(&[seed]).shuffle(&mut items);
        }
        let rows = items.len();
        let n = self.n.unwrap_or(rows.saturating_sub(self.start).max(1));
        if self.start.saturating_add(n) > rows {
            return Err(Error::Subset { path: self.path.into(), rows, start: self.start, n });
        }
        items.drain(..self.start);
        items.truncate(n);
        Ok(items)
    }
}

/// Refuses an answer that its verifier cannot use, naming the row.
fn checked(task: Task, row: &rows::Row) -> Result<Task, Error> {
    task.verifier.check(&task.answer).map_err(|error| row.error(error.to_string()))?;
    Ok(task)
}

/// A task of a file.
fn file_task(row: &rows::Row, prompt: Vec<Message>, answer: String, verifier: Verifier) -> Result<Task, Error> {
    let id = row.text_or_number("id").unwrap_or_else(|| format!("{}:{}", stem(row.path), row.number));
    let tags = vec![format!("source={}", stem(row.path))];
    checked(Task { id, prompt, answer, verifier, tags, demonstration: None }, row)
}

#[cfg(test)]
mod tests;
