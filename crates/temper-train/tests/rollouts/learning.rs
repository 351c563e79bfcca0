//! Every family of policy objectives learns: on models/tiny, the reward rises for each of several seeds.

use crate::common::number;
use crate::fixture::tiny;

/// Rounds at the beginning, and at the end, whose mean rewards are compared.
const FIRST: usize = 2;
const LAST: usize = 3;

/// Mean of a metric over the first and over the last rounds.
fn ends(sets: &[&str], metric: &str) -> (f64, f64) {
    let rounds = tiny(sets).rounds();
    let mean = |rows: &[serde_json::Value]| rows.iter().map(|r| number(r, metric)).sum::<f64>() / rows.len() as f64;
    (mean(&rounds[..FIRST]), mean(&rounds[rounds.len() - LAST..]))
}

/// The reward asks for an even answer, which half of the answers are. With `sets` more of them are, whatever the seed: by 0.05 at
/// least (a window of 64 or 96 answers has a deviation of 0.06), and by 0.15 on average.
fn learns(name: &str, sets: &[&str], metric: &str) {
    let seeds = ["seed=1", "seed=2", "seed=3"];
    let gains = seeds.map(|seed| {
        let (before, after) = ends(&[&[seed], sets].concat(), metric);
        assert!(after > before + 0.05, "{name} {seed}: {before:.3} -> {after:.3}");
        after - before
    });
    assert!(gains.iter().sum::<f64>() > 0.15 * gains.len() as f64, "{name}: {gains:?}");
}

#[test]
fn group_relative() {
    learns("GRPO", &[], "reward");
    let nft = "stage.rl.objective={surrogate={kind=\"nft\"},weighting={kind=\"sequence\"}}";
    learns("NFT", &[nft], "reward");
}

#[test]
fn leave_one_out_and_plain_baselines() {
    let reinforce = |advantage: &str| {
        format!(
            "stage.rl.objective={{advantage={{{advantage}}},surrogate={{kind=\"reinforce\"}},weighting={{kind=\"sequence\"}}}}"
        )
    };
    learns("RLOO", &[&reinforce("kind=\"rloo\"")], "reward");
    learns("REINFORCE++", &[&reinforce("kind=\"reinforce_plus_plus\""), "stage.rl.group=[]"], "reward");
    learns("ReMax", &[&reinforce("kind=\"remax\""), "stage.rl.group=[]"], "reward");
}

#[test]
fn sequence_ratios() {
    let of = |ratio: &str| format!("stage.rl.objective={{ratio={{kind=\"{ratio}\"}},weighting={{kind=\"sequence\"}}}}");
    learns("GSPO", &[&of("sequence"), "stage.rl.inner_epochs=2", "stage.rl.minibatches=2"], "reward");
}

#[test]
fn off_policy() {
    let topr = "stage.rl.objective={advantage={kind=\"returns\",baseline=0.3},ratio={kind=\"product\"},surrogate={kind=\"topr\"},\
                weighting={kind=\"sequence\"}}";
    learns("TOPR", &[topr, "stage.rl.group=[]", "stage.rl.inner_epochs=2"], "reward");
    let best = "stage.rl.group=[{kind=\"drop_constant\"},{kind=\"down_sample\",keep=2,rule=\"best\",counts=true}]";
    let raft = "stage.rl.objective={advantage={kind=\"best_of\",keep=2},surrogate={kind=\"reinforce\"},weighting={kind=\"sequence\"}}";
    learns("RAFT", &[best, raft], "reward");
    let rwr = "stage.rl.objective={advantage={kind=\"group_mean\"},surrogate={kind=\"reward_weighted\",temperature=0.3},\
               weighting={kind=\"sequence\"}}";
    learns("RWR", &[rwr], "reward");
}

#[test]
fn other_surrogates() {
    let of = |rest: &str| format!("stage.rl.objective={{{rest},weighting={{kind=\"sequence\"}}}}");
    let two = ["stage.rl.inner_epochs=2", "stage.rl.minibatches=2"];
    learns("CISPO", &[&two[..], &[&of("surrogate={kind=\"cispo\"}")]].concat(), "reward");
    let gvpo = of("advantage={kind=\"group_mean\"},surrogate={kind=\"gvpo\",beta=0.2}");
    learns("GVPO", &[&gvpo, "model.reference.policy_at=stage_start"], "reward");
}

/// Values of a critic in place of a group's mean: one rollout a prompt would do.
#[test]
fn critics() {
    let ppo = [
        "model.critic.policy_at=stage_start",
        "stage.rl.critic={optimizer={kind=\"adamw\",lr=2e-3}}",
        "stage.rl.objective={advantage={kind=\"gae\",lambda=0.95}}",
        "stage.rl.group=[]",
        "stage.rl.minibatches=2",
    ];
    learns("PPO", &ppo, "reward");
}

/// One proposal a prompt, and the rationale in memory: the tasks come back every other round.
#[test]
fn proposals_and_a_memory() {
    let trice = [
        "stage.rl.samples_per_prompt=1",
        "stage.rl.prompts_per_step=32",
        "stage.rl.tasks.0.source.n=64",
        "stage.rl.inject={from=\"stored\"}",
        "stage.rl.group=[{kind=\"drop_unsolved\"}]",
        "stage.rl.objective={advantage={kind=\"trice\"},surrogate={kind=\"reinforce\"},weighting={kind=\"group_sum\"}}",
    ];
    learns("TRICE", &trice, "reward");
}

/// Demonstrations teach what the policy samples now and then: worked steps before the answer.
#[test]
fn demonstrations_in_the_group() {
    let sets = [
        "stage.rl.tasks.0.source.cot=true",
        "stage.rl.rewards=[{name=\"worked\",kind=\"format\",pattern=\"=>\"}]",
        "stage.rl.inject={from=\"demonstration\",when=\"always\"}",
        "stage.rl.sampling.max_tokens=40",
        "stage.rl.steps=8",
    ];
    learns("ViSurf", &sets, "reward");
}

/// The reward of two attempts with a bonus for the second one's gain teaches the second attempt.
#[test]
fn second_attempts() {
    let score = "stage.rl.environment={kind=\"second_attempt\",prompt=\"Again.\",first=1.0,bonus=1.0}";
    learns("SCoRe", &[score], "turns/last_reward");
}
