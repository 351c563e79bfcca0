//! The recipe: one TOML file that says everything a run does.
//!
//! [`load`] reads what a person typed, applies `--set` overrides, fills in every default and returns the [`Recipe`] that the
//! run directory keeps. [`check`] reports all problems at once, before any weight is
//! loaded.

mod adapter;
mod check;
mod input;
mod knobs;
mod load;
mod method;
mod missing;
mod parts;
mod sensitivity;
mod slots;
mod stages;
mod steps;
mod stream;
mod training;

pub use adapter::Adapter;
pub use check::{Problem, Severity, check, check_task};
pub use input::{Input, MaskInput};
pub use knobs::{KnobStates, Knobs};
pub use load::{Loaded, RecipeError, apply_set, load, parse, to_toml, to_value};
pub use method::{Family, Method};
pub use parts::{
    Batch, Clip, CriticStage, DataSource, Dtype, EvalSource, EvalTask, Generation, Mask, ModelAt, ModelSpec, Models,
    Optimizer, Overflow, Save, SaveDtype, Shape,
};
pub use sensitivity::Sensitivity;
pub(crate) use slots::matches;
pub use slots::{AfterUpdate, Freeze, GradientTransform};
pub use stages::{EvaluateStage, InitStage, OfflineStage, OnlineStage, Shared, Stage, TaskMix, TokenizerStage};
pub use steps::{Give, StepRewards};
pub use stream::{Demonstrations, Stream};
pub use training::Training;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A whole run. Every field that is not given has the default that its doc comment states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run; the default run directory is `runs/<name>`.
    pub name: String,
    /// One line on what the recipe shows, printed by `temper check` and in the report.
    #[serde(default)]
    pub about: String,
    /// The published method that the recipe is an instance of: its row in METHODS.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// The one seed of the run (default 0). All randomness is derived from it by (stage, step, task, sample).
    #[serde(default)]
    pub seed: u64,
    /// Numeric type that models compute in (default `f32`).
    #[serde(default)]
    pub dtype: Dtype,
    /// Type of the numbers in the saved `model/` (default `f32`: exactly what was measured).
    #[serde(default)]
    pub save_dtype: SaveDtype,
    /// What `model/` holds when the last stage trains an adapter (default `whole`: the model with the adapter merged into it).
    #[serde(default)]
    pub save: Save,
    /// Models by role. `policy` is the one that is trained; it may be absent when the first stages make it
    /// (`tokenizer` and `init`).
    #[serde(default)]
    pub model: Models,
    /// Tasks that the run is meant to improve, measured at the start and after every training stage.
    #[serde(default)]
    pub target: Vec<EvalTask>,
    /// Tasks that the run must not forget, measured at the same points: the retention matrix.
    #[serde(default)]
    pub retain: Vec<EvalTask>,
    /// The stages, in the order in which they run.
    pub stage: Vec<Stage>,
}

impl Recipe {
    /// Every evaluation task with whether it is a target.
    pub fn eval_tasks(&self) -> impl Iterator<Item = (&EvalTask, bool)> {
        self.target.iter().map(|t| (t, true)).chain(self.retain.iter().map(|t| (t, false)))
    }

    /// Index of the stage whose result stage `index` starts from; `None` means the model of role `policy`.
    ///
    /// `from` names it; by default it is the closest stage before that makes a model.
    pub fn parent(&self, index: usize) -> Option<usize> {
        match self.stage[index].from() {
            Some(id) => self.stage.iter().position(|s| s.id() == id),
            None => (0..index).rev().find(|&i| self.stage[i].makes_model()),
        }
    }

    /// The seed of a stage: a function of the run's seed and the stage's name.
    pub fn stage_seed(&self, stage: &str) -> u64 {
        temper_algo::split_seed(self.seed, &stage.bytes().map(u64::from).collect::<Vec<u64>>())
    }

    /// The JSON schema of a recipe, for editors (`temper recipe schema`).
    pub fn schema() -> serde_json::Value {
        let mut generator = schemars::SchemaGenerator::default();
        generator.subschema_for::<temper_algo::Knob>();
        let mut schema = generator.into_root_schema_for::<Self>().to_value();
        knobs::allow(&mut schema);
        schema
    }
}
