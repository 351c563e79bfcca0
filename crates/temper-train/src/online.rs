//! The online loop: training on what the model samples.
//!
//! Read top to bottom: draw tasks, sample groups, score and shape them, turn rewards into advantages, weigh the tokens of each
//! optimiser step, run the micro-batches, update, log, checkpoint.

mod pass;
mod update;

use std::time::Instant;

use temper_env::Scorer;

use crate::adapter::Reference;
use crate::context::{Context, Outcome};
use crate::error::Result;
use crate::learner::Learner;
use crate::metrics::{self as names, Metrics};
use crate::recipe::OnlineStage;
use crate::rollout::{self, Group, Peer, Sampling, Sources, measure};
use crate::state::Progress;
use crate::watch::Event;

/// Runs the stage from where `progress` says. `reference` is there when the objective needs it.
pub fn run(
    ctx: &mut Context,
    learner: &mut Learner,
    reference: Option<&Reference>,
    stage: &OnlineStage,
    progress: &mut Progress,
) -> Result<Outcome> {
    let seed = ctx.stage_seed(&stage.id);
    let sources = Sources::open(stage, seed, progress)?;
    let mut scorer = Scorer::new(&stage.rewards)?;
    let peer = Peer::open(ctx, stage)?;
    let context = learner.model.config.max_position_embeddings;
    ctx.stage_begin(&stage.id, "online", stage.steps, progress.step);
    while progress.step < stage.steps {
        let begun = Instant::now();
        let peer = peer.as_ref();
        let mut sampling = Sampling { sources: &sources, scorer: &mut scorer, stage, seed, peer, context };
        let (mut groups, replaced) = sampling.round(ctx, &learner.model, progress)?;
        rollout::advantages(stage, &mut groups, progress)?;
        let drawn = rollout::redrawn(stage, &mut groups, progress.step, seed);
        let sampled: Vec<&Group> = groups.iter().chain(&replaced).collect();
        measure::remember(ctx, progress.step, &sampled);
        measure::log(ctx, stage, progress.step, &sampled)?;

        let mut metrics = Metrics::default();
        let tokens = measure::rewards(stage, &sampled, &mut metrics);
        measure::shaping(stage, &groups, replaced.len(), progress, &mut metrics);
        measure::members(stage, &groups, progress, &mut metrics);
        if let Some(share) = drawn {
            metrics.set(names::REDRAWN, share);
        }
        drop(sampled);
        let trained: Vec<Group> = groups.into_iter().filter_map(Group::trained).collect();
        let update = update::run(ctx, learner, reference, stage, &trained.iter().collect::<Vec<_>>(), progress)?;

        progress.step += 1;
        progress.num_tokens += tokens;
        metrics.set(names::NUM_TOKENS, progress.num_tokens as f64);
        update.write(&mut metrics);
        ctx.log_step(&stage.id, progress.step, stage.steps, &metrics, begun.elapsed(), tokens + update.tokens)?;

        let stop = ctx.stop_requested();
        if stop || progress.step == stage.steps || progress.step.is_multiple_of(stage.checkpoint_every) {
            ctx.checkpoint(learner, progress)?;
            ctx.emit(&Event::Checkpoint { stage: &stage.id, step: progress.step });
        }
        if stop && progress.step < stage.steps {
            return Ok(Outcome::Interrupted);
        }
    }
    Ok(Outcome::Done)
}
