//! Members that the policy did not sample, budgets in stages, and steps that are drawn anew.

use crate::common::number;
use crate::fixture::{go, peers_resume, problems, resumes};

/// The ratio of a demonstration is 1 like that of the group's own rollouts, bit for bit: its log-probabilities are those of the
/// policy before the update. What was sampled is the same as without.
#[test]
fn a_demonstration_has_ratio_one_and_counts_in_no_statistic() {
    let plain = go(&["stage.rl.steps=1", "stage.rl.group=[]"]);
    for micro in ["stage.rl.micro_tokens=30", "stage.rl.micro_tokens=4096"] {
        let shown = ["stage.rl.inject={from=\"demonstration\",when=\"always\"}", "stage.rl.group=[]", micro];
        let with = go(&[&shown[..], &["stage.rl.steps=1"]].concat());
        let (round, before) = (&with.rounds()[0], &plain.rounds()[0]);
        assert_eq!((number(round, "ratio/mean"), number(round, "ratio/max")), (1.0, 1.0), "{round}");
        assert_eq!(number(round, "groups/injected_ratio"), 1.0);
        for name in ["reward", "reward_std", "completions/mean_length", "num_tokens", "frac_reward_zero_std"] {
            assert_eq!(number(round, name), number(before, name), "{name}");
        }
        let members: Vec<_> = with.rollouts().into_iter().filter(|r| r["origin"] == "demonstration").collect();
        assert_eq!((members.len(), with.rollouts().len()), (3, 15));
        assert!(members.iter().all(|m| m["completion"] == m["answer"] && m["parts"]["correct"] == 1.0), "{members:?}");
        let own: Vec<_> = with.rollouts().into_iter().filter(|r| r["origin"] == "sampled").collect();
        assert_eq!(own, plain.rollouts());
    }
}

/// A group that is all wrong has no signal, and one with a demonstration has.
#[test]
fn a_demonstration_gives_a_hopeless_group_a_signal() {
    let never = "stage.rl.rewards=[{name=\"correct\",kind=\"verifier\"}]";
    let one = ["stage.rl.steps=1", "stage.rl.sampling.max_tokens=1", never];
    let alone = go(&one).rounds().remove(0);
    assert!(alone.get("loss").is_none() && number(&alone, "groups/dropped_ratio") == 1.0, "{alone}");
    let shown = go(&[&one[..], &["stage.rl.inject={from=\"demonstration\"}"]].concat()).rounds().remove(0);
    assert!(number(&shown, "grad_norm") > 0.0 && number(&shown, "groups/dropped_ratio") == 0.0, "{shown}");
    assert_eq!(number(&shown, "frac_reward_zero_std"), 1.0, "of what was sampled");
}

/// Answers of earlier rounds are kept in the checkpoint, come back for the same task, and are corrected for the policy that
/// sampled them: their ratio is 1, and the correction is not.
#[test]
fn stored_answers_come_back_and_resume_with_the_same_bits() {
    let sets = [
        "stage.rl.inject={from=\"stored\",when=\"always\",rewards=[\"hex\"]}",
        "stage.rl.group=[]",
        "stage.rl.optimizer.lr=0.02",
        "stage.rl.objective={correction={kind=\"truncate\",high=2.0},advantage={kind=\"returns\"}}",
    ];
    let done = resumes(&sets);
    let rounds = done.rounds();
    assert_eq!(number(&rounds[0], "groups/injected_ratio"), 0.0);
    assert!(number(&rounds[3], "groups/stored_answers") > 0.0 && number(&rounds[3], "groups/injected_ratio") > 0.0);
    assert!(rounds.iter().all(|r| number(r, "ratio/max") == 1.0));
    let rollouts = done.rollouts();
    let stored: Vec<_> = rollouts.iter().filter(|r| !r["origin"]["stored"].is_null()).collect();
    for member in &stored {
        let round = &member["origin"]["stored"]["round"];
        let source =
            |r: &&serde_json::Value| r["step"] == *round && r["origin"] == "sampled" && r["task"] == member["task"];
        assert!(rollouts.iter().filter(source).any(|r| r["completion"] == member["completion"]), "{member}");
    }
    assert!(!stored.is_empty());
    // Without the correction the same samples give another update.
    let plain = go(&[&sets[..3], &["stage.rl.objective={advantage={kind=\"returns\"}}"]].concat()).rounds();
    let first = (1..4).find(|i| number(&rounds[*i], "groups/injected_ratio") > 0.0).unwrap();
    assert_eq!(number(&plain[first], "reward"), number(&rounds[first], "reward"));
    assert_ne!(number(&plain[first], "grad_norm"), number(&rounds[first], "grad_norm"));
}

/// TRICE: one proposal a prompt, and where it is wrong the right answer of an earlier round. A prompt without any is not trained on.
#[test]
fn proposals_and_memories_resume_with_the_same_bits() {
    let trice = [
        "stage.rl.rewards=[{name=\"hex\",kind=\"format\",pattern=\"[0-9a-f]\"}]",
        "stage.rl.samples_per_prompt=1",
        "stage.rl.prompts_per_step=4",
        "stage.rl.inject={from=\"stored\"}",
        "stage.rl.group=[{kind=\"drop_unsolved\"}]",
        "stage.rl.objective={advantage={kind=\"trice\"},surrogate={kind=\"reinforce\"},weighting={kind=\"group_sum\"}}",
        "stage.rl.steps=6",
    ];
    let rounds = resumes(&trice).rounds();
    let first = &rounds[0];
    assert_eq!(number(first, "groups/injected_ratio"), 0.0);
    assert!((number(first, "groups/dropped_ratio") - (1.0 - number(first, "reward"))).abs() < 1e-12, "{first}");
    let with: Vec<_> = rounds.iter().filter(|r| number(r, "groups/injected_ratio") > 0.0).collect();
    assert!(!with.is_empty() && with.iter().all(|r| number(r, "grad_norm") > 0.0), "{rounds:?}");
    for round in &rounds {
        let lost = 1.0 - number(round, "reward") - number(round, "groups/injected_ratio");
        assert!((number(round, "groups/dropped_ratio") - lost).abs() < 1e-12, "{round}");
    }
}

/// Groups go by the part that is named, not by the total that another part tells apart.
#[test]
fn groups_are_dropped_by_a_named_part() {
    let with = |part: &str| {
        let rewards = "stage.rl.rewards=[{name=\"never\",kind=\"format\",pattern=\"^never$\"},\
                       {name=\"hex\",kind=\"format\",pattern=\"[0-9a-f]\"}]";
        let group = format!("stage.rl.group=[{{kind=\"drop_constant\",refill=1{part}}}]");
        go(&["stage.rl.steps=1", rewards, &group]).rounds().remove(0)
    };
    let (total, never) = (with(""), with(",part=\"never\""));
    assert!(number(&total, "grad_norm") > 0.0 && number(&total, "reward_std") > 0.0, "{total}");
    let names = ["groups/dropped_ratio", "groups/refilled", "groups/missing"];
    assert_eq!(names.map(|name| number(&never, name)), [1.0, 3.0, 3.0], "{never}");
    assert!(never.get("loss").is_none());
}

/// A budget decides how many completions there are and not what they say.
#[test]
fn a_budget_in_stages_samples_a_part_of_the_same_completions() {
    let sets = ["stage.rl.steps=1", "stage.rl.group=[]", "stage.rl.sampling.max_tokens=3"];
    let all = go(&sets).rollouts();
    let staged = go(&[&sets[..], &["stage.rl.budget={stage=2}"]].concat());
    let some = staged.rollouts();
    assert!(some.len() < all.len() && some.len() >= 6, "{} of {}", some.len(), all.len());
    let mut rest = all.iter();
    assert!(some.iter().all(|r| rest.any(|a| a == r)), "in the same order");
    let saved = number(&staged.rounds()[0], "completions/saved_ratio");
    assert!((saved - (1.0 - some.len() as f64 / 12.0)).abs() < 1e-12);
    for task in all.iter().map(|r| &r["task"]) {
        let of = |rows: &[serde_json::Value]| {
            let rewards = rows.iter().filter(|r| r["task"] == *task).map(|r| r["reward"].as_f64().unwrap());
            rewards.collect::<Vec<_>>()
        };
        let right = of(&all).iter().position(|r| *r > 0.5);
        assert_eq!(of(&some).len(), if right.is_some_and(|first| first < 2) { 2 } else { 4 }, "{task}");
    }
}

/// A second learner trains on the first one's rollouts beside its own: their text is re-tokenised, and their ratio is taken
/// to the policy that learns.
#[test]
fn another_learners_groups_are_trained_on_and_resume() {
    let sets = ["stage.rl.shared={stage=\"peer\",local=1,groups=2}", "stage.rl.group=[]"];
    let done = peers_resume(&sets);
    let rounds = done.rounds();
    assert!(rounds.iter().all(|r| (number(r, "ratio/mean"), number(r, "ratio/max")) == (1.0, 1.0)), "{rounds:?}");
    assert!(rounds.iter().any(|r| number(r, "groups/shared") > 0.0));
    assert!(rounds.iter().all(|r| number(r, "groups/shared") <= 2.0 && number(r, "grad_norm") > 0.0));
    assert!(done.rollouts().iter().filter(|r| r["origin"] == "sampled").count() >= 4 * 12);
}

#[test]
fn a_redrawn_step_resumes_with_the_same_bits() {
    let done = resumes(&["stage.rl.redraw={unit=\"pair\"}", "stage.rl.sampling.max_tokens=3", "stage.rl.group=[]"]);
    let shares: Vec<f64> = done.rounds().iter().map(|r| number(r, "completions/redrawn_ratio")).collect();
    assert!(shares.iter().all(|s| *s > 0.0 && *s <= 1.0) && shares.iter().any(|s| *s < 1.0), "{shares:?}");
}

#[test]
fn settings_without_sense_are_found() {
    let correction = "stage.rl.objective={correction={kind=\"truncate\"}}";
    for (sets, word) in [
        (
            &[
                "stage.rl.inject={from=\"stored\"}",
                "stage.rl.tasks.0.source={kind=\"tiny_world\",families=\"all\",levels=[1],split=\"train\"}",
            ][..],
            "comes twice",
        ),
        (&["stage.rl.inject={from=\"stored\",rewards=[\"form\"]}"], "no reward part `form`"),
        (&["stage.rl.shared={stage=\"sft\",local=1,groups=1}"], "no online stage before"),
        (&["stage.rl.budget={stage=4}"], "stage is 4"),
        (&["stage.rl.budget={stage=2}", "stage.rl.objective={advantage={kind=\"risk\",bundle=3}}"], "differ in number"),
        (&[correction], "same numbers"),
        (&[correction, "stage.rl.inject={from=\"demonstration\"}"], "same numbers"),
        (&["stage.rl.objective={advantage={kind=\"trice\"}}"], "one fresh proposal"),
        (&["stage.rl.objective={advantage={kind=\"trice\"}}"], "drop_unsolved"),
        (
            &["stage.rl.objective={advantage={kind=\"trice\",threshold=0.7}}", "stage.rl.inject={from=\"stored\"}"],
            "above 0.7, elsewhere above 0.5",
        ),
        (&["stage.rl.group=[{kind=\"drop_constant\",part=\"form\"}]"], "no reward part `form`"),
        (
            &["stage.rl.objective={advantage={kind=\"gdpo\"}}", "stage.rl.shaping=[{kind=\"length_budget\",start=4}]"],
            "`gdpo` reads the parts",
        ),
        (&["stage.rl.tasks.0.source.cot=true"], "`cot` has no effect"),
        (
            &["stage.rl.redraw={unit=\"pair\"}", "stage.rl.objective={surrogate={kind=\"nll\"}}"],
            "`redraw` draws by advantages",
        ),
    ] {
        assert!(problems(sets).contains(word), "{sets:?}: {}", problems(sets));
    }
    assert_eq!(problems(&[correction, "stage.rl.inject={from=\"stored\"}"]), "");
    assert_eq!(problems(&["stage.rl.tasks.0.source.cot=true", "stage.rl.inject={from=\"demonstration\"}"]), "");
}
