//! What a run tells the program around it. The library prints nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::ledger::Cell;
use crate::metrics::Metrics;

/// Something that happened in a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// A stage begins: its name, its kind, its number from 0, how many stages there are, and its rounds.
    StageBegin {
        /// Name.
        id: &'a str,
        /// Kind, as in the recipe.
        kind: &'a str,
        /// Number from 0.
        index: usize,
        /// Stages in the run.
        of: usize,
        /// Rounds in the stage; 0 where it has none.
        steps: usize,
        /// Rounds already done, after a resume.
        done: usize,
    },
    /// A round is done.
    Step {
        /// Stage.
        stage: &'a str,
        /// Round, from 1.
        step: usize,
        /// Rounds in the stage.
        of: usize,
        /// What was measured.
        metrics: &'a Metrics,
        /// Wall time of the round.
        seconds: f64,
        /// Tokens computed in it: prompts, completions and training rows.
        tokens: u64,
    },
    /// A task is about to be measured.
    EvalBegin {
        /// Stage after which.
        stage: &'a str,
        /// Task.
        task: &'a str,
        /// Items.
        n: usize,
    },
    /// Some items are done.
    EvalProgress {
        /// Items done.
        done: usize,
        /// Items.
        of: usize,
    },
    /// A task was measured.
    EvalEnd {
        /// The measurement.
        cell: &'a Cell,
        /// Whether it is a target.
        target: bool,
    },
    /// A checkpoint was written.
    Checkpoint {
        /// Stage.
        stage: &'a str,
        /// Rounds done in it.
        step: usize,
    },
    /// Something a person should know, such as rows that were dropped.
    Note(&'a str),
}

/// Receives the events of a run.
pub trait Watch: Send {
    /// Called in the order of events.
    fn event(&mut self, event: &Event<'_>);
}

/// Ignores all events.
#[derive(Debug, Default)]
pub struct Silent;

impl Watch for Silent {
    fn event(&mut self, _: &Event<'_>) {}
}

/// A wish to stop: set from a signal handler, read between rounds.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Never set until [`Stop::request`] is called.
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }
    /// Asks the run to write a checkpoint after the current round and end.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
    /// Whether that was asked for.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
