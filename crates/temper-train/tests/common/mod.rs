//! What the tests of whole runs share: recipes from text, runs that stop and go on, and a look at what they left.
#![allow(dead_code)] // each test file uses its part

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use temper_tensor::Cpu;
use temper_train::recipe::{self, Recipe, Severity};
use temper_train::run::{RunOptions, run};
use temper_train::rundir::RunDir;
use temper_train::watch::{Event, Stop, Watch};
use temper_train::{Error, Outcome};

/// A recipe with settings, not checked.
pub(crate) fn read(text: &str, sets: &[&str]) -> Recipe {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    recipe::parse(text, Path::new("test.toml"), &sets).unwrap()
}

/// A recipe in which `temper check` finds no error.
pub(crate) fn parsed(text: &str, sets: &[&str]) -> Recipe {
    let recipe = read(text, sets);
    let errors: Vec<_> = recipe::check(&recipe).into_iter().filter(|p| p.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:?}");
    recipe
}

/// Runs a recipe, or goes on with it.
pub(crate) fn go_on(recipe: &Recipe, dir: &Path, watch: &mut dyn Watch, stop: &Stop) -> Result<Outcome, Error> {
    let options = RunOptions { resume: true, ..RunOptions::default() };
    run(recipe, &RunDir::at(dir), &options, &Cpu::new(), watch, stop)
}

/// A directory for a run, with the one that it goes away with.
pub(crate) fn fresh() -> (tempfile::TempDir, PathBuf) {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("run");
    (base, dir)
}

/// The lines of a log that a stage wrote.
pub(crate) fn logged(dir: &Path, file: &str, stage: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join(file)).unwrap();
    let all = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    all.filter(|v| v["stage"] == stage).collect()
}

/// The metrics of a stage's steps.
pub(crate) fn lines(dir: &Path, stage: &str) -> Vec<Value> {
    logged(dir, "metrics.jsonl", stage)
}

/// One number of a line.
pub(crate) fn number(line: &Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("{name} is not in {line}"))
}

/// A file's bytes.
pub(crate) fn bits(dir: &Path, file: &str) -> Vec<u8> {
    fs::read(dir.join(file)).unwrap()
}

/// Two runs left the same bytes.
pub(crate) fn same(a: &Path, b: &Path, files: &[&str]) {
    for file in files {
        assert!(bits(a, file) == bits(b, file), "{file} differs");
    }
}

/// Asks the run to stop after a number of steps, of one stage where it is named.
pub(crate) struct StopAfter<'a> {
    left: usize,
    of: Option<&'a str>,
    stop: &'a Stop,
}

impl<'a> StopAfter<'a> {
    pub(crate) fn new(steps: usize, stop: &'a Stop) -> Self {
        Self { left: steps, of: None, stop }
    }
    pub(crate) fn of(self, stage: &'a str) -> Self {
        Self { of: Some(stage), ..self }
    }
}

impl Watch for StopAfter<'_> {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Step { stage, .. } = event
            && self.of.is_none_or(|of| of == *stage)
        {
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                self.stop.request();
            }
        }
    }
}
