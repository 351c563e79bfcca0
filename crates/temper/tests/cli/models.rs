//! `temper eval` and `temper generate` on a small model.

use serde_json::Value;

use super::finished;

const MODEL: &str = "done/model";

fn object(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn accuracy_as_a_table_and_as_json() {
    let args = ["eval", MODEL, "--task", "chains:1:test", "--n", "10", "--max-tokens", "6"];
    let out = finished().good(&args);
    for part in ["accuracy, %", "items", "10", "mean length", "no answer found", "cut off"] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
    let json = finished().good(&[&args[..], &["--json"]].concat());
    let object = object(&json);
    for key in ["accuracy", "low", "high", "mean_length", "unparsed", "truncated"] {
        assert!(object[key].is_f64(), "{key}: {json}");
    }
    assert_eq!((&object["n"], &object["metric"], &object["nll"]), (&10.into(), &"accuracy".into(), &Value::Null));
    assert_eq!(json.lines().count(), 1);
}

#[test]
fn several_samples_give_pass_at_k_and_the_seed_decides() {
    let args = ["eval", MODEL, "--task", "chains", "--n", "6", "--samples", "4", "--max-tokens", "60", "--json"];
    let json = finished().good(&args);
    assert_eq!(
        object(&json)["pass_at_k"].as_object().map(|o| o.keys().cloned().collect::<Vec<_>>()),
        Some(vec!["1".into(), "2".into(), "4".into()])
    );
    assert_eq!(json, finished().good(&args));
    assert_ne!(
        object(&json)["mean_length"],
        object(&finished().good(&[&args[..], &["--seed", "1"]].concat()))["mean_length"]
    );
}

#[test]
fn likelihood_of_a_file() {
    let place = finished();
    let row = "{\"messages\": [{\"role\": \"user\", \"content\": \"a=1 a?\"}, {\"role\": \"assistant\", \"content\": \"1\"}]}";
    place.write("rows.jsonl", format!("{row}\n{row}\n"));
    let response = object(&place.good(&["eval", MODEL, "--data", "rows.jsonl", "--json"]));
    let all = object(&place.good(&["eval", MODEL, "--data", "rows.jsonl", "--mask", "all", "--json"]));
    assert!(response["nll"].as_f64().is_some_and(|nll| nll > 1.0 && nll < 20.0), "{response}");
    assert_eq!((&response["n"], &response["metric"], &response["accuracy"]), (&2.into(), &"nll".into(), &Value::Null));
    assert_ne!(response["nll"], all["nll"]);
    assert!(place.good(&["eval", MODEL, "--data", "rows.jsonl"]).contains("nats per token"));
}

#[test]
fn likelihood_of_texts_is_of_what_is_written() {
    let place = finished();
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny");
    let nll = |text: &str| {
        place.write("text.jsonl", text);
        object(&place.good(&["eval", tiny, "--data", "text.jsonl", "--n", "2", "--json"]))
    };
    // Characters are tokens there, and nothing predicts the first: no end token is counted.
    let one = nll("{\"text\": \"abc\"}\n");
    assert_eq!((&one["tokens"], &one["n"], &one["of"], &one["low"]), (&2.0.into(), &1.into(), &1.into(), &Value::Null));
    let three = nll("{\"text\": \"abc\"}\n{\"text\": \"abc\"}\n{\"text\": \"x\"}\n");
    assert_eq!((&three["tokens"], &three["n"], &three["of"]), (&4.0.into(), &2.into(), &3.into()));
    assert!((three["nll"].as_f64().unwrap() - one["nll"].as_f64().unwrap()).abs() < 1e-6);
    place.write("text.jsonl", "{\"text\": \"x\"}\n");
    place.bad(&["eval", tiny, "--data", "text.jsonl"], &["text.jsonl", "no row"]);
}

#[test]
fn wrong_tasks_and_data_are_named() {
    let place = finished();
    place.bad(&["eval", MODEL, "--task", "chain:1"], &["chain", "chains"]);
    place.bad(&["eval", MODEL, "--task", "chains:7"], &["1 to 5"]);
    place.bad(&["eval", MODEL, "--task", "gsm8k:none.jsonl"], &["none.jsonl"]);
    place.bad(&["eval", MODEL, "--task", "{ kind = \"gsm8k\" }"], &["path"]);
    place.bad(&["eval", MODEL, "--task", "chains", "--samples", "4", "--temperature", "0"], &["all the same"]);
    place.bad(&["eval", MODEL, "--data", "none.jsonl"], &["none.jsonl"]);
    place.write("broken.jsonl", "{\"text\": \"fine\"}\n{\"text\": \n");
    place.bad(&["eval", MODEL, "--data", "broken.jsonl"], &["broken.jsonl", "row 2"]);
    place.write("empty.jsonl", "");
    place.bad(&["eval", MODEL, "--data", "empty.jsonl"], &["empty.jsonl"]);
    place.bad(&["eval", "none", "--task", "chains"], &["there is no model at `none`"]);
}

#[test]
fn completions_of_a_prompt() {
    let place = finished();
    let args = ["generate", MODEL, "--prompt", "a=3 a?", "--max-tokens", "5"];
    assert_eq!(place.good(&args), place.good(&args), "greedy");
    let several =
        [&args[..], &["--n", "3", "--temperature", "0.8", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01"]]
            .concat();
    assert_eq!(place.good(&several).matches("--- prompt 0, sample").count(), 3);
    let json = place.good(&[&several[..], &["--json"]].concat());
    let lines: Vec<Value> = json.lines().map(object).collect();
    assert_eq!(lines.len(), 3);
    for line in &lines {
        let n = line["n_tokens"].as_u64().expect("a count");
        assert!(
            (1..=5).contains(&n) && line["stop"].is_string() && line["logp"].as_f64().is_some_and(|l| l < 0.0),
            "{line}"
        );
    }
    assert_ne!(lines[0]["tokens"], lines[1]["tokens"]);
    let other = place.good(&[&several[..], &["--json", "--seed", "9"]].concat());
    assert_ne!(json, other);
    let raw = place.good(&["generate", MODEL, "--prompt", "a=3 a?", "--max-tokens", "5", "--raw", "--json"]);
    assert_eq!(raw.lines().count(), 1);
}

#[test]
fn a_sample_does_not_depend_on_its_neighbours() {
    let line = |n: &str| {
        let out = finished().good(&[
            "generate",
            MODEL,
            "--prompt",
            "a=3 a?",
            "--max-tokens",
            "8",
            "--temperature",
            "1",
            "--n",
            n,
            "--json",
        ]);
        out.lines().next().map(String::from)
    };
    assert_eq!(line("1"), line("7"));
}

#[test]
fn conversations_from_a_file() {
    let place = finished();
    let messages = "[{\"role\": \"user\", \"content\": \"a=3 a?\"}]";
    place.write("one.json", messages);
    place.write("two.jsonl", format!("{messages}\n{{\"messages\": {messages}}}\n"));
    let one = place.good(&["generate", MODEL, "--messages", "one.json", "--max-tokens", "5"]);
    assert_eq!(one, place.good(&["generate", MODEL, "--prompt", "a=3 a?", "--max-tokens", "5"]));
    let two = place.good(&["generate", MODEL, "--messages", "two.jsonl", "--max-tokens", "5"]);
    assert_eq!(two.matches("--- prompt").count(), 2);
    place.write("bad.json", "{\"role\": \"user\"}");
    place.bad(&["generate", MODEL, "--messages", "bad.json"], &["bad.json", "messages"]);
    place.write("bad.jsonl", format!("{messages}\nnot json\n"));
    place.bad(&["generate", MODEL, "--messages", "bad.jsonl"], &["bad.jsonl", "line 2"]);
    place.bad(&["generate", MODEL, "--messages", "none.json"], &["none.json"]);
}

#[test]
fn settings_without_effect_are_refused() {
    let place = finished();
    place.bad(&["generate", MODEL, "--prompt", "a", "--top-k", "5"], &["no effect", "--temperature"]);
    place.bad(&["generate", MODEL, "--prompt", "a", "--n", "2", "--temperature", "0"], &["all the same"]);
    place.bad(&["generate", MODEL, "--prompt", &"long ".repeat(200)], &["128"]);
    place.bad(&["generate", MODEL, "--prompt", "a", "--n", "100000000000"], &["100000000000", "1000000"]);
    let pairs = concat!("blimp:", env!("CARGO_MANIFEST_DIR"), "/tests/data/none.jsonl");
    place.bad(&["eval", MODEL, "--task", pairs, "--samples", "4"], &["no effect"]);
    place.bad(&["eval", MODEL, "--task", pairs, "--max-tokens", "5"], &["no effect"]);
}

#[test]
fn the_machine_and_a_models_work_are_measured() {
    let place = finished();
    let output = place.command(&["bench", MODEL, "--dtype", "bf16", "--json"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    let work = report["work"].as_array().expect("a list");
    assert!(report["f32_gflops"].as_f64() > Some(0.0) && report["read_gbytes"].as_f64() > Some(0.0), "{report}");
    assert!(work.iter().any(|w| w["what"] == "in all" && w["gflops"].as_f64() > Some(0.0)), "{report}");
}

#[test]
fn a_level_of_instructions_that_does_not_exist_is_refused() {
    let place = finished();
    let output =
        place.command(&["generate", MODEL, "--prompt", "a"]).env("TEMPER_ISA", "sse9").output().expect("it starts");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && err.contains("TEMPER_ISA") && err.contains("portable"), "{err}");
    let portable = place
        .command(&["generate", MODEL, "--prompt", "a", "--max-tokens", "2"])
        .env("TEMPER_ISA", "portable")
        .output()
        .expect("it starts");
    assert_eq!(portable.status.code(), Some(0));
}
