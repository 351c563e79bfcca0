//! What a run remembers between rounds, besides parameters and optimiser moments.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use temper_data::History;

use crate::digest;
use crate::error::{Error, Result};
use crate::examples::Order;
use crate::ledger::Ledger;
use crate::models::Source;
use crate::recipe::KnobStates;
use crate::rollout::Answers;
use crate::sensitivity::Sensitive;

/// Where a stage is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Rounds done.
    pub step: usize,
    /// Optimiser steps done (online: a round has `inner_epochs * minibatches`).
    pub updates: u64,
    /// Examples (offline) or prompts (online) drawn.
    pub drawn: u64,
    /// Tokens trained on.
    pub num_tokens: u64,
    /// What the stage's data was when it began: a resume needs the same.
    pub data: Seen,
    /// Data cursor of an offline stage.
    pub order: Option<Order>,
    /// A row that was drawn and did not fit the step before.
    pub waiting: Option<usize>,
    /// Where each stream is in its data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<Cursor>,
    /// Multiplier of each row of an offline stage with a constraint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub multipliers: Vec<f64>,
    /// Looks and choice of an offline stage with sensitivity dropout.
    #[serde(default, skip_serializing_if = "Sensitive::is_empty")]
    pub sensitive: Sensitive,
    /// Next task of each source of an online stage.
    pub cursors: Vec<u64>,
    /// Tasks left out so far because their prompt was too long.
    pub too_long: u64,
    /// What the advantage of an online stage remembers.
    #[serde(default)]
    pub advantage: temper_algo::AdvantageState,
    /// What the stage's moving settings remember.
    #[serde(default, skip_serializing_if = "KnobStates::is_empty")]
    pub knobs: KnobStates,
    /// Right answers of an online stage that stores them.
    #[serde(default, skip_serializing_if = "Answers::is_empty")]
    pub answers: Answers,
    /// The episodic memory of an online stage that has one.
    #[serde(default, skip_serializing_if = "temper_algo::Memory::is_empty")]
    pub memory: temper_algo::Memory,
}

/// Data as it was when a stage began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Rows or tasks of each source (0: endless).
    sizes: Vec<usize>,
    /// Digest of these rows or tasks.
    digest: u64,
}

/// Where a stream is in its data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// What its data was when the stage began.
    pub data: Seen,
    /// Which row comes next; nothing for a stream without data of its own.
    pub order: Option<Order>,
    /// A row that was drawn and did not fit the step before.
    pub waiting: Option<usize>,
    /// Demonstrations left out so far because they were too long.
    pub left_out: u64,
}

impl Seen {
    /// Notes the sizes and the digest of what `whose` trains on, or compares them with those that it began with.
    pub fn same(&mut self, whose: &str, begun: bool, sizes: &[usize], digest: u64) -> Result<()> {
        let changed = match () {
            () if !begun => None,
            () if self.sizes != sizes => Some(format!("it had {:?} rows a source, now {sizes:?}", self.sizes)),
            () if self.digest != digest => Some("as many rows as before, with other contents".into()),
            () => None,
        };
        if let Some(how) = changed {
            return Err(Error::user(
                format!("the data of {whose} has changed: {how}"),
                "restore the files that the run began with, or start afresh with another --out",
            ));
        }
        (self.sizes, self.digest) = (sizes.to_vec(), digest);
        Ok(())
    }
}

impl Progress {
    /// Notes the sizes and the digest of the stage's sources, or compares them with those that it began with.
    pub fn same_data(&mut self, stage: &str, sizes: &[usize], digest: u64) -> Result<()> {
        self.data.same(&format!("stage `{stage}`"), self.step > 0, sizes, digest)
    }
}

/// Everything small that a checkpoint holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Index of the stage in progress; the number of stages when the run is done.
    pub stage: usize,
    /// Whether the tasks were measured before the first stage.
    pub measured_start: bool,
    /// Where that stage is.
    pub progress: Progress,
    /// What was measured so far.
    pub ledger: Ledger,
    /// Per task and example: times seen, passes, losses. What samplers and curricula read.
    pub history: History,
    /// Digests of the models that the run read from outside, by role.
    #[serde(default)]
    pub models: BTreeMap<String, u64>,
    /// Lengths of metrics.jsonl, timing.jsonl and rollouts.jsonl.
    pub log_lengths: [u64; 3],
}

impl State {
    /// Notes what a role's model is read from, or compares it with what the run began with.
    pub fn same_model(&mut self, role: &str, source: &Source) -> Result<()> {
        let now = digest::of_model(source)?;
        match self.models.insert(role.into(), now) {
            Some(began) if began != now => Err(Error::user(
                format!("the files of the {role} model `{}` have changed since the run began", source.path().display()),
                "restore them, or start afresh with another --out",
            )),
            _ => Ok(()),
        }
    }

    /// Whether nothing was done or measured yet.
    pub fn is_empty(&self) -> bool {
        self.stage == 0 && self.progress.step == 0 && self.ledger.cells.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_data_is_noticed_once_a_step_was_taken() {
        let mut progress = Progress::default();
        progress.same_data("sft", &[3], 7).unwrap();
        progress.same_data("sft", &[2], 8).unwrap();
        progress.step = 1;
        progress.same_data("sft", &[2], 8).unwrap();
        assert!(progress.same_data("sft", &[3], 8).unwrap_err().to_string().contains("[2]"));
        assert!(progress.same_data("sft", &[2], 9).unwrap_err().to_string().contains("other contents"));
    }
}
