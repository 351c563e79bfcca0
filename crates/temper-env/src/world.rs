//! The tiny world: procedural task families that a very small model can learn, with an exact verifier each.
//!
//! A task is a pure function of (seed, split, family, level, index). Which side of the train/test border a problem lies
//! on depends on the hash of its canonical text alone (family and problem, with operands in a fixed order where order
//! does not matter), so no seed, level or index can put one problem on both sides. One problem in eight is held out.

mod family;
mod lists;
mod logic;
mod numbers;
mod text;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_data::Message;

use crate::draw::{Draw, hash_text};
use crate::verify::form::MARK;
use crate::{Error, Form, Task, Verifier};
use family::Size;
pub use family::{Axis, Family, FamilyInfo};

/// The levels that a task source may name; two harder ones exist for [`Split::Ood`] alone.
pub const LEVELS: std::ops::RangeInclusive<u8> = 1..=5;
const OOD_LEVELS: u8 = 2;

/// Which problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Seven problems in eight of the levels named.
    Train,
    /// The other eighth.
    Test,
    /// Held-out problems of the two levels above the highest one named.
    Ood,
}

impl Split {
    /// Every split.
    pub const ALL: [Self; 3] = [Self::Train, Self::Test, Self::Ood];

    /// As recipes spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
            Self::Ood => "ood",
        }
    }
}

/// Tasks of some families and levels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TinyWorld {
    families: Vec<Family>,
    levels: Vec<u8>,
    split: Split,
    seed: u64,
    cot: bool,
}

/// A problem as a family makes it, before it is dressed as a task.
pub(crate) struct Problem {
    /// What the user says.
    prompt: String,
    /// Equal for problems that differ only in what does not matter; decides the split.
    canonical: String,
    answer: String,
    /// The steps to the answer, without the answer.
    work: String,
    form: Form,
}

impl TinyWorld {
    /// The world restricted to these families, levels (1 to 5) and split. With `cot`, demonstrations show worked steps and
    /// then `=> answer`; prompts and problems are the same either way.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is no family or level, one is given twice, or a level is out of range.
    pub fn new(families: &[Family], levels: &[u8], split: Split, seed: u64, cot: bool) -> Result<Self, Error> {
        distinct("families", families, |family| family.name().to_owned())?;
        distinct("levels", levels, u8::to_string)?;
        if let Some(level) = levels.iter().find(|level| !LEVELS.contains(level)) {
            return Err(setting("levels", format!("expected levels from 1 to 5, found {level}")));
        }
        let levels = if split == Split::Ood { above(levels) } else { levels.to_vec() };
        Ok(Self { families: families.to_vec(), levels, split, seed, cot })
    }

    /// Task `index` of an endless sequence: the families and levels take turns (families fastest), so every prefix is balanced.
    pub fn task(&self, index: u64) -> Task {
        let (families, levels) = (self.families.len() as u64, self.levels.len() as u64);
        let family = self.families[(index % families) as usize];
        let level = self.levels[(index / families % levels) as usize];
        self.cell_task(family, level, index / (families * levels))
    }

    /// The levels that tasks have; for [`Split::Ood`] those above the ones named.
    pub fn levels(&self) -> &[u8] {
        &self.levels
    }

    /// The families that tasks have.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    fn cell_task(&self, family: Family, level: u8, index: u64) -> Task {
        let problem = problem(self.seed, self.split, family, level, index);
        let shown =
            if self.cot { format!("{} {MARK} {}", problem.work, problem.answer) } else { problem.answer.clone() };
        let (name, split) = (family.name(), self.split.name());
        Task {
            id: format!("{name}/L{level}/{split}/s{}/{index}", self.seed),
            prompt: vec![Message::user(problem.prompt)],
            answer: problem.answer,
            verifier: Verifier::Final { form: problem.form },
            tags: vec![format!("family={name}"), format!("level={level}"), format!("split={split}")],
            demonstration: Some(shown),
        }
    }
}

/// Draws until a problem lies on the right side of the border. Every cell holds problems of both sides (tested), and
/// each draw is independent, so this ends.
fn problem(seed: u64, split: Split, family: Family, level: u8, index: u64) -> Problem {
    let mut draw = Draw::new(&[seed, split as u64, family as u64, u64::from(level), index]);
    loop {
        let problem = family.problem(&mut draw, Size::of(family, level));
        if held_out(family, &problem) == (split != Split::Train) {
            return problem;
        }
    }
}

fn held_out(family: Family, problem: &Problem) -> bool {
    hash_text(&format!("{} {}", family.name(), problem.canonical)).is_multiple_of(8)
}

fn above(levels: &[u8]) -> Vec<u8> {
    let top = levels.iter().copied().max().unwrap_or_default();
    (top + 1..=top + OOD_LEVELS).collect()
}

fn distinct<T: PartialEq>(option: &str, items: &[T], name: impl Fn(&T) -> String) -> Result<(), Error> {
    if items.is_empty() {
        return Err(setting(option, "name at least one"));
    }
    match items.iter().enumerate().find(|(at, item)| items[..*at].contains(item)) {
        Some((_, twice)) => Err(setting(option, format!("`{}` is given twice", name(twice)))),
        None => Ok(()),
    }
}

fn setting(option: &str, why: impl Into<String>) -> Error {
    Error::Setting { option: option.into(), why: why.into() }
}

#[cfg(test)]
mod tests;
