//! The offline loop with every supervised objective, input change and constraint, on a very small model.

mod common;

use std::fs;
use std::path::Path;

use common::{StopAfter, fresh, go_on, lines, number, same};
use serde_json::Value;
use temper_train::recipe::{self, Severity};
use temper_train::watch::{Silent, Stop, Watch};
use temper_train::{Error, Outcome};

const RECIPE: &str = r#"
name = "supervised"
seed = 5

[[stage]]
id = "tokenizer"
kind = "tokenizer"
vocab_size = 259
data = [{ kind = "tasks", tasks = { kind = "tiny_world", families = "all", levels = [1], split = "train" }, n = 20 }]

[[stage]]
id = "init"
kind = "init"
shape = { hidden_size = 32, layers = 1, heads = 2, kv_heads = 1, intermediate_size = 32, max_positions = 256 }

[[stage]]
id = "sft"
kind = "offline"
data = [{ kind = "tasks", tasks = { kind = "tiny_world", families = ["copying", "addition"], levels = [1], split = "train" }, n = 12 }]
max_tokens = 160
batch = { examples = 4 }
steps = 6
optimizer = { kind = "adamw", lr = 1e-3 }
checkpoint_every = 1
"#;

const REFERENCE: &str = "model.reference.policy_at=stage_start";

fn parsed(sets: &[&str]) -> recipe::Recipe {
    common::parsed(RECIPE, sets)
}

/// The metrics of a run's steps.
fn steps(sets: &[&str]) -> Result<Vec<Value>, Error> {
    let (_base, dir) = fresh();
    go_on(&parsed(sets), &dir, &mut Silent, &Stop::new())?;
    Ok(lines(&dir, "sft"))
}

const ANCHORED: &str = "stage.sft.terms=[{weight=0.5,objective={kind=\"reference_kl\",estimator={kind=\"k2\"}}}]";

const VOCABULARY: &str = "stage.sft.terms=[{weight=0.5,objective={kind=\"vocabulary_kl\"}}]";

/// Each of these trains, gives other numbers than plain SFT, and the same however the step is cut.
#[test]
fn every_method_trains_and_does_not_depend_on_micro_batches() {
    let plain = steps(&[]).unwrap();
    let methods: [&[&str]; 17] = [
        &["stage.sft.objective={kind=\"label_smoothing\",eps=0.2}"],
        &["stage.sft.objective={kind=\"dft\"}"],
        &["stage.sft.objective={kind=\"probability\",q=2}"],
        &["stage.sft.objective={kind=\"focal\"}"],
        &["stage.sft.objective={kind=\"eaft\"}"],
        &["stage.sft.objective={kind=\"ift\"}"],
        &["stage.sft.objective={kind=\"reference_weighted\",beta=5}", REFERENCE],
        &["stage.sft.objective={kind=\"f_divergence\",divergence=\"pearson\",beta=1}", REFERENCE],
        &[ANCHORED, REFERENCE],
        &["stage.sft.objective={kind=\"dft\"}", VOCABULARY, REFERENCE],
        &["stage.sft.terms=[{weight=0.1,objective={kind=\"entropy_bonus\"}}]"],
        &["stage.sft.input={neftune_alpha=5}"],
        &["stage.sft.input={mask={share=0.5,token=\"<|im_start|>\"}}"],
        &["stage.sft.input={own_guess=0.3}"],
        &["stage.sft.constraint={epsilon=0.5,lr=0.3,init=2}"],
        &["stage.sft.transform=[{kind=\"unfamiliar\",answer=\"unknown\",share=0.5}]"],
        &["stage.sft.transform=[{kind=\"pseudo_label\",max_tokens=4}]"],
    ];
    for method in methods {
        let at = |micro: &str| steps(&[method, &[micro]].concat()).unwrap_or_else(|e| panic!("{method:?}: {e}"));
        let (small, large) = (at("stage.sft.micro_tokens=40"), at("stage.sft.micro_tokens=4096"));
        for (a, b) in small.iter().zip(&large) {
            let near = |name: &str, tolerance: f64| {
                let (a, b) = (number(a, name), number(b, name));
                assert!((a - b).abs() <= tolerance * a.abs().max(1.0), "{method:?} {name}: {a} {b}");
            };
            near("loss", 1e-5);
            near("grad_norm", 1e-4);
        }
        let differs = small
            .iter()
            .zip(&plain)
            .any(|(a, b)| ["loss", "grad_norm"].iter().any(|name| (number(a, name) - number(b, name)).abs() > 1e-4));
        assert!(differs, "{method:?} changes nothing");
    }
}

#[test]
fn the_reference_is_the_model_at_the_start() {
    let lines = steps(&[ANCHORED, REFERENCE]).unwrap();
    assert_eq!((number(&lines[0], "ref_log_ratio"), number(&lines[0], "loss/reference_kl")), (0.0, 0.0));
    assert_eq!(number(&lines[0], "loss/nll"), number(&lines[0], "loss"));
    assert!(lines[1..].iter().all(|l| number(l, "loss/reference_kl") > 0.0));
    assert!(number(&lines[2], "ref_log_ratio") != 0.0);
}

/// Over the whole vocabulary too; and a larger weight holds the model closer to its start.
#[test]
fn the_kl_over_the_vocabulary_begins_at_zero_and_anchors() {
    let last = |weight: &str| {
        let terms = format!("stage.sft.terms=[{{weight={weight},objective={{kind=\"vocabulary_kl\"}}}}]");
        let lines = steps(&[&terms, REFERENCE]).unwrap();
        assert!(number(&lines[0], "loss/vocabulary_kl").abs() < 1e-6, "{}", lines[0]);
        assert!(lines[1..].iter().all(|l| number(l, "loss/vocabulary_kl") > 0.0));
        number(&lines[5], "loss/vocabulary_kl")
    };
    let (loose, tight) = (last("0.01"), last("20"));
    assert!(tight < 0.9 * loose, "{tight} {loose}");
    // With an adapter the reference is the model with the adapter off, and its head the model's own.
    let adapter = ["stage.sft.adapter={kind=\"lora\",rank=2,alpha=4}", VOCABULARY, REFERENCE];
    let lines = steps(&adapter).unwrap();
    assert!(number(&lines[0], "loss/vocabulary_kl").abs() < 1e-6 && number(&lines[5], "loss/vocabulary_kl") > 0.0);
}

/// The head that makes a KL over the vocabulary says what the reference's own head says of the tokens, bit for bit.
#[test]
fn the_references_log_probabilities_are_the_same_beside_a_kl_over_the_vocabulary() {
    let (_base, dir) = fresh();
    go_on(&parsed(&[]), &dir, &mut Silent, &Stop::new()).unwrap();
    let reference = format!("model.reference.path={}", dir.join("model").display());
    let first = |more: &str, adapter: &str| {
        let anchored = "{weight=0.5,objective={kind=\"reference_kl\",estimator={kind=\"k2\"}}}";
        let terms = format!("stage.sft.terms=[{anchored}{more}]");
        let line = steps(&[&terms, &reference, "stage.sft.steps=1", adapter]).unwrap().remove(0);
        let loss = number(&line, "loss") - line["loss/vocabulary_kl"].as_f64().unwrap_or(0.0);
        (number(&line, "ref_log_ratio"), number(&line, "loss/reference_kl"), loss)
    };
    for adapter in ["stage.sft.recompute=false", "stage.sft.adapter={kind=\"lora\",rank=2,alpha=4}"] {
        let (alone, beside) = (first("", adapter), first(",{weight=1.0,objective={kind=\"vocabulary_kl\"}}", adapter));
        assert!(alone.0 != 0.0 && (alone.0, alone.1) == (beside.0, beside.1), "{alone:?} {beside:?}");
        assert!((alone.2 - beside.2).abs() < 1e-9, "{alone:?} {beside:?}");
    }
}

#[test]
fn multipliers_follow_the_losses() {
    let lines = steps(&["stage.sft.constraint={epsilon=0.5,lr=0.3}", "stage.sft.steps=6"]).unwrap();
    // 12 rows, 4 a step: the first pass has the starting multiplier, the second what the first losses made of it.
    assert!(lines[..3].iter().all(|l| number(l, "constraint/multiplier") == 1.0));
    assert!(lines[3..].iter().all(|l| number(l, "constraint/multiplier") > 1.5));
    assert!(lines.iter().all(|l| number(l, "constraint/violated") == 1.0));
}

/// Two looks at the probe, then a quarter of the units is zero in training: the steps before are those of plain SFT.
#[test]
fn sensitive_units_are_left_out_after_enough_looks() {
    let two = "stage.init.shape.layers=2";
    let of = |every: usize| format!("stage.sft.sensitivity={{share=0.25,every={every},looks=2,probe=5}}");
    let (plain, lines) = (steps(&[two]).unwrap(), steps(&[two, &of(1)]).unwrap());
    let dropped: Vec<f64> = lines.iter().map(|l| number(l, "sensitivity/dropped_ratio")).collect();
    assert_eq!(dropped, [0.0, 0.0, 0.25, 0.25, 0.25, 0.25]);
    let losses = |lines: &[Value]| lines.iter().map(|l| number(l, "loss")).collect::<Vec<_>>();
    assert_eq!(losses(&plain)[..2], losses(&lines)[..2]);
    assert!(losses(&plain)[2..].iter().zip(&losses(&lines)[2..]).all(|(a, b)| a != b));
    let cut = steps(&[two, &of(1), "stage.sft.micro_tokens=40"]).unwrap();
    for (a, b) in losses(&cut).iter().zip(losses(&lines)) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

/// What would never happen is an error: of `check` where the steps are given, and before the first step where they follow from epochs.
#[test]
fn what_a_stage_is_too_short_for_is_found_before_training() {
    let sensitive = |every: usize| format!("stage.sft.sensitivity={{every={every},looks=2,probe=5}}");
    let often = |every: usize| format!("stage.sft.after_update=[{{kind=\"look_ahead\",every={every},alpha=0.5}}]");
    let two = "stage.init.shape.layers=2";
    // 12 rows, 4 a step: two epochs are six steps.
    let text = RECIPE.replace("steps = 6", "epochs = 2");
    for (good, bad, words) in [
        (sensitive(2), sensitive(3), ["sensitivity.every", "the stage ends before"]),
        (often(6), often(7), ["after_update.0", "the stage has 6 optimiser steps"]),
    ] {
        let found = recipe::check(&common::read(RECIPE, &[two, &bad]));
        let error = found.iter().find(|p| p.severity == Severity::Error).unwrap();
        assert!(words.iter().all(|word| format!("{} {}", error.at, error.what).contains(word)), "{found:?}");
        let run = |set: &str| {
            let (base, dir) = fresh();
            (go_on(&common::parsed(&text, &[two, set]), &dir, &mut Silent, &Stop::new()), dir, base)
        };
        run(&good).0.unwrap();
        let (refused, dir, _base) = run(&bad);
        let refused = refused.unwrap_err().to_string();
        assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
        assert!(refused.contains(&error.what) && lines(&dir, "sft").is_empty(), "{refused}: {found:?}");
    }
    // A model of one block has no last block but one.
    let (_base, dir) = fresh();
    let error = go_on(&parsed(&[&sensitive(1)]), &dir, &mut Silent, &Stop::new()).unwrap_err().to_string();
    assert!(error.contains("last block but one") && lines(&dir, "sft").is_empty(), "{error}");
}

#[test]
fn a_resumed_run_ends_with_the_same_bits() {
    let sets = [
        "stage.init.shape.layers=2",
        "stage.sft.sensitivity={share=0.25,every=1,looks=3,probe=3}",
        "stage.sft.input={neftune_alpha=5,mask={share=0.3,token=\"<|im_start|>\",ramp=0.5}}",
        "stage.sft.constraint={epsilon=0.5,lr=0.3,resilience=2}",
        "stage.sft.transform=[{kind=\"unfamiliar\",answer=\"unknown\",share=0.3}]",
        ANCHORED,
        REFERENCE,
    ];
    let recipe = parsed(&sets);
    let base = tempfile::tempdir().unwrap();
    let go = |dir: &Path, watch: &mut dyn Watch, stop: &Stop| go_on(&recipe, dir, watch, stop).unwrap();
    let (whole, cut) = (base.path().join("whole"), base.path().join("cut"));
    assert_eq!(go(&whole, &mut Silent, &Stop::new()), Outcome::Done);
    let stop = Stop::new();
    assert_eq!(go(&cut, &mut StopAfter::new(2, &stop), &stop), Outcome::Interrupted);
    assert_eq!(go(&cut, &mut Silent, &Stop::new()), Outcome::Done);
    same(&whole, &cut, &["metrics.jsonl", "model/model.safetensors"]);
}

#[test]
fn a_reference_from_outside_that_has_changed_is_noticed_on_resume() {
    let base = tempfile::tempdir().unwrap();
    let (made, cut) = (base.path().join("made"), base.path().join("cut"));
    let plain = parsed(&[]);
    go_on(&plain, &made, &mut Silent, &Stop::new()).unwrap();
    let reference = format!("model.reference.path={}", made.join("model").display());
    let recipe = parsed(&[ANCHORED, &reference]);
    let stop = Stop::new();
    assert_eq!(go_on(&recipe, &cut, &mut StopAfter::new(2, &stop), &stop).unwrap(), Outcome::Interrupted);
    let weights = made.join("model/model.safetensors");
    let before = fs::read(&weights).unwrap();
    let mut bytes = before.clone();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, &bytes).unwrap();
    let error = go_on(&recipe, &cut, &mut Silent, &Stop::new()).unwrap_err().to_string();
    assert!(error.contains("reference model") && error.contains("changed"), "{error}");
    fs::write(&weights, &before).unwrap();
    assert_eq!(go_on(&recipe, &cut, &mut Silent, &Stop::new()).unwrap(), Outcome::Done);
}

#[test]
fn what_cannot_work_is_found_before_anything_runs() {
    for (set, word) in [
        ("stage.sft.objective={kind=\"reference_weighted\",beta=1}", "reference"),
        ("stage.sft.objective={kind=\"focal\",gamma=-1}", "gamma"),
        ("stage.sft.terms=[{weight=0,objective={kind=\"nll\"}}]", "weight"),
        ("stage.sft.input={}", "no effect"),
        ("stage.sft.input={mask={share=2}}", "mask.share"),
        ("stage.sft.constraint={epsilon=-1,lr=0.1}", "epsilon"),
        ("stage.sft.transform=[{kind=\"lookahead\",words=0}]", "words"),
        ("model.reference.policy_at=stage_start", "no effect"),
    ] {
        let recipe = recipe::parse(RECIPE, Path::new("x.toml"), &[set.to_string()]).unwrap();
        let found = recipe::check(&recipe);
        let text: Vec<String> = found.iter().map(|p| format!("{}: {} ({})", p.at, p.what, p.hint)).collect();
        assert!(text.join("\n").contains(word), "{set}: {text:?}");
    }
    let error = steps(&["stage.sft.input={mask={share=0.5,token=\"<nowhere>\"}}"]).unwrap_err();
    assert!(error.to_string().contains("<nowhere>"), "{error}");
}

/// The recipes that come with the project are what `temper check` accepts.
#[test]
fn the_recipes_are_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            let recipe = recipe::load(&path, &[]).unwrap_or_else(|e| panic!("{e}")).recipe;
            let errors: Vec<_> = recipe::check(&recipe).into_iter().filter(|p| p.severity == Severity::Error).collect();
            assert!(errors.is_empty(), "{}: {errors:?}", path.display());
            assert_eq!(path.file_stem().unwrap().to_str(), Some(recipe.name.as_str()));
            count += 1;
        }
    }
    assert!(count >= 20, "{count}");
}

/// Every family of supervised objectives learns: on models/tiny the likelihood of held-out worked solutions rises for each of three
/// seeds. The ledger measures it before and after.
#[test]
fn every_family_learns_what_it_has_not_seen() {
    const TINY: &str = r#"
        name = "learns"
        [model.policy]
        path = "models/tiny"
        [model.reference]
        policy_at = "stage_start"
        [[target]]
        id = "held-out"
        source = { kind = "nll", path = "rows.jsonl" }
        n = 40
        [[stage]]
        id = "sft"
        kind = "offline"
        data = [{ kind = "tasks", n = 200, tasks = { kind = "tiny_world", families = ["chains"], levels = [3], split = "train", cot = true } }]
        max_tokens = 128
        batch = { examples = 8 }
        steps = 12
        optimizer = { kind = "adamw", lr = 5e-4 }
        micro_tokens = 4096
    "#;
    let (base, _) = fresh();
    let path = base.path().join("rows.jsonl");
    fs::write(&path, held_out()).unwrap();
    let [model, rows] = [
        format!("model.policy.path={}/../../models/tiny", env!("CARGO_MANIFEST_DIR")),
        format!("target.0.source.path={}", path.display()),
    ];
    let dft = "stage.sft.objective={kind=\"dft\"}";
    let families: [&[&str]; 7] = [
        &["stage.sft.terms=[{weight=0.1,objective={kind=\"reference_kl\"}}]"],
        &[dft, "stage.sft.terms=[{weight=0.1,objective={kind=\"vocabulary_kl\"}}]"],
        &["stage.sft.objective={kind=\"probability\",q=0.5}", "model.reference=NONE"],
        &["stage.sft.objective={kind=\"reference_weighted\",beta=1}"],
        &["stage.sft.objective={kind=\"f_divergence\",divergence=\"jensen_shannon\",beta=0.1}"],
        &["stage.sft.objective={kind=\"ift\"}", "stage.sft.input={own_guess=0.2}", "model.reference=NONE"],
        &["stage.sft.constraint={epsilon=0.2,lr=0.3}", "stage.sft.input={neftune_alpha=5}", "model.reference=NONE"],
    ];
    for family in families {
        for seed in ["seed=1", "seed=2", "seed=3"] {
            let text = if family.contains(&"model.reference=NONE") {
                TINY.replace("[model.reference]\n        policy_at = \"stage_start\"", "")
            } else {
                TINY.to_owned()
            };
            let sets: Vec<&str> = family.iter().copied().filter(|s| !s.ends_with("NONE")).collect();
            let (_base, dir) = fresh();
            let recipe = common::parsed(&text, &[&[model.as_str(), &rows, seed], &sets[..]].concat());
            go_on(&recipe, &dir, &mut Silent, &Stop::new()).unwrap();
            let ledger: Value = serde_json::from_slice(&common::bits(&dir, "ledger.json")).unwrap();
            let nll: Vec<f64> =
                ledger["cells"].as_array().unwrap().iter().map(|c| c["nll"].as_f64().unwrap()).collect();
            assert!(nll[1] < 0.9 * nll[0], "{family:?} {seed}: {nll:?}");
        }
    }
}

/// Worked solutions of the test split as rows of a file.
fn held_out() -> String {
    let world = r#"{"kind":"tiny_world","families":["chains"],"levels":[3],"split":"test","cot":true}"#;
    let tasks = serde_json::from_str::<temper_env::TaskSource>(world).unwrap().open(7).unwrap();
    let row = |i: u64| {
        let task = tasks.get(i).unwrap();
        let answer = task.demonstration.clone().unwrap();
        let messages = [("user", task.prompt_text()), ("assistant", answer)]
            .map(|(role, content)| serde_json::json!({ "role": role, "content": content }));
        serde_json::json!({ "messages": messages }).to_string() + "\n"
    };
    (0..40).map(row).collect()
}
