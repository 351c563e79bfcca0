//! Every family of policy objectives learns: on models/tiny, the reward rises for each of several seeds.

use crate::fixture::{number, tiny};

/// Rounds at the beginning and at the end whose mean rewards are compared.
const WINDOW: usize = 2;

/// Mean of a metric over the first and over the last rounds.
fn ends(sets: &[&str], metric: &str) -> (f64, f64) {
    let rounds = tiny(sets).rounds();
    let mean = |rows: &[serde_json::Value]| rows.iter().map(|r| number(r, metric)).sum::<f64>() / rows.len() as f64;
    (mean(&rounds[..WINDOW]), mean(&rounds[rounds.len() - WINDOW..]))
}

/// The reward asks for an even answer, which half of the answers are; with `sets` more of them are, by `gain` at least, whatever the
/// seed.
fn learns(name: &str, sets: &[&str], metric: &str, gain: f64) {
    for seed in ["seed=1", "seed=2", "seed=3"] {
        let (before, after) = ends(&[&[seed], sets].concat(), metric);
        println!("{name} {seed}: {before:.3} -> {after:.3}");
        assert!(after > before + gain, "{name} {seed}: {before:.3} -> {after:.3}");
    }
}

#[test]
fn group_relative() {
    learns("GRPO", &[], "reward", 0.1);
    let nft = "stage.rl.objective={surrogate={kind=\"nft\"},weighting={kind=\"sequence\"}}";
    learns("NFT", &[nft], "reward", 0.1);
    let cispo = "stage.rl.objective={surrogate={kind=\"cispo\"}}";
    learns("CISPO", &[cispo, "stage.rl.inner_epochs=2"], "reward", 0.1);
}

#[test]
fn leave_one_out_and_plain_baselines() {
    let reinforce = |advantage: &str| {
        format!(
            "stage.rl.objective={{advantage={{{advantage}}},surrogate={{kind=\"reinforce\"}},weighting={{kind=\"sequence\"}}}}"
        )
    };
    learns("RLOO", &[&reinforce("kind=\"rloo\"")], "reward", 0.1);
    learns("REINFORCE++", &[&reinforce("kind=\"reinforce_plus_plus\""), "stage.rl.group=[]"], "reward", 0.1);
    learns("ReMax", &[&reinforce("kind=\"remax\""), "stage.rl.group=[]"], "reward", 0.1);
}

#[test]
fn sequence_ratios() {
    let of = |ratio: &str| format!("stage.rl.objective={{ratio={{kind=\"{ratio}\"}},weighting={{kind=\"sequence\"}}}}");
    for (name, ratio) in [("GSPO", "sequence"), ("GSPO-token", "sequence_token")] {
        learns(name, &[&of(ratio), "stage.rl.inner_epochs=2", "stage.rl.minibatches=2"], "reward", 0.1);
    }
}

#[test]
fn off_policy() {
    let topr = "stage.rl.objective={advantage={kind=\"returns\",baseline=0.3},ratio={kind=\"product\"},surrogate={kind=\"topr\"},\
                weighting={kind=\"sequence\"}}";
    learns("TOPR", &[topr, "stage.rl.group=[]", "stage.rl.inner_epochs=2"], "reward", 0.1);
    let best = "stage.rl.group=[{kind=\"drop_constant\"},{kind=\"down_sample\",keep=1,rule=\"best\",counts=true}]";
    let raft = "stage.rl.objective={advantage={kind=\"best_of\"},surrogate={kind=\"reinforce\"},weighting={kind=\"sequence\"}}";
    learns("RAFT", &[best, raft], "reward", 0.1);
    let rwr = "stage.rl.objective={advantage={kind=\"group_mean\"},surrogate={kind=\"reward_weighted\",temperature=0.3},\
               weighting={kind=\"sequence\"}}";
    learns("RWR", &[rwr], "reward", 0.1);
}

/// Demonstrations teach what the policy hardly ever samples by itself: worked steps before the answer.
#[test]
fn demonstrations_in_the_group() {
    let sets = [
        "stage.rl.tasks.0.source.cot=true",
        "stage.rl.rewards=[{name=\"worked\",kind=\"format\",pattern=\"=>\"}]",
        "stage.rl.inject={from=\"demonstration\",when=\"always\"}",
        "stage.rl.sampling.max_tokens=40",
    ];
    learns("ViSurf", &sets, "reward", 0.2);
}

/// The reward of two attempts with a bonus for the second one's gain teaches the second attempt.
#[test]
fn second_attempts() {
    let score = "stage.rl.environment={kind=\"second_attempt\",prompt=\"Again.\",first=1.0,bonus=1.0}";
    learns("SCoRe", &[score], "turns/last_reward", 0.1);
}
