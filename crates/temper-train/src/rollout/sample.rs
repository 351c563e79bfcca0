//! Completions sampled and scored.

use temper_algo::split_seed;
use temper_data::Tokenizer;
use temper_env::{Scorer, Task, Transcript};
use temper_model::{Completion, Engine, Model, Request};
use temper_tensor::Ops;

use super::{Group, Origin, Rollout};
use crate::context::Context;
use crate::error::Result;
use crate::recipe::{Generation, OnlineStage};
use crate::sampling::{self, decode_stops};
use crate::watch;

/// Samples and scores the completions of every task: G of them, or in stages where the stage has a budget. Seeds are a function of
/// (round, task slot, sample), so that a budget decides how many completions there are and not what they say.
pub(super) fn sample(
    ctx: &Context,
    model: &Model,
    stage: &OnlineStage,
    scorer: &mut Scorer,
    tasks: Vec<(Task, Vec<u32>)>,
    seed: u64,
) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = tasks.into_iter().map(|(task, prompt)| Group::new(task, prompt)).collect();
    if stage.needs_greedy() {
        sample_greedy(ctx, model, stage, &mut groups)?;
    }
    loop {
        let wanted: Vec<usize> = groups.iter().map(|g| wanted(stage, g)).collect();
        if wanted.iter().all(|n| *n == 0) {
            return Ok(groups);
        }
        extend(ctx, model, stage, &mut groups, &wanted, seed)?;
        score(scorer, &mut groups)?;
    }
}

/// How many more completions a group gets.
fn wanted(stage: &OnlineStage, group: &Group) -> usize {
    let most = stage.samples_per_prompt;
    match stage.budget {
        None => most - group.rollouts.len(),
        Some(budget) => budget.next(&group.rewards(), most),
    }
}

/// Samples `more[slot]` further completions for each group.
fn extend(
    ctx: &Context,
    model: &Model,
    stage: &OnlineStage,
    groups: &mut [Group],
    more: &[usize],
    seed: u64,
) -> Result<()> {
    let asked: Vec<usize> = (0..groups.len()).filter(|slot| more[*slot] > 0).collect();
    let request = |&slot: &usize| {
        let group = &groups[slot];
        let from = group.rollouts.len();
        let seeds = (from..from + more[slot]).map(|i| split_seed(seed, &[slot as u64, i as u64])).collect();
        Request { prompt: group.prompt.clone(), seeds }
    };
    let requests: Vec<Request> = asked.iter().map(request).collect();
    let (tokenizer, rules) = (ctx.tokenizer()?, &stage.sampling);
    let done = complete(ctx.ops(), tokenizer, model, &requests, rules, stage.max_batch, None, &mut |_, _| {})?;
    for (slot, completions) in asked.into_iter().zip(done) {
        groups[slot].rollouts.extend(completions.into_iter().map(|c| rollout(tokenizer, c, rules)));
    }
    Ok(())
}

/// Adds a greedy completion to every group: the baseline of ReMax.
fn sample_greedy(ctx: &Context, model: &Model, stage: &OnlineStage, groups: &mut [Group]) -> Result<()> {
    let tokenizer = ctx.tokenizer()?;
    let rules = Generation { temperature: 0.0, top_k: None, top_p: None, min_p: None, ..stage.sampling.clone() };
    let requests: Vec<Request> = groups.iter().map(|g| Request { prompt: g.prompt.clone(), seeds: vec![0] }).collect();
    let done = complete(ctx.ops(), tokenizer, model, &requests, &rules, stage.max_batch, None, &mut |_, _| {})?;
    for (group, completions) in groups.iter_mut().zip(done) {
        group.greedy = completions.into_iter().next().map(|c| rollout(tokenizer, c, &rules));
    }
    Ok(())
}

/// Runs requests with a recipe's sampling rules, stop strings included. A `stop` that is requested meanwhile ends it with
/// [`temper_model::Error::Aborted`].
pub fn complete(
    ops: &dyn Ops,
    tokenizer: &Tokenizer,
    model: &Model,
    requests: &[Request],
    rules: &Generation,
    max_batch: usize,
    stop: Option<&watch::Stop>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Vec<Completion>>> {
    let (stops, rules) = (decode_stops(tokenizer, &rules.stop), sampling::sampling(rules, tokenizer));
    let abort = || stop.is_some_and(watch::Stop::requested);
    let engine = Engine::new(ops, model, &rules)?.max_batch(max_batch)?.stops(&stops).abort(&abort);
    Ok(engine.generate(requests, &mut |p| progress(p.finished, p.total))?)
}

fn rollout(tokenizer: &Tokenizer, completion: Completion, rules: &Generation) -> Rollout {
    let n = completion.tokens.len().max(1) as f64;
    Rollout {
        text: sampling::text(tokenizer, &completion.tokens, &rules.stop),
        lost_mass: f64::from(completion.lost_mass.iter().sum::<f32>()) / n,
        tokens: completion.tokens,
        logp_gen: completion.logp_gen,
        logp_old: None,
        origin: Origin::Sampled,
        embedding: vec![],
        intrinsic: 0.0,
        weight: 1.0,
        stop: completion.stop,
        verdict: None,
    }
}

/// Scores what has no verdict yet.
pub(super) fn score(scorer: &mut Scorer, groups: &mut [Group]) -> Result<()> {
    let transcripts: Vec<Transcript> = groups
        .iter()
        .flat_map(|g| {
            g.rollouts.iter().chain(&g.greedy).filter(|r| r.verdict.is_none()).map(|r| Transcript {
                task: &g.task,
                text: &r.text,
                n_tokens: r.tokens.len(),
                truncated: r.truncated(),
            })
        })
        .collect();
    let verdicts = scorer.score(&transcripts)?;
    drop(transcripts);
    let rollouts = groups.iter_mut().flat_map(|g| g.rollouts.iter_mut().chain(&mut g.greedy));
    rollouts.filter(|r| r.verdict.is_none()).zip(verdicts).for_each(|(r, v)| r.verdict = Some(v));
    Ok(())
}
