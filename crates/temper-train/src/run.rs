//! A whole run: stage by stage, resumable at any moment.

use std::path::Path;

use serde_json::Value;
use temper_algo::split_seed;
use temper_data::{BpeOptions, train_bpe};
use temper_format::DType;
use temper_format::atomic::DirWriter;
use temper_model::Model;
use temper_tensor::Ops;

use crate::adapter::{self, Reference};
use crate::checkpoint::{self, Found, Role};
use crate::context::{Context, Outcome};
use crate::critic::Critic;
use crate::error::{Error, Result};
use crate::learner::Learner;
use crate::models::{Source, load_tokenizer};
use crate::recipe::{
    self, Dtype, InitStage, ModelSpec, Recipe, RecipeError, Save, SaveDtype, Stage, TokenizerStage, Training,
};
use crate::rundir::{Lock, RunDir};
use crate::state::Progress;
use crate::watch::{Stop, Watch};
use crate::{eval, examples, hub, offline, online, plan, slots};

/// Options of a run that do not change its results.
#[derive(Debug, Default)]
pub struct RunOptions {
    /// Go on where the directory's newest checkpoint is; start afresh when there is none.
    pub resume: bool,
    /// Written to `env.json`.
    pub env: serde_json::Value,
}

/// Runs a checked recipe in `dir`.
///
/// The whole run is a task of rayon's current pool: an operation then forks from inside it, which is cheaper than handing
/// each one over from outside.
pub fn run(
    recipe: &Recipe,
    dir: &RunDir,
    options: &RunOptions,
    ops: &dyn Ops,
    watch: &mut dyn Watch,
    stop: &Stop,
) -> Result<Outcome> {
    plan::check_memory(recipe, temper_model::memory::available())?;
    rayon::scope(|_| stages(recipe, dir, options, ops, watch, stop))
}

fn stages(
    recipe: &Recipe,
    dir: &RunDir,
    options: &RunOptions,
    ops: &dyn Ops,
    watch: &mut dyn Watch,
    stop: &Stop,
) -> Result<Outcome> {
    let (found, _lock) = open(recipe, dir, options)?;
    let other_isa = write_env(dir, options, recipe.dtype, found.is_some())?;
    let state = found.as_ref().map(|f| f.state.clone()).unwrap_or_default();
    let mut ctx = Context::new(recipe, dir, state, ops, watch, stop)?;
    if let Some(found) = &found {
        for name in &found.damaged {
            ctx.note(&format!("checkpoint {name} is damaged and passed over"));
        }
        let (stage, step) = (ctx.state.stage, ctx.state.progress.step);
        let id = recipe.stage.get(stage).map_or("the end", |s| s.id());
        ctx.note(&format!("resumed at `{id}`, round {step}"));
        if let Some(isa) = other_isa {
            ctx.note(&format!("the run began on {isa}: from here on its bits differ from an uninterrupted run's"));
        }
    }
    if recipe.dtype == Dtype::Bf16 && temper_tensor::dot() == temper_tensor::Dot::Fma {
        ctx.note(
            "this processor has no products of bf16: `dtype = \"bf16\"` is computed by f32 multiply-adds, no faster in training than f32",
        );
    }
    let first = ctx.state.stage;
    let mut held = Held { model: None, of: None };
    if !ctx.state.measured_start {
        if recipe.model.policy.is_some() {
            let model = held.get(&mut ctx, Origin::Policy)?;
            if eval::measure_all(&mut ctx, model, "start", &[])? == Outcome::Interrupted {
                return Ok(Outcome::Interrupted);
            }
        }
        ctx.state.measured_start = true;
        ctx.boundary()?;
    }
    let mut inside = found.filter(|f| f.state.progress != Progress::default());
    for index in first..recipe.stage.len() {
        // A checkpoint exists here: the one of the stage before, or the one that was resumed.
        if ctx.stop_requested() || stage(&mut ctx, index, &mut held, inside.take())? == Outcome::Interrupted {
            return Ok(Outcome::Interrupted);
        }
        ctx.state.stage = index + 1;
        ctx.state.progress = Progress::default();
        ctx.boundary()?;
    }
    if let Some(last) = (0..recipe.stage.len()).rev().find(|&i| recipe.stage[i].makes_model()) {
        match recipe.save {
            Save::Whole => {
                let model = held.get(&mut ctx, Origin::Stage(last))?;
                save(&ctx, model, &dir.model(), recipe.save_dtype)?;
            }
            Save::Adapter => copy(&dir.stage(recipe.stage[last].id()), &dir.model())?,
        }
    }
    dir.write_json(&dir.ledger(), &ctx.state.ledger)?;
    Ok(Outcome::Done)
}

/// Takes the directory and prepares it: a new run, or the checkpoint to go on from.
fn open(recipe: &Recipe, dir: &RunDir, options: &RunOptions) -> Result<(Option<Found>, Lock)> {
    dir.create()?;
    let lock = dir.lock()?;
    let mut found = checkpoint::newest(dir)?;
    // A run that ended before it had anything, because of its data say, is begun anew.
    let empty = |found: &Found| found.state.is_empty();
    if found.as_ref().is_none_or(empty) {
        found = None;
    } else if !options.resume {
        return Err(Error::user(
            format!("`{}` holds a run already", dir.root().display()),
            "add --resume to go on with it, or name another directory with --out",
        ));
    }
    let text = recipe::to_toml(recipe);
    if found.is_some() {
        same_recipe(&dir.recipe(), recipe)?;
    } else {
        temper_format::atomic::write(dir.recipe(), text.as_bytes())?;
    }
    Ok((found, lock))
}

/// A run goes on with the recipe that it began with.
fn same_recipe(path: &Path, recipe: &Recipe) -> Result<()> {
    let source = |source| RecipeError::Read { path: path.into(), source };
    let began = recipe::parse(&std::fs::read_to_string(path).map_err(source)?, path, &[])?;
    if began == *recipe {
        return Ok(());
    }
    let (old, new) = (recipe::to_toml(&began), recipe::to_toml(recipe));
    let only = |a: &str, b: &str| {
        let lines: Vec<&str> = a.lines().filter(|l| !l.is_empty() && !b.lines().any(|o| o == *l)).take(5).collect();
        if lines.is_empty() { "nothing".to_owned() } else { lines.join("; ") }
    };
    Err(Error::user(
        format!(
            "the run in `{}` began with another recipe; only then: {}; only now: {}",
            path.display(),
            only(&old, &new),
            only(&new, &old)
        ),
        "resume with the recipe and --set that it began with, or start afresh in another directory with --out",
    ))
}

/// `env.json`: what the run began with, and what it was resumed with. Returns the instructions that the run began on when they are
/// others now: those of f32 and of its products, and those of bf16 where the recipe computes in it.
fn write_env(dir: &RunDir, options: &RunOptions, dtype: Dtype, resumed: bool) -> Result<Option<String>> {
    let began = std::fs::read(dir.env()).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let Some(mut env) = began.filter(|env| resumed && env.is_object()) else {
        dir.write_json(&dir.env(), &options.env)?;
        return Ok(None);
    };
    let read: &[&str] = if dtype == Dtype::Bf16 { &["isa", "f32", "bf16"] } else { &["isa", "f32"] };
    let differs = |key: &&&str| env[**key].as_str().is_some_and(|began| options.env[**key] != *began);
    let other = read.iter().find(differs).and_then(|key| env[*key].as_str()).map(String::from);
    match env["resumed"].as_array_mut() {
        Some(list) => list.push(options.env.clone()),
        None => env["resumed"] = serde_json::json!([options.env]),
    }
    dir.write_json(&dir.env(), &env)?;
    Ok(other)
}

/// Where a model comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The role `policy`.
    Policy,
    /// The stage with this index.
    Stage(usize),
}

impl Origin {
    fn of(parent: Option<usize>) -> Self {
        parent.map_or(Self::Policy, Self::Stage)
    }

    /// What holds the model. A stage's adapter has the stage's parent as its base, wherever the run directory is now.
    fn source(self, ctx: &Context) -> Result<Source> {
        let missing = || Error::user("there is no model to start from", "add [model.policy] or an `init` stage");
        match self {
            Self::Stage(i) => {
                let (stage, parent) = (&ctx.recipe.stage[i], Self::of(ctx.recipe.parent(i)));
                let path = ctx.dir.stage(stage.id());
                match stage.adapter() {
                    None => Ok(Source::Whole(path)),
                    Some(_) => Ok(Source::Adapter(path, Box::new(parent.source(ctx)?))),
                }
            }
            Self::Policy => {
                let policy = ctx.recipe.model.policy.as_ref();
                policy.map(Source::of).transpose()?.flatten().ok_or_else(missing)
            }
        }
    }

    /// What an adapter's files name as their base: a Hub name, or a path that holds from anywhere.
    fn name(self, ctx: &Context) -> String {
        let path = match self {
            Self::Stage(i) => ctx.dir.stage(ctx.recipe.stage[i].id()).to_string_lossy().into_owned(),
            Self::Policy => ctx.recipe.model.policy.as_ref().and_then(|p| p.path.clone()).unwrap_or_default(),
        };
        match path.strip_prefix("hf:") {
            Some(hub) => hub.to_owned(),
            None => std::path::absolute(&path).map_or(path, |p| p.to_string_lossy().into_owned()),
        }
    }
}

/// The model in memory, and whose it is. The context's tokenizer goes with it.
struct Held {
    model: Option<Model>,
    of: Option<Origin>,
}

impl Held {
    /// The model of `of`, loaded unless it is the one in memory.
    fn get(&mut self, ctx: &mut Context, of: Origin) -> Result<&mut Model> {
        if self.of != Some(of) || self.model.is_none() {
            self.model = None;
            temper_tensor::buf::trim();
            let source = of.source(ctx)?;
            let (model, tokenizer) = source.load(ctx.ops())?;
            let model = typed(ctx, model);
            if of == Origin::Policy {
                ctx.state.same_model("policy", &source)?;
            }
            ctx.set_tokenizer(tokenizer);
            self.of = Some(of);
            return Ok(self.model.insert(model));
        }
        self.model.as_mut().ok_or_else(|| Error::user("there is no model to start from", "add [model.policy]"))
    }

    fn set(&mut self, model: Model, stage: usize) {
        (self.model, self.of) = (Some(model), Some(Origin::Stage(stage)));
    }
}

/// Saves a model with its tokenizer as a Hugging Face directory, whole or not at all.
fn save(ctx: &Context, model: &Model, target: &Path, dtype: SaveDtype) -> Result<()> {
    checkpoint::all_finite(ctx.ops(), &model.params)?;
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

/// Saves a model's adapter with its tokenizer in PEFT's format, whole or not at all.
fn save_adapter(ctx: &Context, model: &Model, target: &Path, base: &str) -> Result<()> {
    checkpoint::all_finite(ctx.ops(), &model.params)?;
    let aside = DirWriter::create(target)?;
    model.save_adapter_into(ctx.ops(), aside.path(), base)?;
    ctx.tokenizer()?.save(aside.path())?;
    aside.commit()?;
    Ok(())
}

/// Copies the files of a directory, all or none.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let io = |e| Error::io(from, e);
    let aside = DirWriter::create(to)?;
    for entry in std::fs::read_dir(from).map_err(io)? {
        let entry = entry.map_err(io)?;
        std::fs::copy(entry.path(), aside.path().join(entry.file_name())).map_err(io)?;
    }
    aside.commit()?;
    Ok(())
}

/// Runs one stage. `held` has the parent's model before (or loads it), and the stage's own after.
fn stage(ctx: &mut Context, index: usize, held: &mut Held, found: Option<Found>) -> Result<Outcome> {
    let this = &ctx.recipe.stage[index];
    match this {
        Stage::Tokenizer(s) => tokenizer(ctx, s).map(|()| Outcome::Done),
        Stage::Init(s) => {
            let model = init(ctx, s, index)?;
            let model = typed(ctx, model);
            save(ctx, &model, &ctx.dir.stage(&s.id), SaveDtype::F32)?;
            held.set(model, index);
            Ok(Outcome::Done)
        }
        Stage::Evaluate(s) => {
            ctx.stage_begin(&s.id, "evaluate", 0, 0);
            let model = held.get(ctx, Origin::of(ctx.recipe.parent(index)))?;
            eval::measure_all(ctx, model, &s.id, &s.tasks)
        }
        Stage::Offline(_) | Stage::Online(_) => train(ctx, index, held, found),
    }
}

/// Trains, keeps the model in `stages/<id>/`, and measures it.
fn train(ctx: &mut Context, index: usize, held: &mut Held, found: Option<Found>) -> Result<Outcome> {
    let this = &ctx.recipe.stage[index];
    let parent = Origin::of(ctx.recipe.parent(index));
    held.get(ctx, parent)?;
    let Some(start) = held.model.take() else { return Ok(Outcome::Done) };
    let (mut model, outcome) = trained(ctx, this, parent, start, found)?;
    if outcome == Outcome::Interrupted {
        return Ok(outcome);
    }
    let target = ctx.dir.stage(this.id());
    if this.adapter().is_some() {
        save_adapter(ctx, &model, &target, &parent.name(ctx))?;
        model.merge_adapter(ctx.ops())?;
    } else {
        save(ctx, &model, &target, SaveDtype::F32)?;
    }
    held.set(model, index);
    let model = held.get(ctx, Origin::Stage(index))?;
    eval::measure_all(ctx, model, this.id(), &[])
}

/// Runs the stage's loop; gradients, moments and reference are gone when it returns.
fn trained(
    ctx: &mut Context,
    this: &Stage,
    parent: Origin,
    mut start: Model,
    found: Option<Found>,
) -> Result<(Model, Outcome)> {
    let Some(training) = this.training() else { return Ok((start, Outcome::Done)) };
    // The critic begins as the policy without an adapter.
    let mut critic = critic(ctx, this, &start)?;
    if let Some(adapter) = training.adapter {
        start.attach(&adapter.lora(), split_seed(ctx.stage_seed(this.id()), &[adapter::INIT]))?;
    }
    let mut reference = reference(ctx, &training, parent, &start)?;
    let rows = match this {
        Stage::Offline(s) => Some(offline::rows(ctx, s, &start)?),
        _ => None,
    };
    if let Some(freeze) = training.freeze {
        slots::freeze(&mut start.params, freeze, ctx.stage_seed(this.id()))?;
    }
    let learner = Learner::new(ctx.ops(), start)?;
    let mut learner = learner.keeping(ctx.ops(), training.gradient, training.after_update)?;
    let mut progress = Progress::default();
    if let Some(found) = found
        && found.restore(ctx.ops(), Role::Policy, &mut learner)?
    {
        progress = found.state.progress.clone();
        if let Some(critic) = &mut critic {
            found.restore(ctx.ops(), Role::Critic, &mut critic.learner)?;
        }
        if let Some(reference) = reference.as_mut().filter(|_| training.syncs_reference()) {
            found.restore_reference(ctx.ops(), reference)?;
        }
    }
    let outcome = match (this, rows) {
        (Stage::Offline(s), Some(rows)) => {
            offline::run(ctx, &mut learner, reference.as_mut(), &rows, s, &mut progress)?
        }
        (Stage::Online(s), _) => online::run(ctx, &mut learner, critic.as_mut(), reference.as_mut(), s, &mut progress)?,
        _ => Outcome::Done,
    };
    let mut model = learner.into_model(ctx.ops())?;
    if training.freeze.is_some() {
        model.params.set_trainable(true);
    }
    temper_tensor::buf::expect_rows(0);
    temper_tensor::buf::trim();
    Ok((model, outcome))
}

/// The frozen reference of a stage, where its objective needs one. An adapter begins at zero, so the stage's start is the policy with
/// its adapter off.
///
/// # Errors
/// A reference that is to follow a policy of another shape; `parent` is where the policy comes from.
fn reference(ctx: &mut Context, stage: &Training, parent: Origin, start: &Model) -> Result<Option<Reference>> {
    if !stage.needs_reference() {
        return Ok(None);
    }
    let (recipe, moves) = (ctx.recipe, stage.syncs_reference());
    // A reference that moves has values that can.
    let copied = |model: &Model| Box::new(if moves { model.clone() } else { model.frozen_copy() });
    let Some(source) = source_of(recipe.model.reference.as_ref())? else {
        let own = if start.adapter().is_some() { Reference::AdapterOff } else { Reference::Model(copied(start)) };
        return Ok(Some(own));
    };
    let model = other(ctx, "reference", &source, start)?;
    if let Some(how) = slots::difference(&start.params, &model.params).filter(|_| moves) {
        let (reference, policy) = (source.path().display(), parent.name(ctx));
        return Err(Error::user(
            format!("`reference_sync` mixes the policy `{policy}` into the reference `{reference}`, and {how}"),
            "take a reference of the policy's shape, or remove `reference_sync` from `after_update`",
        ));
    }
    Ok(Some(Reference::Model(copied(&model))))
}

/// The critic of a stage, where its objective needs one, as it begins.
fn critic(ctx: &mut Context, this: &Stage, start: &Model) -> Result<Option<Critic>> {
    if !matches!(this, Stage::Online(s) if s.critic.is_some()) {
        return Ok(None);
    }
    let recipe = ctx.recipe;
    let body = match source_of(recipe.model.critic.as_ref())? {
        None => start.clone(),
        Some(source) => other(ctx, "critic", &source, start)?,
    };
    Critic::new(ctx.ops(), body).map(Some)
}

fn source_of(spec: Option<&ModelSpec>) -> Result<Option<Source>> {
    Ok(spec.map(Source::of).transpose()?.flatten())
}

/// Loads the model of another role, which reads the policy's tokens.
fn other(ctx: &mut Context, role: &str, source: &Source, start: &Model) -> Result<Model> {
    let (model, _) = source.load(ctx.ops())?;
    ctx.state.same_model(role, source)?;
    if model.config.vocab_size == start.config.vocab_size {
        return Ok(typed(ctx, model));
    }
    Err(Error::user(
        format!(
            "the {role} model has a vocabulary of {}, the policy one of {}",
            model.config.vocab_size, start.config.vocab_size
        ),
        format!("a {role} shares the policy's vocabulary"),
    ))
}

/// The model computing in the recipe's type.
fn typed(ctx: &Context, model: Model) -> Model {
    match ctx.recipe.dtype {
        Dtype::F32 => model,
        Dtype::Bf16 => model.in_bf16(),
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
    Ok(())
}

/// Makes a model for the stage's tokenizer, or the one that the closest `tokenizer` stage before made.
fn init(ctx: &mut Context, s: &InitStage, index: usize) -> Result<Model> {
    ctx.stage_begin(&s.id, "init", 0, 0);
    let made = ctx.recipe.stage[..index].iter().rev().find(|t| matches!(t, Stage::Tokenizer(_)));
    let path = match (&s.tokenizer, made) {
        (Some(path), _) => hub::local(path)?,
        (None, Some(stage)) => ctx.dir.stage(stage.id()),
        (None, None) => return Err(Error::user(format!("stage `{}` has no tokenizer", s.id), "set `tokenizer`")),
    };
    ctx.set_tokenizer(load_tokenizer(&path)?);
    let config = s.shape.config(ctx.tokenizer()?)?;
    Ok(Model::init(ctx.ops(), &config, ctx.stage_seed(&s.id))?)
}
