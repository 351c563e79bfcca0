//! Adapters on the command line: plan, run, eval, generate, merge, and what does not fit.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Place, SMALL, copy_files, finished};

const MODEL: &str = "done/model";

/// The small recipe's SFT stage alone, as an adapter on the finished run's model.
fn recipe() -> String {
    let model = finished().path(MODEL);
    let sft = SMALL.split("[[stage]]").find(|s| s.contains("id = \"sft\"")).expect("an SFT stage");
    let adapter = "adapter = { kind = \"lora\", rank = 4, targets = [\"all_linear\"] }\n";
    let (head, _) = SMALL.split_once("[[stage]]").expect("stages");
    format!(
        "{head}[model.policy]\npath = {:?}\n\n[[stage]]{}\n{adapter}",
        model.to_str().expect("a path"),
        sft.trim_end()
    )
    .replace("lr = 1e-3", "lr = 5e-2")
        + "\n"
}

fn trained() -> Place {
    let place = Place::new();
    place.write("lora.toml", recipe());
    place.good(&["run", "lora.toml", "--out", "run"]);
    place
}

#[test]
fn an_adapter_is_planned_trained_measured_and_merged() {
    let place = trained();
    // 2 sums of (q, o 32+32, k, v 16+32, gate, up, down 32+32) x rank 4 in one block.
    let plan = place.good(&["plan", "lora.toml"]);
    assert!(plan.contains("trained parameters  1,664 of "), "{plan}");
    let memory = |text: &str| {
        let stages: Value = serde_json::from_str(text).expect("JSON");
        stages[0]["memory"]["total"].as_u64().expect("known")
    };
    let with = memory(&place.good(&["plan", "lora.toml", "--json"]));
    let full = recipe().lines().filter(|l| !l.starts_with("adapter")).collect::<Vec<_>>().join("\n");
    place.write("full.toml", full);
    assert!(with < memory(&place.good(&["plan", "full.toml", "--json"])));

    let adapter = "run/stages/sft";
    let nll = |model: &str, more: &[&str]| {
        place.write("rows.jsonl", "{\"text\": \"a=3 a? 3\"}\n");
        let out = place.good(&[&["eval", model, "--data", "rows.jsonl", "--json"], more].concat());
        serde_json::from_str::<Value>(&out).expect("JSON")["nll"].as_f64().expect("a number")
    };
    let base = finished().path(MODEL);
    let base = base.to_str().expect("a path");
    assert_eq!(nll(adapter, &[]), nll("run/model", &[]));
    assert_eq!(nll(adapter, &["--base", base]), nll("run/model", &[]));
    assert_ne!(nll(adapter, &[]), nll(base, &[]));
    let text = |model: &str| place.good(&["generate", model, "--prompt", "a=3 a?", "--max-tokens", "5"]);
    assert_eq!(text(adapter), text("run/model"));

    assert_eq!(place.good(&["merge", adapter, "--out", "merged"]), "merged\n");
    let bytes = |name: &str| fs::read(place.path(name)).expect("there");
    assert!(bytes("merged/model.safetensors") == bytes("run/model/model.safetensors"));
    place.good(&["merge", adapter, "--out", "half", "--dtype", "bf16"]);
    assert!(bytes("half/model.safetensors").len() * 9 < bytes("merged/model.safetensors").len() * 5);
    place.bad(&["merge", adapter, "--out", "merged"], &["merged", "exists"]);
    place.bad(&["merge", "merged", "--out", "again"], &["whole model", "adapter_config.json"]);

    // An adapter is a policy: its stage starts from the merged model.
    let on_top = recipe().replace(base, "run/stages/sft");
    place.write("on_top.toml", on_top);
    place.good(&["run", "on_top.toml", "--out", "second", "--set", "save=adapter"]);
    assert!(
        place.path("second/model/adapter_model.safetensors").is_file()
            && !place.path("second/model/config.json").exists()
    );
}

#[test]
fn adapters_that_do_not_fit_are_named() {
    let place = trained();
    let copy = |name: &str, old: &str, new: &str| {
        copy_files(&place.path("run/stages/sft"), &place.path(name));
        let text = place.read(&format!("{name}/adapter_config.json"));
        assert!(text.contains(old), "{text}");
        place.write(&format!("{name}/adapter_config.json"), text.replace(old, new));
    };
    let eval = |name: &str, parts: &[&str]| {
        place.bad(&["eval", name, "--task", "chains", "--n", "1", "--max-tokens", "2"], parts);
    };
    copy("dora", "\"use_dora\": false", "\"use_dora\": true");
    eval("dora", &["dora/adapter_config.json", "`use_dora` is true", "merge"]);
    copy("other", "LORA", "VERA");
    eval("other", &["`peft_type` is VERA"]);
    copy("rank", "\"r\": 4", "\"r\": 8");
    eval("rank", &["rank 8", "lora_A"]);
    copy("nobase", finished().path(MODEL).to_str().expect("a path"), "models/none/at/all");
    eval("nobase", &["models/none/at/all", "--base"]);
    copy("weights", "LORA", "LORA");
    fs::remove_file(place.path("weights/adapter_model.safetensors")).expect("there");
    eval("weights", &["adapter_model.safetensors", "save_pretrained"]);
    place.write("bad.toml", recipe().replace(finished().path(MODEL).to_str().expect("a path"), "weights"));
    place.bad(&["check", "bad.toml"], &["model.policy", "adapter_model.safetensors"]);
    place.bad(&["eval", MODEL, "--base", "x", "--task", "chains"], &["there is no model"]);
    let whole = finished().path(MODEL);
    let whole = whole.to_str().expect("a path");
    place.bad(&["generate", whole, "--base", "x", "--prompt", "a"], &["no adapter", "no effect"]);
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let tiny = tiny.to_str().expect("a path");
    place.bad(&["generate", "run/stages/sft", "--base", tiny, "--prompt", "a"], &["lora_A", "base model"]);
}

#[test]
fn wrong_settings_are_found_by_check() {
    let place = Place::new();
    place.write("lora.toml", recipe());
    for (set, parts) in [
        ("stage.sft.adapter.rank=0", &["stage `sft`", "`rank` is 0"][..]),
        ("stage.sft.adapter.targets=[\"q_pro\"]", &["`q_pro`", "q_proj"]),
        ("stage.sft.adapter.kind=dora", &["dora", "lora"]),
        ("stage.sft.adapter.r=4", &["`r`"]),
    ] {
        place.bad(&["check", "lora.toml", "--set", set], parts);
    }
    place.write("full.toml", SMALL);
    place.bad(&["check", "full.toml", "--set", "save=adapter"], &["`save` is `adapter`", "trains none"]);
}
