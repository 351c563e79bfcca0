//! Members of a group that the policy did not sample in this round: demonstrations and earlier right answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use temper_algo::group_reuse::{Inject, InjectFrom};
use temper_algo::split_seed;
use temper_data::{Cause, Tokenizer, encode_answer, encode_followup};
use temper_env::{Task, Verdict};
use temper_model::{Author, Batch, Model, Request, Stop};
use temper_tensor::HeadSpec;

use super::sample::{complete, rollout as sampled};
use super::{Group, Origin, Rollout};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::offline::micro_batches;
use crate::online::Readings;
use crate::recipe::OnlineStage;

/// The last right answer to every task, by the task's id; part of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Answers(BTreeMap<String, Answer>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Answer {
    tokens: Vec<u32>,
    /// As sampled then.
    logp_gen: Vec<f32>,
    /// The round, from 0.
    round: usize,
}

impl Answers {
    /// Keeps the first right rollout of each group in place of an earlier one.
    pub(super) fn remember<'a>(&mut self, groups: impl Iterator<Item = &'a Group>, threshold: f64, round: usize) {
        for group in groups {
            if let Some(right) = group.sampled().find(|r| r.reward() > threshold) {
                let answer = Answer { tokens: right.tokens.clone(), logp_gen: right.logp_gen.clone(), round };
                self.0.insert(group.task.id.clone(), answer);
            }
        }
    }

    /// Tasks that have one.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no task has one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Adds the member to every group that gets one, not yet scored. What does not fit the model's context stays out. `seed` is
/// that of refinements.
pub(super) fn add(
    ctx: &Context,
    model: &Model,
    stage: &OnlineStage,
    answers: &Answers,
    groups: &mut [Group],
    seed: u64,
) -> Result<()> {
    let (Some(inject), tokenizer) = (&stage.inject, ctx.tokenizer()?) else { return Ok(()) };
    let context = model.config.max_position_embeddings;
    let gets = |g: &Group| inject.when.applies(&g.rewards(), inject.threshold);
    let chosen: Vec<usize> = (0..groups.len()).filter(|i| gets(&groups[*i])).collect();
    if inject.from == InjectFrom::Refinement {
        return refine(ctx, model, stage, inject, groups, &chosen, seed);
    }
    for i in chosen {
        let group = &mut groups[i];
        let member = match inject.from {
            InjectFrom::Demonstration => demonstration(tokenizer, &group.task)?,
            InjectFrom::Stored => answers.0.get(&group.task.id).map(|answer| stored(tokenizer, answer)),
            InjectFrom::Refinement => None,
        };
        group.rollouts.extend(member.filter(|m| group.prompt.len() + m.tokens.len() <= context));
    }
    Ok(())
}

/// Samples an attempt at the first wrong rollout of each of the chosen groups, with a critique behind it.
fn refine(
    ctx: &Context,
    model: &Model,
    stage: &OnlineStage,
    inject: &Inject,
    groups: &mut [Group],
    chosen: &[usize],
    seed: u64,
) -> Result<()> {
    let (tokenizer, context) = (ctx.tokenizer()?, model.config.max_position_embeddings);
    let (mut places, mut requests) = (vec![], vec![]);
    for &i in chosen {
        let group = &groups[i];
        let Some(wrong) = group.sampled().find(|r| r.reward() <= inject.threshold) else { continue };
        let critique = inject.critique.as_deref().unwrap_or_default().replace("{answer}", &group.task.answer);
        let mut prompt = [group.prompt.as_slice(), &wrong.tokens].concat();
        prompt.extend(followup(tokenizer, &group.task, wrong.stop, &critique)?);
        if prompt.len() < context {
            places.push(i);
            requests.push(Request { prompt, seeds: vec![split_seed(seed, &[i as u64])] });
        }
    }
    let rules = &stage.sampling;
    let done = complete(ctx.ops(), tokenizer, model, &requests, rules, stage.max_batch, None, &mut |_, _| {})?;
    for (i, completion) in places.into_iter().zip(done.into_iter().flatten()) {
        let rollout = sampled(tokenizer, completion, rules);
        groups[i].rollouts.push(Rollout { origin: Origin::Refinement, ..rollout });
    }
    Ok(())
}

/// What the model reads between its turn and the next one; a turn that did not end by itself is ended first.
pub(super) fn followup(tokenizer: &Tokenizer, task: &Task, stop: Stop, text: &str) -> Result<Vec<u32>> {
    let words = encode_followup(tokenizer, &task.prompt, text)?.ok_or_else(|| {
        Error::user(
            "the chat template writes the model's turns differently once the conversation goes on",
            "use a model whose chat template keeps them, or stages of one turn",
        )
    })?;
    let end = tokenizer.eos_ids().first().filter(|_| stop != Stop::Eos);
    Ok(end.copied().into_iter().chain(words).collect())
}

/// What the model would have to write to show the task's solution.
fn demonstration(tokenizer: &Tokenizer, task: &Task) -> Result<Option<Rollout>> {
    let text = task.demonstration.as_ref().unwrap_or(&task.answer);
    let unusable = |cause: Cause| {
        Error::user(
            format!("the demonstration of task `{}` makes no completion: {cause}", task.id),
            "leave `inject` out, or give the task a solution that the chat template can write",
        )
    };
    let tokens = encode_answer(tokenizer, &task.prompt, text).map_err(unusable)?;
    Ok(tokens.map(|tokens| member(tokenizer, tokens, vec![], Origin::Demonstration)))
}

fn stored(tokenizer: &Tokenizer, answer: &Answer) -> Rollout {
    member(tokenizer, answer.tokens.clone(), answer.logp_gen.clone(), Origin::Stored { round: answer.round + 1 })
}

pub(super) fn member(tokenizer: &Tokenizer, tokens: Vec<u32>, logp_gen: Vec<f32>, origin: Origin) -> Rollout {
    let author = match origin {
        Origin::Demonstration | Origin::Shared => Author::Teacher,
        Origin::Sampled | Origin::Refinement | Origin::Stored { .. } => Author::Model,
    };
    Rollout {
        text: tokenizer.decode(&tokens, true),
        authors: vec![author; tokens.len()],
        earlier: vec![],
        last_reward: 0.0,
        tokens,
        logp_gen,
        logp_old: None,
        origin,
        embedding: vec![],
        intrinsic: 0.0,
        weight: 1.0,
        stop: Stop::Eos,
        lost_mass: 0.0,
        verdict: None,
        read: Readings::default(),
    }
}

/// Leaves the reward parts that do not count for members out of their rewards.
pub(super) fn count_parts(inject: &Inject, stage: &OnlineStage, groups: &mut [Group]) {
    let Some(counted) = &inject.rewards else { return };
    let weight = |name: &String| {
        let part = stage.rewards.iter().find(|r| r.name == *name && counted.contains(name));
        part.map_or(0.0, |r| r.weight)
    };
    for rollout in groups.iter_mut().flat_map(|g| &mut g.rollouts).filter(|r| r.origin != Origin::Sampled) {
        if let Some(Verdict::Graded { reward, parts, .. } | Verdict::Failed { reward, parts, .. }) =
            &mut rollout.verdict
        {
            *reward = parts.iter().map(|(name, value)| weight(name) * value).sum();
        }
    }
}

/// Log-probabilities of the members under the policy as it is now, at the sampling temperature. What nobody sampled behind this
/// prompt, a demonstration or a refinement, has these as its own.
pub(super) fn score_now(ctx: &Context, model: &Model, stage: &OnlineStage, groups: &mut [Group]) -> Result<()> {
    let spec = HeadSpec { temperature: stage.sampling.temperature, ..HeadSpec::default() };
    let mut members: Vec<(&[u32], &mut Rollout)> = vec![];
    for group in groups {
        let Group { prompt, rollouts, .. } = group;
        members.extend(rollouts.iter_mut().filter(|r| r.origin != Origin::Sampled).map(|r| (prompt.as_slice(), r)));
    }
    let lengths: Vec<usize> = members.iter().map(|(prompt, r)| prompt.len() + r.tokens.len()).collect();
    for part in micro_batches(lengths.into_iter(), stage.micro_tokens) {
        let members = &mut members[part];
        let shapes: Vec<(&[u32], Vec<&[u32]>)> = members.iter().map(|(p, r)| (*p, vec![r.tokens.as_slice()])).collect();
        let mut logp = model.terms(ctx.ops(), &Batch::groups(&shapes)?, &spec)?.logp.into_iter();
        for (_, rollout) in members {
            let old: Vec<f32> = logp.by_ref().take(rollout.tokens.len()).collect();
            if !matches!(rollout.origin, Origin::Stored { .. }) {
                rollout.logp_gen.clone_from(&old);
            }
            rollout.logp_old = Some(old);
        }
    }
    Ok(())
}
