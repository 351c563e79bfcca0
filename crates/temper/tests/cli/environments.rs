//! `temper env`.

use super::Place;

#[test]
fn families_are_listed_with_what_they_ask() {
    let place = Place::new();
    let out = place.good(&["env", "list"]);
    assert!(out.contains("chains") && out.contains("word_problems") && out.contains("gsm8k"), "{out}");
    let rows: serde_json::Value = serde_json::from_str(&place.good(&["env", "list", "--json"])).expect("JSON");
    assert!(rows.as_array().is_some_and(|rows| rows.len() >= 12));
}

#[test]
fn samples_are_functions_of_the_seed() {
    let place = Place::new();
    let args = ["env", "sample", "chains:3:train", "sorting", "--n", "2", "--seed", "5"];
    let out = place.good(&args);
    assert_eq!(out, place.good(&args));
    assert_ne!(out, place.good(&["env", "sample", "chains:3:train", "sorting", "--n", "2", "--seed", "6"]));
    assert_eq!(out.matches("== ").count(), 4, "{out}");
    for line in place.good(&[&args[..], &["--json"]].concat()).lines() {
        let task: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        assert!(task["answer"].is_string() && task["demonstration"].is_string());
    }
    let level = place.good(&["env", "sample", "--level", "2", "--split", "ood"]);
    assert!(level.contains("chains/L3/ood/") && level.contains("picking/L3/ood/"), "{level}");
    place.bad(&["env", "sample", "chain"], &["unknown family", "chains"]);
    place.bad(&["env", "sample", "gsm8k:none.jsonl"], &["none.jsonl"]);
}

#[test]
fn validation_passes_for_the_tiny_world_and_fails_for_a_bad_file() {
    let place = Place::new();
    let out = place.good(&["env", "validate", "--n", "4"]);
    assert_eq!(out.lines().count(), 1 + 14 * 5 * 3);
    assert!(out.lines().skip(1).all(|line| line.ends_with(" ok")), "{out}");
    let out = place.good(&["env", "validate", "chains,sorting:1-2", "--n", "3", "--json"]);
    let cells: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).expect("a JSON line")).collect();
    assert!(cells.len() == 4 && cells.iter().all(|c| c["tasks"] == 3 && c["failed"] == 0), "{out}");

    place.write("pairs.jsonl", "{\"sentence_good\": \"same\", \"sentence_bad\": \"same\"}\n");
    place.bad(
        &["env", "validate", "blimp:pairs.jsonl"],
        &["both texts of the pair are the same", "1 texts were judged wrongly"],
    );
    place.write("gsm.jsonl", "{\"question\": \"1+1?\", \"answer\": \"no number here\"}\n");
    place.bad(&["env", "validate", "gsm8k:gsm.jsonl"], &["gsm.jsonl", "line 1"]);
}
