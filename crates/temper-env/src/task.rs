//! The vocabulary: tasks, pairs and verdicts.

use serde::{Deserialize, Serialize};
use temper_data::Message;

use crate::Verifier;

/// One problem: what the model is shown, and how what it writes is checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Stable name, unique within its source.
    pub id: String,
    /// The turns before the answer.
    pub prompt: Vec<Message>,
    /// The gold answer.
    pub answer: String,
    /// How a completion is compared with the answer.
    pub verifier: Verifier,
    /// Where it comes from, as `key=value`; reports group by these.
    #[serde(default)]
    pub tags: Vec<String>,
    /// A solution that the verifier accepts, for supervised training: worked steps and the answer, or the answer alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demonstration: Option<String>,
}

impl Task {
    /// The contents of the prompt's turns, joined by blank lines: for messages and reward commands, never for a model.
    pub fn prompt_text(&self) -> String {
        let contents: Vec<&str> = self.prompt.iter().map(|message| message.content.as_str()).collect();
        contents.join("\n\n")
    }

    /// The value of the tag `key=value`, if there is one.
    pub fn tag(&self, key: &str) -> Option<&str> {
        self.tags.iter().find_map(|tag| tag.strip_prefix(key)?.strip_prefix('='))
    }
}

/// Two texts of which the first should be the likelier one; scored by likelihood, so it has no verifier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Stable name, unique within its source.
    pub id: String,
    /// The acceptable text.
    pub good: String,
    /// The unacceptable text.
    pub bad: String,
    /// Where it comes from, as `key=value`.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// What became of one completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The text held an answer and was graded.
    Graded {
        /// The weighted sum of the parts; from a verifier alone 1 (right) or 0 (wrong).
        reward: f64,
        /// Each reward part's own value by its name, before weighting; empty from a verifier alone.
        parts: Vec<(String, f64)>,
        /// What the text says, in one spelling: equal for answers that the verifier takes for the same (a numeric tolerance
        /// aside). None where nothing is extracted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        said: Option<String>,
    },
    /// The text held no answer that can be read, or the candidate's own code failed. The part that found this counts 0;
    /// the others keep their values, so that silence does not escape a penalty. Counted apart from wrong answers.
    Failed {
        /// Why there was nothing to grade.
        why: String,
        /// The weighted sum of the parts; 0 from a verifier alone.
        reward: f64,
        /// Each reward part's own value by its name, before weighting.
        parts: Vec<(String, f64)>,
    },
}

impl Verdict {
    /// A verifier's yes or no.
    pub(crate) fn of(right: bool) -> Self {
        Self::Graded { reward: f64::from(u8::from(right)), parts: Vec::new(), said: None }
    }

    /// A verifier's yes or no to what a text says.
    pub(crate) fn of_answer(right: bool, said: impl Into<String>) -> Self {
        Self::Graded { reward: f64::from(u8::from(right)), parts: Vec::new(), said: Some(said.into()) }
    }

    /// A verifier found no answer to compare.
    pub(crate) fn failed(why: impl Into<String>) -> Self {
        Self::Failed { why: why.into(), reward: 0.0, parts: Vec::new() }
    }

    /// The same with another reward.
    #[must_use]
    pub fn with_reward(mut self, earned: f64) -> Self {
        let (Self::Graded { reward, .. } | Self::Failed { reward, .. }) = &mut self;
        *reward = earned;
        self
    }

    /// The number that training uses.
    pub fn reward(&self) -> f64 {
        match self {
            Self::Graded { reward, .. } | Self::Failed { reward, .. } => *reward,
        }
    }

    /// Each part's own value, before weighting.
    pub fn parts(&self) -> &[(String, f64)] {
        match self {
            Self::Graded { parts, .. } | Self::Failed { parts, .. } => parts,
        }
    }

    /// What the text says, in one spelling, where an answer was extracted.
    pub fn said(&self) -> Option<&str> {
        match self {
            Self::Graded { said, .. } => said.as_deref(),
            Self::Failed { .. } => None,
        }
    }

    /// Why there was nothing to grade, if so.
    pub fn failure(&self) -> Option<&str> {
        match self {
            Self::Graded { .. } => None,
            Self::Failed { why, .. } => Some(why),
        }
    }

    /// Whether a verifier found the answer right: graded, with the full reward of 1. Of a verdict with parts, ask the part.
    pub fn is_right(&self) -> bool {
        matches!(self, Self::Graded { reward, .. } if *reward >= 1.0)
    }
}

/// `text` in at most `limit` characters, for messages.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(limit).collect();
    if chars.next().is_some() { format!("{head}...") } else { head }
}
