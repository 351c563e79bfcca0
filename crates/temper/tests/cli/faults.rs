//! Damaged files, rewards that fail, numbers that are none: each a message with a way out, and nothing lost.

use std::fs;

use super::{Place, model_copy};

/// Commands that load a model.
fn loads(place: &Place, parts: &[&str]) {
    place.bad(&["generate", "model", "--prompt", "a"], parts);
    place.bad(&["eval", "model", "--task", "chains", "--n", "2"], parts);
}

#[test]
fn damaged_weights() {
    let place = Place::new();
    let weights = model_copy(&place, "model").join("model.safetensors");
    let whole = fs::read(&weights).expect("there");
    for keep in [0, 4, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&weights, &whole[..keep]).expect("written");
        loads(&place, &["model.safetensors"]);
    }
    // A header that claims more than there is, and one that is no JSON.
    fs::write(&weights, [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat()).expect("written");
    loads(&place, &["model.safetensors"]);
    fs::write(&weights, [&whole[..8], &vec![b'x'; whole.len() - 8]].concat()).expect("written");
    loads(&place, &["model.safetensors"]);
    fs::remove_file(&weights).expect("removed");
    loads(&place, &["model"]);
}

#[test]
fn a_configuration_that_does_not_fit() {
    let place = Place::new();
    let config = model_copy(&place, "model").join("config.json");
    let text = fs::read_to_string(&config).expect("there");
    for (from, to, part) in [
        ("\"hidden_size\": 32", "\"hidden_size\": 64", "shape"),
        ("\"hidden_size\": 32", "\"hidden_size\": 0", "hidden_size"),
        ("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2", "missing"),
        ("LlamaForCausalLM", "MambaForCausalLM", "Mamba"),
    ] {
        assert!(text.contains(from), "{from} is not in {text}");
        fs::write(&config, text.replace(from, to)).expect("written");
        loads(&place, &[part]);
    }
    fs::write(&config, "{ not json").expect("written");
    loads(&place, &["config.json"]);
    fs::remove_file(&config).expect("removed");
    loads(&place, &["config.json"]);
}

#[test]
fn a_damaged_tokenizer() {
    let place = Place::new();
    let model = model_copy(&place, "model");
    fs::write(model.join("tokenizer.json"), "{ \"model\": ").expect("written");
    loads(&place, &["tokenizer.json"]);
    fs::remove_file(model.join("tokenizer.json")).expect("removed");
    loads(&place, &["tokenizer.json"]);
}

#[test]
fn a_template_that_cannot_be_rendered() {
    let place = Place::new();
    let model = model_copy(&place, "model");
    fs::write(model.join("chat_template.jinja"), "{{ raise_exception('only poems') }}").expect("written");
    place.bad(&["generate", "model", "--prompt", "a"], &["only poems"]);
    fs::write(model.join("chat_template.jinja"), "{% for message in messages %}").expect("written");
    place.bad(&["generate", "model", "--prompt", "a"], &["template"]);
}

#[test]
fn files_that_are_no_models() {
    let place = Place::new();
    place.write("model/readme.txt", "nothing here");
    loads(&place, &["config.json"]);
    for content in [
        &b""[..],
        b"GGUF",
        b"GGUF\x03\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"plain text",
    ] {
        place.write("m.gguf", content);
        place.bad(&["generate", "m.gguf", "--prompt", "a"], &["m.gguf"]);
    }
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint() {
    let place = Place::with_recipe();
    let steep =
        ["--set", "stage.sft.optimizer.lr=1e30", "--set", "stage.sft.clip_norm=0", "--set", "stage.sft.steps=50"];
    let said = place.bad(&[&["run", "small.toml"], &steep[..]].concat(), &["stage `sft`", "step", "chains/L1/train"]);
    assert!(said.err.contains("checkpoint") && said.err.contains("kept"), "{}", said.err);
    assert!(fs::read_dir(place.path("runs/small/checkpoints")).expect("there").count() > 0);
}

#[test]
fn a_last_step_that_ruins_the_model_is_not_kept() {
    let place = Place::with_recipe();
    let ruin = ["lr=1e30", "weight_decay=1e30"].map(|set| format!("stage.sft.optimizer.{set}"));
    let args = ["run", "small.toml", "--set", "stage.sft.steps=1", "--set", &ruin[0], "--set", &ruin[1]];
    place.bad(&args, &["the parameter `", "diverged", "lower learning rate"]);
    assert!(!place.path("runs/small/stages/sft").exists() && !place.path("runs/small/model").exists());
}

#[test]
fn reward_commands_that_fail_are_errors_and_not_zeros() {
    let place = Place::with_recipe();
    let run = |command: &str, parts: &[&str]| {
        let rewards = format!(
            "stage.grpo.rewards=[{{ name = \"mine\", kind = \"command\", command = {command}, timeout_s = 0.5 }}]"
        );
        place.bad(&["run", "small.toml", "--out", "out", "--set", &rewards], parts);
        fs::remove_dir_all(place.path("out")).expect("removed");
    };
    run("[\"no-such-program\"]", &["no-such-program", "could not be started"]);
    run("[\"false\"]", &["`false`", "ended before it answered"]);
    run("[\"sleep\", \"60\"]", &["sleep 60", "0.5 s"]);
    run("[\"yes\"]", &["`yes`", "answered `y`"]);
}

#[test]
fn a_reward_command_that_works() {
    let place = Place::with_recipe();
    place.write("reward.sh", "while read -r line; do echo '{\"reward\": 0.25}'; done\n");
    let rewards = "stage.grpo.rewards=[{ name = \"mine\", kind = \"command\", command = [\"sh\", \"reward.sh\"] }]";
    place.good(&["run", "small.toml", "--set", rewards]);
    let metrics = place.read("runs/small/metrics.jsonl");
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().expect("a line")).expect("JSON");
    assert_eq!(
        (&last["reward"], &last["rewards/mine/mean"], &last["frac_reward_zero_std"]),
        (&0.25.into(), &0.25.into(), &1.0.into())
    );
}

#[test]
fn data_that_cannot_be_trained_on() {
    let place = Place::with_recipe();
    let run = |rows: &str, parts: &[&str]| {
        place.write("rows.jsonl", rows);
        let data = "stage.sft.data=[{ kind = \"file\", path = \"rows.jsonl\" }]";
        place.bad(&["run", "small.toml", "--out", "out", "--set", data], parts);
        fs::remove_dir_all(place.path("out")).expect("removed");
    };
    run(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"only a question\"}]}\n",
        &["no token would be trained on"],
    );
    run("{\"text\": \"fine\"}\n{\"text\": 3}\n{\"text\": \n", &["rows.jsonl", "row 2", "row 3"]);
    run("", &["rows.jsonl"]);
    let long = format!("{{\"prompt\": \"a\", \"completion\": \"{}\"}}\n", "long ".repeat(100));
    run(&long, &["no token would be trained on"]);
}

#[test]
fn prompts_longer_than_the_context() {
    let place = Place::with_recipe();
    let context = "stage.init.shape.max_positions=8";
    place.bad(&["run", "small.toml", "--set", context], &["no token would be trained on", "max_tokens = 8"]);
}

#[test]
fn a_model_on_the_hub_without_a_network() {
    let place = Place::with_recipe();
    place.bad(&["generate", "hf:owner/name", "--prompt", "a"], &["hf:owner/name", "network"]);
    place.bad(&["run", "small.toml", "--set", "model.policy.path=hf:owner/name"], &["hf:owner/name", "network"]);
}

#[cfg(unix)]
#[test]
fn a_directory_that_cannot_be_written() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::with_recipe();
    let locked = place.path("locked");
    fs::create_dir(&locked).expect("made");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).expect("set");
    // The superuser may write anywhere.
    if fs::write(locked.join("probe"), "").is_err() {
        place.bad(&["run", "small.toml", "--out", "locked/run"], &["locked/run", "ermission"]);
    }
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).expect("set");
    place.bad(&["run", "small.toml", "--out", "small.toml/run"], &["small.toml"]);
}

/// A limit on the size of a file fails a write in its middle, as a full disk does.
#[cfg(unix)]
#[test]
fn a_write_that_fails_in_the_middle_of_a_run_loses_nothing() {
    let place = Place::with_recipe();
    // The rollouts outgrow the limit, everything else stays below it.
    let more = ["--set", "stage.grpo.steps=30", "--set", "stage.grpo.prompts_per_step=6"];
    place.good(&[&["run", "small.toml", "--out", "whole"], &more[..]].concat());
    let limited = "trap '' XFSZ; ulimit -f 256; exec \"$0\" \"$@\"";
    let args = [&["run", "small.toml", "--out", "cut"], &more[..]].concat();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", limited, env!("CARGO_BIN_EXE_temper")]).args(&args).current_dir(place.0.path());
    let said = command.output().expect("a shell");
    let err = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{err}");
    assert!(err.contains("rollouts.jsonl") && err.contains("hint:") && err.contains("nothing"), "{err}");
    place.good(&[&args[..], &["--resume"]].concat());
    for file in ["metrics.jsonl", "rollouts.jsonl", "ledger.json"] {
        assert_eq!(place.read(&format!("cut/{file}")), place.read(&format!("whole/{file}")), "{file}");
    }
    let weights = |out: &str| fs::read(place.path(out).join("model/model.safetensors")).expect("weights");
    assert!(weights("cut") == weights("whole"));
}

#[cfg(target_os = "linux")]
#[test]
fn results_that_cannot_be_printed_are_an_error() {
    let place = Place::new();
    let full = || std::process::Stdio::from(fs::File::options().write(true).open("/dev/full").expect("there"));
    let said = place.command(&["env", "list"]).stdout(full()).output().expect("the binary starts");
    let err = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{err}");
    assert!(err.contains("No space left") && err.contains("free some space"), "{err}");
}
