//! Rewards that look at the whole group, or back over the run, in whole runs.

mod common;

use std::collections::BTreeMap;

use common::{go, number, problems, resumes};
use serde_json::Value;

/// The rollouts of one round by task.
fn groups(rollouts: &[Value]) -> Vec<Vec<&Value>> {
    let mut all: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for rollout in rollouts {
        all.entry(rollout["task"].as_str().unwrap()).or_default().push(rollout);
    }
    all.into_values().collect()
}

/// Numbers of at least one digit, so that a random model's texts have answers.
const NUMBERS: &str =
    "stage.rl.tasks=[{source={kind=\"tiny_world\",families=[\"addition\"],levels=[1],split=\"train\"}}]";
const ROUND: [&str; 4] =
    ["stage.rl.steps=1", "stage.rl.group=[]", "stage.rl.samples_per_prompt=8", "stage.sft.steps=12"];

#[test]
fn the_majority_of_a_group_is_rewarded() {
    let rewards = "stage.rl.rewards=[{name=\"correct\",kind=\"verifier\",weight=0.0}]";
    let sets = [NUMBERS, rewards, "stage.rl.shaping=[{kind=\"majority\",weight=2.0}]"];
    let done = go(&[&ROUND[..], &sets].concat()).unwrap();
    let rollouts = done.rollouts();
    assert!(rollouts.iter().filter(|r| r["said"].is_string()).count() > 1, "{rollouts:?}");
    let mut total = 0;
    for group in groups(&rollouts) {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        group.iter().filter_map(|r| r["said"].as_str()).for_each(|said| *counts.entry(said).or_default() += 1);
        total += counts.values().max().copied().unwrap_or(0);
    }
    let round = &done.rounds()[0];
    assert!((number(round, "reward_shaped") - 2.0 * total as f64 / 24.0).abs() < 1e-12, "{round}");
    assert_eq!(number(round, "reward"), 0.0);
}

#[test]
fn what_others_say_too_is_worth_less() {
    let rewards = "stage.rl.rewards=[{name=\"digit\",kind=\"format\",pattern=\"[0-9]\"}]";
    let sets =
        [NUMBERS, rewards, "stage.rl.shaping=[{kind=\"diversity\",same=\"text\"}]", "stage.rl.sampling.max_tokens=2"];
    let done = go(&[&ROUND[..], &sets].concat()).unwrap();
    let rollouts = done.rollouts();
    let mut total = 0.0;
    for group in groups(&rollouts) {
        let right: Vec<&str> =
            group.iter().filter(|r| r["reward"] == 1.0).map(|r| r["completion"].as_str().unwrap()).collect();
        for text in &right {
            let others = right.iter().filter(|t| *t != text).count() as f64;
            total += if right.len() > 1 { (others / (right.len() - 1) as f64).max(0.1) } else { 1.0 };
        }
    }
    let round = &done.rounds()[0];
    assert!((number(round, "reward_shaped") - total / 24.0).abs() < 1e-12, "{round}");
    assert!(number(round, "reward_shaped") < number(round, "reward"), "some texts are equal: {round}");
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
    let plain = go(&["stage.rl.group=[]"]).unwrap().rounds();
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
