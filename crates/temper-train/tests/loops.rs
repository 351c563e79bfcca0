//! The two loops on a very small model, through whole runs: what must hold bit for bit, and what must be reported.

mod common;

use std::fs;
use std::path::Path;

use common::{StopAfter, bits, fresh, lines, number, parsed, same};
use serde_json::Value;
use temper_tensor::Cpu;
use temper_train::recipe::{self, Severity};
use temper_train::run::{RunOptions, run};
use temper_train::rundir::RunDir;
use temper_train::watch::{Silent, Stop};
use temper_train::{Error, Outcome};

/// A byte tokenizer, a random model of two blocks, a few steps of SFT, and three rounds of GRPO with a reward on which even a
/// random model's groups differ.
const RECIPE: &str = r#"
name = "loops"
seed = 3

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
max_tokens = 128
batch = { examples = 6 }
steps = 4
optimizer = { kind = "adamw", lr = 1e-3, weight_decay = 0.1 }
schedule = { kind = "cosine", warmup_steps = 1 }
checkpoint_every = 2

[[stage]]
id = "grpo"
kind = "online"
tasks = [{ source = { kind = "tiny_world", families = ["copying"], levels = [1], split = "train" } }]
steps = 3
prompts_per_step = 3
samples_per_prompt = 4
sampling = { temperature = 1.3, max_tokens = 9 }
rewards = [
  { name = "hex", kind = "format", pattern = "[0-9a-f]" },
  { name = "correct", kind = "verifier", weight = 0.5 },
]
optimizer = { kind = "adamw", lr = 1e-3 }
checkpoint_every = 2
log_rollouts_every = 1
"#;

fn go(dir: &Path, sets: &[&str]) -> Result<Outcome, Error> {
    run(&parsed(RECIPE, sets), &RunDir::at(dir), &RunOptions::default(), &Cpu::new(), &mut Silent, &Stop::new())
}

fn same_run(a: &Path, b: &Path) {
    let model = ["stages/sft/model.safetensors", "model/model.safetensors"];
    same(a, b, &[&["metrics.jsonl", "rollouts.jsonl", "ledger.json"][..], &model].concat());
}

#[test]
fn the_first_ratio_is_exactly_one_whatever_the_micro_batches() {
    for micro in ["stage.grpo.micro_tokens=30", "stage.grpo.micro_tokens=4096"] {
        for recompute in ["stage.grpo.recompute=false", "stage.grpo.recompute=true"] {
            let (_base, dir) = fresh();
            assert_eq!(go(&dir, &[micro, recompute, "stage.grpo.max_batch=5"]).unwrap(), Outcome::Done);
            let rounds = lines(&dir, "grpo");
            assert_eq!(rounds.len(), 3);
            for round in rounds {
                assert_eq!((number(&round, "ratio/mean"), number(&round, "ratio/max")), (1.0, 1.0), "{round}");
                assert_eq!(number(&round, "clip_ratio/region_mean"), 0.0);
                assert!(number(&round, "grad_norm") > 0.0);
                assert!((0.0..=1.0).contains(&number(&round, "rewards/hex/mean")), "{round}");
            }
        }
    }
}

#[test]
fn in_bf16_the_first_ratio_is_one_the_kl_zero_and_a_resumed_run_the_same() {
    let sets = [
        "dtype=\"bf16\"",
        "model.reference.policy_at=stage_start",
        "stage.grpo.objective={kl={estimator={kind=\"k3\"},beta=0.1}}",
    ];
    let (_base, whole) = fresh();
    assert_eq!(go(&whole, &sets).unwrap(), Outcome::Done);
    let rounds = lines(&whole, "grpo");
    assert!(rounds.iter().all(|r| number(r, "ratio/max") == 1.0 && number(r, "grad_norm") > 0.0), "{rounds:?}");
    assert!(number(&rounds[0], "kl") == 0.0 && number(&rounds[2], "kl") > 0.0, "{rounds:?}");
    let losses = |dir: &Path| lines(dir, "sft").iter().map(|l| number(l, "loss")).collect::<Vec<_>>();
    let (_base, f32) = fresh();
    go(&f32, &[]).unwrap();
    for (a, b) in losses(&whole).iter().zip(losses(&f32)) {
        assert!(*a != b && (a / b - 1.0).abs() < 0.01, "{a} in bf16, {b} in f32");
    }
    let recipe = parsed(RECIPE, &sets);
    for after in [2, 5] {
        let (_base, dir) = fresh();
        let (stop, options) = (Stop::new(), RunOptions { resume: true, ..RunOptions::default() });
        run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut StopAfter::new(after, &stop), &stop).unwrap();
        run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut Silent, &Stop::new()).unwrap();
        same_run(&whole, &dir);
    }
}

#[test]
fn a_second_pass_moves_the_ratio_away_from_one() {
    let (_base, dir) = fresh();
    go(&dir, &["stage.grpo.inner_epochs=2", "stage.grpo.minibatches=3", "stage.grpo.group=[]"]).unwrap();
    assert!(lines(&dir, "grpo").iter().all(|r| number(r, "ratio/max") > 1.0));
}

#[test]
fn the_kl_to_the_start_begins_at_zero_and_grows() {
    let (_base, dir) = fresh();
    let sets =
        ["model.reference.policy_at=stage_start", "stage.grpo.objective={kl={estimator={kind=\"k3\"},beta=0.1}}"];
    go(&dir, &sets).unwrap();
    let kl: Vec<f64> = lines(&dir, "grpo").iter().map(|r| number(r, "kl")).collect();
    assert_eq!(kl[0], 0.0);
    assert!(kl[1..].iter().all(|&k| k > 0.0), "{kl:?}");
}

#[test]
fn micro_batches_do_not_change_the_gradient() {
    let norms = |micro: &str| {
        let (_base, dir) = fresh();
        go(&dir, &[micro]).unwrap();
        lines(&dir, "sft").iter().map(|l| (number(l, "loss"), number(l, "grad_norm"))).collect::<Vec<_>>()
    };
    for (a, b) in norms("stage.sft.micro_tokens=20").into_iter().zip(norms("stage.sft.micro_tokens=4096")) {
        assert!((a.0 - b.0).abs() < 1e-6 && (a.1 - b.1).abs() < 1e-5 * a.1, "{a:?} {b:?}");
    }
}

#[test]
fn threads_change_no_bit() {
    let at = |threads: usize| {
        let (base, dir) = fresh();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| go(&dir, &[])).unwrap();
        (base, dir)
    };
    let ((_a, one), (_b, three)) = (at(1), at(3));
    same_run(&one, &three);
}

#[test]
fn stopped_anywhere_and_resumed_a_run_ends_with_the_same_bits() {
    let (_base, whole) = fresh();
    go(&whole, &[]).unwrap();
    let recipe = parsed(RECIPE, &[]);
    for after in 1..7 {
        let (_base, dir) = fresh();
        let stop = Stop::new();
        let options = RunOptions { resume: true, ..RunOptions::default() };
        let first =
            run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut StopAfter::new(after, &stop), &stop).unwrap();
        assert_eq!(first, Outcome::Interrupted, "after {after} rounds");
        let second = run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut Silent, &Stop::new()).unwrap();
        assert_eq!(second, Outcome::Done);
        same_run(&whole, &dir);
    }
}

#[test]
fn a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint() {
    let (_base, dir) = fresh();
    let error =
        go(&dir, &["stage.sft.optimizer.lr=1e30", "stage.sft.clip_norm=0", "stage.sft.schedule={kind=\"constant\"}"])
            .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("step 2 of stage `sft`") && text.contains("/L1/train/"), "{text}");
    assert!(error.hint().unwrap().contains("checkpoint"));
    assert!(dir.join("checkpoints/0002-00000000/manifest.json").is_file());
}

#[test]
fn constant_groups_are_reported_and_take_no_step() {
    let (_base, dir) = fresh();
    go(&dir, &["stage.grpo.rewards=[{name=\"n\",kind=\"length\",max=1000}]"]).unwrap();
    for round in lines(&dir, "grpo") {
        assert_eq!((number(&round, "frac_reward_zero_std"), number(&round, "reward")), (1.0, 0.0));
        assert!(round.get("loss").is_none());
    }
    assert!(bits(&dir, "stages/sft/model.safetensors") == bits(&dir, "stages/grpo/model.safetensors"));
}

#[test]
fn constant_groups_are_replaced_up_to_the_cap() {
    let (_base, dir) = fresh();
    let refill = "stage.grpo.group=[{kind=\"drop_constant\",refill=2}]";
    go(&dir, &["stage.grpo.rewards=[{name=\"n\",kind=\"length\",max=1000}]", refill, "stage.grpo.steps=1"]).unwrap();
    let round = &lines(&dir, "grpo")[0];
    let names = ["groups/dropped_ratio", "groups/refilled", "groups/missing"];
    assert_eq!(names.map(|name| number(round, name)), [1.0, 6.0, 3.0]);
    assert!(round.get("loss").is_none());
    let sampled = fs::read_to_string(dir.join("rollouts.jsonl")).unwrap();
    assert_eq!(sampled.lines().count(), 9 * 4, "what was replaced is logged too");
}

/// Objectives that look at a sequence, a group or the whole step see the same however the step is cut.
#[test]
fn wider_objectives_do_not_depend_on_micro_batches() {
    for (objective, reference) in [
        ("{surrogate={kind=\"kl_cov\",share=0.2}}", false),
        ("{surrogate={kind=\"clip_cov\",share=1.0,cov_low=0.0}}", false),
        ("{top_entropy={share=0.3}}", false),
        ("{ratio={kind=\"sequence\"},weighting={kind=\"sequence\"}}", false),
        ("{advantage={kind=\"group_mean\"},surrogate={kind=\"gvpo\"},weighting={kind=\"sequence\"}}", true),
    ] {
        let of = |micro_tokens: &str| {
            let objective = format!("stage.grpo.objective={objective}");
            let mut sets = vec![
                "stage.grpo.inner_epochs=2",
                "stage.grpo.group=[]",
                "stage.grpo.steps=2",
                micro_tokens,
                &objective,
            ];
            sets.extend(reference.then_some("model.reference.policy_at=stage_start"));
            let (_base, dir) = fresh();
            go(&dir, &sets).unwrap();
            lines(&dir, "grpo")
        };
        let (whole, cut) = (of("stage.grpo.micro_tokens=100000"), of("stage.grpo.micro_tokens=1"));
        for name in ["loss", "grad_norm", "ratio/mean"] {
            let (a, b) = (number(&whole[0], name), number(&cut[0], name));
            assert!((a - b).abs() <= 1e-5 * a.abs().max(1e-3), "{objective} {name}: {a} {b}");
        }
        assert!(whole.iter().any(|round| number(round, "grad_norm") > 0.0), "{objective}");
    }
}

/// Refilling, down-sampling, masking, shaping with noise and the tracked quantiles, stopped after every round.
#[test]
fn shaped_groups_resume_with_the_same_bits() {
    let sets = [
        "stage.grpo.rewards=[{name=\"hex\",kind=\"format\",pattern=\"[0-9a-f]\"}]",
        "stage.grpo.shaping=[{kind=\"flip\",part=\"hex\",probability=0.2},{kind=\"length_budget\",start=6,weight=0.1}]",
        "stage.grpo.group=[{kind=\"drop_constant\",refill=1},{kind=\"mask_truncated\"},{kind=\"down_sample\",keep=3}]",
        "stage.grpo.objective={advantage={kind=\"risk\",bundle=3,rate=0.1}}",
        "stage.grpo.checkpoint_every=1",
        "stage.sft.steps=1",
    ];
    let (_base, whole) = fresh();
    go(&whole, &sets).unwrap();
    let rounds = lines(&whole, "grpo");
    assert!(rounds.iter().all(|r| r.get("reward_shaped").is_some() && r.get("risk/quantile_low").is_some()));
    assert!(rounds.iter().any(|r| number(r, "completions/left_out_ratio") > 0.0));
    let recipe = parsed(RECIPE, &sets);
    for after in 2..4 {
        let (_base, dir) = fresh();
        let stop = Stop::new();
        let options = RunOptions { resume: true, ..RunOptions::default() };
        run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut StopAfter::new(after, &stop), &stop).unwrap();
        run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut Silent, &Stop::new()).unwrap();
        same_run(&whole, &dir);
    }
}

/// Greedy baselines, advantages per token, and everything of a group masked away.
#[test]
fn advantages_of_every_shape_run() {
    let one = ["stage.sft.steps=1", "stage.grpo.steps=1", "stage.grpo.group=[]"];
    let with = |set: &str| {
        let (base, dir) = fresh();
        go(&dir, &[&one[..], &[set]].concat()).unwrap();
        (lines(&dir, "grpo").remove(0), base)
    };
    let (remax, _a) = with("stage.grpo.objective={advantage={kind=\"remax\"},surrogate={kind=\"reinforce\"}}");
    assert!((0.0..=1.5).contains(&number(&remax, "reward_greedy")) && number(&remax, "grad_norm") >= 0.0);
    let (tokens, _b) = with("stage.grpo.objective={advantage={kind=\"reinforce_plus_plus\",gamma=0.9}}");
    assert!(number(&tokens, "grad_norm") > 0.0 && number(&tokens, "ratio/max") == 1.0);
    let (batch, _c) = with("stage.grpo.objective={advantage={kind=\"gdpo\"},weighting={kind=\"sequence_sum\"}}");
    assert!(number(&batch, "grad_norm") > 0.0);
    // Cut off after one token, every completion is masked: no step is taken.
    let mask = ["stage.grpo.sampling.max_tokens=1", "stage.grpo.group=[{kind=\"mask_truncated\"}]"];
    let (_base, dir) = fresh();
    go(&dir, &[&one[..2], &mask[..]].concat()).unwrap();
    let masked = &lines(&dir, "grpo")[0];
    assert!(number(masked, "completions/clipped_ratio") > 0.0);
    assert!(number(masked, "groups/dropped_ratio") > 0.0 || number(masked, "completions/left_out_ratio") > 0.0);
}

#[test]
fn a_directory_that_holds_a_run_is_not_overwritten() {
    let (_base, dir) = fresh();
    go(&dir, &["stage.grpo.steps=1"]).unwrap();
    let again = go(&dir, &["stage.grpo.steps=1"]).unwrap_err();
    assert!(again.hint().unwrap().contains("--resume"), "{again}");
    let options = RunOptions { resume: true, ..RunOptions::default() };
    let other = parsed(RECIPE, &["seed=4"]);
    let other = run(&other, &RunDir::at(&dir), &options, &Cpu::new(), &mut Silent, &Stop::new()).unwrap_err();
    assert!(other.to_string().contains("seed = 4"), "{other}");
}

#[test]
fn the_ledger_holds_every_task_after_every_training_stage() {
    let (_base, dir) = fresh();
    go(&dir, &[]).unwrap();
    let ledger: Value = serde_json::from_slice(&bits(&dir, "ledger.json")).unwrap();
    assert_eq!(ledger["stages"], serde_json::json!(["sft", "grpo"]));
    let cells = ledger["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2);
    assert!(cells.iter().all(|c| c["n"] == 4 && c["low"].as_f64() <= c["accuracy"].as_f64()));
    assert_eq!(cells[1]["change"]["against"], "sft");
}

#[test]
fn a_stop_right_after_a_resume_keeps_the_checkpoint() {
    let (_base, whole) = fresh();
    go(&whole, &[]).unwrap();
    let (_base, dir) = fresh();
    let recipe = parsed(RECIPE, &[]);
    let options = RunOptions { resume: true, ..RunOptions::default() };
    let attempt = |rounds: usize| {
        let stop = Stop::new();
        if rounds == 0 {
            stop.request();
        }
        run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut StopAfter::new(rounds, &stop), &stop).unwrap()
    };
    assert_eq!(attempt(3), Outcome::Interrupted);
    assert_eq!(attempt(0), Outcome::Interrupted);
    assert_eq!(attempt(99), Outcome::Done);
    same_run(&whole, &dir);
}

#[test]
fn an_evaluation_of_an_earlier_stage_changes_nothing_for_the_later_ones() {
    let (_base, plain) = fresh();
    go(&plain, &[]).unwrap();
    let (_base, dir) = fresh();
    let text = RECIPE.replace(
        "[[stage]]\nid = \"grpo\"",
        "[[stage]]\nid = \"look\"\nkind = \"evaluate\"\nfrom = \"init\"\n\n[[stage]]\nid = \"grpo\"",
    );
    let recipe = parsed(&text, &[]);
    run(&recipe, &RunDir::at(&dir), &RunOptions::default(), &Cpu::new(), &mut Silent, &Stop::new()).unwrap();
    assert!(bits(&plain, "model/model.safetensors") == bits(&dir, "model/model.safetensors"));
    let ledger: Value = serde_json::from_slice(&bits(&dir, "ledger.json")).unwrap();
    assert_eq!(ledger["stages"], serde_json::json!(["sft", "look", "grpo"]));
}

#[test]
fn epochs_with_a_token_budget_draw_every_row() {
    let (_base, dir) = fresh();
    let text = RECIPE.replace("batch = { examples = 6 }\nsteps = 4", "batch = { tokens = 70 }\nepochs = 2");
    let recipe = parsed(&text, &[]);
    run(&recipe, &RunDir::at(&dir), &RunOptions::default(), &Cpu::new(), &mut Silent, &Stop::new()).unwrap();
    let last = number(lines(&dir, "sft").last().unwrap(), "epoch");
    assert!((2.0..2.2).contains(&last), "{last}");
}

#[test]
fn a_stage_that_needs_another_batch_of_files_says_so() {
    let (_base, dir) = fresh();
    let data = dir.parent().unwrap().join("rows.jsonl");
    let row = "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
    fs::write(&data, row.repeat(8)).unwrap();
    let source = format!("stage.sft.data=[{{kind=\"file\",path=\"{}\"}}]", data.display());
    let recipe = parsed(RECIPE, &[&source, "stage.sft.checkpoint_every=1"]);
    let stop = Stop::new();
    let options = RunOptions { resume: true, ..RunOptions::default() };
    run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut StopAfter::new(2, &stop), &stop).unwrap();
    fs::write(&data, row.repeat(5)).unwrap();
    let error = run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut Silent, &Stop::new()).unwrap_err();
    assert!(error.to_string().contains("it had [8] rows a source, now [5]"), "{error}");
}

#[test]
fn settings_that_cannot_work_are_found_before_anything_runs() {
    let problems = |set: &str| {
        let recipe = recipe::parse(RECIPE, Path::new("loops.toml"), &[set.to_string()]).unwrap();
        let found = recipe::check(&recipe).into_iter().filter(|p| p.severity == Severity::Error);
        found.map(|p| format!("{}: {} ({})", p.at, p.what, p.hint)).collect::<Vec<_>>().join("\n")
    };
    for (set, word) in [
        ("stage.sft.batch.examples=9000000000000000000", "batch.examples"),
        ("stage.grpo.prompts_per_step=1000000000000", "prompts_per_step"),
        ("stage.grpo.samples_per_prompt=1", "at least 2 rollouts"),
        ("stage.tokenizer.vocab_size=1000000000000", "vocab_size"),
        ("stage.init.shape.heads=3", "head"),
        ("stage.sft.data.0.tasks.levels=[9]", "level"),
        ("stage.sft.data.0.tasks.families=[]", "families"),
        ("stage.sft.epochs=2", "steps"),
        ("stage.sft.prompt_weight=2", "prompt_weight"),
        ("stage.grpo.sampling.temperature=1e-30", "temperature"),
        ("stage.grpo.sampling.stop=[\"\"]", "stop"),
        ("stage.grpo.rewards=[{name=\"a\",kind=\"verifier\"},{name=\"a\",kind=\"verifier\"}]", "same name"),
        ("stage.grpo.objective={kl={beta=0.1}}", "reference"),
        ("stage.grpo.objective={advantage={kind=\"gae\"}}", "there is no critic"),
        ("stage.grpo.objective={advantage={kind=\"process\"}}", "steps"),
        ("stage.grpo.objective={advantage={kind=\"pass_at_k\",k=9}}", "k is 9"),
        ("stage.grpo.objective={advantage={kind=\"risk\",bundle=2}}", "bundle is 2"),
        ("stage.grpo.group=[{kind=\"down_sample\",keep=4}]", "keep is 4"),
        ("stage.grpo.group=[{kind=\"down_sample\",keep=1}]", "at least 2 rollouts"),
        ("stage.grpo.group=[{kind=\"drop_constant\",refill=1000}]", "refill"),
        ("stage.grpo.shaping=[{kind=\"flip\",part=\"wrong\",probability=0.1}]", "no reward part `wrong`"),
        ("model.reference.policy_at=stage_start", "no effect"),
        ("stage.grpo.from=nowhere", "nowhere"),
        ("retain.copying.samples=0", "samples"),
        ("retain.copying={id=\"n\",source={kind=\"nll\",path=\"x\"},max_tokens=9}", "no effect"),
    ] {
        let text = problems(set);
        assert!(text.contains(word), "{set}: {text}");
    }
}

#[test]
fn a_run_killed_before_its_recipe_was_written_can_begin_again() {
    let (_base, dir) = fresh();
    fs::create_dir_all(dir.join("checkpoints/.0000-00000000.aside")).unwrap();
    fs::create_dir_all(dir.join("stages")).unwrap();
    assert_eq!(go(&dir, &["stage.sft.steps=1", "stage.grpo.steps=1"]).unwrap(), Outcome::Done);
    assert!(!dir.join("checkpoints/.0000-00000000.aside").exists(), "what was left half-written is swept");

    let (_base, other) = fresh();
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("thesis.txt"), "mine").unwrap();
    assert!(go(&other, &[]).unwrap_err().to_string().contains("not empty"));
}

#[test]
fn a_resume_is_recorded_beside_what_the_run_began_with() {
    let (_base, dir) = fresh();
    let recipe = parsed(RECIPE, &[]);
    let attempt = |isa: &str, rounds: usize| {
        let stop = Stop::new();
        let options = RunOptions { resume: true, env: serde_json::json!({ "isa": isa }) };
        run(&recipe, &RunDir::at(&dir), &options, &Cpu::new(), &mut StopAfter::new(rounds, &stop), &stop).unwrap()
    };
    assert_eq!((attempt("one", 2), attempt("two", 99)), (Outcome::Interrupted, Outcome::Done));
    let env: Value = serde_json::from_slice(&bits(&dir, "env.json")).unwrap();
    assert_eq!(env, serde_json::json!({ "isa": "one", "resumed": [{ "isa": "two" }] }));
}
