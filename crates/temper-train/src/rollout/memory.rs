//! The episodic memory's part of the rewards: embeddings by the policy itself.

use temper_algo::{Memory, RewardShaping};
use temper_model::Model;

use super::{Group, Origin};
use crate::context::Context;
use crate::error::Result;
use crate::offline::micro_batches;
use crate::recipe::OnlineStage;

/// Embeds the completions of the round, and gives each what the memory makes of it; nothing where no shaping asks for it.
pub(super) fn add(
    ctx: &Context,
    model: &Model,
    stage: &OnlineStage,
    memory: &Memory,
    groups: &mut [Group],
) -> Result<()> {
    let Some(RewardShaping::Episodic { exploit, explore, k, .. }) = stage.episodic() else { return Ok(()) };
    embed(ctx, model, stage, groups)?;
    let embeddings: Vec<&[f32]> = groups.iter().flat_map(|g| &g.rollouts).map(|r| r.embedding.as_slice()).collect();
    let rewards = memory.intrinsic(&embeddings, *k as usize, *exploit, *explore);
    groups.iter_mut().flat_map(|g| &mut g.rollouts).zip(rewards).for_each(|(r, reward)| r.intrinsic = reward);
    Ok(())
}

/// Remembers what was sampled in the round.
pub(super) fn remember<'a>(stage: &OnlineStage, memory: &mut Memory, groups: impl Iterator<Item = &'a Group>) {
    let Some(RewardShaping::Episodic { capacity, threshold, .. }) = stage.episodic() else { return };
    for rollout in groups.flat_map(|g| &g.rollouts).filter(|r| r.origin == Origin::Sampled) {
        memory.remember(rollout.embedding.clone(), rollout.reward() > *threshold, *capacity as usize);
    }
}

/// The mean of the hidden rows that predict a completion's tokens, `[C]`.
fn embed(ctx: &Context, model: &Model, stage: &OnlineStage, groups: &mut [Group]) -> Result<()> {
    let width = model.config.hidden_size;
    for part in micro_batches(groups.iter().map(Group::tokens), stage.micro_tokens) {
        let groups = &mut groups[part];
        let rows = model.hidden_rows(ctx.ops(), &super::batch(&groups.iter().collect::<Vec<_>>())?)?;
        let mut rows = rows.chunks_exact(width);
        for rollout in groups.iter_mut().flat_map(|g| &mut g.rollouts) {
            let mut sum = vec![0.0f64; width];
            for row in rows.by_ref().take(rollout.scored()) {
                sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x));
            }
            rollout.embedding = sum.iter().map(|s| (s / rollout.scored().max(1) as f64) as f32).collect();
        }
    }
    Ok(())
}
