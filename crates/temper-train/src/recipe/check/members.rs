//! Members that the policy did not sample, budgets in stages, and steps that are drawn anew.

use temper_algo::group_reuse::{Inject, InjectFrom, InjectWhen};
use temper_algo::{Advantage, GroupShaper, Needs, RewardShaping};
use temper_env::{RewardKind, TaskSource};

use super::Found;
use crate::recipe::{OnlineStage, Recipe, Stage, Stream};

/// What goes beyond G completions of each prompt that all count once.
pub(super) fn problems(recipe: &Recipe, at: &str, s: &OnlineStage, found: &mut Found) {
    shared(recipe, at, s, found);
    let names: Vec<&str> = s.rewards.iter().map(|r| r.name.as_str()).collect();
    found.parts(at, "inject", s.inject.iter().flat_map(|i| i.check(&names)).collect());
    found.parts(at, "budget", s.budget.iter().flat_map(|b| b.check(s.samples_per_prompt)).collect());
    let uneven = s.budget.is_some() || s.inject.is_some();
    if uneven && matches!(s.objective.advantage, Advantage::Risk { .. }) {
        found.error(
            at,
            "the advantage `risk` adds up the first, second, .. rollouts of several prompts, which here differ in number",
            "remove `budget` and `inject`, or compare within the group",
        );
    }
    if let Some(inject) = &s.inject {
        let endless = |source: &TaskSource| matches!(source, TaskSource::TinyWorld(world) if world.n.is_none());
        if inject.from == InjectFrom::Stored && s.tasks.iter().all(|t| endless(&t.source)) {
            found.error(
                at,
                "`inject` takes right answers of earlier rounds, and no task of an endless source comes twice",
                "give the task source an `n`, or set inject.from = \"demonstration\"",
            );
        }
        if inject.from == InjectFrom::Stored && inject.when == InjectWhen::Always {
            found.warn(
                at,
                "an earlier right answer is added to groups that have a right one by themselves",
                "set inject.when = \"all_wrong\"",
            );
        }
    }
    let reads = s.rewards.iter().any(|r| r.kind == RewardKind::Verifier);
    if s.shaping.iter().any(RewardShaping::needs_answers) && !reads {
        found.error(
            at,
            "`shaping` compares answers, and no reward part reads them",
            "add `{ name = \"correct\", kind = \"verifier\", weight = 0 }` to `rewards`",
        );
    }
    if s.shaping.iter().filter(|s| matches!(s, RewardShaping::Episodic { .. })).count() > 1 {
        found.error(at, "two `episodic` shapings, and one memory", "give one of them");
    }
    if let Some(environment) = &s.environment {
        if let Err(e) = environment.check() {
            found.error(at, format!("environment: {e}"), "see `temper recipe schema`");
        }
        for (given, name) in [(s.inject.is_some(), "inject"), (s.needs_greedy(), "a greedy baseline")] {
            if given {
                let what = format!("{name} has one turn, and the environment's episodes have {}", environment.turns());
                found.error(at, what, "remove one of the two");
            }
        }
    }
    clean_labels(at, s, found);
    kl_turns(at, s, found);
    correction(at, s, found);
    proposals(at, s, found);
    if matches!(s.objective.advantage, Advantage::Gdpo { .. }) && !s.shaping.iter().all(RewardShaping::changes_parts) {
        found.error(
            at,
            "`shaping` changes the total reward, and the advantage `gdpo` reads the parts",
            "keep only what changes parts (`flip`), or use an advantage of the total reward",
        );
    }
    if s.redraw.is_some() && !s.objective.surrogate.uses_adv() {
        found.error(at, "`redraw` draws by advantages, and the surrogate reads none", "remove `redraw`");
    }
}

/// Noise changes what is compared within the group, and nothing that looks at the rewards as they were scored.
fn clean_labels(at: &str, s: &OnlineStage, found: &mut Found) {
    if !s.shaping.iter().any(|s| matches!(s, RewardShaping::Flip { .. })) {
        return;
    }
    let injects = |i: &Inject| i.from != InjectFrom::Demonstration || i.when != InjectWhen::Always;
    let shows = |stream: &Stream| stream.demonstrations.is_some_and(|d| d.most_right.is_some());
    for (reads, what) in [
        (s.inject.as_ref().is_some_and(injects), "`inject` asks which rollouts are right"),
        (s.budget.is_some(), "`budget` stops at a right rollout"),
        (s.step_rewards.is_some(), "`step_rewards` rewards steps"),
        (s.streams.iter().any(shows), "`demonstrations.most_right` counts right rollouts"),
        (s.needs_greedy(), "the greedy completion is rewarded"),
    ] {
        if reads {
            found.warn(
                at,
                format!("{what} as scored, before the noise of `flip`"),
                "remove one of the two, unless labels that are wrong for the advantages alone are meant",
            );
        }
    }
}

/// A factor for every turn, and a KL that it is the factor of.
fn kl_turns(at: &str, s: &OnlineStage, found: &mut Found) {
    let Some(factors) = &s.kl_turns else { return };
    let turns = s.environment.as_ref().map_or(1, temper_env::Environment::turns);
    if s.objective.kl.is_none() {
        found.error(at, "`kl_turns` has no effect: the loss has no KL", "add `objective.kl`, or remove it");
    }
    if factors.len() != turns {
        let what = format!("`kl_turns` has {} factors, and an episode {turns} turns of the model", factors.len());
        found.error(at, what, "give one for each turn");
    }
    if factors.iter().any(|f| !(*f >= 0.0 && f.is_finite())) || factors.iter().all(|f| *f == 0.0) {
        found.error(at, format!("`kl_turns` is {factors:?}"), "factors are 0 or more, and not all of them 0");
    }
    if factors.iter().all(|f| *f == 1.0) {
        found.error(at, "`kl_turns` has no effect: every factor is 1", "remove it");
    }
}

/// The other learner is an online stage before, which keeps what it samples.
fn shared(recipe: &Recipe, at: &str, s: &OnlineStage, found: &mut Found) {
    let Some(shared) = &s.shared else { return };
    let before = recipe.stage.iter().take_while(|stage| stage.id() != s.id);
    let online = before.filter_map(|stage| if let Stage::Online(peer) = stage { Some(peer) } else { None });
    match online.into_iter().find(|peer| peer.id == shared.stage) {
        None => found.error(
            at,
            format!("`shared` names `{}`, which is no online stage before this one", shared.stage),
            "name an earlier stage of kind `online`",
        ),
        Some(peer) if peer.log_rollouts_every != 1 => found.error(
            at,
            format!("the stage `{}` does not keep all its rollouts", peer.id),
            "set its `log_rollouts_every = 1`",
        ),
        Some(peer) if peer.environment.is_some() || s.environment.is_some() => {
            found.error(at, "rollouts of several turns cannot be shared", "remove `environment` or `shared`");
        }
        Some(_) => {}
    }
    if shared.local > s.prompts_per_step || shared.local + shared.groups == 0 {
        found.error(
            at,
            format!("shared.local is {} and shared.groups {}", shared.local, shared.groups),
            "at least one group in all, of one's own at most `prompts_per_step`",
        );
    }
    if shared.groups == 0 {
        found.error(at, "shared.groups is 0, so nothing is shared", "remove `shared`");
    }
}

/// TRICE compares a fresh proposal with what is stored.
fn proposals(at: &str, s: &OnlineStage, found: &mut Found) {
    let Advantage::Trice { threshold } = s.objective.advantage else { return };
    let dropped = s.group.iter().filter_map(|g| match g {
        GroupShaper::DropUnsolved { threshold } => Some(*threshold),
        _ => None,
    });
    if let Some(other) = dropped.chain(s.stores().map(|inject| inject.threshold)).find(|other| *other != threshold) {
        found.error(
            at,
            format!("a right answer of `trice` has a reward above {threshold}, elsewhere above {other}"),
            "give `advantage`, `inject` and `drop_unsolved` one `threshold`",
        );
    }
    if s.samples_per_prompt != 1 || s.stores().is_none_or(|inject| inject.when != InjectWhen::AllWrong) {
        found.error(
            at,
            "the advantage `trice` compares one fresh proposal of a prompt with its stored right answer",
            "set `samples_per_prompt = 1` and `inject = { from = \"stored\" }`",
        );
    }
    if !s.group.iter().any(|g| matches!(g, GroupShaper::DropUnsolved { .. })) {
        found.error(
            at,
            "prompts without a right answer yet would count in the mean of `trice`",
            "set `group = [{ kind = \"drop_unsolved\" }]`",
        );
    }
}

/// A correction compares two policies; that of a round's own samples is one.
fn correction(at: &str, s: &OnlineStage, found: &mut Found) {
    if s.objective.needs().contains(Needs::LOGP_GEN) && s.stores().is_none() {
        found.error(
            at,
            "the `correction` compares log-probabilities as sampled with those before the update, and here they are the same numbers",
            "remove `correction`: sampler and trainer agree bit for bit, and every step trains on its own samples (not so with \
             answers of earlier rounds: inject.from = \"stored\")",
        );
    }
}
