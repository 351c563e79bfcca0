//! Rewards of the steps of a completion, through whole runs.

mod common;
#[path = "rollouts/fixture.rs"]
mod fixture;

use common::number;
use fixture::{go, problems, resumes, tiny};
use serde_json::Value;

const PROCESS: &str = "stage.rl.objective={advantage={kind=\"process\"}}";
const SOLUTION: &str = "stage.rl.step_rewards={kind=\"solution\",separator=\"\"}";
const CONTINUED: &str =
    "stage.rl.step_rewards={kind=\"continued\",separator=\"\",samples=2,max_tokens=4,most=3,force=\"=\"}";
const ALL: &str = "stage.rl.group=[]";
const NOISE: &str = "stage.rl.shaping=[{kind=\"flip\",part=\"hex\",probability=0.2}]";

/// Every character of a completion against the one at its place in the answer.
#[test]
fn steps_are_compared_with_the_solution() {
    let done = go(&[SOLUTION, PROCESS, ALL, "stage.rl.step_rewards.right=2.0", "stage.rl.step_rewards.wrong=-1.0"]);
    for (step, round) in done.rounds().iter().enumerate() {
        let of_round: Vec<Value> = done.rollouts().into_iter().filter(|r| r["step"] == step + 1).collect();
        let mut rewards = vec![];
        for rollout in &of_round {
            let text = |name: &str| rollout[name].as_str().unwrap().chars().collect::<Vec<char>>();
            let (said, right) = (text("completion"), text("answer"));
            let trimmed = |c: &char| c.to_string().trim().to_owned();
            let same = |i: usize| right.get(i).is_some_and(|c| trimmed(c) == trimmed(&said[i]));
            rewards.extend((0..said.len()).map(|i| if same(i) { 2.0 } else { -1.0 }));
            rewards.extend(said.is_empty().then_some(-1.0));
        }
        let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
        assert!((number(round, "steps/reward") - mean).abs() < 1e-9, "{round}");
        assert!((number(round, "steps/mean") - rewards.len() as f64 / 12.0).abs() < 1e-9);
    }
    assert!(done.rounds().iter().any(|r| number(r, "grad_norm") > 0.0));
}

/// What the steps changed adds up to the reward less what was expected before the first token.
#[test]
fn changes_add_up_to_the_reward() {
    let rounds = go(&[CONTINUED, PROCESS, ALL]).rounds();
    for round in &rounds {
        let sum = number(round, "steps/mean") * number(round, "steps/reward");
        let expected = number(round, "reward") - number(round, "steps/prior");
        assert!((sum - expected).abs() < 1e-9, "{round}");
        assert!(number(round, "steps/mean") > 1.0 && number(round, "steps/mean") <= 3.0);
    }
    assert!(rounds.iter().any(|r| number(r, "steps/prior") > 0.0));
    let level = go(&[CONTINUED, PROCESS, ALL, "stage.rl.step_rewards.give=level", "stage.rl.steps=1"]).rounds();
    assert_eq!(number(&level[0], "reward"), number(&rounds[0], "reward"), "the completions are the same");
    assert_eq!(number(&level[0], "steps/prior"), number(&rounds[0], "steps/prior"));
    assert!(number(&level[0], "steps/reward") > number(&rounds[0], "steps/reward"));
    assert_ne!(number(&level[0], "grad_norm"), number(&rounds[0], "grad_norm"));
}

#[test]
fn step_rewards_resume_with_the_same_bits() {
    resumes(&[SOLUTION, "stage.rl.objective={advantage={kind=\"process\",outcome=true}}", ALL]);
    let critic = "stage.rl.critic={optimizer={kind=\"adamw\",lr=1e-2}}";
    let start = "model.critic.policy_at=stage_start";
    let gae = "stage.rl.objective={advantage={kind=\"gae\",lambda=0.9}}";
    resumes(&[CONTINUED, "stage.rl.step_rewards.give=level", gae, critic, start, ALL]);
}

/// The changes of the chance of an even answer teach even answers, for three seeds.
#[test]
fn progress_teaches() {
    let continued = "stage.rl.step_rewards={kind=\"continued\",separator=\"\",samples=2,max_tokens=6,most=3}";
    let mrt = "stage.rl.objective={advantage={kind=\"process\",outcome=true}}";
    for seed in ["seed=1", "seed=2", "seed=3"] {
        let rounds = tiny(&[seed, ALL, continued, mrt, "stage.rl.steps=12"]).rounds();
        let mean = |rows: &[Value]| rows.iter().map(|r| number(r, "reward")).sum::<f64>() / rows.len() as f64;
        let (before, after) = (mean(&rounds[..2]), mean(&rounds[rounds.len() - 3..]));
        assert!(after > before + 0.05, "{seed}: {before:.3} -> {after:.3}");
    }
}

/// Right steps and next to nothing for the answer teach the model to work as the demonstration in each group does: more right steps a
/// completion, for three seeds.
#[test]
fn right_steps_teach() {
    let sets = [
        "stage.rl.tasks.0.source.cot=true",
        "stage.rl.step_rewards={kind=\"solution\",separator=\" \"}",
        "stage.rl.rewards=[{name=\"worked\",kind=\"format\",pattern=\"=>\",weight=0.001}]",
        "stage.rl.objective={advantage={kind=\"reinforce_plus_plus\"}}",
        "stage.rl.inject={from=\"demonstration\",when=\"always\"}",
        "stage.rl.optimizer.lr=4e-4",
        "stage.rl.sampling.max_tokens=40",
        "stage.rl.steps=10",
    ];
    for seed in ["seed=1", "seed=2", "seed=3"] {
        let rounds = tiny(&[&[seed, ALL], &sets[..]].concat()).rounds();
        let right = |r: &Value| number(r, "steps/mean") * number(r, "steps/reward");
        let mean = |rows: &[Value]| rows.iter().map(right).sum::<f64>() / rows.len() as f64;
        let (before, after) = (mean(&rounds[..2]), mean(&rounds[rounds.len() - 3..]));
        assert!(after > before + 0.3, "{seed}: {before:.3} -> {after:.3}");
    }
}

#[test]
fn settings_without_sense_are_found() {
    for (sets, word) in [
        (&[PROCESS][..], "there are none"),
        (&[SOLUTION], "compares total rewards"),
        (&[SOLUTION, PROCESS, "stage.rl.step_rewards.right=0.0"], "both earn 0"),
        (&[CONTINUED, PROCESS, "stage.rl.step_rewards.samples=0"], "samples is 0"),
        (&[CONTINUED, PROCESS, "stage.rl.step_rewards.scale=0.0"], "scale is 0"),
        (&[CONTINUED, PROCESS, "stage.rl.tasks.0.source.cot=true"], "`cot` has no effect"),
        (&[SOLUTION, PROCESS], "`drop_constant` leaves out groups"),
        (&[CONTINUED, PROCESS, ALL, NOISE], "rewards steps as scored, before the noise"),
        (
            &[SOLUTION, PROCESS, ALL, "stage.rl.environment={kind=\"second_attempt\",prompt=\"Again.\"}"],
            "looks at one turn",
        ),
    ] {
        assert!(problems(sets).contains(word), "{sets:?}: {}", problems(sets));
    }
    assert_eq!(problems(&[SOLUTION, PROCESS, ALL, "stage.rl.tasks.0.source.cot=true"]), "");
}
