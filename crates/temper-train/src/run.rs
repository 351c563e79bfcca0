//! A whole run: stage by stage, resumable at any moment.

use std::path::Path;

use temper_data::{BpeOptions, Tokenizer, train_bpe};
use temper_format::DType;
use temper_format::atomic::DirWriter;
use temper_model::{Config, Model};
use temper_tensor::Ops;

use crate::checkpoint::{self, Found};
use crate::context::{Context, Outcome};
use crate::error::{Error, Result};
use crate::learner::Learner;
use crate::recipe::{self, InitStage, Recipe, RecipeError, SaveDtype, Stage, TokenizerStage};
use crate::rundir::RunDir;
use crate::state::Progress;
use crate::watch::{Stop, Watch};
use crate::{eval, examples, hub, offline, online};

/// Options of a run that do not change its results.
#[derive(Debug, Default)]
pub struct RunOptions {
    /// Go on where the directory's newest checkpoint is; start afresh when there is none.
    pub resume: bool,
    /// Written to `env.json`.
    pub env: serde_json::Value,
}

/// Runs a checked recipe in `dir`.
pub fn run(
    recipe: &Recipe,
    dir: &RunDir,
    options: &RunOptions,
    ops: &dyn Ops,
    watch: &mut dyn Watch,
    stop: &Stop,
) -> Result<Outcome> {
    let found = open(recipe, dir, options)?;
    dir.write_json(&dir.env(), &options.env)?;
    let state = found.as_ref().map(|f| f.state.clone()).unwrap_or_default();
    let mut ctx = Context::new(recipe, dir, state, ops, watch, stop)?;
    if found.is_some() {
        let (stage, step) = (ctx.state.stage, ctx.state.progress.step);
        let id = recipe.stage.get(stage).map_or("the end", |s| s.id());
        ctx.note(&format!("resumed at `{id}`, round {step}"));
    }
    let mut model = start_model(&mut ctx)?;
    if !ctx.state.measured_start {
        if let Some(model) = &model {
            eval::measure_all(&mut ctx, model, "start", &[])?;
        }
        ctx.state.measured_start = true;
        ctx.boundary()?;
    }
    let mut inside = found.filter(|f| f.state.progress != Progress::default());
    for index in ctx.state.stage..recipe.stage.len() {
        if ctx.stop_requested() {
            ctx.boundary()?;
            return Ok(Outcome::Interrupted);
        }
        let outcome = stage(&mut ctx, index, &mut model, inside.take())?;
        if outcome == Outcome::Interrupted {
            return Ok(outcome);
        }
        ctx.state.stage = index + 1;
        ctx.state.progress = Progress::default();
        ctx.boundary()?;
    }
    if let Some(model) = &model {
        save(&ctx, model, &dir.model(), recipe.save_dtype)?;
    }
    dir.write_json(&dir.ledger(), &ctx.state.ledger)?;
    Ok(Outcome::Done)
}

/// Prepares the directory: a new run, or the checkpoint to go on from.
fn open(recipe: &Recipe, dir: &RunDir, options: &RunOptions) -> Result<Option<Found>> {
    if dir.begun() && !options.resume {
        return Err(Error::user(
            format!("`{}` holds a run already", dir.root().display()),
            "add --resume to go on with it, or name another directory with --out",
        ));
    }
    dir.create()?;
    let found = checkpoint::newest(dir)?;
    let text = recipe::to_toml(recipe);
    if found.is_some() {
        same_recipe(&dir.recipe(), recipe)?;
    } else {
        temper_format::atomic::write(dir.recipe(), text.as_bytes())?;
    }
    Ok(found)
}

/// A run goes on with the recipe that it began with.
fn same_recipe(path: &Path, recipe: &Recipe) -> Result<()> {
    let source = |source| RecipeError::Read { path: path.into(), source };
    let began = recipe::parse(&std::fs::read_to_string(path).map_err(source)?, path, &[])?;
    if began == *recipe {
        return Ok(());
    }
    let (old, new) = (recipe::to_toml(&began), recipe::to_toml(recipe));
    let changed: Vec<String> =
        new.lines().filter(|l| !old.lines().any(|o| o == *l)).take(5).map(String::from).collect();
    Err(Error::user(
        format!("the run in `{}` began with another recipe; different now: {}", path.display(), changed.join("; ")),
        "resume with the recipe and --set that it began with, or start afresh in another directory with --out",
    ))
}

/// The model that the next stage starts from, and the tokenizer that goes with it.
fn start_model(ctx: &mut Context) -> Result<Option<Model>> {
    let recipe = ctx.recipe;
    let index = ctx.state.stage;
    // A tokenizer stage before an init stage leaves a tokenizer and no model.
    let tokenizer_at = (0..index).rev().find(|&i| matches!(recipe.stage[i], Stage::Tokenizer(_)));
    let parent = if index < recipe.stage.len() {
        recipe.parent(index)
    } else {
        (0..index).rev().find(|&i| recipe.stage[i].makes_model())
    };
    match parent {
        Some(i) => load(ctx, &ctx.dir.stage(recipe.stage[i].id())).map(Some),
        None => {
            if let Some(path) = recipe.model.policy.as_ref().and_then(|p| p.path.as_ref()) {
                load(ctx, &hub::local(path)?).map(Some)
            } else {
                if let Some(i) = tokenizer_at {
                    ctx.set_tokenizer(Tokenizer::from_dir(ctx.dir.stage(recipe.stage[i].id()))?);
                }
                Ok(None)
            }
        }
    }
}

/// Loads a model with its tokenizer and checks that they fit.
fn load(ctx: &mut Context, path: &Path) -> Result<Model> {
    let (model, tokenizer) = load_model(ctx.ops(), path)?;
    ctx.set_tokenizer(tokenizer);
    Ok(model)
}

/// Loads a model and its tokenizer from a Hugging Face directory or a GGUF file.
pub fn load_model(ops: &dyn Ops, path: &Path) -> Result<(Model, Tokenizer)> {
    if !path.exists() {
        return Err(Error::user(
            format!("there is no model at `{}`", path.display()),
            "give a Hugging Face directory, a .gguf file, or a Hub name such as hf:owner/name",
        ));
    }
    let model = Model::load(ops, path)?;
    let tokenizer = load_tokenizer(path)?;
    if tokenizer.vocab_size() > model.config.vocab_size {
        return Err(Error::user(
            format!(
                "the tokenizer of `{}` has {} tokens, the model's vocabulary {}",
                path.display(),
                tokenizer.vocab_size(),
                model.config.vocab_size
            ),
            "the tokenizer belongs to another model: use the one that the model was trained with",
        ));
    }
    Ok((model, tokenizer))
}

/// Loads the tokenizer of a Hugging Face directory or a GGUF file.
pub fn load_tokenizer(path: &Path) -> Result<Tokenizer> {
    Ok(if path.is_dir() {
        Tokenizer::from_dir(path)?
    } else {
        Tokenizer::from_gguf(&temper_format::Gguf::open(path)?)?
    })
}

/// Reads the configuration of a model without its weights.
pub fn load_config(path: &Path) -> Result<Config> {
    if path.is_dir() {
        let file = path.join("config.json");
        return Ok(Config::from_json(&std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?)?);
    }
    Ok(Config::from_gguf(&temper_format::Gguf::open(path)?)?)
}

/// Saves a model with its tokenizer as a Hugging Face directory, whole or not at all.
fn save(ctx: &Context, model: &Model, target: &Path, dtype: SaveDtype) -> Result<()> {
    let aside = DirWriter::create(target)?;
    let dtype = match dtype {
        SaveDtype::F32 => DType::F32,
        SaveDtype::Bf16 => DType::BF16,
    };
    model.save_into(ctx.ops(), aside.path(), dtype)?;
    ctx.tokenizer()?.save(aside.path())?;
    aside.commit()?;
    Ok(())
}

/// Runs one stage. `model` is the parent's model before, and the stage's own after.
fn stage(ctx: &mut Context, index: usize, model: &mut Option<Model>, found: Option<Found>) -> Result<Outcome> {
    let recipe = ctx.recipe;
    let this = &recipe.stage[index];
    if this.from().is_some() && found.is_none() {
        *model = start_model(ctx)?;
    }
    match this {
        Stage::Tokenizer(s) => tokenizer(ctx, s).map(|()| Outcome::Done),
        Stage::Init(s) => {
            *model = Some(init(ctx, s)?);
            finish(ctx, model.as_ref(), this)
        }
        Stage::Evaluate(s) => {
            ctx.stage_begin(&s.id, "evaluate", 0, 0);
            let model = model.as_ref().ok_or_else(|| no_model(&s.id))?;
            eval::measure_all(ctx, model, &s.id, &s.tasks)?;
            Ok(Outcome::Done)
        }
        Stage::Offline(_) | Stage::Online(_) => train(ctx, this, model, found),
    }
}

fn no_model(id: &str) -> Error {
    Error::user(
        format!("stage `{id}` has no model to start from"),
        "put a stage of kind `init` before it, or add [model.policy]",
    )
}

fn train(ctx: &mut Context, this: &Stage, model: &mut Option<Model>, found: Option<Found>) -> Result<Outcome> {
    let start = model.take().ok_or_else(|| no_model(this.id()))?;
    let reference = match this {
        Stage::Online(s) => reference(ctx, s, &start)?,
        _ => None,
    };
    let mut learner = Learner::new(ctx.ops(), start)?;
    let mut progress = Progress::default();
    if let Some(found) = found
        && let Some(adam) = found.restore(ctx.ops(), &mut learner.model)?
    {
        learner.adam = adam;
        progress = found.state.progress.clone();
    }
    let outcome = match this {
        Stage::Offline(s) => offline::run(ctx, &mut learner, s, &mut progress)?,
        Stage::Online(s) => online::run(ctx, &mut learner, reference.as_ref(), s, &mut progress)?,
        _ => Outcome::Done,
    };
    *model = Some(learner.model);
    if outcome == Outcome::Done { finish(ctx, model.as_ref(), this) } else { Ok(outcome) }
}

/// Keeps a stage's model and measures it.
fn finish(ctx: &mut Context, model: Option<&Model>, this: &Stage) -> Result<Outcome> {
    let model = model.ok_or_else(|| no_model(this.id()))?;
    save(ctx, model, &ctx.dir.stage(this.id()), SaveDtype::F32)?;
    if this.trains() {
        eval::measure_all(ctx, model, this.id(), &[])?;
    }
    Ok(Outcome::Done)
}

/// The frozen reference of an online stage, where its objective needs one.
fn reference(ctx: &Context, s: &recipe::OnlineStage, start: &Model) -> Result<Option<Model>> {
    if !s.objective.needs().contains(temper_algo::Needs::LOGP_REF) {
        return Ok(None);
    }
    let spec = ctx.recipe.model.reference.as_ref();
    match spec.and_then(|r| r.path.as_ref()) {
        None => Ok(Some(start.frozen_copy())),
        Some(path) => {
            let (model, _) = load_model(ctx.ops(), &hub::local(path)?)?;
            if model.config.vocab_size != start.config.vocab_size {
                return Err(Error::user(
                    format!(
                        "the reference model has a vocabulary of {}, the policy one of {}",
                        model.config.vocab_size, start.config.vocab_size
                    ),
                    "a reference shares the policy's vocabulary",
                ));
            }
            Ok(Some(model))
        }
    }
}

fn tokenizer(ctx: &mut Context, s: &TokenizerStage) -> Result<()> {
    ctx.stage_begin(&s.id, "tokenizer", 0, 0);
    let seed = ctx.stage_seed(&s.id);
    let mut texts = vec![];
    for (i, source) in s.data.iter().enumerate() {
        let examples = examples::examples(source, temper_algo::split_seed(seed, &[i as u64]))?;
        texts.extend(examples.iter().flat_map(examples::texts));
    }
    let defaults = BpeOptions::default();
    let options = BpeOptions {
        vocab_size: s.vocab_size,
        individual_digits: s.individual_digits,
        pad_token: if s.special_tokens.is_some() { None } else { defaults.pad_token },
        special_tokens: s.special_tokens.clone().unwrap_or(defaults.special_tokens),
        eos_token: s.eos_token.clone().unwrap_or(defaults.eos_token),
        chat_template: s.chat_template.clone().unwrap_or(defaults.chat_template),
        bos_token: None,
    };
    let made = train_bpe(texts.iter().map(String::as_str), &options)?;
    let aside = DirWriter::create(ctx.dir.stage(&s.id))?;
    made.save(aside.path())?;
    aside.commit()?;
    ctx.set_tokenizer(made);
    Ok(())
}

fn init(ctx: &mut Context, s: &InitStage) -> Result<Model> {
    ctx.stage_begin(&s.id, "init", 0, 0);
    if let Some(path) = &s.tokenizer {
        ctx.set_tokenizer(Tokenizer::from_dir(Path::new(path))?);
    }
    let config = s.shape.config(ctx.tokenizer()?)?;
    Ok(Model::init(ctx.ops(), &config, ctx.stage_seed(&s.id))?)
}
