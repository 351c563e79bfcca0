//! The recipes that ship: each is sound, is a row of METHODS.md, and runs.

use std::path::{Path, PathBuf};

use toml::Value;

use super::Place;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// (file name, content) of every recipe that names a method.
fn methods() -> Vec<(String, Value)> {
    let mut found: Vec<(String, Value)> = std::fs::read_dir(root().join("recipes"))
        .expect("there")
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "toml"))
        .map(|entry| {
            let text = std::fs::read_to_string(entry.path()).expect("readable");
            (entry.file_name().to_string_lossy().into_owned(), Value::Table(text.parse().expect("TOML")))
        })
        .filter(|(_, recipe)| recipe.get("method").is_some())
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Overrides that make any recipe a matter of a second: two steps a stage (as many as `sensitivity` needs), two items a task.
fn small(recipe: &Value) -> Vec<String> {
    let mut sets = vec![];
    for key in ["target", "retain"] {
        let tasks = recipe.get(key).and_then(Value::as_array).map_or(0, Vec::len);
        sets.extend((0..tasks).map(|i| format!("{key}.{i}.n=2")));
    }
    for (i, stage) in recipe["stage"].as_array().expect("stages").iter().enumerate() {
        let steps = if stage.get("sensitivity").is_some() { 3 } else { 2 };
        if stage.get("steps").is_some() {
            sets.push(format!("stage.{i}.steps={steps}"));
        }
        if steps > 2 {
            sets.extend([format!("stage.{i}.sensitivity.every=1"), format!("stage.{i}.sensitivity.looks=2")]);
        }
        if stage.get("critic").and_then(|c| c.get("objective")?.get("warmup_steps")).is_some() {
            sets.push(format!("stage.{i}.critic.objective.warmup_steps=1"));
        }
        let after = stage.get("after_update").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let often = after.iter().enumerate().filter(|(_, slot)| slot.get("every").is_some());
        sets.extend(often.map(|(j, _)| format!("stage.{i}.after_update.{j}.every=1")));
        if stage["kind"].as_str() == Some("online") {
            let most = stage["prompts_per_step"].as_integer().unwrap_or(4).min(10);
            sets.push(format!("stage.{i}.prompts_per_step={most}"));
        }
    }
    sets
}

/// Runs every `of`-th method from `first` on for two steps; the step's numbers must be numbers.
fn run_some(first: usize, of: usize) {
    let place = Place::new();
    for (name, recipe) in methods().iter().skip(first).step_by(of) {
        let (path, out) = (format!("recipes/{name}"), place.path(name));
        let out = out.to_str().expect("a plain path");
        let sets = small(recipe);
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let args: Vec<&str> = ["run", &path, "--out", out, "--threads", "1"].into_iter().chain(sets).collect();
        let output = place.command(&args).current_dir(root()).output().expect("the binary starts");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let metrics = place.read(&format!("{name}/metrics.jsonl"));
        assert!(metrics.lines().count() >= 2 && !metrics.contains("null"), "{name}: {metrics}");
    }
}

#[test]
fn methods_run_two_steps_1() {
    run_some(0, 2);
}

#[test]
fn methods_run_two_steps_2() {
    run_some(1, 2);
}

#[test]
fn methods_are_listed() {
    let place = Place::new();
    let rows: serde_json::Value = serde_json::from_str(&place.good(&["methods", "--json"])).expect("JSON");
    let rows = rows.as_array().expect("an array");
    assert_eq!(rows.len(), methods().len());
    let grpo = rows.iter().find(|row| row["recipe"] == "recipes/grpo.toml").expect("GRPO is there");
    assert_eq!(
        (&grpo["name"], &grpo["family"], &grpo["status"]),
        (&"GRPO".into(), &"rl".into(), &"as published".into())
    );
    assert!(place.good(&["methods"]).contains("recipes/grpo.toml"));
    let committed = std::fs::read_to_string(root().join("METHODS.md")).expect("METHODS.md");
    assert_eq!(place.good(&["methods", "--markdown"]), committed, "temper methods --markdown > METHODS.md");
}

#[test]
fn the_distance_between_two_recipes() {
    let place = Place::new();
    let of = |name: &str| root().join("recipes").join(name).to_str().expect("a plain path").to_owned();
    let text = place.good(&["recipe", "diff", &of("grpo.toml"), &of("dr-grpo.toml")]);
    assert!(text.contains("stage.rl.objective.advantage.kind") && text.contains("\"group_mean\""), "{text}");
    assert!(!text.contains("about") && !text.contains("evidence"), "{text}");
    assert_eq!(place.good(&["recipe", "diff", &of("grpo.toml"), &of("grpo.toml")]), "no setting differs\n");
    let json = place.good(&["recipe", "diff", &of("grpo.toml"), &of("dr-grpo.toml"), "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(rows.as_array().expect("an array").iter().any(|row| row["key"] == "stage.rl.objective.kl.beta"), "{json}");
    place.bad(&["recipe", "diff", &of("grpo.toml"), "none.toml"], &["none.toml"]);
}
