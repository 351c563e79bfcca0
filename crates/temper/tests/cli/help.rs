//! Help, version and mistakes in the command line itself.

use super::Place;

/// Every command with the options that its help must name.
const COMMANDS: [(&[&str], &[&str]); 14] = [
    (
        &[],
        &["run", "check", "plan", "eval", "generate", "merge", "report", "env", "recipe", "bench", "--version", "130"],
    ),
    (&["run"], &["RECIPE", "--set", "--out", "--resume", "--threads", "--seed"]),
    (&["check"], &["RECIPE", "--set"]),
    (&["bench"], &["MODEL", "--dtype", "--json", "--threads"]),
    (&["plan"], &["RECIPE", "--set", "--json"]),
    (
        &["eval"],
        &[
            "MODEL",
            "--base",
            "--dtype",
            "--task",
            "--data",
            "--n",
            "--samples",
            "--temperature",
            "--max-tokens",
            "--stop",
            "--mask",
            "--json",
            "--seed",
            "--threads",
            "chains:3:test",
            "gsm8k:FILE",
            "blimp:FILE",
        ],
    ),
    (
        &["generate"],
        &[
            "MODEL",
            "--base",
            "--dtype",
            "--prompt",
            "--messages",
            "--n",
            "--temperature",
            "--top-k",
            "--top-p",
            "--min-p",
            "--max-tokens",
            "--stop",
            "--raw",
            "--json",
            "--seed",
            "--threads",
        ],
    ),
    (&["merge"], &["ADAPTER", "--out", "--base", "--dtype", "--threads"]),
    (&["report"], &["RUN_DIR"]),
    (&["env"], &["list", "sample", "validate"]),
    (&["env", "list"], &["--json"]),
    (&["env", "sample"], &["NAME", "--level", "--split", "--n", "--seed", "--json", "--no-cot"]),
    (&["env", "validate"], &["NAME", "--level", "--split", "--n", "--seed", "--json"]),
    (&["recipe"], &["schema"]),
];

#[test]
fn the_help_of_every_command_names_its_options() {
    let place = Place::new();
    for (command, options) in COMMANDS {
        for flag in ["-h", "--help"] {
            let text = place.good(&[command, &[flag]].concat());
            for option in options {
                assert!(text.contains(option), "{command:?} {flag}: no {option} in\n{text}");
            }
        }
    }
}

#[test]
fn version_and_commit() {
    let text = Place::new().good(&["--version"]);
    let version = env!("CARGO_PKG_VERSION");
    assert!(text.starts_with(&format!("temper {version} (")) && text.ends_with(")\n"), "{text}");
}

#[test]
fn a_mistake_in_the_command_line_exits_with_1() {
    let place = Place::new();
    place.bad(&["runn", "x.toml"], &["runn"]);
    place.bad(&["run"], &["RECIPE"]);
    place.bad(&["run", "x.toml", "--threads", "0"], &["--threads"]);
    place.bad(&["eval", "model"], &["--task"]);
    place.bad(&["eval", "model", "--task", "chains", "--data", "x.jsonl"], &["--data"]);
    place.bad(&["eval", "model", "--data", "x.jsonl", "--samples", "4"], &["--samples"]);
    place.bad(&["generate", "model", "--prompt", "a", "--temperature", "-1"], &["--temperature"]);
    place.bad(&["generate", "model", "--prompt", "a", "--top-p", "1.5"], &["at most 1"]);
    place.bad(&["generate", "model", "--prompt", "a", "--n", "0"], &["from 1 to"]);
    place.bad(&["env", "sample", "--level", "9"], &["--level"]);
    assert_eq!(place.temper(&[]).code, Some(1));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    let mut child = place
        .command(&["recipe", "schema"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(
        (output.status.code(), output.stderr.len()),
        (Some(0), 0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_schema_is_json_with_a_final_newline() {
    let text = Place::new().good(&["recipe", "schema"]);
    let schema: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(schema["properties"]["stage"].is_object() && text.ends_with("}\n"));
}
