//! Proof, without any model, that verifiers accept every gold answer and reject changed ones.

mod mutate;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::task::shorten;
use crate::{Error, Family, LEVELS, Pair, Split, Task, TaskSource, TinyWorld, Verifier};
pub(crate) use mutate::{Mutant, mutants};

/// How many failures of one cell are kept; all are counted.
const FAILURES_KEPT: usize = 20;

/// What [`validate`] found, cell by cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Validation {
    /// One for each family, level and split, or one for a file.
    pub cells: Vec<Cell>,
}

/// The counts of one cell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// `chains/L3/test`, or the source's name.
    pub name: String,
    /// Tasks (or pairs) looked at.
    pub tasks: usize,
    /// Texts that state the gold answer: the answer itself, other spellings of it, the demonstration.
    pub golds: usize,
    /// Of these, the ones that the verifier accepted. All of them should be.
    pub golds_accepted: usize,
    /// Texts that state a changed answer, never one of the same value, by what was changed.
    pub mutants: BTreeMap<&'static str, usize>,
    /// Of all mutants, the ones that the verifier did not accept. All of them should be.
    pub mutants_rejected: usize,
    /// What went wrong; the first twenty.
    pub failures: Vec<Failure>,
    /// How many went wrong.
    pub failed: usize,
}

/// One text that a verifier judged wrongly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The task.
    pub task: String,
    /// The gold answer, shortened.
    pub answer: String,
    /// The text, shortened.
    pub text: String,
    /// What is wrong: a gold answer was rejected, or which kind of changed answer was accepted.
    pub what: String,
}

impl Validation {
    /// Whether nothing went wrong.
    pub fn ok(&self) -> bool {
        self.cells.iter().all(|cell| cell.failed == 0)
    }
}

impl Cell {
    /// How many mutants there were, of every kind.
    pub fn mutants_total(&self) -> usize {
        self.mutants.values().sum()
    }

    fn add(&mut self, task: &Task) -> Result<(), Error> {
        self.tasks += 1;
        for text in gold_texts(task)? {
            self.golds += 1;
            if task.verifier.verify(&task.answer, &text)?.is_right() {
                self.golds_accepted += 1;
            } else {
                self.fail(task, &text, "the gold answer was rejected".to_owned());
            }
        }
        for Mutant { how, text } in mutants(task) {
            *self.mutants.entry(how).or_default() += 1;
            if task.verifier.verify(&task.answer, &text)?.is_right() {
                self.fail(task, &text, format!("a wrong answer was accepted ({how})"));
            } else {
                self.mutants_rejected += 1;
            }
        }
        Ok(())
    }

    fn fail(&mut self, task: &Task, text: &str, what: String) {
        self.failed += 1;
        if self.failures.len() < FAILURES_KEPT {
            let (answer, text) = (shorten(&task.answer, 80), shorten(text, 200));
            self.failures.push(Failure { task: task.id.clone(), answer, text, what });
        }
    }

    fn pair(&mut self, pair: &Pair) {
        self.tasks += 1;
        if pair.good.trim() == pair.bad.trim() {
            self.failed += 1;
            let (answer, text) = (shorten(&pair.good, 80), shorten(&pair.bad, 200));
            let what = "both texts of the pair are the same".to_owned();
            self.failures.push(Failure { task: pair.id.clone(), answer, text, what });
        }
    }
}

/// Checks the first `n` tasks of a source (fewer if it has fewer), opened with `seed`.
///
/// # Errors
/// The source cannot be opened. What verifiers get wrong is in the report.
pub fn validate(source: &TaskSource, seed: u64, n: usize) -> Result<Validation, Error> {
    let set = source.open(seed)?;
    let mut cells: Vec<Cell> = Vec::new();
    if let Some(pairs) = set.pairs() {
        pairs.iter().take(n).for_each(|pair| cell(&mut cells, set.name()).pair(pair));
        return Ok(Validation { cells });
    }
    for index in 0..set.len().map_or(n, |len| len.min(n)) {
        let task = set.get(index as u64)?;
        let name = match (task.tag("family"), task.tag("level"), task.tag("split")) {
            (Some(family), Some(level), Some(split)) => format!("{family}/L{level}/{split}"),
            _ => set.name().to_owned(),
        };
        cell(&mut cells, &name).add(&task)?;
    }
    Ok(Validation { cells })
}

/// Checks `n` tasks of every family, level and split of the tiny world, with and without worked steps.
///
/// # Errors
/// Never in practice: the tiny world's own answers fit their verifiers.
pub fn validate_tiny_world(seed: u64, n: usize) -> Result<Validation, Error> {
    let mut cells = Vec::new();
    for family in Family::ALL {
        for level in LEVELS {
            for split in Split::ALL {
                cells.push(tiny_cell(family, level, split, seed, n)?);
            }
        }
    }
    Ok(Validation { cells })
}

fn tiny_cell(family: Family, level: u8, split: Split, seed: u64, n: usize) -> Result<Cell, Error> {
    let name = format!("{}/L{level}/{}", family.name(), split.name());
    let mut cell = Cell { name, ..Cell::default() };
    for cot in [false, true] {
        let world = TinyWorld::new(&[family], &[level], split, seed, cot)?;
        (0..n as u64).try_for_each(|index| cell.add(&world.task(index)))?;
    }
    Ok(cell)
}

fn cell<'a>(cells: &'a mut Vec<Cell>, name: &str) -> &'a mut Cell {
    let at = cells.iter().position(|cell| cell.name == name).unwrap_or_else(|| {
        cells.push(Cell { name: name.to_owned(), ..Cell::default() });
        cells.len() - 1
    });
    &mut cells[at]
}

/// Texts that state the gold answer. Of a pattern's answers only the one that its data shows: nobody else knows how to
/// phrase it.
fn gold_texts(task: &Task) -> Result<Vec<String>, Error> {
    let mut texts = stated(task, &task.answer);
    texts.extend(task.demonstration.clone().filter(|shown| *shown != task.answer));
    if matches!(task.verifier, Verifier::Regex { .. }) && texts.len() > 1 {
        let accepted = task.verifier.verify(&task.answer, &texts[0])?.is_right();
        texts.remove(usize::from(accepted));
    }
    Ok(texts)
}

/// How an answer, right or wrong, is stated alone.
pub(crate) fn stated(task: &Task, answer: &str) -> Vec<String> {
    let bare = answer.trim_matches(['(', ')', '.', ' ']);
    match &task.verifier {
        Verifier::Gsm8k { strict: true } => vec![format!("#### {answer}")],
        Verifier::Gsm8k { strict: false } => vec![answer.to_owned(), format!("1 + 1 = 2\n#### {answer}")],
        Verifier::Numeric { .. } => vec![answer.to_owned(), format!("3 steps later it is {answer}.")],
        Verifier::MultipleChoice { .. } => vec![bare.to_owned(), format!("({bare})"), format!("The answer is {bare}.")],
        Verifier::Label { .. } => vec![answer.to_owned(), format!("So the answer is {answer}.")],
        Verifier::Exact { .. } | Verifier::Regex { .. } | Verifier::Final { .. } => vec![answer.to_owned()],
    }
}

#[cfg(test)]
mod tests;
