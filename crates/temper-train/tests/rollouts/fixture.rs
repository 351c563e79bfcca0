//! Two very small runs. One for what must hold bit for bit: a byte tokenizer, a random model of two blocks, a few steps of SFT, and
//! rounds of GRPO with a reward on which even a random model's groups differ. One on models/tiny, whose answers are answers.

use std::fs;
use std::path::Path;

use serde_json::Value;
use temper_tensor::Cpu;
use temper_train::Outcome;
use temper_train::recipe::{self, Recipe, Severity};
use temper_train::run::{RunOptions, run};
use temper_train::rundir::RunDir;
use temper_train::watch::{Event, Silent, Stop, Watch};

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

const TINY: &str = r#"
name = "tiny"
seed = 1

[model.policy]
path = "models/tiny"

[[stage]]
id = "rl"
kind = "online"
tasks = [{ source = { kind = "tiny_world", families = ["chains"], levels = [1], split = "train" } }]
steps = 14
prompts_per_step = 4
samples_per_prompt = 8
sampling = { temperature = 1.0, max_tokens = 8 }
rewards = [{ name = "even", kind = "format", pattern = "[02468]$" }]
optimizer = { kind = "adamw", lr = 8e-4 }
micro_tokens = 4096
max_batch = 64
checkpoint_every = 100
log_rollouts_every = 100
"#;

fn parsed(text: &str, sets: &[&str]) -> Recipe {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    recipe::parse(text, Path::new("rollouts.toml"), &sets).unwrap()
}

fn read(sets: &[&str]) -> Recipe {
    parsed(RECIPE, sets)
}

/// Everything that `temper check` would say of the recipe with these settings.
pub(crate) fn problems(sets: &[&str]) -> String {
    let found = recipe::check(&read(sets));
    found.iter().map(|p| format!("{}: {} ({})", p.at, p.what, p.hint)).collect::<Vec<_>>().join("\n")
}

fn sound(recipe: Recipe) -> Recipe {
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
    fn lines(&self, file: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.dir().join(file)).unwrap();
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

fn whole(recipe: &Recipe) -> Done {
    let done = Done { base: tempfile::tempdir().unwrap() };
    let dir = done.dir();
    run(recipe, &RunDir::at(&dir), &RunOptions::default(), &Cpu::new(), &mut Silent, &Stop::new()).unwrap();
    done
}

/// Runs the random model.
pub(crate) fn go(sets: &[&str]) -> Done {
    whole(&sound(read(sets)))
}

/// The random model with another learner: a stage `peer` before, like `rl`, from the same start.
fn with_peer(sets: &[&str]) -> Recipe {
    let rl = RECIPE.find("[[stage]]\nid = \"rl\"").unwrap();
    let peer = RECIPE[rl..].replace("id = \"rl\"", "id = \"peer\"");
    let text = format!("{}{peer}\n{}\nfrom = \"sft\"\n", &RECIPE[..rl], &RECIPE[rl..]);
    sound(parsed(&text, sets))
}

/// Two learners, stopped after each round of the second one and resumed. Returns the uninterrupted run.
pub(crate) fn peers_resume(sets: &[&str]) -> Done {
    stopped_and_resumed(&with_peer(sets))
}

/// Runs models/tiny.
pub(crate) fn tiny(sets: &[&str]) -> Done {
    let path = format!("model.policy.path={}/../../models/tiny", env!("CARGO_MANIFEST_DIR"));
    whole(&sound(parsed(TINY, &[&[path.as_str()], sets].concat())))
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
    stopped_and_resumed(&sound(read(sets)))
}

fn stopped_and_resumed(recipe: &Recipe) -> Done {
    let whole = whole(recipe);
    for after in 1..4 {
        let part = Done { base: tempfile::tempdir().unwrap() };
        let dir = part.dir();
        let stop = Stop::new();
        let options = RunOptions { resume: true, ..RunOptions::default() };
        let first = run(recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut StopAfter(after, &stop), &stop);
        assert_eq!(first.unwrap(), Outcome::Interrupted, "after {after} rounds");
        run(recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut Silent, &Stop::new()).unwrap();
        whole.same(&part);
    }
    whole
}
