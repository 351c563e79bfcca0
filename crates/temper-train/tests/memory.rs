//! What `temper plan` expects of memory, against what the engine's pool was asked for. One test, because the pool is the process's.

use std::path::Path;

use temper_tensor::{Cpu, buf};
use temper_train::plan;
use temper_train::recipe;
use temper_train::run::{RunOptions, run};
use temper_train::rundir::RunDir;
use temper_train::watch::{Event, Silent, Stop, Watch};

const BASE: &str = r#"
name = "memory"
seed = 5
[[stage]]
id = "tokenizer"
kind = "tokenizer"
vocab_size = 259
data = [{ kind = "tasks", tasks = { kind = "tiny_world", families = "all", levels = [1], split = "train" }, n = 20 }]
[[stage]]
id = "init"
kind = "init"
shape = { hidden_size = 192, layers = 6, heads = 4, kv_heads = 2, intermediate_size = 512, max_positions = 256 }
"#;

const SFT: &str = r#"
name = "memory"
seed = 5
[[stage]]
id = "sft"
kind = "offline"
data = [{ kind = "tasks", tasks = { kind = "tiny_world", families = "all", levels = [1], split = "train", cot = true }, n = 200 }]
mask = "all"
max_tokens = 256
batch = { tokens = 1600 }
steps = 3
optimizer = { kind = "adamw", lr = 1e-3 }
"#;

/// The pool's figures at the end of every step.
#[derive(Default)]
struct Steps(Vec<buf::PoolStats>);

impl Watch for Steps {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Step { .. } = event {
            self.0.push(buf::stats());
        }
    }
}

fn go(text: &str, sets: &[String], dir: &Path, watch: &mut dyn Watch) -> recipe::Recipe {
    let recipe = recipe::parse(text, Path::new("memory.toml"), sets).unwrap();
    run(&recipe, &RunDir::at(dir), &RunOptions::default(), &Cpu::new(), watch, &Stop::new()).unwrap();
    recipe
}

/// On one thread, since how many scratch buffers are in use at the same time is up to the scheduler otherwise.
#[test]
fn the_plan_expects_what_training_takes_and_steps_after_the_first_take_next_to_nothing() {
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    alone.install(compare);
}

/// A model whose vocabulary is most of it, and what a KL over that adds.
fn compare_vocabulary(base: &Path) {
    let made = base.join("wide");
    let shape = "hidden_size=32,layers=2,heads=2,intermediate_size=32,max_positions=256";
    let sets = ["stage.tokenizer.vocab_size=900", "stage.tokenizer.data.0.n=2000"].map(String::from);
    go(BASE, &[&sets[..], &[format!("stage.init.shape={{{shape}}}")]].concat(), &made, &mut Silent);
    let policy = format!("model.policy={{path=\"{}\"}}", made.join("model").display());
    let figures = |kind: &str, dtype: &str| {
        let terms = format!("stage.sft.terms=[{{weight=0.1,objective={{kind=\"{kind}\"}}}}]");
        let sets = [
            policy.clone(),
            "model.reference.policy_at=stage_start".into(),
            "stage.sft.micro_tokens=1500".into(),
            terms,
            format!("dtype={dtype}"),
        ];
        let mut steps = Steps::default();
        buf::trim();
        let recipe = go(SFT, &sets, &base.join(format!("{kind}_{dtype}")), &mut steps);
        let memory = plan::plan(&recipe).unwrap().last().unwrap().memory.unwrap();
        let expected = (memory.weights + memory.optimizer + memory.activations) as f64;
        (steps.0.last().unwrap().peak_live_bytes as f64, expected)
    };
    let (plain, compared) = (figures("reference_kl", "f32"), figures("vocabulary_kl", "f32"));
    // What a thread packs in while it multiplies stays with it; the plan counts it as the process's.
    let scratch = 2e6;
    for (measured, expected) in [plain, compared, figures("reference_kl", "bf16")] {
        assert!(
            measured > 0.9 * expected && measured < 1.1 * expected + scratch,
            "measured {measured}, expected {expected}"
        );
    }
    let (measured, expected) = (compared.0 - plain.0, compared.1 - plain.1);
    assert!(expected > 4e6 && (measured / expected - 1.0).abs() < 0.15, "measured {measured}, expected {expected}");
}

fn compare() {
    let base = tempfile::tempdir().unwrap();
    let made = base.path().join("made");
    go(BASE, &[], &made, &mut Silent);
    let path = format!("model.policy={{path=\"{}\"}}", made.join("model").display());
    let stages = [(600, false, "f32"), (1500, true, "f32"), (600, false, "bf16")];
    for (i, sizes) in stages.into_iter().enumerate() {
        let (micro, recompute, dtype) = sizes;
        let sets = [
            path.clone(),
            format!("dtype={dtype}"),
            format!("stage.sft.micro_tokens={micro}"),
            format!("stage.sft.recompute={recompute}"),
        ];
        let mut steps = Steps::default();
        buf::trim();
        let recipe = go(SFT, &sets, &base.path().join(i.to_string()), &mut steps);
        let memory = plan::plan(&recipe).unwrap().last().unwrap().memory.unwrap();
        let expected = (memory.weights + memory.optimizer + memory.activations) as f64;
        let measured = steps.0.last().unwrap().peak_live_bytes as f64;
        assert!((measured / expected - 1.0).abs() < 0.1, "{sizes:?}: measured {measured}, expected {expected}");
        // What free lists hold besides is in the plan's figure for the process.
        let held = steps.0.last().unwrap().peak_touched_bytes as f64;
        assert!(held < expected + memory.process as f64, "{sizes:?}: {held} bytes touched, expected {expected}");
        // A micro-batch of more segments than any before takes some scratch of its own in attention, and nothing else does.
        let grown = (steps.0.last().unwrap().peak_bytes - steps.0[0].peak_bytes) as f64;
        assert!(grown < 0.02 * expected, "{sizes:?}: {grown} bytes after the first step");
    }
    compare_vocabulary(base.path());
}
