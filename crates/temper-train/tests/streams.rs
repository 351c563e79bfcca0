//! Further losses on data of their own, through whole runs.

mod common;
#[path = "rollouts/fixture.rs"]
mod fixture;

use common::number;
use fixture::{Done, go, problems, resumes, tiny};
use serde_json::Value;
use temper_format::{ArraySource, SafetensorsFile};

/// Eight rows of data for a stream.
const DATA: &str =
    "data=[{kind=\"tasks\",n=8,tasks={kind=\"tiny_world\",families=[\"addition\"],levels=[1],split=\"train\"}}]";
const START: &str = "model.reference.policy_at=stage_start";
const SHOWN: &str = "{id=\"hard\",demonstrations={most_right=1},weighting={kind=\"sequence\"}}";

fn streams(stage: &str, list: &[&str]) -> String {
    format!("stage.{stage}.streams=[{}]", list.join(","))
}

fn replay(weight: &str) -> String {
    format!("{{id=\"replay\",{DATA},batch={{examples=3}},weight={weight}}}")
}

/// Every parameter of a stage's model, one after the other.
fn parameters(done: &Done, stage: &str) -> Vec<f64> {
    let file = SafetensorsFile::open(done.path(&format!("stages/{stage}/model.safetensors"))).unwrap();
    file.names().iter().flat_map(|name| file.read_f32(name).unwrap()).map(f64::from).collect()
}

/// Where the gradients are far below `eps`, AdamW's first step is `lr / eps` times the gradient: what a stage's one step moves is its
/// gradient to within f32 rounding.
fn gradient(stage: &str, sets: &[&str]) -> Vec<f64> {
    let linear = format!("stage.{stage}.optimizer={{kind=\"adamw\",lr=1e9,eps=1e6}}");
    let whole = format!("stage.{stage}.clip_norm=0");
    let steps = [format!("stage.{stage}.steps=1"), "stage.rl.steps=1".into(), "stage.rl.group=[]".into()];
    let mut all: Vec<&str> = vec![&linear, &whole];
    all.extend(steps.iter().map(String::as_str));
    all.extend(sets);
    let done = go(&all);
    let before = if stage == "sft" { "init" } else { "sft" };
    parameters(&done, stage).iter().zip(parameters(&done, before)).map(|(after, before)| after - before).collect()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Relative L2 distance.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// The stage's own loss, data of its own by a weight, a term of the reference, and demonstrations: all at once is the sum of each alone.
#[test]
fn gradients_of_streams_add_up() {
    let terms = "terms=[{weight=0.3,objective={kind=\"entropy_bonus\"}}]";
    let second = format!("{{id=\"more\",{DATA},batch={{tokens=60}},objective={{kind=\"chord\"}},{terms},weight=2.0}}");
    let (first, off) = (replay("0.5"), "stage.rl.weight=1e-30");
    let own = gradient("rl", &[]);
    let alone = |list: &[&str]| gradient("rl", &[&streams("rl", list), off]);
    // A stream's rows are those of its place: the ones before it stay, without a weight to speak of.
    let nothing = replay("1e-30");
    let nothing_more = second.replace("weight=2.0", "weight=1e-30");
    let parts = [alone(&[&first]), alone(&[&nothing, &second]), alone(&[&nothing, &nothing_more, SHOWN])];
    let sum = parts.iter().fold(own.clone(), |sum, part| add(&sum, part));
    let together = gradient("rl", &[&streams("rl", &[&first, &second, SHOWN])]);
    assert!(parts.iter().all(|part| distance(&add(&own, part), &own) > 1e-2), "every part is there");
    assert!(distance(&together, &sum) < 1e-6, "{}", distance(&together, &sum));
    // And twice the weight is twice the gradient.
    let twice = alone(&[&replay("1.0")]);
    assert!(distance(&twice, &add(&parts[0], &parts[0])) < 1e-6);
}

#[test]
fn gradients_of_offline_streams_add_up() {
    let own = gradient("sft", &[]);
    let list = streams("sft", &[&replay("0.7")]);
    let alone = gradient("sft", &[&list, "stage.sft.weight=1e-30"]);
    let together = gradient("sft", &[&list, "stage.sft.weight=0.5"]);
    let sum: Vec<f64> = own.iter().zip(&alone).map(|(a, b)| 0.5 * a + b).collect();
    assert!(distance(&together, &sum) < 1e-6, "{}", distance(&together, &sum));
    assert!(distance(&together, &own) > 0.1);
}

/// A stream whose weight is 0 for now changes no bit and has no numbers.
#[test]
fn weight_zero_is_nothing() {
    let off = replay("{kind=\"schedule\",from=0.0,to=1.0,begin=0.9}");
    let (with, without) = (go(&[&streams("rl", &[&off])]), go(&[]));
    assert!(with.bits("model/model.safetensors") == without.bits("model/model.safetensors"));
    assert!(with.rounds().iter().all(|r| r.get("stream/replay/loss").is_none()));
    assert_eq!(number(&with.rounds()[3], "knob/streams.0.weight"), 0.0);
}

#[test]
fn micro_batches_do_not_change_a_stream() {
    let list = streams("rl", &[&replay("0.5"), SHOWN]);
    let of = |micro: &str| go(&[&list, "stage.rl.group=[]", "stage.rl.steps=2", micro]).rounds();
    let (whole, cut) = (of("stage.rl.micro_tokens=100000"), of("stage.rl.micro_tokens=1"));
    for name in ["loss", "grad_norm", "stream/replay/loss", "stream/replay/nll", "stream/hard/loss"] {
        let (a, b) = (number(&whole[1], name), number(&cut[1], name));
        assert!((a - b).abs() <= 1e-5 * a.abs().max(1e-3), "{name}: {a} {b}");
    }
}

#[test]
fn streams_resume_with_the_same_bits() {
    let terms = "terms=[{weight=0.5,objective={kind=\"reference_kl\",estimator={kind=\"k2\"}}}]";
    let tokens =
        format!("{{id=\"tokens\",{DATA},batch={{tokens=70}},{terms},weight={{kind=\"schedule\",from=1.0,to=0.1}}}}");
    let list = streams("rl", &[&replay("0.5"), &tokens, SHOWN]);
    let weight = "stage.rl.weight={kind=\"schedule\",from=0.1,to=0.9}";
    let rounds = resumes(&[&list, weight, START, "stage.rl.inner_epochs=2", "stage.rl.minibatches=2"]).rounds();
    assert!(rounds.iter().all(|r| number(r, "stream/replay/examples") == 12.0), "3 in each of 4 optimiser steps");
    assert!(rounds.iter().all(|r| number(r, "stream/tokens/examples") >= 4.0));
    assert_ne!(number(&rounds[0], "stream/replay/nll"), number(&rounds[3], "stream/replay/nll"));
}

/// The round's own tasks are shown where the rollouts fail, also where the groups have no other signal; the loss is an average over
/// all of them.
#[test]
fn demonstrations_are_shown_where_rollouts_fail() {
    let list =
        streams("rl", &["{id=\"hard\",demonstrations={most_right=0,threshold=0.25},weighting={kind=\"sequence\"}}"]);
    let only = "stage.rl.rewards=[{name=\"correct\",kind=\"verifier\"}]";
    let done = go(&[&list, only, "stage.rl.sampling.max_tokens=1"]);
    for round in done.rounds() {
        assert_eq!((number(&round, "stream/hard/examples"), number(&round, "groups/dropped_ratio")), (3.0, 1.0));
        assert_eq!(number(&round, "stream/hard/loss"), number(&round, "loss"));
        assert!(number(&round, "grad_norm") > 0.0 && round.get("ratio/mean").is_none(), "{round}");
    }
    let (first, last) = (&done.rounds()[0], &done.rounds()[3]);
    assert!(number(last, "stream/hard/nll") < number(first, "stream/hard/nll"), "they are learnt");
    // Where some tasks are solved, the others are shown.
    let hex = "stage.rl.rewards=[{name=\"hex\",kind=\"format\",pattern=\"[0-9a-f]\"}]";
    let done = go(&[&list, hex, "stage.rl.sampling.max_tokens=1", "stage.rl.prompts_per_step=8"]);
    let mut some = 0;
    for (step, round) in done.rounds().iter().enumerate() {
        let of_round: Vec<Value> = done.rollouts().into_iter().filter(|r| r["step"] == step + 1).collect();
        let hard = of_round.chunks(4).filter(|g| g.iter().all(|r| r["reward"] == 0.0)).count();
        some += usize::from(hard > 0 && hard < 8);
        if hard == 0 {
            assert!(round.get("stream/hard/examples").is_none());
            continue;
        }
        assert_eq!(number(round, "stream/hard/examples"), hard as f64, "{round}");
        let mean = number(round, "stream/hard/nll") * hard as f64 / 8.0;
        assert!((number(round, "stream/hard/loss") - mean).abs() < 1e-9, "{round}");
    }
    assert!(some > 0, "a round of both");
}

/// Offline, the loss is the weighted sum of what each stream says.
#[test]
fn an_offline_stage_with_streams_reports_the_sum() {
    let list = streams("sft", &[&replay("0.25")]);
    let done = go(&[&list, "stage.sft.weight=0.75", "stage.rl.steps=1"]);
    let lines = common::lines(&done.path(""), "sft");
    let plain = common::lines(&go(&["stage.rl.steps=1"]).path(""), "sft");
    let expected = 0.75 * number(&plain[0], "loss") + 0.25 * number(&lines[0], "stream/replay/loss");
    assert!((number(&lines[0], "loss") - expected).abs() < 1e-12);
    assert_eq!(number(&lines[0], "stream/replay/examples"), 3.0);
    assert_ne!(number(&lines[1], "loss"), number(&plain[1], "loss"));
}

/// The policy learns what is rewarded and the stream keeps what it would lose: each of its rows is new to it, so the loss on them is a
/// held-out one.
#[test]
fn a_stream_keeps_what_the_reward_takes_away() {
    let run = |seed: &str, weight: &str| {
        let data = "data=[{kind=\"tasks\",n=200,tasks={kind=\"tiny_world\",families=[\"chains\"],levels=[1],split=\"train\",seed=9}}]";
        let list = format!("stage.rl.streams=[{{id=\"keep\",{data},batch={{examples=12}},weight={weight}}}]");
        let rounds = tiny(&[seed, &list]).rounds();
        let mean = |rows: &[Value], name: &str| rows.iter().map(|r| number(r, name)).sum::<f64>() / rows.len() as f64;
        let end = rounds.len() - 3;
        let gain = mean(&rounds[end..], "reward") - mean(&rounds[..2], "reward");
        (gain, mean(&rounds[end..], "stream/keep/nll") - mean(&rounds[..2], "stream/keep/nll"))
    };
    for seed in ["seed=1", "seed=2", "seed=3"] {
        let ((alone, lost), (with, kept)) = (run(seed, "1e-30"), run(seed, "0.3"));
        assert!(alone > 0.05 && with > 0.05, "{seed}: the reward gains {alone:.3} and {with:.3}");
        assert!(
            lost > 0.05 && kept < 0.5 * lost,
            "{seed}: the loss grows by {lost:.3} alone, by {kept:.3} with the stream"
        );
    }
}

#[test]
fn streams_without_sense_are_found() {
    let stream = |settings: &str| streams("rl", &[&format!("{{id=\"s\",{settings}}}")]);
    let of_data = |more: &str| stream(&format!("{DATA},batch={{examples=2}},{more}"));
    for (sets, word) in [
        (vec!["stage.rl.weight=0.5".to_owned()], "there are no streams"),
        (vec!["stage.rl.weight=0.0".to_owned(), of_data("weight=1.0")], "a factor above 0"),
        (vec![of_data("weight=0.0")], "give it a factor"),
        (vec![stream("weight=1.0")], "none of `data` and `demonstrations`"),
        (vec![stream(&format!("{DATA},demonstrations={{}},batch={{examples=2}}"))], "more than one of `data`"),
        (vec![stream(DATA)], "none of `batch.examples`"),
        (vec![stream("demonstrations={},batch={examples=2}")], "`batch` has no effect"),
        (vec![stream("demonstrations={most_right=4}")], "`most_right` has no effect"),
        (vec![streams("sft", &["{id=\"s\",demonstrations={}}"])], "draws none"),
        (vec![of_data("weighting={kind=\"group\"}")], "use `sequence`"),
        (vec![of_data("objective={kind=\"focal\",gamma=-1.0}")], "gamma"),
        (vec![of_data("objective={kind=\"reference_weighted\",beta=1.0}")], "compares with a reference"),
        (vec![of_data("mask=\"all\",prompt_weight=0.5")], "`prompt_weight` has no effect"),
        (vec![streams("rl", &[&replay("1"), &replay("2")])], "two streams have this id"),
        (vec![of_data("prompt_weight={kind=\"schedule\",from=0.5,to=0.1}")], "cannot move"),
        (vec!["stage.rl.tasks.0.source.cot=true".to_owned(), of_data("weight=1.0")], "`cot` has no effect"),
    ] {
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let text = problems(&sets);
        assert!(text.contains(word), "{sets:?}: {text}");
    }
    assert_eq!(problems(&[&streams("rl", &[SHOWN]), "stage.rl.tasks.0.source.cot=true"]), "");
    assert_eq!(problems(&[&of_data("objective={kind=\"focal\",gamma={kind=\"schedule\",from=1.0,to=2.0}}")]), "");
}
