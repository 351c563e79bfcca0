//! Everything that can be wrong with a recipe before a weight is loaded, reported together.

mod members;

use std::collections::BTreeSet;

use temper_algo::group_reuse::InjectFrom;
use temper_algo::{GroupShaper, Needs, RewardShaping, Schedule, Signal, Warmup, Weighting};
use temper_env::TaskSource;

use super::knobs::{self, Knobs};
use super::{
    DataSource, Dtype, EvalSource, EvalTask, Generation, ModelAt, ModelSpec, OfflineStage, OnlineStage, Optimizer,
    Recipe, Save, SaveDtype, Stage,
};
use crate::transform::Transform;

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
    eval_problems(&format!("task `{}`", task.id), task, &mut found);
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
        stage_problems(recipe, index, stage, &mut found);
    }
    for (task, _) in recipe.eval_tasks() {
        eval_problems(&format!("task `{}`", task.id), task, &mut found);
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

fn stage_problems(recipe: &Recipe, index: usize, stage: &Stage, found: &mut Found) {
    let at = format!("stage `{}`", stage.id());
    let before = || recipe.stage[..index].iter();
    if let Some(from) = stage.from() {
        match before().find(|s| s.id() == from) {
            None => found.error(
                &at,
                format!("`from` names `{from}`, which is no stage before this one"),
                "name an earlier stage",
            ),
            Some(s) if !s.makes_model() => {
                found.error(
                    &at,
                    format!("`from` names `{from}`, which makes no model"),
                    "name a stage that trains or makes a model",
                );
            }
            Some(_) => {}
        }
    } else if !matches!(stage, Stage::Tokenizer(_) | Stage::Init(_))
        && recipe.model.policy.is_none()
        && !before().any(Stage::makes_model)
    {
        found.error(
            &at,
            "there is no model to start from",
            "put a stage of kind `init` before it, or add `[model.policy]`",
        );
    }
    if let Some(adapter) = stage.adapter() {
        super::adapter::problems(&at, adapter, blocks(recipe, index), found);
    }
    match stage {
        Stage::Tokenizer(s) => {
            data_problems(&at, &s.data, found);
            if s.data.iter().any(|d| d.share().is_some()) {
                found.error(&at, "`share` has no effect: all texts of all sources are used", "remove it");
            }
            let after = &recipe.stage[index + 1..];
            let used = after.iter().find(|s| matches!(s, Stage::Init(_) | Stage::Tokenizer(_)));
            if !matches!(used, Some(Stage::Init(s)) if s.tokenizer.is_none()) {
                found.error(&at, "no `init` stage after it uses the tokenizer", "put a stage of kind `init` behind it");
            }
            found.positive(&at, "vocab_size", s.vocab_size);
            let least = 256 + s.special_tokens.as_ref().map_or(3, Vec::len);
            if s.vocab_size < least {
                found.error(
                    &at,
                    format!("`vocab_size` is {}", s.vocab_size),
                    format!("256 bytes and the special tokens need at least {least}"),
                );
            }
            let own = [s.special_tokens.is_some(), s.eos_token.is_some(), s.chat_template.is_some()];
            if !count(&own).is_multiple_of(3) {
                found.error(
                    &at,
                    "only some of `special_tokens`, `eos_token` and `chat_template` are given",
                    "they belong together: give all three, or none",
                );
            }
        }
        Stage::Init(s) => {
            let tokenizer = s.tokenizer.is_some() || before().any(|s| matches!(s, Stage::Tokenizer(_)));
            if !tokenizer {
                found.error(
                    &at,
                    "there is no tokenizer",
                    "set `tokenizer` to a directory, or put a stage of kind `tokenizer` before it",
                );
            }
            let (hidden, heads) = (s.shape.hidden_size, s.shape.heads);
            if heads > 0 && !hidden.is_multiple_of(heads) {
                found.error(
                    &at,
                    format!("shape: `hidden_size` is {hidden} and `heads` is {heads}"),
                    "every head has the same size: use a multiple of `heads` as `hidden_size`",
                );
            } else if let Err(e) = s.shape.plain(1024).validate() {
                found.error(&at, format!("shape: {e}"), "see `temper recipe schema`");
            }
        }
        Stage::Offline(s) => {
            knob_problems(&at, &s.knobs, &knobs::OFFLINE, false, found);
            s.knobs.extremes(s).iter().for_each(|s| offline_problems(recipe, &at, s, found));
        }
        Stage::Online(s) => {
            let kl = s.objective.kl.is_some() || s.objective.kl_reward.is_some();
            knob_problems(&at, &s.knobs, &knobs::ONLINE, kl, found);
            s.knobs.extremes(s).iter().for_each(|s| online_problems(recipe, &at, s, found));
        }
        Stage::Evaluate(s) => {
            if s.tasks.is_empty() && recipe.eval_tasks().next().is_none() {
                found.error(
                    &at,
                    "there is nothing to measure",
                    "give the stage `tasks`, or the recipe `[[target]]` or `[[retain]]`",
                );
            }
            s.tasks.iter().for_each(|t| eval_problems(&format!("{at}, task `{}`", t.id), t, found));
        }
    }
}

/// `movable`: the settings that are read anew in every step; `kl`: whether the stage measures one to the reference.
fn knob_problems(at: &str, knobs: &Knobs, movable: &[&str], kl: bool, found: &mut Found) {
    for (path, knob) in knobs.iter() {
        found.parts(at, path, knob.check());
        if !movable.iter().any(|start| path.starts_with(start)) {
            found.error(
                at,
                format!("`{path}` cannot move: it is read once"),
                format!("give a number; what can move is {}", movable.join("*, ")),
            );
        }
        if knob.watches() == Some(Signal::Kl) && !kl {
            found.error(
                at,
                format!("`{path}` follows the KL to the reference, which this stage does not measure"),
                "add `objective.kl` or `objective.kl_reward` to an online stage, or use a schedule",
            );
        }
    }
}

/// Blocks of the model that a stage starts from, where the recipe makes it.
fn blocks(recipe: &Recipe, index: usize) -> Option<usize> {
    match &recipe.stage[recipe.parent(index).filter(|parent| *parent < index)?] {
        Stage::Init(s) => Some(s.shape.layers),
        Stage::Tokenizer(_) => None,
        Stage::Offline(_) | Stage::Online(_) | Stage::Evaluate(_) => blocks(recipe, recipe.parent(index)?),
    }
}

fn data_problems(at: &str, data: &[DataSource], found: &mut Found) {
    if data.is_empty() {
        found.error(at, "`data` is empty", "give at least one source");
    }
    let shared = data.iter().filter(|d| d.share().is_some()).count();
    if shared != 0 && shared != data.len() {
        found.error(at, "some sources have a `share` and some have none", "give every source a `share`, or none");
    }
    for source in data {
        if source.share().is_some_and(|s| !(s > 0.0 && s.is_finite())) {
            found.error(at, format!("a `share` is {}", source.share().unwrap_or(0.0)), "shares are above 0");
        }
        if let DataSource::Tasks { n, tasks, .. } = source {
            found.positive(at, "n", *n);
            found.tasks(at, tasks);
        }
        if let DataSource::File { prompt, answer, .. } = source
            && prompt.is_some() != answer.is_some()
        {
            found.error(at, "only one of `prompt` and `answer` is given", "name both columns, or none");
        }
    }
}

fn optimizer_problems(at: &str, optimizer: &Optimizer, clip_norm: f64, found: &mut Found) {
    let Optimizer::Adamw { lr, beta1, beta2, eps, weight_decay } = *optimizer;
    let range = |name: &str, value: f64, ok: bool, expected: &str, found: &mut Found| {
        if !ok {
            found.error(at, format!("`{name}` is {value:?}"), format!("`{name}` is {expected}"));
        }
    };
    range("lr", lr, lr > 0.0 && lr.is_finite(), "above 0", found);
    range("beta1", beta1, (0.0..1.0).contains(&beta1), "in 0..1", found);
    range("beta2", beta2, (0.0..1.0).contains(&beta2), "in 0..1", found);
    let finite = |x: f64| x.is_finite() && (x as f32).is_finite();
    range("eps", eps, eps > 0.0 && finite(eps), "above 0", found);
    range("weight_decay", weight_decay, weight_decay >= 0.0 && finite(weight_decay), "0 or more", found);
    range("clip_norm", clip_norm, clip_norm >= 0.0 && finite(clip_norm), "0 (off) or more", found);
    if lr > 0.1 {
        found.warn(at, format!("`lr` is {lr}"), "AdamW usually works between 1e-7 and 1e-2");
    }
}

fn offline_problems(recipe: &Recipe, at: &str, s: &OfflineStage, found: &mut Found) {
    data_problems(at, &s.data, found);
    found.exactly_one(
        at,
        "`batch.examples` and `batch.tokens`",
        count(&[s.batch.examples.is_some(), s.batch.tokens.is_some()]),
    );
    found.exactly_one(at, "`steps` and `epochs`", count(&[s.steps.is_some(), s.epochs.is_some()]));
    for (name, value) in [("batch.examples", s.batch.examples), ("batch.tokens", s.batch.tokens), ("steps", s.steps)] {
        if let Some(value) = value {
            found.positive(at, name, value);
        }
    }
    for (name, value) in
        [("max_tokens", s.max_tokens), ("micro_tokens", s.micro_tokens), ("checkpoint_every", s.checkpoint_every)]
    {
        found.positive(at, name, value);
    }
    if s.epochs.is_some_and(|e| !(e > 0.0 && e.is_finite())) {
        found.error(at, format!("`epochs` is {}", s.epochs.unwrap_or(0.0)), "`epochs` is above 0");
    }
    if s.mask == super::Mask::All && s.prompt_weight != 0.0 {
        found.error(at, "`prompt_weight` has no effect with `mask = \"all\"`", "remove one of the two");
    }
    if !(0.0..=1.0).contains(&s.prompt_weight) {
        found.error(at, format!("`prompt_weight` is {}", s.prompt_weight), "`prompt_weight` is between 0 and 1");
    }
    optimizer_problems(at, &s.optimizer, s.clip_norm, found);
    schedule_problems(at, &s.schedule, s.steps, found);
    found.parts(at, "weighting", s.weighting.check());
    if s.weighting == (Weighting::Group {}) {
        found.error(
            at,
            "`weighting` is `group`, and every example is a group of its own",
            "use `sequence`, which is the same here",
        );
    }
    for p in s.loss().check() {
        found.error(&format!("{at}, `{}`", p.field), p.message, p.hint);
    }
    if s.loss().needs().contains(Needs::LOGP_REF) && recipe.model.reference.is_none() {
        found.error(
            at,
            "the objective compares with a reference model, and there is none",
            "add `[model.reference]` with `policy_at = \"stage_start\"` or a `path`",
        );
    }
    for (i, transform) in s.transform.iter().enumerate() {
        found.parts(at, &format!("transform.{i}"), transform.check());
    }
    let copied = s.transform.iter().any(|t| matches!(t, Transform::CopiedSpans { .. }));
    if copied && s.prompt_weight != 0.0 {
        found.error(at, "`prompt_weight` would train on what `copied_spans` leaves out", "remove one of the two");
    }
    found.parts(at, "sensitivity", s.sensitivity.iter().flat_map(super::Sensitivity::check).collect());
    if let (Some(sensitivity), Some(steps)) = (&s.sensitivity, s.steps)
        && sensitivity.every.saturating_mul(sensitivity.looks) >= steps
    {
        found.warn(
            at,
            format!("`sensitivity` chooses units after {} looks, and the stage ends before", sensitivity.looks),
            "look more often (`every`), or take more steps",
        );
    }
    found.parts(at, "input", s.input.iter().flat_map(super::Input::check).collect());
    found.parts(at, "constraint", s.constraint.iter().flat_map(temper_algo::SampleConstraint::check).collect());
}

fn online_problems(recipe: &Recipe, at: &str, s: &OnlineStage, found: &mut Found) {
    if s.tasks.is_empty() {
        found.error(at, "`tasks` is empty", "give at least one task source");
    }
    if s.tasks.iter().any(|t| !(t.share > 0.0 && t.share.is_finite())) {
        found.error(at, "a task source has a `share` that is not above 0", "shares are above 0");
    }
    for task in &s.tasks {
        found.tasks(at, &task.source);
        let shown = s.inject.as_ref().is_some_and(|i| i.from == InjectFrom::Demonstration);
        if !shown {
            found.no_demonstrations(at, &task.source);
        }
    }
    let names: BTreeSet<&str> = s.rewards.iter().map(|r| r.name.as_str()).collect();
    if names.len() < s.rewards.len() {
        found.error(at, "two rewards have the same name", "give each its own: metrics are logged under it");
    }
    if s.rewards.is_empty() {
        found.error(at, "`rewards` is empty", "add one, such as `{ name = \"correct\", kind = \"verifier\" }`");
    } else if s.rewards.iter().all(|r| r.weight == 0.0) && !s.shaping.iter().any(RewardShaping::adds) {
        found.error(at, "every reward has weight 0", "give at least one reward a weight");
    }
    for part in &s.rewards {
        if let Err(e) = part.check() {
            found.error(at, format!("reward `{}`: {e}", part.name), "see `temper recipe schema`");
        }
    }
    let positive = [
        ("steps", s.steps),
        ("prompts_per_step", s.prompts_per_step),
        ("samples_per_prompt", s.samples_per_prompt),
        ("inner_epochs", s.inner_epochs),
        ("minibatches", s.minibatches),
        ("micro_tokens", s.micro_tokens),
        ("max_batch", s.max_batch),
        ("checkpoint_every", s.checkpoint_every),
        ("max_prompt_tokens", s.max_prompt_tokens),
        ("log_rollouts_every", s.log_rollouts_every),
    ];
    for (name, value) in positive {
        found.positive(at, name, value);
    }
    group_problems(at, s, found);
    critic_problems(recipe, at, s, found);
    members::problems(recipe, at, s, found);
    if s.minibatches > s.prompts_per_step {
        found.error(
            at,
            format!("`minibatches` is {} with {} prompts in a step", s.minibatches, s.prompts_per_step),
            "a minibatch holds whole groups: use at most `prompts_per_step`",
        );
    }
    if s.objective.needs().contains(Needs::LOGP_REF) && recipe.model.reference.is_none() {
        found.error(
            at,
            "the KL term (`kl`, `kl_reward` or the surrogate's own) needs a reference model",
            "add `[model.reference]` with `policy_at = \"stage_start\"` or a `path`",
        );
    }
    if s.adapter.as_ref().is_some_and(|a| a.dropout() > 0.0) {
        found.warn(
            at,
            "`adapter.dropout` changes the trainer's log-probabilities and not the sampler's, so the first ratio is not 1",
            "set it to 0",
        );
    }
    generation_problems(at, &s.sampling, found);
    if s.sampling.temperature == 0.0 {
        found.error(at, "`temperature` is 0, so all completions of a prompt are the same", "use a temperature above 0");
    }
    if s.sampling.top_k.is_some() || s.sampling.top_p.is_some() || s.sampling.min_p.is_some() {
        found.warn(
            at,
            "`top_k`, `top_p` or `min_p` cut the sampling distribution, the trainer's log-probabilities are of the whole one",
            "leave them out for an unbiased ratio; the lost mass is reported as `sampling/lost_mass`",
        );
    }
    if let ModelSpec { policy_at: Some(ModelAt::StageStart), .. } =
        recipe.model.reference.clone().unwrap_or(ModelSpec { path: None, base: None, policy_at: None })
        && [s.inner_epochs, s.minibatches, s.steps] == [1; 3]
    {
        found.warn(
            at,
            "with one optimiser step the KL to the stage's start is always 0",
            "take more steps, or drop the term",
        );
    }
    optimizer_problems(at, &s.optimizer, s.clip_norm, found);
    let updates = found.product(at, "optimiser steps", &[s.steps, s.inner_epochs, s.minibatches]);
    found.product(at, "sampled tokens", &[s.steps, s.prompts_per_step, s.samples_per_prompt, s.sampling.max_tokens]);
    schedule_problems(at, &s.schedule, Some(updates), found);
    let completions = s.prompts_per_step.saturating_mul(s.samples_per_prompt);
    if completions > MOST {
        found.error(at, format!("a round samples {completions} completions"), format!("sample at most {MOST}"));
    }
}

/// `steps`: optimiser steps, where the recipe says.
fn schedule_problems(at: &str, schedule: &Schedule, steps: Option<usize>, found: &mut Found) {
    found.parts(at, "schedule", schedule.check());
    if let (Some(steps), Warmup::Steps(warmup)) = (steps, schedule.warmup())
        && warmup >= steps as u64
        && warmup > 0
    {
        found.warn(
            at,
            format!("the warm-up of {warmup} steps is not over after the stage's {steps}"),
            "warm up for fewer steps: the learning rate never reaches its peak",
        );
    }
}

/// The critic is there where values are read, and nowhere else.
fn critic_problems(recipe: &Recipe, at: &str, s: &OnlineStage, found: &mut Found) {
    let reads = s.objective.needs().contains(Needs::VALUE);
    let Some(critic) = &s.critic else {
        if reads {
            found.error(
                at,
                "the advantage reads a critic's values, and there is no critic",
                "add `[stage.critic]` with an `optimizer`, and `[model.critic]`; or use an advantage that compares the group",
            );
        }
        return;
    };
    if !reads {
        found.error(
            at,
            "`critic` has no effect: the advantage reads no values",
            "remove it, or use the advantage `gae`",
        );
    }
    if recipe.model.critic.is_none() {
        found.error(
            at,
            "there is a critic, and no model that it begins with",
            "add `[model.critic]` with `policy_at = \"stage_start\"` or a `path`",
        );
    }
    found.parts(at, "critic.objective", critic.objective.check());
    optimizer_problems(&format!("{at}, critic"), &critic.optimizer, critic.clip_norm, found);
    schedule_problems(&format!("{at}, critic"), &critic.schedule, None, found);
    if critic.objective.warmup_steps >= s.steps as u64 {
        found.error(
            at,
            format!("the critic trains alone for {} of {} rounds", critic.objective.warmup_steps, s.steps),
            "the policy would not be trained: use fewer `warmup_steps`",
        );
    }
}

/// Rewards of a group: their shaping, who is trained on, and what they are compared with.
fn group_problems(at: &str, s: &OnlineStage, found: &mut Found) {
    let names: Vec<&str> = s.rewards.iter().map(|r| r.name.as_str()).collect();
    let (advantage, needs) = (s.objective.advantage, s.objective.needs());
    found.parts(at, "objective", s.objective.check(s.counted_samples()));
    let round = advantage.check_round(s.prompts_per_step, s.counted_samples());
    found.parts(at, "objective.advantage", round);
    s.shaping.iter().for_each(|shaping| found.parts(at, "shaping", shaping.check(&names)));
    s.group.iter().for_each(|shaper| found.parts(at, "group", shaper.check(s.samples_per_prompt, &names)));
    if needs.contains(Needs::STEPS) {
        found.error(
            at,
            "the advantage reads `steps`: rewards of steps, which the online loop does not have yet",
            "use an advantage that compares the rollouts of a group, such as `group_z_score`",
        );
    }
    if s.refill() > MOST_REFILLS {
        found.error(
            at,
            format!("`refill` is {}", s.refill()),
            format!("a round that finds nothing samples that often: use at most {MOST_REFILLS}"),
        );
    }
    let drops = s.group.iter().any(|g| matches!(g, GroupShaper::DropConstant { .. }));
    if drops && s.samples_per_prompt == 1 {
        found.error(
            at,
            "a group of one rollout is constant, so `drop_constant` would leave out everything",
            "set `group = []`",
        );
    } else if drops && (!needs.contains(Needs::GROUP) || s.objective.kl_reward.is_some()) {
        found.warn(
            at,
            "`drop_constant` leaves out groups that this objective learns from: equal rewards are not equal advantages here",
            "set `group = []` to train on all of them",
        );
    }
}

fn generation_problems(at: &str, g: &Generation, found: &mut Found) {
    found.positive(at, "max_tokens", g.max_tokens);
    temperature_problem(at, g.temperature, found);
    if g.top_k == Some(0) {
        found.error(at, "`top_k` is 0", "leave it out to sample from the whole vocabulary");
    }
    for (name, value) in [("top_p", g.top_p), ("min_p", g.min_p)] {
        if value.is_some_and(|v| !(v > 0.0 && v <= 1.0)) {
            found.error(
                at,
                format!("`{name}` is {}", value.unwrap_or(0.0)),
                format!("`{name}` is above 0 and at most 1"),
            );
        }
    }
    let truncates = g.top_k.is_some() || g.top_p.is_some() || g.min_p.is_some();
    if g.temperature == 0.0 && truncates {
        found.error(
            at,
            "`top_k`, `top_p` and `min_p` have no effect at temperature 0",
            "remove them, or set a temperature",
        );
    }
    if g.stop.iter().any(String::is_empty) {
        found.error(at, "a `stop` string is empty", "remove it");
    }
}

fn eval_problems(at: &str, task: &EvalTask, found: &mut Found) {
    found.positive(at, "n", task.n);
    found.positive(at, "samples", task.samples);
    let completions = task.n.saturating_mul(task.samples);
    if completions > MOST_MEASURED {
        found.error(at, format!("{completions} completions are to be measured"), format!("at most {MOST_MEASURED}"));
    }
    found.positive(at, "max_tokens", task.max_tokens);
    if task.samples > 1 && task.temperature == Some(0.0) {
        found.error(
            at,
            format!("{} samples at temperature 0 are all the same", task.samples),
            "set a temperature, or `samples = 1`",
        );
    }
    if let Some(temperature) = task.temperature {
        temperature_problem(at, temperature, found);
    }
    if task.stop.iter().any(String::is_empty) {
        found.error(at, "a `stop` string is empty", "remove it");
    }
    if let EvalSource::Tasks { tasks } = &task.source {
        found.tasks(at, tasks);
        found.no_demonstrations(at, tasks);
    }
    let given = task.samples != 1 || task.temperature.is_some() || task.max_tokens != EvalTask::MAX_TOKENS;
    if task.source.likelihood() && (given || !task.stop.is_empty()) {
        found.error(
            at,
            "`samples`, `temperature`, `max_tokens` and `stop` have no effect: nothing is sampled, likelihoods are compared",
            "remove them",
        );
    }
}

fn temperature_problem(at: &str, temperature: f32, found: &mut Found) {
    if temperature != 0.0 && !(temperature >= 1e-3 && temperature.is_finite()) {
        found.error(at, format!("`temperature` is {temperature}"), "use 0 for greedy decoding, or 0.001 and more");
    }
}

fn count(given: &[bool]) -> usize {
    given.iter().filter(|g| **g).count()
}
