//! Several turns of the model in one rollout: sampled, scored and trained alike; and refinements of wrong answers.

use crate::common::number;
use crate::fixture::{go, problems, resumes};
use serde_json::Value;

const AGAIN: &str = "stage.rl.environment={kind=\"second_attempt\",prompt=\"Again.\",first=0.5,bonus=2.0}";

/// The environment's words are attended to and never scored, and the log-probabilities of both turns in training are, bit for bit,
/// those of sampling. The first turns are those of a stage without a second one.
#[test]
fn both_turns_have_ratio_one_whatever_the_micro_batches() {
    let one = ["stage.rl.group=[]", "stage.rl.steps=2"];
    let plain = go(&one);
    for more in [
        ["stage.rl.micro_tokens=30", "stage.rl.max_batch=32", "stage.rl.recompute=true"],
        ["stage.rl.micro_tokens=4096", "stage.rl.max_batch=3", "stage.rl.recompute=false"],
    ] {
        let done = go(&[&one[..], &[AGAIN], &more].concat());
        for round in done.rounds() {
            assert_eq!((number(&round, "ratio/mean"), number(&round, "ratio/max")), (1.0, 1.0), "{round}");
            let (first, last) = (number(&round, "turns/first_reward"), number(&round, "turns/last_reward"));
            let earned = 0.5 * first + last + 2.0 * (last - first);
            assert!((number(&round, "reward") - earned).abs() < 1e-12, "{round}");
        }
        let of_first_round = |rows: Vec<Value>| rows.into_iter().filter(|r| r["step"] == 1).collect::<Vec<_>>();
        let (rows, before) = (of_first_round(done.rollouts()), of_first_round(plain.rollouts()));
        assert_eq!(rows.len(), 12);
        for (row, alone) in rows.iter().zip(&before) {
            assert_eq!(row["earlier"], serde_json::json!([alone["completion"]]));
            assert!(row["n_tokens"].as_u64() > alone["n_tokens"].as_u64() && row["n_tokens"].as_u64() <= Some(18));
        }
    }
}

#[test]
fn episodes_resume_with_the_same_bits() {
    let done = resumes(&[AGAIN, "stage.rl.inner_epochs=2", "stage.rl.budget={stage=2}"]);
    assert!(done.rounds().iter().any(|r| r.get("grad_norm").is_some()));
}

/// In the second round the KL's part of the loss is that of the first turn's tokens and that of the second's; in the first there is none.
#[test]
fn a_kl_for_each_turn() {
    let run = |kl: &[&str]| {
        let common = [AGAIN, "stage.rl.group=[]", "stage.rl.steps=2", "stage.rl.optimizer.lr=0.01"];
        let rounds = go(&[&common[..], kl].concat()).rounds();
        (number(&rounds[0], "loss"), number(&rounds[1], "loss"))
    };
    let kl = ["model.reference.policy_at=stage_start", "stage.rl.objective={kl={beta=0.3}}"];
    let with = |turns: &str| run(&[&kl[..], &[&format!("stage.rl.kl_turns={turns}")]].concat());
    let (none, all, first, second) = (run(&[]), run(&kl), with("[1.0,0.0]"), with("[0.0,0.5]"));
    assert_eq!((all.0, first.0, second.0), (none.0, none.0, none.0));
    let of = |run: (f64, f64)| run.1 - none.1;
    assert!(of(first) > 1e-6 && of(second) > 1e-6, "{none:?} {all:?} {first:?} {second:?}");
    assert!((of(all) - of(first) - 2.0 * of(second)).abs() < 1e-9, "{none:?} {all:?} {first:?} {second:?}");
}

/// A context that has no room for a second turn ends the episode after the first one.
#[test]
fn a_full_context_ends_an_episode() {
    let long = format!("stage.rl.environment={{kind=\"second_attempt\",prompt=\"{}\"}}", "Again. ".repeat(40));
    let done = go(&[&long, "stage.rl.steps=1", "stage.rl.group=[]"]);
    let round = &done.rounds()[0];
    assert_eq!(number(round, "turns/first_reward"), number(round, "turns/last_reward"));
    assert_eq!((number(round, "ratio/mean"), number(round, "ratio/max")), (1.0, 1.0));
    assert!(done.rollouts().iter().all(|r| r.get("earlier").is_none()));
}

/// A refinement is sampled with a wrong rollout and its critique in view, and trained on as an answer to the prompt.
#[test]
fn refinements_of_wrong_answers_join_their_groups() {
    let refine = |gamma: &str| {
        format!(
            "stage.rl.inject={{from=\"refinement\",when=\"always\",threshold=1.2,critique=\"It is {{answer}}.\"{gamma}}}"
        )
    };
    let common = ["stage.rl.group=[]", "stage.rl.objective={advantage={kind=\"returns\"}}"];
    let done = resumes(&[&common[..], &[&refine("")]].concat());
    let rounds = done.rounds();
    assert!(rounds.iter().all(|r| (number(r, "ratio/mean"), number(r, "ratio/max")) == (1.0, 1.0)));
    assert!(number(&rounds[0], "groups/injected_ratio") > 0.5, "most groups have a wrong rollout: {}", rounds[0]);
    assert!(done.rollouts().iter().any(|r| r["origin"] == "refinement"));
    let shaped = go(&[&common[..], &[&refine(",gamma=0.1"), "stage.rl.steps=1"]].concat()).rounds();
    assert_eq!(number(&shaped[0], "reward"), number(&rounds[0], "reward"));
    assert_ne!(number(&shaped[0], "grad_norm"), number(&rounds[0], "grad_norm"));
}

#[test]
fn settings_without_sense_are_found() {
    let empty = "stage.rl.environment={kind=\"second_attempt\",prompt=\" \"}";
    let shown = "stage.rl.inject={from=\"demonstration\"}";
    for (sets, word) in [
        (&[empty][..], "told between its attempts"),
        (&[AGAIN, shown], "inject has one turn"),
        (
            &[AGAIN, "stage.rl.objective={advantage={kind=\"remax\"}}", "stage.rl.group=[]"],
            "a greedy baseline has one turn",
        ),
        (&[AGAIN, "stage.rl.kl_turns=[1.0,0.0]"], "the loss has no KL"),
        (&["stage.rl.kl_turns=[1.0,0.0]"], "an episode 1 turns"),
        (&[AGAIN, "stage.rl.kl_turns=[0.0,0.0]"], "not all of them 0"),
        (&[AGAIN, "stage.rl.kl_turns=[1.0,1.0]"], "every factor is 1"),
        (&["stage.rl.inject={from=\"refinement\"}"], "there is no critique"),
        (&["stage.rl.inject={from=\"demonstration\",critique=\"no\"}"], "critique has no effect"),
        (&["stage.rl.inject={from=\"demonstration\",gamma=0.0}"], "gamma is 0"),
    ] {
        assert!(problems(sets).contains(word), "{sets:?}: {}", problems(sets));
    }
}
