//! The online loop: training on what the model samples.
//!
//! Read top to bottom: draw tasks, sample groups, score and shape them, turn rewards into advantages, weigh the tokens of each
//! optimiser step, run the micro-batches, update, log, checkpoint.

mod pass;
mod readings;
mod update;
mod value;

use std::time::Instant;

use temper_algo::Needs;
use temper_env::Scorer;
use temper_model::Model;

use crate::adapter::Reference;
use crate::context::{Context, Outcome};
use crate::critic::Critic;
use crate::error::Result;
use crate::learner::Learner;
use crate::metrics::{self as names, Metrics};
use crate::plan;
use crate::recipe::OnlineStage;
use crate::rollout::{self, Group, Peer, Sampling, Sources, measure};
use crate::state::Progress;
use crate::streams::{self, Streams};
use crate::watch::Event;

pub use readings::Readings;

/// Runs the stage from where `progress` says. `critic` and `reference` are there when the objective needs them.
pub fn run(
    ctx: &mut Context,
    learner: &mut Learner,
    mut critic: Option<&mut Critic>,
    mut reference: Option<&mut Reference>,
    stage: &OnlineStage,
    progress: &mut Progress,
) -> Result<Outcome> {
    let seed = ctx.stage_seed(&stage.id);
    let sources = Sources::open(stage, seed, progress)?;
    let mut scorer = Scorer::new(&stage.rewards)?;
    let peer = Peer::open(ctx, stage)?;
    let context = learner.model.config.max_position_embeddings;
    ctx.stage_begin(&stage.id, "online", stage.steps, progress.step);
    let streams = Streams::open(ctx, &stage.id, &stage.streams, context, progress)?;
    let (prompt, of_streams) = (stage.max_prompt_tokens.min(context), streams.tokens(&stage.streams, context));
    temper_tensor::buf::expect_rows(plan::online_sizes(ctx.recipe, stage, prompt, &of_streams).micro_tokens);
    let synced = stage.training().syncs_reference();
    while progress.step < stage.steps {
        let begun = Instant::now();
        let knobs = stage.knobs.values(&progress.knobs, progress.step as u64, stage.steps as u64);
        let (now, peer) = (&stage.knobs.fix(stage, &knobs), peer.as_ref());
        let mut sampling = Sampling { sources: &sources, scorer: &mut scorer, stage: now, seed, peer, context };
        let (mut groups, replaced) = sampling.round(ctx, &learner.model, progress)?;
        let mut metrics = Metrics::default();
        let at = (progress.step, seed);
        rollout::score_steps(ctx, &learner.model, now, &mut scorer, &mut groups, at, &mut metrics)?;
        let others = Others { policy: &learner.model, reference: reference.as_deref(), critic: critic.as_deref() };
        let kl = others.read(ctx, now, &mut groups)?;
        readings::finite(&groups)?;
        rollout::advantages(now, &mut groups, progress)?;
        readings::targets(now, &mut groups);
        let drawn = rollout::redrawn(now, &mut groups, progress.step, seed);
        let sampled: Vec<&Group> = groups.iter().chain(&replaced).collect();
        let shown = streams::shown(ctx, &now.streams, &sampled, context, progress)?;
        let tasks = sampled.len();
        measure::remember(ctx, progress.step, &sampled);
        measure::log(ctx, now, progress.step, &sampled)?;

        let tokens = measure::rewards(now, &sampled, &mut metrics);
        measure::shaping(now, &groups, replaced.len(), progress, &mut metrics);
        measure::members(now, &groups, progress, &mut metrics);
        if let Some(share) = drawn {
            metrics.set(names::REDRAWN, share);
        }
        drop(sampled);
        let mut trained: Vec<Group> = groups.into_iter().filter_map(Group::trained).collect();
        if let Some(reference) = reference.as_deref().filter(|_| {
            // A KL in the reward was read before; a stream reads the reference for itself.
            now.objective.kl_reward.is_none() && now.objective.needs().contains(Needs::LOGP_REF)
        }) {
            readings::reference(ctx, reference, &learner.model, now, &mut trained)?;
        }
        let beside = update::Beside { streams: &streams, shown: &shown, tasks };
        let trained_on: Vec<&Group> = trained.iter().collect();
        let update = update::run(
            ctx,
            learner,
            critic.as_deref_mut(),
            reference.as_deref_mut(),
            now,
            &trained_on,
            &beside,
            progress,
        )?;

        progress.step += 1;
        progress.num_tokens += tokens;
        metrics.set(names::NUM_TOKENS, progress.num_tokens as f64);
        if let Some(kl) = kl {
            metrics.set(names::REWARD_KL, kl);
        }
        update.write(&mut metrics);
        update.value.write(&trained, &mut metrics);
        metrics.knobs(&knobs);
        stage.knobs.observe(&mut progress.knobs, update.kl().or(kl), update.entropy());
        let computed = tokens + update.tokens + update.value.tokens + update.beside.tokens();
        ctx.log_step(&stage.id, progress.step, stage.steps, &metrics, begun.elapsed(), computed)?;

        let stop = ctx.stop_requested();
        if stop || progress.step == stage.steps || progress.step.is_multiple_of(stage.checkpoint_every) {
            ctx.checkpoint(learner, critic.as_deref(), reference.as_deref().filter(|_| synced), progress)?;
            ctx.emit(&Event::Checkpoint { stage: &stage.id, step: progress.step });
        }
        if stop && progress.step < stage.steps {
            return Ok(Outcome::Interrupted);
        }
    }
    Ok(Outcome::Done)
}

/// Who is asked about the samples before their advantages are made.
struct Others<'a> {
    policy: &'a Model,
    reference: Option<&'a Reference>,
    critic: Option<&'a Critic>,
}

impl Others<'_> {
    /// What reference and critic say; returns the mean KL where it is in the reward.
    fn read(&self, ctx: &Context, stage: &OnlineStage, groups: &mut [Group]) -> Result<Option<f64>> {
        if let Some(critic) = self.critic {
            readings::values(ctx, critic, stage, groups)?;
        }
        match (&stage.objective.kl_reward, self.reference) {
            (Some(kl), Some(reference)) => {
                readings::reference(ctx, reference, self.policy, stage, groups)?;
                Ok(readings::charge(kl, groups))
            }
            _ => Ok(None),
        }
    }
}
