//! `temper check`: what it finds, and how it tells errors from names that are not local.

use super::{Place, SMALL};

#[test]
fn a_good_recipe_is_ok() {
    let place = Place::with_recipe();
    let out = place.good(&["check", "small.toml"]);
    assert!(out.starts_with("small.toml: ok\n") && out.contains("as small as it gets"), "{out}");
}

#[test]
fn every_problem_is_listed_at_once() {
    let place = Place::new();
    let recipe = SMALL
        .replace("batch = { examples = 8 }", "batch = { examples = 8, tokens = 64 }")
        .replace("temperature = 1.0", "temperature = 0.0")
        .replace("prompts_per_step = 2", "prompts_per_step = 0")
        .replace("id = \"copying\"", "id = \"chains\"");
    place.write("bad.toml", recipe);
    let said = place.bad(
        &["check", "bad.toml"],
        &["batch.examples", "`temperature` is 0", "`prompts_per_step` is 0", "two evaluation tasks"],
    );
    let (errors, hints) = (said.out.matches("error:").count(), said.out.matches("hint:").count());
    assert!(errors >= 4 && hints == errors, "{}", said.out);
}

#[test]
fn an_unknown_key_is_named_with_its_stage() {
    let place = Place::new();
    place.write("bad.toml", SMALL.replace("steps = 3\n", "steps = 3\nstepz = 3\n"));
    place.bad(&["check", "bad.toml"], &["stage `sft`", "stepz", "schema"]);
    place.write("bad.toml", SMALL.replace("kind = \"offline\"", "kind = \"ofline\""));
    place.bad(&["check", "bad.toml"], &["stage `sft`", "ofline", "offline"]);
}

#[test]
fn an_option_without_effect_is_an_error() {
    let place = Place::new();
    place.write("bad.toml", format!("{SMALL}\n[model.reference]\npolicy_at = \"stage_start\"\n"));
    place.bad(&["check", "bad.toml"], &["model.reference", "no effect", "kl"]);
    place.write("bad.toml", SMALL.replace("steps = 3\n", "steps = 3\nmask = \"all\"\nprompt_weight = 0.5\n"));
    place.bad(&["check", "bad.toml"], &["prompt_weight", "no effect"]);
    let cot = "stage.grpo.tasks.0.source.cot=true";
    place.write("bad.toml", SMALL);
    place.bad(&["check", "bad.toml", "--set", cot], &["stage `grpo`", "`cot` has no effect"]);
    place.bad(
        &["check", "bad.toml", "--set", "target.0.source.tasks.cot=true"],
        &["task `chains`", "`cot` has no effect"],
    );
}

#[test]
fn every_missing_key_is_named_at_once() {
    let place = Place::new();
    let recipe = ["prompts_per_step = 2\n", "batch = { examples = 8 }\n", ", max_tokens = 6"]
        .iter()
        .fold(SMALL.to_owned(), |recipe, part| recipe.replace(part, ""));
    place.write("bad.toml", recipe);
    place.bad(
        &["check", "bad.toml"],
        &[
            "`stage` `sft`: `batch` is missing: Size of an optimiser step.",
            "`stage` `grpo`: `prompts_per_step` is missing: Prompts in a round, P.",
            "`stage` `grpo`, `sampling`: `max_tokens` is missing",
            "temper recipe schema",
        ],
    );
}

#[test]
fn missing_files_are_errors_and_names_of_the_hub_are_not_local() {
    let place = Place::with_recipe();
    let missing = "model.policy.path=models/none";
    place.bad(&["check", "small.toml", "--set", missing], &["model.policy", "there is no `models/none`", "--set"]);
    let out = place.good(&["check", "small.toml", "--set", "model.policy.path=hf:owner/name"]);
    assert!(out.contains("ok, 1 not local") && out.contains("`hf:owner/name`"), "{out}");
    place.bad(&["check", "small.toml", "--set", "model.policy.path=hf:owner"], &["not a Hub name"]);
    let data = "stage.sft.data=[{ kind = \"file\", path = \"rows.jsonl\" }]";
    place.bad(&["check", "small.toml", "--set", data], &["stage `sft`", "rows.jsonl"]);
    std::fs::create_dir(place.path("rows.jsonl")).expect("made");
    place.bad(&["check", "small.toml", "--set", data], &["is a directory"]);
    place.bad(&["check", "small.toml", "--set", "model.policy.path=rows.jsonl"], &["without config.json"]);
}

#[test]
fn what_is_no_recipe_is_said_so() {
    let place = Place::with_recipe();
    place.write("text.toml", "this is = = not TOML");
    place.write("binary.toml", [0xff, 0xfe, 0x00, 0x01]);
    place.write("empty.toml", "");
    place.bad(&["check", "none.toml"], &["none.toml", "No such file"]);
    place.bad(&["check", "."], &["directory"]);
    place.bad(&["check", "text.toml"], &["not valid TOML", "line 1"]);
    place.bad(&["check", "binary.toml"], &["binary.toml", "UTF-8"]);
    place.bad(&["check", "empty.toml"], &["empty.toml", "name"]);
    let said = place.bad(&["check", "small.toml", "none.toml"], &["none.toml"]);
    assert!(said.out.contains("small.toml: ok"), "the others are still checked: {}", said.out);
}

#[test]
fn overrides_that_do_not_fit_are_errors() {
    let place = Place::with_recipe();
    place.good(&["check", "small.toml", "--set", "stage.sft.steps=10", "--set", "seed=9"]);
    place.bad(&["check", "small.toml", "--set", "stage.dpo.steps=10"], &["--set stage.dpo.steps=10", "sft"]);
    place.bad(&["check", "small.toml", "--set", "stage.sft.steps=many"], &["stage `sft`", "many"]);
    place.bad(&["check", "small.toml", "--set", "sead=1"], &["sead"]);
    place.bad(&["check", "small.toml", "--set", "seed"], &["key.path=value"]);
}

#[test]
fn a_plan_says_what_will_happen() {
    let place = Place::with_recipe();
    let out = place.good(&["plan", "small.toml"]);
    for part in ["stage 4/4 grpo", "2 prompts x 4 samples", "parameters", "target chains"] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
    let json = place.good(&["plan", "small.toml", "--json"]);
    let stages: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(stages.as_array().map(Vec::len), Some(4));
    place.bad(
        &["plan", "small.toml", "--set", "model.policy.path=hf:owner/name"],
        &["not on this machine", "hf:owner/name"],
    );
    place.bad(&["plan", "small.toml", "--set", "stage.grpo.steps=0"], &["`steps` is 0"]);
}

#[test]
fn a_plan_shows_the_first_example_with_its_mask() {
    let place = Place::with_recipe();
    super::model_copy(&place, "model");
    let out = place.good(&["plan", "small.toml", "--set", "model.policy.path=model"]);
    let lines = |what: &str| out.lines().filter(|l| l.trim_start().starts_with(what)).count();
    assert!(lines("read  |") > 0 && lines("train |") > 0 && out.contains("expected peak memory"), "{out}");
}

#[test]
fn ids_that_lead_out_of_their_directory_are_refused() {
    let place = Place::with_recipe();
    for id in ["..", ".", ".hidden", "a/b", ""] {
        place.bad(&["check", "small.toml", "--set", &format!("stage.2.id='{id}'")], &["stage id", &format!("{id:?}")]);
    }
    place.bad(&["check", "small.toml", "--set", "target.0.id=\"a\\nb\""], &["evaluation task id", "printable"]);
}

#[test]
fn numbers_that_nobody_means_are_refused() {
    let place = Place::with_recipe();
    let bad = |set: &str, parts: &[&str]| place.bad(&["check", "small.toml", "--set", set], parts);
    bad("stage.sft.optimizer.weight_decay=inf", &["`weight_decay` is inf"]);
    bad("stage.sft.optimizer.eps=1e300", &["`eps` is 1e300"]);
    bad("stage.grpo.clip_norm=inf", &["`clip_norm` is inf"]);
    bad("target.0.n=100000000", &["completions are to be measured"]);
    let most = ["steps", "prompts_per_step", "samples_per_prompt", "sampling.max_tokens"]
        .map(|key| format!("stage.grpo.{key}=100000000"));
    let sets: Vec<&str> = most.iter().flat_map(|set| ["--set", set]).collect();
    place.bad(&[&["check", "small.toml"], &sets[..]].concat(), &["sampled tokens in all", "a round samples"]);
    bad("stage.sft.weighting={ kind = \"group\" }", &["`weighting` is by groups", "sequence"]);
    let text =
        place.good(&["check", "small.toml", "--set", "stage.sft.schedule={ kind = \"constant\", warmup_steps = 9 }"]);
    assert!(text.contains("warm-up of 9 steps") && text.contains("warning"), "{text}");
}
