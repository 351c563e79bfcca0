//! Rewards: weighted parts, scored for many completions at once.

mod command;
mod group;
mod phrases;

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Pattern, Task, Verdict};
use command::Program;
pub use group::kill_children;

/// The largest magnitude of a command's reward and of a part's weight. Rewards of people's own are 0 to 1 or a few
/// hundreds; squares of numbers near the end of the range overflow, so that every advantage would silently become 0.
const LARGEST: f64 = 1e6;

/// One completion to be scored.
#[derive(Debug, Clone, Copy)]
pub struct Transcript<'a> {
    /// What was asked.
    pub task: &'a Task,
    /// What the model wrote, without special tokens.
    pub text: &'a str,
    /// Tokens that the model wrote.
    pub n_tokens: usize,
    /// Whether it was cut off before it ended by itself.
    pub truncated: bool,
}

/// One reward among several; the reward of a completion is the sum of `weight * value` over the parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
// The kind refuses unknown keys when it is read; a flattened schema has to be told so.
#[schemars(extend("unevaluatedProperties" = false))]
pub struct RewardPart {
    /// Under which its values are logged (`rewards/<name>/mean`).
    pub name: String,
    /// Its factor, of a magnitude of at most 1e6; 0 logs it only.
    #[serde(default = "one")]
    pub weight: f64,
    /// What is rewarded.
    #[serde(flatten)]
    pub kind: RewardKind,
}

fn one() -> f64 {
    1.0
}

/// What a reward part looks at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RewardKind {
    /// The task's own verifier: 1 for a right answer, else 0.
    #[serde(deserialize_with = "no_more_keys")]
    Verifier,
    /// 1 if the pattern is found in the text, else 0. Begin with `(?s)^` and end with `$` to demand the whole text.
    Format {
        /// The pattern, in the syntax of the Rust crate `regex`.
        pattern: Pattern,
    },
    /// The soft overlong penalty of DAPO (Yu et al. 2025, equation 13): 0 up to `max - buffer`, falling linearly to -1 at
    /// `max`, -1 beyond.
    Length {
        /// From this length on the penalty is full.
        max: usize,
        /// Over how much of the length before `max` it grows; 0 is a hard limit.
        #[serde(default)]
        buffer: usize,
        /// What is counted.
        #[serde(default)]
        unit: LengthUnit,
    },
    /// `-|length - target| / target`, at least -1: for a wanted length.
    TargetLength {
        /// The length without penalty.
        target: usize,
        /// What is counted.
        #[serde(default)]
        unit: LengthUnit,
    },
    /// How many of the phrases the text has (each counts once, in any case) over `full`, at most 1, less how many different runs of `repeats`
    /// words come more than once, over all such runs; never below 0. The reasoning pattern reward: Lv et al., arXiv 2505.22653
    /// (B149), with 40 phrases such as "let me check", 20 and 20 in the released code.
    Phrases {
        /// What is looked for.
        phrases: Vec<String>,
        /// How many earn the full reward.
        full: usize,
        /// Words in a run (default 20).
        #[serde(default = "twenty")]
        repeats: usize,
    },
    /// 1 if the model ended by itself, 0 if it was cut off at `max_tokens` or the end of the context.
    #[serde(deserialize_with = "no_more_keys")]
    NotTruncated,
    /// A program of your own, kept running. For each completion it reads one JSON line `{"index", "id", "prompt",
    /// "messages", "completion", "answer", "tags", "n_tokens", "truncated"}` and writes one JSON line `{"reward": 0.5}`,
    /// in the same order; or `{"failed": "why"}` where there is nothing to grade, which counts 0 and is reported apart.
    /// Rewards are from -1e6 to 1e6. An answer may repeat the `index`, which is then checked; any line beyond one answer
    /// for each request is an error, so messages belong on stderr.
    Command {
        /// The program and its arguments; no shell is involved.
        command: Vec<String>,
        /// Seconds that one answer may take.
        #[serde(default = "command_timeout")]
        timeout_s: f64,
    },
}

/// What a length is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LengthUnit {
    /// Tokens of the model, the end-of-turn token included.
    #[default]
    Tokens,
    /// Characters of the text.
    Chars,
}

fn command_timeout() -> f64 {
    30.0
}
fn twenty() -> usize {
    20
}

/// Serde ignores further keys beside a unit variant's tag; an option without effect must be an error.
fn no_more_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    Nothing::deserialize(deserializer).map(|Nothing {}| ())
}

impl RewardPart {
    /// Whether the settings mean something.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the key.
    pub fn check(&self) -> Result<(), Error> {
        let no = |key: &str, why: String| Err(Error::Setting { option: format!("{}.{key}", self.name), why });
        if self.name.trim().is_empty() {
            return Err(Error::Setting { option: "name".into(), why: "a reward needs a name".into() });
        }
        if self.weight.is_nan() || self.weight.abs() > LARGEST {
            return no("weight", format!("expected a number from -{LARGEST:e} to {LARGEST:e}, found {}", self.weight));
        }
        match &self.kind {
            RewardKind::Length { max, buffer, .. } if *max == 0 || buffer > max => no(
                "buffer",
                format!("expected at least 1 for `max` and no more than that for `buffer`, found {max} and {buffer}"),
            ),
            RewardKind::Phrases { phrases, .. } if phrases.is_empty() || phrases.iter().any(String::is_empty) => {
                no("phrases", "expected at least one, none of them empty".into())
            }
            RewardKind::Phrases { full: 0, .. } | RewardKind::Phrases { repeats: 0, .. } => {
                no("full", "expected at least 1 for `full` and for `repeats`".into())
            }
            RewardKind::TargetLength { target: 0, .. } => no("target", "expected at least 1, found 0".into()),
            RewardKind::Command { command, .. } if command.first().is_none_or(String::is_empty) => {
                no("command", "name a program, such as [\"python3\", \"reward.py\"]".into())
            }
            // A day: above that a duration could overflow, and nobody means it.
            RewardKind::Command { timeout_s, .. } if !(*timeout_s > 0.0 && *timeout_s <= 86_400.0) => {
                no("timeout_s", format!("expected seconds above 0 and at most 86400, found {timeout_s}"))
            }
            _ => Ok(()),
        }
    }
}

/// Scores completions. Reward commands start at the first use, stay alive between calls, and are killed with their
/// process groups when this is dropped, or by [`kill_children`].
#[derive(Debug)]
pub struct Scorer {
    parts: Vec<(RewardPart, Option<Program>)>,
}

/// One part's view of one completion.
struct Mark {
    value: f64,
    failed: Option<String>,
    said: Option<String>,
}

impl Mark {
    fn of(value: f64) -> Self {
        Self { value, failed: None, said: None }
    }

    fn yes(yes: bool) -> Self {
        Self::of(f64::from(u8::from(yes)))
    }
}

impl Scorer {
    /// A scorer for these parts.
    ///
    /// # Errors
    /// [`Error::Setting`] if there are none, two share a name, or a setting has no meaning.
    pub fn new(parts: &[RewardPart]) -> Result<Self, Error> {
        let setting = |why: String| Error::Setting { option: "rewards".into(), why };
        if parts.is_empty() {
            return Err(setting("name at least one reward".into()));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = parts.iter().find(|part| !names.insert(part.name.as_str())) {
            return Err(setting(format!("two rewards are called `{}`", twice.name)));
        }
        parts.iter().try_for_each(RewardPart::check)?;
        Ok(Self { parts: parts.iter().map(|part| (part.clone(), program(part))).collect() })
    }

    /// The verdicts, in the order of the transcripts. All go to a reward command before its first answer is awaited, but
    /// for the first one after its start, which goes alone.
    ///
    /// # Errors
    /// A fault of a reward command or of a task's gold answer; nothing is scored then.
    pub fn score(&mut self, transcripts: &[Transcript]) -> Result<Vec<Verdict>, Error> {
        let columns = self
            .parts
            .iter_mut()
            .map(|(part, program)| marks(part, program.as_mut(), transcripts))
            .collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<&RewardPart> = self.parts.iter().map(|(part, _)| part).collect();
        Ok((0..transcripts.len()).map(|at| verdict(&parts, columns.iter().map(|column| &column[at]))).collect())
    }
}

fn program(part: &RewardPart) -> Option<Program> {
    match &part.kind {
        RewardKind::Command { command, timeout_s } => {
            Some(Program::new(part.name.clone(), command.clone(), *timeout_s))
        }
        _ => None,
    }
}

fn marks(part: &RewardPart, program: Option<&mut Program>, transcripts: &[Transcript]) -> Result<Vec<Mark>, Error> {
    match program {
        Some(program) => program.marks(transcripts),
        None => transcripts.iter().map(|transcript| mark(&part.kind, transcript)).collect(),
    }
}

fn mark(kind: &RewardKind, transcript: &Transcript) -> Result<Mark, Error> {
    Ok(match kind {
        RewardKind::Verifier => {
            let verdict = transcript.task.verifier.verify(&transcript.task.answer, transcript.text)?;
            Mark {
                value: verdict.reward(),
                failed: verdict.failure().map(str::to_owned),
                said: verdict.said().map(str::to_owned),
            }
        }
        RewardKind::Format { pattern } => Mark::yes(pattern.regex().is_match(transcript.text)),
        RewardKind::Length { max, buffer, unit } => Mark::of(overlong(length(transcript, *unit), *max, *buffer)),
        RewardKind::TargetLength { target, unit } => {
            let (length, target) = (length(transcript, *unit) as f64, *target as f64);
            Mark::of(-((length - target).abs() / target).min(1.0))
        }
        RewardKind::Phrases { phrases, full, repeats } => {
            Mark::of(phrases::pattern(transcript.text, phrases, *full, *repeats))
        }
        RewardKind::NotTruncated => Mark::yes(!transcript.truncated),
        RewardKind::Command { .. } => Mark::of(0.0),
    })
}

fn length(transcript: &Transcript, unit: LengthUnit) -> usize {
    match unit {
        LengthUnit::Tokens => transcript.n_tokens,
        LengthUnit::Chars => transcript.text.chars().count(),
    }
}

fn overlong(length: usize, max: usize, buffer: usize) -> f64 {
    let free = max - buffer;
    if length <= free {
        0.0
    } else if length >= max {
        -1.0
    } else {
        -((length - free) as f64) / buffer as f64
    }
}

fn verdict<'a>(parts: &[&RewardPart], marks: impl Iterator<Item = &'a Mark>) -> Verdict {
    let (mut reward, mut values, mut failed, mut said) = (0.0, Vec::with_capacity(parts.len()), None, None);
    for (part, mark) in parts.iter().zip(marks) {
        reward += part.weight * mark.value;
        values.push((part.name.clone(), mark.value));
        failed = failed.or_else(|| mark.failed.clone());
        said = said.or_else(|| mark.said.clone());
    }
    match failed {
        Some(why) => Verdict::Failed { why, reward, parts: values },
        None => Verdict::Graded { reward, parts: values, said },
    }
}

#[cfg(test)]
mod tests;
