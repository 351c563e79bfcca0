//! `temper run` and what it leaves behind, `temper report`.

use serde_json::Value;

use super::{Place, finished};

#[test]
fn a_run_ends_with_tables_and_the_path_of_its_report() {
    let place = Place::with_recipe();
    let said = place.temper(&["run", "small.toml"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(said.out.lines().last(), Some("runs/small/report.html"));
    for part in ["after sft", "after grpo", "chains", "copying", "retained", "retention", "model: runs/small/model"] {
        assert!(said.out.contains(part), "{part} is not in\n{}", said.out);
    }
    for part in [
        "stage 3/4 sft (offline, 3 steps)",
        "  sft 3/3  loss ",
        "stage 4/4 grpo (online, 2 steps)",
        "  target chains: ",
        "reward",
        "tokens/s",
        "done in ",
    ] {
        assert!(said.err.contains(part), "{part} is not in\n{}", said.err);
    }
    assert!(
        !said.err.contains('\x1b') && !said.err.contains('\r'),
        "no bars and colours without a terminal:\n{}",
        said.err
    );
    for file in [
        "recipe.toml",
        "env.json",
        "metrics.jsonl",
        "timing.jsonl",
        "rollouts.jsonl",
        "ledger.json",
        "report.html",
        "model/config.json",
        "model/tokenizer.json",
        "model/model.safetensors",
        "stages/sft/model.safetensors",
    ] {
        assert!(place.path("runs/small").join(file).is_file(), "{file}");
    }
}

#[test]
fn the_record_says_what_is_needed_to_repeat_the_run() {
    let env: Value = serde_json::from_str(&finished().read("done/env.json")).expect("JSON");
    assert_eq!((&env["seed"], &env["command"]), (&3.into(), &"temper run small.toml --out done".into()));
    for key in ["version", "commit", "machine", "cores", "threads", "isa", "os"] {
        assert!(!env[key].is_null(), "{key}: {env}");
    }
}

#[test]
fn the_seed_and_overrides_reach_the_recipe_that_is_kept() {
    let place = Place::with_recipe();
    place.good(&["run", "small.toml", "--seed", "11", "--set", "stage.sft.steps=1", "--set", "stage.grpo.steps=1"]);
    let kept = place.read("runs/small/recipe.toml");
    assert!(kept.contains("seed = 11") && kept.contains("beta2 = 0.999"), "every default is spelled out:\n{kept}");
    assert_eq!(place.read("runs/small/metrics.jsonl").lines().count(), 2);
}

#[test]
fn threads_change_nothing() {
    let place = Place::with_recipe();
    place.good(&["run", "small.toml", "--out", "one", "--threads", "1"]);
    for file in ["metrics.jsonl", "ledger.json", "rollouts.jsonl"] {
        assert_eq!(place.read(&format!("one/{file}")), finished().read(&format!("done/{file}")), "{file}");
    }
}

#[test]
fn a_directory_that_holds_something_is_left_alone() {
    let place = Place::with_recipe();
    place.write("full/notes.txt", "mine");
    place.bad(&["run", "small.toml", "--out", "full"], &["not empty", "--out"]);
    assert_eq!(place.read("full/notes.txt"), "mine");
    place.write("file", "mine");
    place.bad(&["run", "small.toml", "--out", "file"], &["`file` is no directory"]);
    let said = finished().bad(&["run", "small.toml", "--out", "done"], &["holds a run already", "--resume"]);
    assert!(said.out.is_empty());
    finished().bad(
        &["run", "small.toml", "--out", "done", "--resume", "--seed", "4"],
        &["another recipe", "only now: seed = 4"],
    );
}

#[test]
fn a_run_that_never_had_anything_is_begun_anew() {
    let place = Place::new();
    let measures_nothing = super::SMALL.replace("[[target]]", "[[unused]]").replace("[[retain]]", "[[unused]]");
    let cut = |text: &str| text.split("[[unused]]").next().unwrap_or_default().to_owned();
    let stages = &measures_nothing[measures_nothing.find("[[stage]]").expect("stages")..];
    place.write("small.toml", cut(&measures_nothing) + stages);
    place.write("rows.jsonl", "{\"text\": 3}\n");
    let data = |key: &str| format!("stage.{key}.data=[{{ kind = \"file\", path = \"rows.jsonl\" }}]");
    place.bad(&["run", "small.toml", "--set", &data("tokenizer")], &["rows.jsonl"]);
    place.good(&["run", "small.toml"]);
}

#[test]
fn damaged_checkpoints_are_not_overwritten() {
    let place = Place::with_recipe();
    place.good(&["run", "small.toml"]);
    let metrics = place.read("runs/small/metrics.jsonl");
    let checkpoints: Vec<_> =
        std::fs::read_dir(place.path("runs/small/checkpoints")).expect("there").flatten().collect();
    let damage = |name: &std::path::Path| std::fs::write(name.join("state.json"), "{").expect("written");
    let mut paths: Vec<_> =
        checkpoints.iter().map(std::fs::DirEntry::path).filter(|p| p.join("state.json").is_file()).collect();
    paths.sort();
    damage(paths.last().expect("the newest"));
    let said = place.temper(&["run", "small.toml", "--resume"]);
    assert!(said.code == Some(0) && said.err.contains("is damaged and passed over"), "{}", said.err);
    assert_eq!(metrics, place.read("runs/small/metrics.jsonl"));
    for checkpoint in std::fs::read_dir(place.path("runs/small/checkpoints")).expect("there").flatten() {
        damage(&checkpoint.path());
    }
    place.bad(&["run", "small.toml", "--resume"], &["no checkpoint", "is whole", "--out"]);
    assert_eq!(metrics, place.read("runs/small/metrics.jsonl"));
}

#[test]
fn what_was_left_out_is_in_the_ledger_and_the_report() {
    let place = Place::with_recipe();
    let row = |answer: &str| format!("{{\"prompt\": \"a=1 a?\", \"completion\": \"{answer}\"}}\n");
    place.write("rows.jsonl", row("1") + &row("2") + &row(&"long ".repeat(100)));
    place.good(&["run", "small.toml", "--set", "stage.sft.data=[{ kind = \"file\", path = \"rows.jsonl\" }]"]);
    let ledger: serde_json::Value = serde_json::from_str(&place.read("runs/small/ledger.json")).expect("JSON");
    let note = ledger["notes"][0].as_str().expect("a note");
    assert!(note.starts_with("sft: rows.jsonl") && note.contains("too_long"), "{note}");
    assert!(place.read("runs/small/report.html").contains("too_long"));
}

#[test]
fn nothing_runs_when_the_recipe_has_errors() {
    let place = Place::with_recipe();
    place.bad(&["run", "small.toml", "--set", "stage.sft.steps=0"], &["`steps` is 0"]);
    place.bad(&["run", "small.toml", "--set", "model.policy.path=none"], &["there is no `none`"]);
    place.bad(&["run", "none.toml"], &["none.toml"]);
    assert!(!place.path("runs").exists());
}

#[test]
fn a_report_is_made_anew() {
    let place = Place::new();
    super::copy_files(&finished().path("done"), &place.path("copy"));
    assert_eq!(place.good(&["report", "copy"]), "copy/report.html\n");
    assert!(place.read("copy/report.html").contains("<svg"));
    place.bad(&["report", "none"], &["none", "temper run"]);
}
