//! The retention ledger: a stage-by-task matrix of what was gained and what was lost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use temper_algo::stats::paired_difference;

/// What a column of the matrix measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRow {
    /// Name of the evaluation task.
    pub id: String,
    /// Whether the run is meant to improve it (else: to keep it).
    pub target: bool,
    /// `accuracy`, or `nll` where lower is better.
    pub metric: String,
}

/// One measurement: a task after a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Stage after which it was measured; `start` before the first.
    pub stage: String,
    /// The task.
    pub task: String,
    /// Items measured.
    pub n: usize,
    /// Share of items solved (mean over samples); absent for likelihood tasks.
    pub accuracy: Option<f64>,
    /// Lower end of the 95% interval (Wilson where every item is right or wrong, Student over items otherwise); absent
    /// where one item has none.
    pub low: Option<f64>,
    /// Upper end of the interval.
    pub high: Option<f64>,
    /// Tokens that the NLL is the mean of.
    #[serde(default)]
    pub tokens: Option<f64>,
    /// Items that the source has; absent where it has no end.
    #[serde(default)]
    pub of: Option<usize>,
    /// pass@k by k, where several samples were drawn (Chen et al. 2021, the unbiased estimator).
    pub pass_at_k: Option<BTreeMap<usize, f64>>,
    /// Negative log-likelihood per token, nats; absent where it was not measured.
    pub nll: Option<f64>,
    /// Mean completion length in tokens; absent for likelihood tasks.
    pub mean_length: Option<f64>,
    /// Share of completions in which the verifier found no answer at all.
    pub unparsed: Option<f64>,
    /// Share of completions cut off by `max_tokens` or the context.
    pub truncated: Option<f64>,
    /// Items left out (prompt longer than the context), by cause.
    pub dropped: BTreeMap<String, usize>,
    /// Change of the metric against `start`, with a 95% interval paired over items.
    pub change: Option<Change>,
    /// The metric of each item, in order: what paired comparisons read.
    pub items: Vec<f32>,
}

/// A paired difference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Stage compared with.
    pub against: String,
    /// Mean difference over items.
    pub mean: f64,
    /// Lower end of the 95% interval.
    pub low: f64,
    /// Upper end of the 95% interval.
    pub high: f64,
    /// Items that rose.
    pub gained: u64,
    /// Items that fell.
    pub lost: u64,
    /// Exact two-sided sign test over the items that changed (McNemar's).
    pub p_value: f64,
}

/// The matrix with its rows and columns: `ledger.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Ledger {
    /// Stages in the order in which they were measured.
    pub stages: Vec<String>,
    /// Tasks in the recipe's order: targets first.
    pub tasks: Vec<TaskRow>,
    /// Measurements in the order in which they were made.
    pub cells: Vec<Cell>,
    /// What was left out or cut of the stages' data, by cause and count.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Ledger {
    /// The measurement of `task` after `stage`.
    pub fn cell(&self, stage: &str, task: &str) -> Option<&Cell> {
        self.cells.iter().find(|c| c.stage == stage && c.task == task)
    }

    /// Adds a measurement, with its change against the first one of the same task.
    pub fn add(&mut self, row: TaskRow, mut cell: Cell, seed: u64) {
        if !self.stages.contains(&cell.stage) {
            self.stages.push(cell.stage.clone());
        }
        if let Some(first) = self.cells.iter().find(|c| c.task == cell.task && c.items.len() == cell.items.len()) {
            cell.change = change(first, &cell, seed);
        }
        if !self.tasks.iter().any(|t| t.id == row.id) {
            self.tasks.push(row);
        }
        self.cells.push(cell);
    }
}

fn change(first: &Cell, now: &Cell, seed: u64) -> Option<Change> {
    let wide = |cell: &Cell| cell.items.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let found = paired_difference(&wide(first), &wide(now), 0.95, 1000, seed).ok()?;
    Some(Change {
        against: first.stage.clone(),
        mean: found.difference,
        low: found.low,
        high: found.high,
        gained: found.gained,
        lost: found.lost,
        p_value: found.p_value,
    })
}
