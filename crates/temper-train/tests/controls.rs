//! Settings that move, KL in the reward, and the critic, through whole runs.

mod common;
#[path = "rollouts/fixture.rs"]
mod fixture;

use common::number;
use fixture::{go, problems, resumes};

const START: &str = "model.reference.policy_at=stage_start";
const CRITIC: [&str; 3] = [
    "model.critic.policy_at=stage_start",
    "stage.rl.critic={optimizer={kind=\"adamw\",lr=1e-2},objective={clip=0.5}}",
    "stage.rl.group=[]",
];

#[test]
fn knobs_move_by_what_is_measured_and_resume_with_the_same_bits() {
    let objective = "stage.rl.objective={kl={beta={kind=\"adaptive_kl\",init=0.1,target=1e-4}},\
                     entropy={coef={kind=\"target_entropy\",init=0.0,target=9.0,delta=0.01,max=0.02}}}";
    let temperature = "stage.rl.sampling.temperature={kind=\"schedule\",from=1.5,to=0.5}";
    let rounds = resumes(&[START, objective, temperature, "stage.rl.inner_epochs=2", "stage.rl.group=[]"]).rounds();
    let knob = |name: &str| rounds.iter().map(|r| number(r, &format!("knob/{name}"))).collect::<Vec<_>>();
    assert_eq!(knob("sampling.temperature"), [1.5, 1.25, 1.0, 0.75]);
    assert_eq!(knob("objective.entropy.coef"), [0.0, 0.01, 0.02, 0.02]);
    let mut beta = 0.1;
    for (round, got) in rounds.iter().zip(knob("objective.kl.beta")) {
        assert_eq!(got, beta);
        beta *= 1.0 + 0.1 * (number(round, "kl") / 1e-4 - 1.0).clamp(-0.2, 0.2);
    }
    assert_ne!(beta, 0.1);
}

#[test]
fn a_knob_that_stays_is_the_number() {
    let with = |beta: &str| go(&[START, &format!("stage.rl.objective={{kl={{beta={beta}}}}}")]);
    let (fixed, moving) = (with("0.1"), with("{kind=\"schedule\",from=0.1,to=0.1}"));
    assert_eq!(fixed.bits("model/model.safetensors"), moving.bits("model/model.safetensors"));
    assert!(moving.text("recipe.toml").contains("kind = \"schedule\""), "the kept recipe has the knob");
    // And one that reaches 0 after the first round is another run than either.
    let gone = with("{kind=\"schedule\",from=0.1,to=0.0,end=0.25}");
    assert_eq!(number(&gone.rounds()[3], "knob/objective.kl.beta"), 0.0);
    assert_ne!(fixed.bits("model/model.safetensors"), gone.bits("model/model.safetensors"));
}

#[test]
fn terms_of_an_offline_stage_move() {
    let terms = "stage.sft.terms=[{weight={kind=\"schedule\",from=0.5,to=0.0},objective={kind=\"entropy_bonus\"}}]";
    let metrics = go(&[terms, "stage.rl.steps=1"]).text("metrics.jsonl");
    let values: Vec<f64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line["stage"] == "sft")
        .map(|line| number(&line, "knob/terms.0.weight"))
        .collect();
    assert_eq!(values, [0.5, 0.25]);
}

/// On the first round the policy is the reference bit for bit, so the KL costs nothing.
#[test]
fn the_kl_in_the_reward_begins_at_zero() {
    let run = |steps: &str, kl: &str| {
        let objective =
            format!("stage.rl.objective={{advantage={{kind=\"rloo\"}},surrogate={{kind=\"reinforce\"}}{kl}}}");
        let mut sets = vec!["stage.rl.group=[]", &objective, steps];
        sets.extend((!kl.is_empty()).then_some(START));
        go(&sets)
    };
    let charged = ",kl_reward={beta=50.0}";
    let (free, one) = (run("stage.rl.steps=1", ""), run("stage.rl.steps=1", charged));
    assert_eq!(number(&one.rounds()[0], "reward_kl"), 0.0);
    assert_eq!(free.bits("model/model.safetensors"), one.bits("model/model.safetensors"));
    let (free, two) = (run("stage.rl.steps=2", ""), run("stage.rl.steps=2", charged));
    assert_ne!(number(&two.rounds()[1], "reward_kl"), 0.0);
    assert_eq!(number(&free.rounds()[1], "reward"), number(&two.rounds()[1], "reward"), "as scored");
    assert_ne!(free.bits("model/model.safetensors"), two.bits("model/model.safetensors"));
}

#[test]
fn the_kl_by_token_resumes_with_the_same_bits() {
    let objective = "stage.rl.objective={advantage={kind=\"reinforce_plus_plus\"},\
                     kl_reward={level=\"token\",beta={kind=\"adaptive_kl\",init=0.1,target=0.01}}}";
    let rounds = resumes(&[START, objective, "stage.rl.group=[]"]).rounds();
    assert_ne!(number(&rounds[1], "knob/objective.kl_reward.beta"), 0.1);
    assert!(rounds.iter().all(|r| r.get("kl").is_none()), "there is no KL in the loss");
}

#[test]
fn ppo_resumes_with_the_same_bits() {
    let objective = "stage.rl.objective={advantage={kind=\"gae\",lambda=0.9},kl_reward={level=\"token\",beta=0.05}}";
    let sets = [&CRITIC[..], &[START, objective, "stage.rl.inner_epochs=2", "stage.rl.minibatches=3"]].concat();
    let rounds = resumes(&sets).rounds();
    assert_eq!(number(&rounds[0], "value/mean"), 0.0);
    assert!(rounds[1..].iter().all(|r| number(r, "value/mean") != 0.0 && number(r, "value/grad_norm") > 0.0));
    assert!(rounds.iter().all(|r| number(r, "value_loss") > 0.0 && number(r, "value/explained_variance") <= 1.0));
}

/// With values of zero and nothing whitened, the estimate is the return: the policy's first step is REINFORCE's, bit for bit.
#[test]
fn the_first_step_of_ppo_is_that_of_plain_returns() {
    let with = |advantage: &str, critic: &[&str]| {
        let objective = format!("stage.rl.objective={{advantage={advantage}}}");
        let done = go(&[critic, &["stage.rl.group=[]", "stage.rl.steps=1", &objective]].concat());
        done.bits("model/model.safetensors")
    };
    let (ppo, plain) = (with("{kind=\"gae\",whiten=false}", &CRITIC[..2]), with("{kind=\"returns\"}", &[]));
    assert!(ppo == plain);
}

#[test]
fn the_critic_learns_alone_while_the_policy_waits() {
    let critic = "stage.rl.critic={optimizer={kind=\"adamw\",lr=1e-2},objective={warmup_steps=15}}";
    let sets =
        [&CRITIC[..1], &[critic, "stage.rl.group=[]", "stage.rl.steps=16", "stage.rl.checkpoint_every=99"]].concat();
    // Every completion earns 1, so there is nothing that a critic could not learn.
    let more = [
        "stage.rl.objective={advantage={kind=\"gae\"}}",
        "stage.rl.rewards=[{name=\"one\",kind=\"format\",pattern=\".*\"}]",
    ];
    let done = go(&[&sets[..], &more[..]].concat());
    let rounds = done.rounds();
    assert!(rounds[..15].iter().all(|r| r.get("grad_norm").is_none()) && rounds[15].get("grad_norm").is_some());
    let losses: Vec<f64> = rounds.iter().map(|r| number(r, "value_loss")).collect();
    assert!((losses[0] - 0.5).abs() < 1e-12 && losses[15] < 0.05, "{losses:?}");
    assert!((number(&rounds[15], "value/mean") - 1.0).abs() < 0.3);
}

#[test]
fn the_critic_does_not_depend_on_micro_batches() {
    let of = |micro: &str| {
        let more = ["stage.rl.objective={advantage={kind=\"gae\",lambda=0.9}}", "stage.rl.steps=2", micro];
        go(&[&CRITIC[..], &more[..]].concat()).rounds()
    };
    let (whole, cut) = (of("stage.rl.micro_tokens=100000"), of("stage.rl.micro_tokens=1"));
    for name in ["value_loss", "value/grad_norm", "value/mean", "grad_norm"] {
        let (a, b) = (number(&whole[1], name), number(&cut[1], name));
        assert!((a - b).abs() <= 1e-5 * a.abs().max(1e-3), "{name}: {a} {b}");
    }
}

#[test]
fn combinations_that_cannot_work_are_reported() {
    let gae = "stage.rl.objective={advantage={kind=\"gae\"}}";
    for (sets, word) in [
        (&["stage.rl.optimizer.lr={kind=\"schedule\",from=1e-3,to=0.0}"][..], "cannot move"),
        (&["stage.rl.rewards.1.weight={kind=\"schedule\",from=1.0,to=0.0}"], "cannot move"),
        (
            &[
                "stage.sft.terms=[{weight={kind=\"adaptive_kl\",init=0.1,target=1.0},objective={kind=\"entropy_bonus\"}}]",
            ],
            "does not measure",
        ),
        (&["stage.rl.objective={entropy={coef={kind=\"adaptive_kl\",init=0.1,target=1.0}}}"], "does not measure"),
        (&[START, "stage.rl.objective={kl={beta={kind=\"schedule\",from=0.1,to=-0.1}}}"], "kl.beta is -0.1"),
        (&[START, "stage.rl.objective={kl={beta={kind=\"adaptive_kl\",init=0.1,target=0.0}}}"], "target is 0"),
        (
            &["stage.rl.objective={surrogate={kind=\"clip\",clip_low={kind=\"schedule\",from=0.2,to=3.0}}}"],
            "clip_low is 3",
        ),
        (&["stage.rl.objective={kl_reward={beta=0.1}}"], "needs a reference model"),
        (&[START, "stage.rl.objective={kl_reward={beta=0.1,level=\"token\"}}"], "compares total rewards"),
        (&[gae], "there is no critic"),
        (&[gae, CRITIC[1]], "no model that it begins with"),
        (&[CRITIC[0], CRITIC[1]], "reads no values"),
        (&[CRITIC[0]], "no stage has a critic"),
        (&[CRITIC[0], gae, "stage.rl.critic={optimizer={kind=\"adamw\",lr=-1.0}}"], "`lr` is -1.0"),
        (
            &[CRITIC[0], gae, "stage.rl.critic={optimizer={kind=\"adamw\",lr=1e-3},objective={warmup_steps=9}}"],
            "would not be trained",
        ),
    ] {
        let text = problems(sets);
        assert!(text.contains(word), "{sets:?}: {text}");
    }
}
