//! `temper run`: a recipe, from its check to its report.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use temper_train::ledger::Ledger;
use temper_train::recipe::Recipe;
use temper_train::run::{RunOptions, run as run_recipe};
use temper_train::rundir::RunDir;
use temper_train::{Outcome, checkpoint};

use super::inspect::{Inspected, tell};
use crate::args::Run;
use crate::failure::{Exit, Hint};
use crate::machine;
use crate::output::{bytes, data, duration, say};
use crate::progress::Progress;
use crate::{interrupt, measured, report};

/// Runs the command.
pub(crate) fn run(args: &Run) -> anyhow::Result<Exit> {
    let began = Instant::now();
    let mut sets = args.overrides.sets.clone();
    sets.extend(args.seed.map(|seed| format!("seed={seed}")));
    let found = Inspected::read(&args.recipe, &sets)?;
    tell(&found.problems);
    if found.errors() > 0 {
        return Ok(Exit::User);
    }
    for missing in &found.not_local {
        say(&format!("{}: `{}` is not local and will be downloaded", missing.at, missing.name));
    }
    let device = machine::device(args.threads)?;
    let root = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&found.recipe.name));
    let dir = RunDir::at(&root);
    let options = RunOptions { resume: args.resume, env: machine::record(found.recipe.seed) };
    let stop = interrupt::listen()?;
    say(&format!("{}: {} stages into {}", found.recipe.name, found.recipe.stage.len(), root.display()));
    let mut progress = Progress::on_stderr();
    let outcome = run_recipe(&found.recipe, &dir, &options, &device, &mut progress, stop);
    drop(progress);
    match outcome {
        Ok(Outcome::Done) => done(&dir, began),
        Ok(Outcome::Interrupted) => interrupted(&dir, args.resume),
        Err(error) => Err(failed(error, &dir, &found.recipe, args.resume)),
    }
}

fn done(dir: &RunDir, began: Instant) -> anyhow::Result<Exit> {
    let memory = machine::peak_memory().map(|peak| format!(", peak memory {}", bytes(peak)));
    say(&format!("done in {}{}", duration(began.elapsed().as_secs_f64()), memory.unwrap_or_default()));
    let report = report::write(dir.root())?;
    let ledger = ledger(dir)?;
    let tables = [measured::before_and_after(&ledger), measured::retention_matrix(&ledger)];
    for table in tables.iter().filter(|t| !t.is_empty()) {
        data(&format!("\n{table}"))?;
    }
    data(&format!("\nmodel: {}\n{}\n", dir.model().display(), report.display()))?;
    Ok(Exit::Done)
}

fn ledger(dir: &RunDir) -> anyhow::Result<Ledger> {
    let path = dir.ledger();
    let text = std::fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("`{}` is damaged", path.display()))
}

/// A checkpoint is there; a report that cannot be made now can be made later.
fn interrupted(dir: &RunDir, resumed: bool) -> anyhow::Result<Exit> {
    let report = report::write(dir.root());
    say(&format!("interrupted; to go on from the last checkpoint, {}", again(resumed)));
    match report {
        Ok(path) => data(&format!("{}\n", path.display()))?,
        Err(error) => say(&format!("no report yet: {error:#}")),
    }
    Ok(Exit::Interrupted)
}

/// What to do with the work that is done, where there is some.
fn failed(error: temper_train::Error, dir: &RunDir, recipe: &Recipe, resumed: bool) -> anyhow::Error {
    let found = checkpoint::newest(dir).ok().flatten();
    let worked = found.is_some_and(|found| found.state.stage > 0 || found.state.progress.step > 0);
    // A refused directory is another run's; its checkpoints are no comfort.
    let hint = (worked && (resumed || recorded(dir, recipe))).then(|| after(&error, dir, resumed)).flatten();
    match hint {
        Some(hint) => anyhow::Error::from(error).context(Hint(hint)),
        None => error.into(),
    }
}

/// A run goes on with the recipe that it began with, so what lies in the recipe ends it.
fn after(error: &temper_train::Error, dir: &RunDir, resumed: bool) -> Option<String> {
    use temper_train::Error;
    let passing = |error: &Error| {
        let io = |error: &temper_format::Error| matches!(error, temper_format::Error::Io { .. });
        match error {
            Error::Io { .. } | Error::Env(temper_env::Error::Command { .. } | temper_env::Error::Read { .. }) => true,
            Error::Format(error)
            | Error::Model(temper_model::Error::File(error))
            | Error::Data(temper_data::Error::Storage(error)) => io(error),
            Error::Data(error) => matches!(error, temper_data::Error::File { .. }),
            _ => false,
        }
    };
    match error {
        Error::NotFinite { .. } => None,
        error if passing(error) => Some(format!("the last checkpoint is kept; to go on from it, {}", again(resumed))),
        _ => Some(format!(
            "if the recipe has to change, start afresh with --out DIR, or remove `{}`: a run goes on with the recipe that it \
             began with",
            dir.root().display()
        )),
    }
}

fn recorded(dir: &RunDir, recipe: &Recipe) -> bool {
    std::fs::read_to_string(dir.recipe()).is_ok_and(|text| text == temper_train::recipe::to_toml(recipe))
}

fn again(resumed: bool) -> &'static str {
    if resumed { "run the same command again" } else { "run the same command with --resume" }
}
