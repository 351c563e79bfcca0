//! Online stages.

use std::collections::BTreeSet;

use temper_algo::group_reuse::InjectFrom;
use temper_algo::{GroupShaper, Needs, RewardShaping};

use super::parts::{generation_problems, optimizer_problems, schedule_problems};
use super::{Found, MOST, MOST_REFILLS, members, slots, streams};
use crate::recipe::{ModelAt, ModelSpec, OnlineStage, Recipe, StepRewards};

/// What is wrong with the stage as it stands.
pub(super) fn problems(recipe: &Recipe, at: &str, s: &OnlineStage, found: &mut Found) {
    if s.tasks.is_empty() {
        found.error(at, "`tasks` is empty", "give at least one task source");
    }
    if s.tasks.iter().any(|t| !(t.share > 0.0 && t.share.is_finite())) {
        found.error(at, "a task source has a `share` that is not above 0", "shares are above 0");
    }
    for task in &s.tasks {
        found.tasks(at, &task.source);
        let shown = s.inject.as_ref().is_some_and(|i| i.from == InjectFrom::Demonstration)
            || s.streams.iter().any(|stream| stream.demonstrations.is_some());
        let compared = matches!(s.step_rewards, Some(StepRewards::Solution { .. }));
        if !shown && !compared {
            found.no_demonstrations(at, &task.source);
        }
    }
    let names: BTreeSet<&str> = s.rewards.iter().map(|r| r.name.as_str()).collect();
    if names.len() < s.rewards.len() {
        found.error(at, "two rewards have the same name", "give each its own: metrics are logged under it");
    }
    if s.rewards.is_empty() {
        found.error(at, "`rewards` is empty", "add one, such as `{ name = \"correct\", kind = \"verifier\" }`");
    } else if s.rewards.iter().all(|r| r.weight == 0.0) && !s.shaping.iter().any(RewardShaping::adds) {
        found.error(at, "every reward has weight 0", "give at least one reward a weight");
    }
    for part in &s.rewards {
        if let Err(e) = part.check() {
            found.error(at, format!("reward `{}`: {e}", part.name), "see `temper recipe schema`");
        }
    }
    let positive = [
        ("steps", s.steps),
        ("prompts_per_step", s.prompts_per_step),
        ("samples_per_prompt", s.samples_per_prompt),
        ("inner_epochs", s.inner_epochs),
        ("minibatches", s.minibatches),
        ("micro_tokens", s.micro_tokens),
        ("max_batch", s.max_batch),
        ("checkpoint_every", s.checkpoint_every),
        ("max_prompt_tokens", s.max_prompt_tokens),
        ("log_rollouts_every", s.log_rollouts_every),
    ];
    for (name, value) in positive {
        found.positive(at, name, value);
    }
    group_problems(at, s, found);
    critic_problems(recipe, at, s, found);
    members::problems(recipe, at, s, found);
    streams::problems(recipe, at, &s.streams, s.weight, Some(s), found);
    slots::problems(at, &s.training(), found);
    if s.minibatches > s.prompts_per_step {
        found.error(
            at,
            format!("`minibatches` is {} with {} prompts in a step", s.minibatches, s.prompts_per_step),
            "a minibatch holds whole groups: use at most `prompts_per_step`",
        );
    }
    if s.objective.needs().contains(Needs::LOGP_REF) && recipe.model.reference.is_none() {
        found.error(
            at,
            "the KL term (`kl`, `kl_reward` or the surrogate's own) needs a reference model",
            "add `[model.reference]` with `policy_at = \"stage_start\"` or a `path`",
        );
    }
    if s.adapter.as_ref().is_some_and(|a| a.dropout() > 0.0) {
        found.warn(
            at,
            "`adapter.dropout` changes the trainer's log-probabilities and not the sampler's, so the first ratio is not 1",
            "set it to 0",
        );
    }
    generation_problems(at, &s.sampling, found);
    if s.sampling.temperature == 0.0 {
        found.error(at, "`temperature` is 0, so all completions of a prompt are the same", "use a temperature above 0");
    }
    if s.sampling.top_k.is_some() || s.sampling.top_p.is_some() || s.sampling.min_p.is_some() {
        found.warn(
            at,
            "`top_k`, `top_p` or `min_p` cut the sampling distribution, the trainer's log-probabilities are of the whole one",
            "leave them out for an unbiased ratio; the lost mass is reported as `sampling/lost_mass`",
        );
    }
    if let ModelSpec { policy_at: Some(ModelAt::StageStart), .. } =
        recipe.model.reference.clone().unwrap_or(ModelSpec { path: None, base: None, policy_at: None })
        && [s.inner_epochs, s.minibatches, s.steps] == [1; 3]
    {
        found.warn(
            at,
            "with one optimiser step the KL to the stage's start is always 0",
            "take more steps, or drop the term",
        );
    }
    optimizer_problems(at, &s.optimizer, s.clip_norm, found);
    let updates = found.product(at, "optimiser steps", &[s.steps, s.inner_epochs, s.minibatches]);
    found.product(at, "sampled tokens", &[s.steps, s.prompts_per_step, s.samples_per_prompt, s.sampling.max_tokens]);
    schedule_problems(at, &s.schedule, Some(updates), found);
    let completions = s.prompts_per_step.saturating_mul(s.samples_per_prompt);
    if completions > MOST {
        found.error(at, format!("a round samples {completions} completions"), format!("sample at most {MOST}"));
    }
}

/// The critic is there where values are read, and nowhere else.
fn critic_problems(recipe: &Recipe, at: &str, s: &OnlineStage, found: &mut Found) {
    let reads = s.objective.needs().contains(Needs::VALUE);
    let Some(critic) = &s.critic else {
        if reads {
            found.error(
                at,
                "the advantage reads a critic's values, and there is no critic",
                "add `[stage.critic]` with an `optimizer`, and `[model.critic]`; or use an advantage that compares the group",
            );
        }
        return;
    };
    if !reads {
        found.error(
            at,
            "`critic` has no effect: the advantage reads no values",
            "remove it, or use the advantage `gae`",
        );
    }
    if recipe.model.critic.is_none() {
        found.error(
            at,
            "there is a critic, and no model that it begins with",
            "add `[model.critic]` with `policy_at = \"stage_start\"` or a `path`",
        );
    }
    found.parts(at, "critic.objective", critic.objective.check());
    optimizer_problems(&format!("{at}, critic"), &critic.optimizer, critic.clip_norm, found);
    schedule_problems(&format!("{at}, critic"), &critic.schedule, None, found);
    if critic.objective.warmup_steps >= s.steps as u64 {
        found.error(
            at,
            format!("the critic trains alone for {} of {} rounds", critic.objective.warmup_steps, s.steps),
            "the policy would not be trained: use fewer `warmup_steps`",
        );
    }
}

/// Rewards of a group: their shaping, who is trained on, and what they are compared with.
fn group_problems(at: &str, s: &OnlineStage, found: &mut Found) {
    let names: Vec<&str> = s.rewards.iter().map(|r| r.name.as_str()).collect();
    let (advantage, needs) = (s.objective.advantage, s.objective.needs());
    found.parts(at, "objective", s.objective.check(s.counted_samples()));
    let round = advantage.check_round(s.prompts_per_step, s.counted_samples());
    found.parts(at, "objective.advantage", round);
    s.shaping.iter().for_each(|shaping| found.parts(at, "shaping", shaping.check(&names)));
    s.group.iter().for_each(|shaper| found.parts(at, "group", shaper.check(s.samples_per_prompt, &names)));
    step_problems(at, s, found);
    if s.refill() > MOST_REFILLS {
        found.error(
            at,
            format!("`refill` is {}", s.refill()),
            format!("a round that finds nothing samples that often: use at most {MOST_REFILLS}"),
        );
    }
    let drops = s.group.iter().any(|g| matches!(g, GroupShaper::DropConstant { .. }));
    if drops && s.samples_per_prompt == 1 {
        found.error(
            at,
            "a group of one rollout is constant, so `drop_constant` would leave out everything",
            "set `group = []`",
        );
    } else if drops && (!needs.contains(Needs::GROUP) || s.objective.kl_reward.is_some() || s.step_rewards.is_some()) {
        found.warn(
            at,
            "`drop_constant` leaves out groups that this objective learns from: equal rewards are not equal advantages here",
            "set `group = []` to train on all of them",
        );
    }
}

/// Rewards of steps are there where they are read, and nowhere else.
fn step_problems(at: &str, s: &OnlineStage, found: &mut Found) {
    let advantage = s.objective.advantage;
    let Some(rewards) = &s.step_rewards else {
        if s.objective.needs().contains(Needs::STEPS) {
            found.error(at, "the advantage reads rewards of steps, and there are none", "add `[stage.step_rewards]`");
        }
        return;
    };
    found.parts(at, "step_rewards", rewards.check());
    let reads = advantage.reads_token_rewards() || advantage.needs().contains(Needs::STEPS);
    if !reads || !s.objective.surrogate.uses_adv() {
        found.error(
            at,
            "`step_rewards` has no effect: the objective compares total rewards",
            "use the advantage `process`, `gae`, `returns` or `reinforce_plus_plus`",
        );
    }
    if s.environment.is_some() {
        found.error(at, "`step_rewards` looks at one turn, and the environment has several", "remove one of the two");
    }
}
