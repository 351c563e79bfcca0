//! A round of sampling: draw tasks, sample and score groups, add members from elsewhere, shape, refill.

use temper_algo::split_seed;
use temper_env::Scorer;
use temper_model::Model;

use super::{Group, NOISE, Peer, REFINE, SAMPLE, Sources, inject, memory, sample, shape};
use crate::context::Context;
use crate::error::Result;
use crate::recipe::OnlineStage;
use crate::state::Progress;

/// What a round of sampling works with.
#[derive(Debug)]
pub struct Sampling<'a> {
    /// Where tasks come from.
    pub sources: &'a Sources,
    /// What completions are rewarded by.
    pub scorer: &'a mut Scorer,
    /// The stage.
    pub stage: &'a OnlineStage,
    /// Its seed.
    pub seed: u64,
    /// The learner that it shares rollouts with.
    pub peer: Option<&'a Peer>,
    /// The model's longest sequence.
    pub context: usize,
}

impl Sampling<'_> {
    /// The groups of a round, and those that others were sampled in place of. Groups that stay dropped after the last refill are
    /// among the first.
    pub fn round(
        &mut self,
        ctx: &mut Context,
        model: &Model,
        progress: &mut Progress,
    ) -> Result<(Vec<Group>, Vec<Group>)> {
        let mut groups = self.groups(ctx, model, progress, self.stage.prompts_per_step, 0)?;
        let mut replaced = vec![];
        for attempt in 1..=self.stage.refill() {
            let dropped: Vec<usize> = (0..groups.len()).filter(|i| groups[*i].dropped()).collect();
            if dropped.is_empty() {
                break;
            }
            let new = self.groups(ctx, model, progress, dropped.len(), attempt)?;
            replaced.extend(dropped.into_iter().zip(new).map(|(i, group)| std::mem::replace(&mut groups[i], group)));
        }
        if let Some(peer) = self.peer {
            peer.mix(ctx.tokenizer()?, self.stage, self.context, &mut groups, progress.step, self.seed)?;
        }
        inject::score_now(ctx, model, self.stage, &mut groups)?;
        if let Some(inject) = self.stage.stores() {
            progress.answers.remember(groups.iter().chain(&replaced), inject.threshold, progress.step);
        }
        memory::remember(self.stage, &mut progress.memory, groups.iter().chain(&replaced));
        Ok((groups, replaced))
    }

    /// `n` groups, scored and shaped. Their randomness is a function of (round, attempt, slot, sample).
    fn groups(
        &mut self,
        ctx: &mut Context,
        model: &Model,
        progress: &mut Progress,
        n: usize,
        attempt: u32,
    ) -> Result<Vec<Group>> {
        let tasks = self.sources.draw(ctx, self.stage, self.context, n, progress)?;
        let mut path = vec![SAMPLE, progress.step as u64];
        path.extend((attempt > 0).then_some(u64::from(attempt)));
        let seed = split_seed(self.seed, &path);
        let mut groups = sample::sample(ctx, model, self.stage, self.scorer, tasks, seed)?;
        if let Some(inject) = &self.stage.inject {
            path[0] = REFINE;
            let seed = split_seed(self.seed, &path);
            inject::add(ctx, model, self.stage, &progress.answers, &mut groups, seed)?;
            sample::score(self.stage, self.scorer, &mut groups)?;
            inject::count_parts(inject, self.stage, &mut groups);
        }
        memory::add(ctx, model, self.stage, &progress.memory, &mut groups)?;
        path[0] = NOISE;
        shape::shape(self.stage, &mut groups, progress.step as u64, split_seed(self.seed, &path))?;
        Ok(groups)
    }
}
