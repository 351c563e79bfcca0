//! Completions sampled and scored.

use temper_algo::split_seed;
use temper_data::Tokenizer;
use temper_env::{Scorer, Task, Transcript};
use temper_model::{Author, Completion, Engine, Model, Request, Stop};
use temper_tensor::Ops;

use super::{Group, Origin, Rollout, episode};
use crate::context::Context;
use crate::error::Result;
use crate::online::Readings;
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
        score(stage, scorer, &mut groups)?;
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
    if let Some(environment) = &stage.environment {
        let tasks: Vec<&Task> = asked.iter().map(|slot| &groups[*slot].task).collect();
        let done = episode::sample(ctx, model, stage, environment, &tasks, &requests)?;
        asked.into_iter().zip(done).for_each(|(slot, rollouts)| groups[slot].rollouts.extend(rollouts));
        return Ok(());
    }
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

pub(super) fn rollout(tokenizer: &Tokenizer, completion: Completion, rules: &Generation) -> Rollout {
    let n = completion.tokens.len().max(1) as f64;
    Rollout {
        text: sampling::text(tokenizer, &completion.tokens, &rules.stop),
        lost_mass: f64::from(completion.lost_mass.iter().sum::<f32>()) / n,
        authors: vec![Author::Model; completion.tokens.len()],
        earlier: vec![],
        last_reward: 0.0,
        tokens: completion.tokens,
        logp_gen: completion.logp_gen,
        logp_old: None,
        origin: Origin::Sampled,
        embedding: vec![],
        intrinsic: 0.0,
        weight: 1.0,
        stop: completion.stop,
        verdict: None,
        read: Readings::default(),
    }
}

/// Scores what has no verdict yet, turn by turn.
pub(super) fn score(stage: &OnlineStage, scorer: &mut Scorer, groups: &mut [Group]) -> Result<()> {
    let mut transcripts: Vec<Transcript> = vec![];
    for Group { task, rollouts, greedy, .. } in groups.iter() {
        for rollout in rollouts.iter().chain(greedy).filter(|r| r.verdict.is_none()) {
            let turn = |text, n_tokens, stop: Stop| Transcript { task, text, n_tokens, truncated: stop.truncated() };
            let before: usize = rollout.earlier.iter().map(|t| t.n_tokens).sum();
            transcripts.extend(rollout.earlier.iter().map(|t| turn(t.text.as_str(), t.n_tokens, t.stop)));
            transcripts.push(turn(&rollout.text, rollout.scored() - before, rollout.stop));
        }
    }
    let mut verdicts = scorer.score(&transcripts)?.into_iter();
    drop(transcripts);
    let rollouts = groups.iter_mut().flat_map(|g| g.rollouts.iter_mut().chain(&mut g.greedy));
    for rollout in rollouts.filter(|r| r.verdict.is_none()) {
        for (turn, verdict) in rollout.earlier.iter_mut().zip(verdicts.by_ref()) {
            turn.reward = verdict.reward();
        }
        rollout.verdict = verdicts.next().map(|last| match &stage.environment {
            None => last,
            Some(environment) => {
                rollout.last_reward = last.reward();
                let turns: Vec<f64> = rollout.earlier.iter().map(|t| t.reward).chain([last.reward()]).collect();
                last.with_reward(environment.reward(&turns))
            }
        });
    }
    Ok(())
}
