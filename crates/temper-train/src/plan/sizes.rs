//! What decides a stage's memory, from the recipe.

use temper_algo::Needs;

use crate::memory::{Sizes, largest_micro_batch};
use crate::recipe::{
    Adapter, AfterUpdate, Batch, Dtype, OfflineStage, OnlineStage, Recipe, StepRewards, Stream, Training,
};

/// Tokens of the longest row of some data, and of all its rows.
pub(super) type Rows = (usize, usize);

/// What is known of streams before their data is read.
pub(super) fn bounds(streams: &[Stream], context: usize) -> Vec<Rows> {
    streams.iter().map(|s| s.bound(context)).collect()
}

/// The largest micro-batch of an optimiser step.
fn micro_batch(limit: usize, batch: Option<&Batch>, (longest, total): Rows) -> usize {
    let of = |b: &Batch| b.tokens.or_else(|| b.examples.and_then(|n| n.checked_mul(longest)));
    let step = batch.and_then(of).unwrap_or(usize::MAX);
    largest_micro_batch(limit, longest, step.min(total))
}

/// A stage's sizes when its streams have these rows too.
fn with_streams(mut sizes: Sizes, limit: usize, streams: &[Stream], rows: &[Rows]) -> Sizes {
    for (stream, rows) in streams.iter().zip(rows) {
        sizes.micro_tokens = sizes.micro_tokens.max(micro_batch(limit, stream.batch.as_ref(), *rows));
        sizes.longest = sizes.longest.max(rows.0);
    }
    sizes
}

/// Sizes of an offline stage with these rows, and those of its streams.
pub fn offline_sizes(recipe: &Recipe, s: &OfflineStage, rows: Rows, streams: &[Rows]) -> Sizes {
    let sizes = Sizes {
        micro_tokens: micro_batch(s.micro_tokens, Some(&s.batch), rows),
        longest: rows.0,
        recompute: s.recompute,
        cached_tokens: 0,
        ..models(recipe, &s.training(), false)
    };
    with_streams(sizes, s.micro_tokens, &s.streams, streams)
}

/// Sizes of an online stage whose longest prompt has `prompt` tokens, and whose streams have these rows.
pub fn online_sizes(recipe: &Recipe, s: &OnlineStage, prompt: usize, streams: &[Rows]) -> Sizes {
    let turns = s.environment.as_ref().map_or(1, temper_env::Environment::turns);
    let (samples, completion) = (s.samples_per_prompt, turns * s.sampling.max_tokens);
    // A group is never split, so the largest micro-batch holds at least one.
    let group = prompt + samples * completion;
    let completions = s.prompts_per_step * samples;
    // Episodes keep their caches between their turns.
    let at_once = if turns > 1 { completions } else { s.max_batch.min(completions) };
    let going_on = match &s.step_rewards {
        Some(StepRewards::Continued { samples, max_tokens, .. }) => {
            let at_once = s.max_batch.min(completions.saturating_mul(completion).saturating_mul(*samples));
            let prompts = at_once.div_ceil(*samples.max(&1)).saturating_mul(prompt + completion);
            at_once.saturating_mul(*max_tokens).saturating_add(prompts)
        }
        Some(StepRewards::Solution { .. }) | None => 0,
    };
    let sizes = Sizes {
        micro_tokens: largest_micro_batch(s.micro_tokens, group, s.prompts_per_step * group),
        longest: group,
        recompute: s.recompute,
        cached_tokens: (at_once * completion + at_once.div_ceil(samples) * prompt).max(going_on),
        ..models(recipe, &s.training(), s.critic.is_some())
    };
    with_streams(sizes, s.micro_tokens, &s.streams, streams)
}

/// The models of a stage, and the copies of what is trained that it keeps: where it started, averages, and in bf16 the f32 values of a
/// reference that moves.
fn models(recipe: &Recipe, stage: &Training, critic: bool) -> Sizes {
    let (adapter, needs) = (stage.adapter, stage.needs());
    let kept = |a: &&AfterUpdate| !a.moves_reference() || recipe.dtype == Dtype::Bf16;
    Sizes {
        dtype: recipe.dtype,
        lora: adapter.map(Adapter::lora),
        reference: needs.contains(Needs::LOGP_REF) && own_reference(recipe, adapter.is_some()),
        kl_ref: needs.contains(Needs::KL_REF),
        critic,
        copies: usize::from(!stage.gradient.is_empty()) + stage.after_update.iter().filter(kept).count(),
        micro_tokens: 0,
        longest: 0,
        recompute: false,
        cached_tokens: 0,
    }
}

/// Whether a stage's reference is a second model: with an adapter, its start is the policy with the adapter off.
fn own_reference(recipe: &Recipe, adapter: bool) -> bool {
    !adapter || recipe.model.reference.as_ref().is_some_and(|r| r.path.is_some())
}
