//! Stages that train an adapter, through whole runs: what must hold bit for bit, what is kept, and what is refused.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{StopAfter, bits, fresh, lines, number, same};
use serde_json::Value;
use temper_format::{ArraySource, SafetensorsFile};
use temper_tensor::Cpu;
use temper_train::models::Source;
use temper_train::recipe::{self, Recipe, Severity};
use temper_train::run::{RunOptions, run};
use temper_train::rundir::RunDir;
use temper_train::watch::{Silent, Stop};
use temper_train::{Error, Outcome};

/// A random model of two blocks; an adapter by SFT; another one, on the first one's result, by GRPO with a KL term to its start.
const RECIPE: &str = r#"
name = "adapter"
seed = 3

[model.reference]
policy_at = "stage_start"

[[retain]]
id = "copying"
source = { kind = "tasks", tasks = { kind = "tiny_world", families = ["copying"], levels = [1], split = "test" } }
n = 4
max_tokens = 6

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
adapter = { kind = "lora", rank = 4, alpha = 8, dropout = 0.2, targets = ["all_linear"] }
max_tokens = 128
batch = { examples = 6 }
steps = 4
optimizer = { kind = "adamw", lr = 1e-2 }
checkpoint_every = 2

[[stage]]
id = "grpo"
kind = "online"
tasks = [{ source = { kind = "tiny_world", families = ["copying"], levels = [1], split = "train" } }]
adapter = { kind = "lora", rank = 3, rslora = true, targets = ["q_proj", "layers.1.mlp.*"] }
steps = 3
prompts_per_step = 3
samples_per_prompt = 4
sampling = { temperature = 1.3, max_tokens = 9 }
rewards = [
  { name = "hex", kind = "format", pattern = "[0-9a-f]" },
  { name = "correct", kind = "verifier", weight = 0.5 },
]
objective = { kl = { estimator = { kind = "k3" }, beta = 0.1 } }
optimizer = { kind = "adamw", lr = 1e-2 }
checkpoint_every = 2
log_rollouts_every = 1
"#;

fn parsed(sets: &[&str]) -> Recipe {
    common::parsed(RECIPE, sets)
}

fn go(dir: &Path, sets: &[&str]) -> Result<Outcome, Error> {
    run(&parsed(sets), &RunDir::at(dir), &RunOptions::default(), &Cpu::new(), &mut Silent, &Stop::new())
}

fn done(sets: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let (base, dir) = fresh();
    assert_eq!(go(&dir, sets).unwrap(), Outcome::Done);
    (base, dir)
}

/// Everything but adapter_config.json, which names the run's own directory.
fn same_run(a: &Path, b: &Path) {
    let adapters = ["stages/sft/adapter_model.safetensors", "stages/grpo/adapter_model.safetensors"];
    same(
        a,
        b,
        &[&["metrics.jsonl", "rollouts.jsonl", "ledger.json", "model/model.safetensors"][..], &adapters].concat(),
    );
}

fn arrays(path: &Path) -> Vec<String> {
    SafetensorsFile::open(path).unwrap().names()
}

#[test]
fn ratios_begin_at_one_and_the_kl_to_the_adapter_off_at_zero() {
    let (_base, dir) = done(&["stage.grpo.recompute=true", "stage.grpo.micro_tokens=40"]);
    let rounds = lines(&dir, "grpo");
    assert_eq!(number(&rounds[0], "kl"), 0.0);
    assert!(rounds[1..].iter().all(|r| number(r, "kl") > 0.0), "{rounds:?}");
    for round in rounds {
        assert_eq!((number(&round, "ratio/mean"), number(&round, "ratio/max")), (1.0, 1.0), "{round}");
        assert!(number(&round, "grad_norm") > 0.0);
    }
    let losses: Vec<f64> = lines(&dir, "sft").iter().map(|l| number(l, "loss")).collect();
    assert!(losses[3] < losses[0], "{losses:?}");
}

#[test]
fn a_stage_keeps_its_adapter_and_the_run_the_merged_model() {
    let (_base, dir) = done(&[]);
    let stage = |id: &str| dir.join("stages").join(id);
    let config: Value = serde_json::from_slice(&bits(&dir, "stages/grpo/adapter_config.json")).unwrap();
    assert_eq!((&config["r"], &config["use_rslora"]), (&3.into(), &true.into()));
    assert_eq!(config["base_model_name_or_path"], stage("sft").to_str().unwrap());
    let modules: Vec<&str> = config["target_modules"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(modules[..2], ["q_proj", "model.layers.1.mlp.gate_proj"]);
    assert!(!stage("sft").join("model.safetensors").exists() && stage("sft").join("tokenizer.json").exists());

    // The adapter of an adapter's result, read by its name, is the saved model.
    let ops = Cpu::new();
    let (model, _) = Source::find(stage("grpo").to_str().unwrap(), None).unwrap().load(&ops).unwrap();
    let saved = SafetensorsFile::open(dir.join("model/model.safetensors")).unwrap();
    let start = SafetensorsFile::open(stage("init").join("model.safetensors")).unwrap();
    for (id, param) in model.params.iter() {
        assert!(model.params.values(&ops, id).unwrap() == saved.read_f32(&param.name).unwrap(), "{}", param.name);
        let changed = saved.read_f32(&param.name).unwrap() != start.read_f32(&param.name).unwrap();
        assert_eq!(changed, param.name.contains("_proj"), "{}", param.name);
    }

    let (_base, alone) = done(&["save=adapter"]);
    assert_eq!(arrays(&alone.join("model/adapter_model.safetensors")).len(), 2 * (2 + 3));
    assert!(bits(&alone, "model/adapter_model.safetensors") == bits(&dir, "stages/grpo/adapter_model.safetensors"));
    let explicit = stage("sft").to_str().unwrap().to_owned();
    Source::find(alone.join("model").to_str().unwrap(), Some(&explicit)).unwrap().load(&ops).unwrap();
    let whole = dir.join("model");
    let error = Source::find(whole.to_str().unwrap(), Some(&explicit)).unwrap_err().to_string();
    assert!(error.contains("no adapter") && error.contains("no effect"), "{error}");
}

#[test]
fn a_checkpoint_holds_the_adapter_and_its_moments_alone() {
    let (_base, dir) = done(&[]);
    let newest = fs::read_dir(dir.join("checkpoints")).unwrap().map(|e| e.unwrap().path());
    let inside = newest.filter(|p| p.join("params.safetensors").is_file());
    let mut seen = 0;
    for path in inside {
        seen += 1;
        let names = arrays(&path.join("params.safetensors"));
        assert!(names.iter().all(|n| n.contains(".lora_")) && names.len() == 2 * (2 + 3), "{names:?}");
        assert_eq!(arrays(&path.join("optimizer.safetensors")).len(), 2 * names.len());
    }
    assert!(seen > 0, "no checkpoint inside a stage is left");
}

#[test]
fn stopped_anywhere_and_resumed_a_run_ends_with_the_same_bits() {
    let (_base, whole) = done(&[]);
    let recipe = parsed(&[]);
    for after in 1..7 {
        let (base, dir) = fresh();
        let stop = Stop::new();
        let options = RunOptions { resume: true, ..RunOptions::default() };
        let first =
            run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut StopAfter::new(after, &stop), &stop).unwrap();
        assert_eq!(first, Outcome::Interrupted, "after {after} rounds");
        // A run directory may move: adapters inside it are found all the same.
        let moved = base.path().join("moved");
        fs::rename(&dir, &moved).unwrap();
        let second = run(&recipe, &RunDir::at(&moved), &options, &Cpu::new(), &mut Silent, &Stop::new()).unwrap();
        assert_eq!(second, Outcome::Done);
        same_run(&whole, &moved);
    }
}

#[test]
fn the_adapter_off_is_bit_for_bit_a_second_copy_of_the_start() {
    let (_base, made) = done(&["stage.grpo.steps=1", "stage.sft.steps=1"]);
    let start = made.join("stages/init");
    let with = |reference: String| {
        let text = RECIPE.replace("policy_at = \"stage_start\"", &reference);
        let (head, stages) = text.split_at(text.find("[[stage]]").unwrap());
        let grpo = &stages[stages.rfind("[[stage]]").unwrap()..];
        let text = format!("{head}[model.policy]\npath = {:?}\n{grpo}", start.to_str().unwrap());
        let recipe = recipe::parse(&text, Path::new("x.toml"), &[]).unwrap();
        let (base, dir) = fresh();
        run(&recipe, &RunDir::at(&dir), &RunOptions::default(), &Cpu::new(), &mut Silent, &Stop::new()).unwrap();
        (base, dir)
    };
    let ((_a, off), (_b, copy)) =
        (with("policy_at = \"stage_start\"".into()), with(format!("path = {:?}", start.to_str().unwrap())));
    assert!(number(&lines(&off, "grpo")[2], "kl") > 0.0);
    for file in ["metrics.jsonl", "model/model.safetensors"] {
        assert!(bits(&off, file) == bits(&copy, file), "{file} differs");
    }
}

#[test]
fn micro_batches_and_recomputation_do_not_change_the_gradient_with_dropout() {
    let norms = |sets: &[&str]| {
        let sets = [sets, &["stage.grpo.steps=1"]].concat();
        let (_base, dir) = done(&sets);
        lines(&dir, "sft").iter().map(|l| (number(l, "loss"), number(l, "grad_norm"))).collect::<Vec<_>>()
    };
    let whole = norms(&["stage.sft.micro_tokens=4096"]);
    assert_eq!(whole, norms(&["stage.sft.micro_tokens=4096", "stage.sft.recompute=true"]));
    for (a, b) in whole.iter().zip(norms(&["stage.sft.micro_tokens=20"])) {
        assert!((a.0 - b.0).abs() < 1e-6 && (a.1 - b.1).abs() < 1e-5 * a.1, "{a:?} {b:?}");
    }
    let without = norms(&["stage.sft.adapter.dropout=0.0"]);
    assert_ne!(whole[0], without[0], "dropout does something");
}

#[test]
fn threads_change_no_bit() {
    let at = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| done(&[]))
    };
    let ((_a, one), (_b, three)) = (at(1), at(3));
    same_run(&one, &three);
}

#[test]
fn dropout_in_an_online_stage_works_and_is_warned_of() {
    let dropout = "stage.grpo.adapter.dropout=0.3";
    let recipe = parsed(&[dropout]);
    let found = recipe::check(&recipe);
    let warning = found.iter().find(|p| p.what.contains("adapter.dropout")).unwrap();
    assert!(warning.severity == Severity::Warning && warning.at.contains("grpo"));
    let of = |micro: &str| {
        let (_base, dir) = done(&[dropout, micro, "stage.grpo.steps=1"]);
        let round = &lines(&dir, "grpo")[0];
        (number(round, "ratio/max"), number(round, "grad_norm"))
    };
    let (a, b) = (of("stage.grpo.micro_tokens=4096"), of("stage.grpo.micro_tokens=20"));
    // B is zero at first, so the first pass is the sampler's; the gradient of B sees the masks.
    assert!(a.0 == 1.0 && (a.1 - b.1).abs() < 1e-5 * a.1, "{a:?} {b:?}");
    let (_base, dir) = done(&[dropout]);
    assert!(number(&lines(&dir, "grpo")[1], "ratio/max") > 1.0);
}

#[test]
fn wrong_settings_are_found_before_anything_is_loaded() {
    let found = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        let recipe = recipe::parse(RECIPE, Path::new("x.toml"), &sets).unwrap();
        let errors: Vec<_> = recipe::check(&recipe).into_iter().filter(|p| p.severity == Severity::Error).collect();
        errors.into_iter().map(|p| format!("{}: {}; {}", p.at, p.what, p.hint)).collect::<Vec<_>>()
    };
    for (set, parts) in [
        ("stage.sft.adapter.rank=0", ["stage `sft`", "`rank` is 0"]),
        ("stage.sft.adapter.alpha=-1", ["stage `sft`", "`alpha` is -1"]),
        ("stage.sft.adapter.dropout=1.0", ["stage `sft`", "`dropout` is 1"]),
        ("stage.grpo.adapter.targets=[\"q_proj\", \"lm_head\"]", ["stage `grpo`", "`lm_head`"]),
        ("stage.grpo.adapter.targets=[\"layers.2.*\"]", ["stage `grpo`", "it has 2 blocks"]),
        ("stage.grpo.adapter.targets=[]", ["stage `grpo`", "`targets` is empty"]),
    ] {
        let errors = found(&[set]);
        assert!(errors.len() == 1 && parts.iter().all(|p| errors[0].contains(p)), "{errors:?}");
    }
    let all = found(&["stage.sft.adapter={kind=\"lora\",rank=0,alpha=0.0,targets=[\"x\",\"y\"]}"]);
    assert_eq!(all.len(), 4, "{all:?}");
    assert!(found(&["save=adapter", "save_dtype=bf16"])[0].contains("save_dtype"));
    let text = RECIPE.replace("rslora = true, ", "").replace("adapter = { kind = \"lora\", rank = 3", "x = { rank = 3");
    assert!(recipe::parse(&text, Path::new("x.toml"), &[]).is_err());
    let none = RECIPE.lines().filter(|l| !l.starts_with("adapter = ")).collect::<Vec<_>>().join("\n");
    let recipe = recipe::parse(&none, Path::new("x.toml"), &["save=adapter".into()]).unwrap();
    assert!(recipe::check(&recipe).iter().any(|p| p.what.contains("the last stage trains none")));
}
