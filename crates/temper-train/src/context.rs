//! What stages share while a run goes on: device, directory, logs, the wish to stop, and who watches.

use std::time::Duration;

use serde::Serialize;
use temper_data::Tokenizer;
use temper_tensor::Ops;

use crate::adapter::Reference;
use crate::checkpoint::{self, Role};
use crate::critic::Critic;
use crate::error::{Error, Result};
use crate::learner::Learner;
use crate::metrics::Metrics;
use crate::recipe::Recipe;
use crate::rundir::{Logs, RunDir};
use crate::state::{Progress, State};
use crate::watch::{Event, Stop, Watch};

/// How a stage or a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// To its end.
    Done,
    /// After a checkpoint, because a stop was asked for.
    Interrupted,
}

/// The surroundings of a stage.
pub struct Context<'a> {
    /// The resolved recipe.
    pub recipe: &'a Recipe,
    /// The run directory.
    pub dir: &'a RunDir,
    /// Its logs.
    pub logs: Logs,
    /// What a checkpoint holds besides the stage's own progress.
    pub state: State,
    tokenizer: Option<Tokenizer>,
    ops: &'a dyn Ops,
    watch: &'a mut dyn Watch,
    stop: &'a Stop,
}

#[derive(Serialize)]
struct MetricsLine<'a> {
    stage: &'a str,
    step: usize,
    #[serde(flatten)]
    metrics: &'a Metrics,
}

#[derive(Serialize)]
struct TimingLine<'a> {
    stage: &'a str,
    step: usize,
    wall_s: f64,
    tokens_per_s: f64,
}

impl<'a> Context<'a> {
    /// The surroundings of a run in `dir`.
    pub fn new(
        recipe: &'a Recipe,
        dir: &'a RunDir,
        state: State,
        ops: &'a dyn Ops,
        watch: &'a mut dyn Watch,
        stop: &'a Stop,
    ) -> Result<Self> {
        let logs = Logs::open(dir, state.log_lengths)?;
        Ok(Self { recipe, dir, logs, state, tokenizer: None, ops, watch, stop })
    }

    /// The device.
    pub fn ops(&self) -> &'a dyn Ops {
        self.ops
    }

    /// The run's tokenizer.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::user("the run has no tokenizer yet", "put a `tokenizer` stage first, or name a model")
        })
    }

    /// What measuring a model needs: device, tokenizer, the wish to stop, and who watches.
    pub fn measuring(&mut self) -> Result<(&'a dyn Ops, &Tokenizer, &'a Stop, &mut dyn Watch)> {
        let missing = || Error::user("the run has no tokenizer yet", "put a `tokenizer` stage first, or name a model");
        Ok((self.ops, self.tokenizer.as_ref().ok_or_else(missing)?, self.stop, &mut *self.watch))
    }

    /// Sets the run's tokenizer.
    pub fn set_tokenizer(&mut self, tokenizer: Tokenizer) {
        self.tokenizer = Some(tokenizer);
    }

    /// The seed of a stage.
    pub fn stage_seed(&self, stage: &str) -> u64 {
        self.recipe.stage_seed(stage)
    }

    /// Tells the watcher.
    pub fn emit(&mut self, event: &Event<'_>) {
        self.watch.event(event);
    }

    /// Tells the watcher something in words.
    pub fn note(&mut self, text: &str) {
        self.watch.event(&Event::Note(text));
    }

    /// A note on the data of a stage, which also goes into the ledger: what was dropped or cut, by cause and count.
    pub fn data_note(&mut self, stage: &str, text: &str) {
        self.note(text);
        let note = format!("{stage}: {text}");
        if !self.state.ledger.notes.contains(&note) {
            self.state.ledger.notes.push(note);
        }
    }

    /// Tells the watcher that a stage begins.
    pub fn stage_begin(&mut self, id: &str, kind: &str, steps: usize, done: usize) {
        let (index, of) = (self.state.stage, self.recipe.stage.len());
        self.watch.event(&Event::StageBegin { id, kind, index, of, steps, done });
    }

    /// Whether a stop was asked for.
    pub fn stop_requested(&self) -> bool {
        self.stop.requested()
    }

    /// Logs a round and tells the watcher.
    pub fn log_step(
        &mut self,
        stage: &str,
        step: usize,
        of: usize,
        metrics: &Metrics,
        wall: Duration,
        tokens: u64,
    ) -> Result<()> {
        let seconds = wall.as_secs_f64();
        self.logs.metrics.append(&MetricsLine { stage, step, metrics })?;
        let tokens_per_s = tokens as f64 / seconds.max(1e-9);
        self.logs.timing.append(&TimingLine { stage, step, wall_s: seconds, tokens_per_s })?;
        self.watch.event(&Event::Step { stage, step, of, metrics, seconds, tokens });
        Ok(())
    }

    /// Writes a checkpoint inside a stage.
    /// `reference` is there where it moves.
    pub fn checkpoint(
        &mut self,
        learner: &Learner,
        critic: Option<&Critic>,
        reference: Option<&Reference>,
        progress: &Progress,
    ) -> Result<()> {
        self.state.progress = progress.clone();
        self.state.log_lengths = self.logs.sync()?;
        let trained = [Some((Role::Policy, learner)), critic.map(|c| (Role::Critic, &c.learner))];
        checkpoint::write(self.dir, &self.state, self.ops, trained.into_iter().flatten(), reference)
    }

    /// Writes a checkpoint between stages: the model is in `stages/`.
    pub fn boundary(&mut self) -> Result<()> {
        self.state.log_lengths = self.logs.sync()?;
        checkpoint::write(self.dir, &self.state, self.ops, std::iter::empty(), None)
    }
}
