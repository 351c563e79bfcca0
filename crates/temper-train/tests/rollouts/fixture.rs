//! Two very small runs. One for what must hold bit for bit: a byte tokenizer, a random model of two blocks, a few steps of SFT, and
//! rounds of GRPO with a reward on which even a random model's groups differ. One on models/tiny, whose answers are answers.

#![allow(dead_code)] // each test file uses its part

use std::path::PathBuf;

use serde_json::Value;
use temper_train::Outcome;
use temper_train::recipe::{self, Recipe};
use temper_train::watch::{Silent, Stop};

use crate::common::{StopAfter, bits, fresh, go_on, logged, parsed, read, same};

pub(crate) const RECIPE: &str = r#"
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

/// Everything that `temper check` would say of the recipe with these settings.
pub(crate) fn problems(sets: &[&str]) -> String {
    let found = recipe::check(&read(RECIPE, sets));
    found.iter().map(|p| format!("{}: {} ({})", p.at, p.what, p.hint)).collect::<Vec<_>>().join("\n")
}

/// What a run left behind.
pub(crate) struct Done {
    dir: PathBuf,
    base: tempfile::TempDir,
}

impl Done {
    fn new() -> Self {
        let (base, dir) = fresh();
        Self { dir, base }
    }
    /// The rounds' metrics.
    pub(crate) fn rounds(&self) -> Vec<Value> {
        logged(&self.dir, "metrics.jsonl", "rl")
    }
    /// The rollouts of all rounds.
    pub(crate) fn rollouts(&self) -> Vec<Value> {
        logged(&self.dir, "rollouts.jsonl", "rl")
    }
    /// A file or directory of the run.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }
    /// A file's bytes.
    pub(crate) fn bits(&self, file: &str) -> Vec<u8> {
        bits(&self.dir, file)
    }
    /// A file's text.
    pub(crate) fn text(&self, file: &str) -> String {
        String::from_utf8(self.bits(file)).unwrap()
    }
}

fn whole(recipe: &Recipe) -> Done {
    let done = Done::new();
    go_on(recipe, &done.dir, &mut Silent, &Stop::new()).unwrap();
    done
}

/// Runs the random model.
pub(crate) fn go(sets: &[&str]) -> Done {
    whole(&parsed(RECIPE, sets))
}

/// The random model with another learner: a stage `peer` before, like `rl`, from the same start.
fn with_peer(sets: &[&str]) -> Recipe {
    let rl = RECIPE.find("[[stage]]\nid = \"rl\"").unwrap();
    let peer = RECIPE[rl..].replace("id = \"rl\"", "id = \"peer\"");
    let text = format!("{}{peer}\n{}\nfrom = \"sft\"\n", &RECIPE[..rl], &RECIPE[rl..]);
    parsed(&text, sets)
}

/// Two learners, stopped after each round of the second one and resumed. Returns the uninterrupted run.
pub(crate) fn peers_resume(sets: &[&str]) -> Done {
    stopped_and_resumed(&with_peer(sets))
}

/// Runs models/tiny.
pub(crate) fn tiny(sets: &[&str]) -> Done {
    let path = format!("model.policy.path={}/../../models/tiny", env!("CARGO_MANIFEST_DIR"));
    whole(&parsed(TINY, &[&[path.as_str()], sets].concat()))
}

/// Stopped after each of its four rounds and resumed, the run ends with the same bits. Returns the uninterrupted one.
pub(crate) fn resumes(sets: &[&str]) -> Done {
    stopped_and_resumed(&parsed(RECIPE, sets))
}

fn stopped_and_resumed(recipe: &Recipe) -> Done {
    let whole = whole(recipe);
    for after in 1..4 {
        let part = Done::new();
        let stop = Stop::new();
        let first = go_on(recipe, &part.dir, &mut StopAfter::new(after, &stop).of("rl"), &stop);
        assert_eq!(first.unwrap(), Outcome::Interrupted, "after {after} rounds");
        go_on(recipe, &part.dir, &mut Silent, &Stop::new()).unwrap();
        same(&whole.dir, &part.dir, &["metrics.jsonl", "rollouts.jsonl", "model/model.safetensors"]);
    }
    whole
}
