//! What a run remembers between rounds, besides parameters and optimiser moments.

use serde::{Deserialize, Serialize};
use temper_data::History;

use crate::examples::Order;
use crate::ledger::Ledger;

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
    /// Data cursor of an offline stage.
    pub order: Option<Order>,
    /// A row that was drawn and did not fit the step before.
    pub waiting: Option<usize>,
    /// Next task of each source of an online stage.
    pub cursors: Vec<u64>,
    /// Tasks left out so far because their prompt was too long.
    pub too_long: u64,
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
    /// Lengths of metrics.jsonl, timing.jsonl and rollouts.jsonl.
    pub log_lengths: [u64; 3],
}
