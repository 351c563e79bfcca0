//! Rewards that look at the whole group, or back over the run, in whole runs.

use std::collections::BTreeMap;

use crate::common::number;
use crate::fixture::{go, problems, resumes, tiny};
use serde_json::Value;

/// The rollouts of one round by task.
fn groups(rollouts: &[Value]) -> Vec<Vec<&Value>> {
    let mut all: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for rollout in rollouts {
        all.entry(rollout["task"].as_str().unwrap()).or_default().push(rollout);
    }
    all.into_values().collect()
}

const ROUND: [&str; 3] = ["stage.rl.steps=1", "stage.rl.group=[]", "stage.rl.tasks.0.source.levels=[2]"];

#[test]
fn the_majority_of_a_group_is_rewarded() {
    let rewards = "stage.rl.rewards=[{name=\"correct\",kind=\"verifier\",weight=0.0}]";
    let done = tiny(&[&ROUND[..], &[rewards, "stage.rl.shaping=[{kind=\"majority\",weight=2.0}]"]].concat());
    let rollouts = done.rollouts();
    let (mut total, mut split) = (0, false);
    for group in groups(&rollouts) {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        group.iter().filter_map(|r| r["said"].as_str()).for_each(|said| *counts.entry(said).or_default() += 1);
        total += counts.values().max().copied().unwrap_or(0);
        split |= counts.len() > 1;
    }
    let round = &done.rounds()[0];
    assert!((number(round, "reward_shaped") - 2.0 * total as f64 / 32.0).abs() < 1e-12, "{round}");
    assert!(split && number(round, "reward") == 0.0 && number(round, "grad_norm") > 0.0, "{round}");
}

#[test]
fn what_others_say_too_is_worth_less() {
    for (same, key) in [("text", "completion"), ("answer", "said")] {
        let rewards = "stage.rl.rewards=[{name=\"digit\",kind=\"format\",pattern=\"^[0-9]\"},\
                       {name=\"correct\",kind=\"verifier\",weight=0.0}]";
        let shaping = format!("stage.rl.shaping=[{{kind=\"diversity\",same=\"{same}\"}}]");
        let done = tiny(&[&ROUND[..], &[rewards, &shaping]].concat());
        let rollouts = done.rollouts();
        let mut total = 0.0;
        for group in groups(&rollouts) {
            let right: Vec<&Value> = group.iter().filter(|r| r["reward"] == 1.0).map(|r| &r[key]).collect();
            let named: Vec<&&Value> = right.iter().filter(|said| said.is_string()).collect();
            for said in &right {
                let others = named.iter().filter(|other| **other != said).count() as f64;
                let alone = named.len() < 2 || !said.is_string();
                total += if alone { 1.0 } else { (others / (named.len() - 1) as f64).max(0.1) };
            }
        }
        let round = &done.rounds()[0];
        assert!((number(round, "reward_shaped") - total / 32.0).abs() < 1e-12, "{same}: {round}");
        assert!(number(round, "reward_shaped") < number(round, "reward"), "some are equal: {round}");
    }
}

#[test]
fn an_episodic_memory_resumes_with_the_same_bits() {
    let done = resumes(&["stage.rl.shaping=[{kind=\"episodic\",capacity=10}]", "stage.rl.group=[]"]);
    let rounds = done.rounds();
    let sizes = |r: &Value| number(r, "memory/right") + number(r, "memory/wrong");
    assert_eq!(sizes(&rounds[0]), 12.0);
    assert!(rounds.iter().all(|r| number(r, "memory/right") <= 10.0 && number(r, "memory/wrong") <= 10.0));
    // Intrinsic rewards are standardised over the round: they move no mean, and from the second round on they tell rollouts apart.
    for round in &rounds {
        assert!((number(round, "reward_shaped") - number(round, "reward")).abs() < 1e-9, "{round}");
    }
    let plain = go(&["stage.rl.group=[]"]).rounds();
    assert_eq!(number(&plain[0], "grad_norm"), number(&rounds[0], "grad_norm"), "nothing is remembered yet");
    assert_ne!(number(&plain[1], "grad_norm"), number(&rounds[1], "grad_norm"));
}

#[test]
fn settings_without_sense_are_found() {
    let reading = "stage.rl.rewards=[{name=\"a\",kind=\"not_truncated\"}]";
    for (sets, word) in [
        (&[reading, "stage.rl.shaping=[{kind=\"majority\"}]"][..], "no reward part reads them"),
        (&["stage.rl.shaping=[{kind=\"diversity\",floor=1.0}]"], "floor is 1"),
        (&["stage.rl.shaping=[{kind=\"episodic\",k=0}]"], "k is 0"),
        (&["stage.rl.shaping=[{kind=\"episodic\"},{kind=\"episodic\"}]"], "one memory"),
        (&["stage.rl.rewards=[{name=\"correct\",kind=\"verifier\",weight=0.0}]"], "every reward has weight 0"),
    ] {
        assert!(problems(sets).contains(word), "{sets:?}: {}", problems(sets));
    }
}

/// Noise reaches the advantages; whoever asks for the labels elsewhere gets the clean ones, and `check` says so.
#[test]
fn readers_of_clean_labels_beside_noise_are_named() {
    const NOISE: &str = "stage.rl.shaping=[{kind=\"flip\",part=\"hex\",probability=0.2}]";
    const COT: &str = "stage.rl.tasks.0.source.cot=true";
    let stream = "stage.rl.streams=[{id=\"shown\",demonstrations={most_right=1}}]";
    let all = "stage.rl.streams=[{id=\"shown\",demonstrations={}}]";
    for (sets, word) in [
        (&["stage.rl.inject={from=\"stored\"}"][..], "`inject` asks"),
        (&["stage.rl.inject={from=\"demonstration\"}", COT], "`inject` asks"),
        (&["stage.rl.budget={stage=2}"], "`budget` stops"),
        (&[stream, COT], "`demonstrations.most_right` counts"),
        (&["stage.rl.objective={advantage={kind=\"remax\"}}", "stage.rl.group=[]"], "the greedy completion"),
    ] {
        let noisy = [sets, &[NOISE]].concat();
        let found = problems(&noisy);
        assert!(found.contains(word) && found.contains("before the noise of `flip`"), "{noisy:?}: {found}");
        assert!(!problems(sets).contains("noise"), "{sets:?}: {}", problems(sets));
    }
    // Members and demonstrations that do not depend on who was right.
    for sets in [&["stage.rl.inject={from=\"demonstration\",when=\"always\"}", COT][..], &[all, COT], &[]] {
        let noisy = [sets, &[NOISE]].concat();
        assert!(!problems(&noisy).contains("noise"), "{noisy:?}: {}", problems(&noisy));
    }
}
