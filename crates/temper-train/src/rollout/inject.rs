//! Members of a group that the policy did not sample in this round: demonstrations and earlier right answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use temper_algo::group_reuse::{Inject, InjectFrom};
use temper_data::{Cause, Tokenizer, encode_answer};
use temper_env::{Task, Verdict};
use temper_model::{Batch, Model, Stop};
use temper_tensor::HeadSpec;

use super::{Group, Origin, Rollout};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::offline::micro_batches;
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

/// Adds the member to every group that gets one, not yet scored. What does not fit the model's context stays out.
pub(super) fn add(
    tokenizer: &Tokenizer,
    inject: &Inject,
    answers: &Answers,
    context: usize,
    groups: &mut [Group],
) -> Result<()> {
    for group in groups {
        if !inject.when.applies(&group.rewards(), inject.threshold) {
            continue;
        }
        let member = match inject.from {
            InjectFrom::Demonstration => demonstration(tokenizer, &group.task)?,
            InjectFrom::Stored => answers.0.get(&group.task.id).map(|answer| stored(tokenizer, answer)),
        };
        group.rollouts.extend(member.filter(|m| group.prompt.len() + m.tokens.len() <= context));
    }
    Ok(())
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

fn member(tokenizer: &Tokenizer, tokens: Vec<u32>, logp_gen: Vec<f32>, origin: Origin) -> Rollout {
    Rollout {
        text: tokenizer.decode(&tokens, true),
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

/// Log-probabilities of the members under the policy as it is now, at the sampling temperature. A demonstration, which nobody
/// sampled, has these as its own.
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
            if rollout.origin == Origin::Demonstration {
                rollout.logp_gen.clone_from(&old);
            }
            rollout.logp_old = Some(old);
        }
    }
    Ok(())
}
