//! Everything that can be wrong with a recipe before a weight is loaded, reported together.

mod members;
mod offline;
mod online;
mod parts;
mod slots;
mod stage;
mod streams;

use std::collections::BTreeSet;

use temper_env::TaskSource;

use super::{Dtype, EvalTask, ModelSpec, Recipe, Save, SaveDtype, Stage};

/// The largest count that a recipe may ask for.
const MOST: usize = 100_000_000;

/// The most completions that one measurement holds in memory.
const MOST_MEASURED: usize = 1_000_000;
/// The most times that a round may sample to replace groups that were dropped.
const MOST_REFILLS: u32 = 100;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The run works, but probably not as meant.
    Warning,
    /// The run cannot start.
    Error,
}

/// One problem of a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where, such as ``stage `grpo` ``.
    pub at: String,
    /// What is wrong: the value and what was expected.
    pub what: String,
    /// The way out.
    pub hint: String,
    /// How bad it is.
    pub severity: Severity,
}

/// Checks an evaluation task that stands alone.
pub fn check_task(task: &EvalTask) -> Vec<Problem> {
    let mut found = Found::default();
    parts::eval_problems(&format!("task `{}`", task.id), task, &mut found);
    found.0
}

/// Checks a recipe without touching a file.
pub fn check(recipe: &Recipe) -> Vec<Problem> {
    let mut found = Found::default();
    recipe_problems(recipe, &mut found);
    for (key, what, hint) in recipe.method.iter().flat_map(super::Method::problems) {
        found.error(&format!("method.{key}"), what, hint);
    }
    for (index, stage) in recipe.stage.iter().enumerate() {
        stage::problems(recipe, index, stage, &mut found);
    }
    for (task, _) in recipe.eval_tasks() {
        parts::eval_problems(&format!("task `{}`", task.id), task, &mut found);
    }
    found.0
}

#[derive(Default)]
pub(super) struct Found(Vec<Problem>);

impl Found {
    pub(super) fn error(&mut self, at: &str, what: impl Into<String>, hint: impl Into<String>) {
        self.push(at, what.into(), hint.into(), Severity::Error);
    }
    fn warn(&mut self, at: &str, what: impl Into<String>, hint: impl Into<String>) {
        self.push(at, what.into(), hint.into(), Severity::Warning);
    }
    /// A stage with moving settings is looked at twice, and says everything once.
    fn push(&mut self, at: &str, what: String, hint: String, severity: Severity) {
        let problem = Problem { at: at.into(), what, hint, severity };
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }
    fn parts(&mut self, at: &str, part: &str, problems: Vec<temper_algo::Problem>) {
        for p in problems {
            self.error(&format!("{at}, `{part}.{}`", p.field), p.message, p.hint);
        }
    }
    /// A count: at least 1, and no more than anybody means (so that no size overflows or fills the memory).
    fn positive(&mut self, at: &str, name: &str, value: usize) {
        if value == 0 || value > MOST {
            self.error(at, format!("`{name}` is {value}"), format!("give `{name}` a value from 1 to {MOST}"));
        }
    }
    /// A product of counts, small enough that nothing computed from it overflows.
    fn product(&mut self, at: &str, what: &str, factors: &[usize]) -> usize {
        let all = factors.iter().try_fold(1usize, |a, &b| a.checked_mul(b)).filter(|&n| n <= MOST * MOST / 10);
        if all.is_none() {
            let factors: Vec<String> = factors.iter().map(usize::to_string).collect();
            self.error(at, format!("{} {what} in all", factors.join(" x ")), "use smaller counts");
        }
        all.unwrap_or(usize::MAX)
    }
    /// Settings of a task source that need no file.
    fn tasks(&mut self, at: &str, source: &TaskSource) {
        if source.paths().is_empty()
            && let Err(e) = source.open(0)
        {
            self.error(at, e.to_string(), "see `temper env list`");
        }
    }
    /// Options that change what supervised training shows, where nothing is shown.
    fn no_demonstrations(&mut self, at: &str, source: &TaskSource) {
        for option in source.demonstration_options() {
            self.error(
                at,
                format!("`{option}` has no effect: it changes the worked solutions that supervised training shows"),
                "remove it",
            );
        }
    }
    fn exactly_one(&mut self, at: &str, names: &str, given: usize) {
        if given != 1 {
            let what = if given == 0 { "none" } else { "more than one" };
            self.error(at, format!("{what} of {names} is given"), format!("give exactly one of {names}"));
        }
    }
}

fn recipe_problems(recipe: &Recipe, found: &mut Found) {
    if !names_a_directory(&recipe.name) {
        found.error(
            "recipe",
            format!("`name` is {:?}", recipe.name),
            "use letters, digits, `-`, `_` and `.`, which does not come first: it names the run directory",
        );
    }
    if recipe.stage.is_empty() {
        found.error("recipe", "there is no `[[stage]]`", "add at least one stage");
    }
    let mut ids = BTreeSet::from(["start"]);
    for stage in &recipe.stage {
        if !names_a_directory(stage.id()) {
            found.error(
                "recipe",
                format!("stage id {:?}", stage.id()),
                "use letters, digits, `-`, `_` and `.`, which does not come first: it names a directory",
            );
        }
        if !ids.insert(stage.id()) {
            found.error(
                "recipe",
                format!("two stages have the id `{}`", stage.id()),
                "ids are unique; `start` is taken",
            );
        }
    }
    let mut ids = BTreeSet::new();
    let more = recipe.stage.iter().flat_map(|s| if let Stage::Evaluate(s) = s { s.tasks.as_slice() } else { &[] });
    for task in recipe.eval_tasks().map(|(t, _)| t).chain(more) {
        if task.id.is_empty() || task.id.chars().any(char::is_control) {
            found.error("recipe", format!("evaluation task id {:?}", task.id), "use printable characters");
        }
        if !ids.insert(&task.id) {
            found.error("recipe", format!("two evaluation tasks have the id `{}`", task.id), "give each its own id");
        }
    }
    if recipe.save_dtype != SaveDtype::F32 && !recipe.stage.iter().any(Stage::makes_model) {
        found.error("recipe", "`save_dtype` has no effect: no stage makes a model", "remove it");
    }
    let tokenizers_alone = recipe.stage.iter().all(|s| matches!(s, Stage::Tokenizer(_)));
    if recipe.dtype != Dtype::F32 && tokenizers_alone && recipe.eval_tasks().next().is_none() {
        found.error("recipe", "`dtype` has no effect: no stage runs a model", "remove it");
    }
    let last = recipe.stage.iter().rev().find(|s| s.makes_model());
    if recipe.save == Save::Adapter && last.is_none_or(|s| s.adapter().is_none()) {
        found.error(
            "recipe",
            "`save` is `adapter`, and the last stage trains none",
            "remove it, or give the stage an `adapter`",
        );
    }
    if recipe.save == Save::Adapter && recipe.save_dtype != SaveDtype::F32 {
        found.error("recipe", "`save_dtype` has no effect: an adapter is saved in f32", "remove it, or `save`");
    }
    model_problems(recipe, found);
}

/// One plain component of a path; `.` and `..` are none.
fn names_a_directory(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(plain)
}

fn model_problems(recipe: &Recipe, found: &mut Found) {
    let inits = recipe.stage.iter().any(|s| matches!(s, Stage::Init(_)));
    match &recipe.model.policy {
        Some(ModelSpec { path: Some(_), policy_at: None, .. }) => {}
        Some(_) => found.error(
            "model.policy",
            "`path` is missing or not alone",
            "give `path` (and `base`, for an adapter), and nothing else",
        ),
        None if inits => {}
        None => found.error(
            "model.policy",
            "there is no policy model",
            "add `[model.policy]` with `path = \"...\"`, or a stage of kind `init`",
        ),
    }
    if let Some(spec) = &recipe.model.critic {
        let given = usize::from(spec.path.is_some()) + usize::from(spec.policy_at.is_some());
        found.exactly_one("model.critic", "`path` and `policy_at`", given);
        if !recipe.stage.iter().any(|s| matches!(s, Stage::Online(s) if s.critic.is_some())) {
            found.error(
                "model.critic",
                "no stage has a critic, so it would have no effect",
                "remove `[model.critic]`, or give an online stage a `critic`",
            );
        }
    }
    if let Some(spec) = &recipe.model.reference {
        let given = usize::from(spec.path.is_some()) + usize::from(spec.policy_at.is_some());
        found.exactly_one("model.reference", "`path` and `policy_at`", given);
        if spec.base.is_some() && spec.path.is_none() {
            found.error(
                "model.reference",
                "`base` has no effect without `path`",
                "remove it, or give the `path` of an adapter",
            );
        }
        if !recipe.stage.iter().any(Stage::needs_reference) {
            found.error(
                "model.reference",
                "no stage uses the reference model, so it would have no effect",
                "remove `[model.reference]`, or give an online stage a `kl` term or an offline one a term of the reference",
            );
        }
    }
}
