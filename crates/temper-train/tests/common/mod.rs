//! A very small run for tests of the rollout side: a byte tokenizer, a random model of two blocks, a few steps of SFT, and rounds
//! of GRPO with a reward on which even a random model's groups differ.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

use std::fs;
use std::path::Path;

use serde_json::Value;
use temper_tensor::Cpu;
use temper_train::recipe::{self, Recipe, Severity};
use temper_train::run::{RunOptions, run};
use temper_train::rundir::RunDir;
use temper_train::watch::{Event, Silent, Stop, Watch};
use temper_train::{Error, Outcome};

const RECIPE: &str = r#"
name = "rollouts"
seed = 3

[[stage]]
id = "tokenizer"
kind = "tokenizer"
vocab_size = 259
data = [{ kind = "tasks", tasks = { kind = "tiny_world", families = "all", levels = [1], split = "train" }, n = 20 }]

[[stage]]
id = "init"
kind = "init"
shape = { hidden_size = 32, layers = 2, heads = 2, kv_heads = 1, intermediate_size = 48, max_positions = 256 }

[[stage]]
id = "sft"
kind = "offline"
data = [{ kind = "tasks", tasks = { kind = "tiny_world", families = ["copying", "addition"], levels = [1], split = "train" }, n = 24 }]
max_tokens = 128
batch = { examples = 6 }
steps = 2
optimizer = { kind = "adamw", lr = 1e-3 }
checkpoint_every = 2

[[stage]]
id = "rl"
kind = "online"
tasks = [{ source = { kind = "tiny_world", families = ["copying"], levels = [1], split = "train", n = 4, seed = 5 } }]
steps = 4
prompts_per_step = 3
samples_per_prompt = 4
sampling = { temperature = 1.3, max_tokens = 9 }
rewards = [
  { name = "hex", kind = "format", pattern = "[0-9a-f]" },
  { name = "correct", kind = "verifier", weight = 0.5 },
]
optimizer = { kind = "adamw", lr = 1e-3 }
checkpoint_every = 1
log_rollouts_every = 1
"#;

fn read(sets: &[&str]) -> Recipe {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    recipe::parse(RECIPE, Path::new("rollouts.toml"), &sets).unwrap()
}

/// Everything that `temper check` would say of the recipe with these settings.
pub(crate) fn problems(sets: &[&str]) -> String {
    let found = recipe::check(&read(sets));
    found.iter().map(|p| format!("{}: {} ({})", p.at, p.what, p.hint)).collect::<Vec<_>>().join("\n")
}

fn checked(sets: &[&str]) -> Recipe {
    let recipe = read(sets);
    let errors: Vec<_> = recipe::check(&recipe).into_iter().filter(|p| p.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:?}");
    recipe
}

/// What a run left behind.
pub(crate) struct Done {
    base: tempfile::TempDir,
}

impl Done {
    fn dir(&self) -> std::path::PathBuf {
        self.base.path().join("run")
    }
    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir().join(file)).unwrap()
    }
    pub fn read_bits(&self, file: &str) -> Vec<u8> {
        fs::read(self.dir().join(file)).unwrap()
    }
    fn lines(&self, file: &str) -> Vec<Value> {
        let text = self.read(file);
        text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).filter(|v| v["stage"] == "rl").collect()
    }
    /// The rounds' metrics.
    pub(crate) fn rounds(&self) -> Vec<Value> {
        self.lines("metrics.jsonl")
    }
    /// The rollouts of all rounds.
    pub(crate) fn rollouts(&self) -> Vec<Value> {
        self.lines("rollouts.jsonl")
    }
    fn same(&self, other: &Self) {
        for file in ["metrics.jsonl", "rollouts.jsonl", "model/model.safetensors"] {
            let bits = |d: &Self| fs::read(d.dir().join(file)).unwrap();
            assert!(bits(self) == bits(other), "{file} differs");
        }
    }
}

/// One number of a round.
pub(crate) fn number(line: &Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("{name} is not in {line}"))
}

pub(crate) fn go(sets: &[&str]) -> Result<Done, Error> {
    let done = Done { base: tempfile::tempdir().unwrap() };
    let dir = done.dir();
    run(&checked(sets), &RunDir::at(&dir), &RunOptions::default(), &Cpu::new(), &mut Silent, &Stop::new())?;
    Ok(done)
}

/// Asks the run to stop after a number of rounds.
struct StopAfter<'a>(usize, &'a Stop);

impl Watch for StopAfter<'_> {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Step { stage: "rl", .. } = event {
            self.0 = self.0.saturating_sub(1);
            if self.0 == 0 {
                self.1.request();
            }
        }
    }
}

/// Stopped after each of its four rounds and resumed, the run ends with the same bits. Returns the uninterrupted one.
pub(crate) fn resumes(sets: &[&str]) -> Done {
    let (whole, recipe) = (go(sets).unwrap(), checked(sets));
    for after in 1..4 {
        let part = Done { base: tempfile::tempdir().unwrap() };
        let dir = part.dir();
        let stop = Stop::new();
        let options = RunOptions { resume: true, ..RunOptions::default() };
        let first = run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut StopAfter(after, &stop), &stop);
        assert_eq!(first.unwrap(), Outcome::Interrupted, "after {after} rounds");
        run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut Silent, &Stop::new()).unwrap();
        whole.same(&part);
    }
    whole
}
