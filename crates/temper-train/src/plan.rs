//! What a recipe will do: rows, steps, tokens, memory, and the first training example as the model will see it.

mod beside;
mod sizes;

use std::path::Path;

use serde::Serialize;
use temper_algo::Coupling;
use temper_algo::group_reuse::{InjectFrom, InjectWhen};
use temper_data::{Encoded, Tokenizer, encode_prompt};
use temper_model::{Config, Lora};

use crate::error::Result;
use crate::memory::{self, Memory, Sizes};
use crate::models::{self as sources, Source};
use crate::recipe::{
    DataSource, EvalSource, EvalTask, ModelSpec, OfflineStage, OnlineStage, Recipe, Shape, Stage, StepRewards,
};
use crate::{examples, hub, offline};
use beside::{Beside, around};
use sizes::bounds;

pub use sizes::{offline_sizes, online_sizes};

/// What one stage will do.
#[derive(Debug, Clone, Serialize)]
pub struct StagePlan {
    /// Name.
    pub id: String,
    /// Kind, as in the recipe.
    pub kind: &'static str,
    /// Named figures, in reading order.
    pub figures: Vec<(&'static str, String)>,
    /// The first training example in runs of equal loss weight.
    pub example: Option<Vec<(String, f32)>>,
    /// What a person should know: dropped and truncated rows by cause.
    pub notes: Vec<String>,
    /// Expected peak memory, bytes by what they hold; absent where the model is not known yet.
    pub memory: Option<Memory>,
    /// What it was computed from.
    #[serde(skip)]
    sizes: Option<Sizes>,
}

/// Plans every stage. Models are not loaded, only their configuration and tokenizer; data files are read.
pub fn plan(recipe: &Recipe) -> Result<Vec<StagePlan>> {
    let mut known = Known::of(recipe)?;
    let mut plans = vec![];
    for stage in &recipe.stage {
        plans.push(match stage {
            Stage::Tokenizer(s) => simple(&s.id, "tokenizer", vec![("vocabulary", s.vocab_size.to_string())]),
            Stage::Init(s) => {
                if let Some(path) = &s.tokenizer {
                    known.tokenizer = Some(sources::load_tokenizer(&hub::local(path)?)?);
                }
                known.config = Some(s.shape.plain(known.vocabulary(recipe)));
                let count = known.config.as_ref().map_or(0, Config::parameter_count);
                simple(&s.id, "init", vec![("parameters", grouped(count))])
            }
            Stage::Offline(s) => offline(recipe, s, &known)?,
            Stage::Online(s) => online(recipe, s, &known)?,
            Stage::Evaluate(s) => {
                simple(&s.id, "evaluate", vec![("tasks", (s.tasks.len() + recipe.eval_tasks().count()).to_string())])
            }
        });
    }
    Ok(plans)
}

/// Refuses a recipe of which a stage cannot fit into `available` bytes. Only configurations are read, and data where they decide.
pub fn check_memory(recipe: &Recipe, available: Option<u64>) -> Result<()> {
    let known = Known::of(recipe)?;
    let Some(config) = known.config.as_ref().filter(|_| available.is_some()) else { return Ok(()) };
    for stage in &recipe.stage {
        let most = match stage {
            Stage::Offline(s) => {
                let context = config.max_position_embeddings;
                offline_sizes(recipe, s, (s.max_tokens.min(context), usize::MAX), &bounds(&s.streams, context))
            }
            Stage::Online(s) => {
                online_sizes(recipe, s, s.max_prompt_tokens, &bounds(&s.streams, config.max_position_embeddings))
            }
            _ => continue,
        };
        if memory::fits(stage.id(), config, &most, available).is_ok() {
            continue;
        }
        let exact = match stage {
            Stage::Offline(s) => offline(recipe, s, &known)?.sizes,
            Stage::Online(s) => online(recipe, s, &known)?.sizes,
            _ => None,
        };
        memory::fits(stage.id(), config, &exact.unwrap_or(most), available)?;
    }
    Ok(())
}

/// The longest of the first prompts of every source, tokens.
fn longest_prompt(recipe: &Recipe, s: &OnlineStage, known: &Known) -> Result<Option<usize>> {
    const LOOKED_AT: usize = 64;
    let Some(tokenizer) = &known.tokenizer else { return Ok(None) };
    let mut longest = 0;
    for mix in &s.tasks {
        let set = hub::local_tasks(&mix.source)?.open(recipe.stage_seed(&s.id))?;
        for index in 0..set.len().unwrap_or(LOOKED_AT).min(LOOKED_AT) {
            longest = longest.max(encode_prompt(tokenizer, &set.get(index as u64)?.prompt)?.len());
        }
    }
    Ok(Some(longest.min(s.max_prompt_tokens)))
}

/// Every local path and `hf:` name that a recipe reads, with the place that names it.
pub fn inputs(recipe: &Recipe) -> Vec<(String, String)> {
    let mut found = vec![];
    for (role, spec) in
        [("policy", &recipe.model.policy), ("reference", &recipe.model.reference), ("critic", &recipe.model.critic)]
    {
        let paths = spec.iter().flat_map(|s| [s.path.clone(), base(s)]).flatten();
        found.extend(paths.map(|p| (format!("model.{role}"), p)));
    }
    for stage in &recipe.stage {
        let at = format!("stage `{}`", stage.id());
        let paths = match stage {
            Stage::Tokenizer(s) => s.data.iter().flat_map(data_paths).collect(),
            Stage::Init(s) => s.tokenizer.iter().cloned().collect(),
            Stage::Offline(s) => s.data.iter().flat_map(data_paths).collect(),
            Stage::Online(s) => s.tasks.iter().flat_map(|t| task_paths(&t.source)).collect(),
            Stage::Evaluate(s) => s.tasks.iter().flat_map(eval_paths).collect::<Vec<_>>(),
        };
        let of_streams =
            stage.training().into_iter().flat_map(|t| t.streams).flat_map(|s| &s.data).flat_map(data_paths);
        let paths = paths.into_iter().chain(of_streams);
        found.extend(paths.map(|p| (at.clone(), p)));
    }
    for (task, _) in recipe.eval_tasks() {
        found.extend(eval_paths(task).into_iter().map(|p| (format!("task `{}`", task.id), p)));
    }
    found
}

/// The base of a role's adapter, as given or as the adapter names it.
fn base(spec: &ModelSpec) -> Option<String> {
    let named = || sources::base_name(Path::new(spec.path.as_ref()?)).ok();
    spec.base.clone().or_else(named)
}

fn data_paths(source: &DataSource) -> Vec<String> {
    match source {
        DataSource::File { path, .. } => vec![path.clone()],
        DataSource::Tasks { tasks, .. } => task_paths(tasks),
    }
}

fn task_paths(source: &temper_env::TaskSource) -> Vec<String> {
    source.paths().into_iter().map(String::from).collect()
}

fn eval_paths(task: &EvalTask) -> Vec<String> {
    match &task.source {
        EvalSource::Tasks { tasks } => task_paths(tasks),
        EvalSource::Nll { path, .. } => vec![path.clone()],
    }
}

/// What is known of the model before it is loaded.
struct Known {
    config: Option<Config>,
    tokenizer: Option<Tokenizer>,
}

impl Known {
    fn of(recipe: &Recipe) -> Result<Self> {
        match recipe.model.policy.as_ref().map(Source::of).transpose()?.flatten() {
            None => Ok(Self { config: None, tokenizer: None }),
            Some(source) => Ok(Self { config: Some(source.config()?), tokenizer: Some(source.tokenizer()?) }),
        }
    }

    fn vocabulary(&self, recipe: &Recipe) -> usize {
        let trained = recipe.stage.iter().find_map(|s| match s {
            Stage::Tokenizer(s) => Some(s.vocab_size),
            _ => None,
        });
        self.tokenizer.as_ref().map(Tokenizer::vocab_size).or(trained).unwrap_or(0)
    }
}

impl Shape {
    /// The shape as a configuration, for a vocabulary of `vocab_size` tokens.
    pub fn plain(&self, vocab_size: usize) -> Config {
        Config {
            intermediate_size: self.intermediate_size,
            num_key_value_heads: self.kv_heads.unwrap_or(self.heads),
            max_position_embeddings: self.max_positions,
            rope_theta: self.rope_theta,
            ..Config::llama(vocab_size, self.hidden_size, self.layers, self.heads)
        }
    }

    /// The configuration of a new model for a tokenizer.
    pub fn config(&self, tokenizer: &Tokenizer) -> Result<Config> {
        let config = Config {
            bos_token_id: tokenizer.bos_id(),
            eos_token_ids: tokenizer.eos_ids().to_vec(),
            pad_token_id: tokenizer.pad_id(),
            ..self.plain(tokenizer.vocab_size())
        };
        config.validate()?;
        Ok(config)
    }
}

fn simple(id: &str, kind: &'static str, figures: Vec<(&'static str, String)>) -> StagePlan {
    StagePlan { id: id.into(), kind, figures, example: None, notes: vec![], memory: None, sizes: None }
}

fn offline(recipe: &Recipe, s: &OfflineStage, known: &Known) -> Result<StagePlan> {
    let Some(tokenizer) = &known.tokenizer else {
        let steps = s.steps.map_or("as many as the epochs take".into(), |n| grouped(n as u64));
        return Ok(simple(&s.id, "offline", vec![("optimiser steps", steps)]));
    };
    let context = known.config.as_ref().map_or(usize::MAX, |c| c.max_position_embeddings);
    let rows = examples::prepare(s, tokenizer, context, None, recipe.stage_seed(&s.id))?;
    let (longest, tokens) = rows.tokens();
    let supervised: usize = rows.rows.iter().map(|(_, r)| r.supervised()).sum();
    let steps = offline::total_steps(s, &rows, recipe.stage_seed(&s.id))?;
    let mean = tokens as f64 / rows.rows.len().max(1) as f64;
    let per_step = s.batch.examples.map_or_else(
        || format!("at most {} tokens", grouped(s.batch.tokens.unwrap_or(0) as u64)),
        |n| format!("{n} examples, about {} tokens", grouped((n as f64 * mean) as u64)),
    );
    let mut figures = vec![
        ("examples", grouped(rows.rows.len() as u64)),
        ("tokens in the data", grouped(tokens as u64)),
        (
            "supervised",
            format!("{} ({:.1}%)", grouped(supervised as u64), 100.0 * supervised as f64 / tokens.max(1) as f64),
        ),
        ("longest example", format!("{longest} tokens")),
        ("optimiser steps", grouped(steps as u64)),
        ("a step", per_step),
    ];
    let loss = s.loss();
    if loss != temper_algo::SupervisedObjective::default() {
        let names: Vec<&str> = loss.weighted().map(|(_, o)| o.name()).collect();
        let needs: Vec<&str> = std::iter::once("logp").chain(loss.needs().names()).collect();
        figures.push(("the objective", format!("{}; it reads {}", names.join(" + "), needs.join(", "))));
    }
    let beside = Beside::of(recipe, &s.id, &s.streams, tokenizer, context)?;
    let sizes = offline_sizes(recipe, s, (longest, tokens), &beside.rows);
    figures.extend(trained(sizes.lora.as_ref(), known));
    figures.extend(beside.figures);
    figures.extend(around(&s.training()));
    figures.extend(offline::extra_passes(s).into_iter().map(|pass| ("extra pass", pass.to_string())));
    Ok(StagePlan {
        example: rows.rows.first().map(|(_, row): &(String, Encoded)| row.runs(tokenizer)),
        notes: [examples::notes(&s.data, &rows), beside.notes].concat(),
        memory: known.config.as_ref().map(|c| Memory::of(c, &sizes)),
        sizes: Some(sizes),
        ..simple(&s.id, "offline", figures)
    })
}

fn online(recipe: &Recipe, s: &OnlineStage, known: &Known) -> Result<StagePlan> {
    let completions = s.prompts_per_step * s.samples_per_prompt;
    let updates = s.steps * s.inner_epochs * s.minibatches;
    let greedy = if s.needs_greedy() { s.prompts_per_step } else { 0 };
    let times = 1 + u64::from(s.refill());
    let turns = s.environment.as_ref().map_or(1, temper_env::Environment::turns);
    let most = (turns * (completions + greedy) * s.sampling.max_tokens) as u64 * times;
    let mut figures = vec![
        ("rounds", grouped(s.steps as u64)),
        (
            "a round",
            format!("{} prompts x {} samples = {completions} completions", s.prompts_per_step, s.samples_per_prompt),
        ),
        ("prompts in all", grouped((s.steps * s.prompts_per_step) as u64)),
        ("completions in all", grouped((s.steps * completions) as u64)),
        ("optimiser steps", grouped(updates as u64)),
        ("sampled tokens", format!("at most {} a round, {} in all", grouped(most), grouped(most * s.steps as u64))),
    ];
    if greedy > 0 {
        figures.push(("greedy completions", format!("{greedy} more a round, for the baseline")));
    }
    if turns > 1 {
        figures.push(("turns", format!("{turns} of the model in each completion")));
    }
    if let Some(budget) = s.budget {
        let what = format!("{} samples at a time, until one is right", budget.stage);
        figures.push(("in stages", what));
    }
    if let Some(inject) = &s.inject {
        let what = match inject.from {
            InjectFrom::Demonstration => "a demonstration",
            InjectFrom::Stored => "an earlier right answer",
            InjectFrom::Refinement => "a refined wrong answer",
        };
        let when = match inject.when {
            InjectWhen::AllWrong => "to groups without a right answer",
            InjectWhen::Always => "to every group",
        };
        figures.push(("added", format!("{what} {when}; its log-probabilities take a forward pass over it")));
    }
    if let Some(steps) = &s.step_rewards {
        let what = match steps {
            StepRewards::Solution { .. } => "each step is compared with the task's worked solution".to_owned(),
            StepRewards::Continued { samples, max_tokens, most, .. } => format!(
                "{samples} ways to go on from each of at most {most} steps, of at most {max_tokens} tokens, sampled and scored"
            ),
        };
        figures.push(("rewards of steps", what));
    }
    if let Some(shared) = &s.shared {
        let what = format!(
            "up to {} groups of `{}` beside {} of its own in a step",
            shared.groups, shared.stage, shared.local
        );
        figures.push(("shared", what));
    }
    if s.episodic().is_some() {
        figures.push(("extra pass", "the policy's hidden rows of every completion, for the episodic memory".into()));
    }
    if times > 1 {
        figures.push(("refilling", format!("dropped groups are sampled anew, at most {} times a round", s.refill())));
    }
    let reference = s.objective.needs().contains(temper_algo::Needs::LOGP_REF);
    let needs: Vec<&str> = s.objective.needs().names().collect();
    figures.push((
        "the objective reads",
        if needs.is_empty() { "logp".into() } else { format!("logp, {}", needs.join(", ")) },
    ));
    if reference {
        figures.push(("extra pass", "log-probabilities of the reference model".into()));
    }
    if s.critic.is_some() {
        figures.push(("extra passes", "the critic's values, and its own training".into()));
    }
    let wider = match s.objective.coupling() {
        Coupling::Token => None,
        Coupling::Sequence => Some("sequences"),
        Coupling::Group => Some("groups"),
        Coupling::Step => Some("the whole step"),
    };
    if let Some(wider) = wider {
        figures
            .push(("one more pass", format!("the policy forward, since the objective couples the tokens of {wider}")));
    }
    let prompt = longest_prompt(recipe, s, known)?;
    if let Some(prompt) = prompt {
        figures.push(("longest prompt", format!("{prompt} tokens among the first of each source")));
    }
    let context = known.config.as_ref().map_or(usize::MAX, |c| c.max_position_embeddings);
    let beside = match &known.tokenizer {
        Some(tokenizer) => Beside::of(recipe, &s.id, &s.streams, tokenizer, context)?,
        None => Beside { rows: bounds(&s.streams, context), ..Beside::default() },
    };
    let sizes = online_sizes(recipe, s, prompt.unwrap_or(s.max_prompt_tokens), &beside.rows);
    figures.extend(trained(sizes.lora.as_ref(), known));
    figures.extend(beside.figures);
    figures.extend(around(&s.training()));
    Ok(StagePlan {
        notes: beside.notes,
        memory: known.config.as_ref().map(|c| Memory::of(c, &sizes)),
        sizes: Some(sizes),
        ..simple(&s.id, "online", figures)
    })
}

/// How many parameters a stage with an adapter trains.
fn trained(lora: Option<&Lora>, known: &Known) -> Option<(&'static str, String)> {
    let (lora, config) = (lora?, known.config.as_ref()?);
    let (own, all) = (lora.parameter_count(config), config.parameter_count());
    let share = 100.0 * own as f64 / (own + all).max(1) as f64;
    Some(("trained parameters", format!("{} of {} ({share:.2}%)", grouped(own), grouped(own + all))))
}

/// `1234567` as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let head = digits.len() % 3;
    let mut out = digits[..head].to_string();
    for chunk in digits.as_bytes()[head..].chunks(3) {
        if !out.is_empty() {
            out.push(',');
        }
        out.extend(chunk.iter().map(|&b| b as char));
    }
    out
}

/// Whether every input of a recipe is there: `(place, name, problem)` for those that are not. `hf:` names outside the cache
/// are "not local", which is no error.
pub fn missing(recipe: &Recipe) -> Vec<Missing> {
    let look = |(at, name): (String, String)| match hub::HubName::parse(&name) {
        Some(Ok(hub)) => hub.cached().is_none().then_some(Missing { at, name, hub: true }),
        Some(Err(_)) | None => (!Path::new(&name).exists()).then_some(Missing { at, name, hub: false }),
    };
    inputs(recipe).into_iter().filter_map(look).collect()
}

/// An input that is not on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// What names it.
    pub at: String,
    /// The path or `hf:` name.
    pub name: String,
    /// Whether it can be downloaded.
    pub hub: bool,
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn thousands() {
        assert_eq!([0, 7, 999, 1000, 1_234_567].map(grouped), ["0", "7", "999", "1,000", "1,234,567"]);
    }
}
