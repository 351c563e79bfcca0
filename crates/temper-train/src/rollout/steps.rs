//! Rewards of the steps of sampled completions.

use std::ops::Range;

use temper_algo::reward_shaping::progress;
use temper_algo::{StepReward, split_seed};
use temper_data::Tokenizer;
use temper_env::{Scorer, Task, Transcript, right_steps, steps};
use temper_model::{Model, Request};

use super::{Group, Rollout, STEPS, complete};
use crate::context::Context;
use crate::error::Result;
use crate::metrics::{self as names, Metrics};
use crate::recipe::{Generation, Give, OnlineStage, StepRewards};
use crate::sampling;

/// Scores the steps of every completion of the groups that are not dropped, where the stage asks for it. Randomness is a function of
/// (round, slot, completion, step, sample).
pub fn score_steps(
    ctx: &Context,
    model: &Model,
    stage: &OnlineStage,
    scorer: &mut Scorer,
    groups: &mut [Group],
    (round, seed): (usize, u64),
    metrics: &mut Metrics,
) -> Result<()> {
    let Some(rewards) = &stage.step_rewards else { return Ok(()) };
    let tokenizer = ctx.tokenizer()?;
    match rewards {
        StepRewards::Solution { separator, right, wrong } => {
            for Group { task, rollouts, .. } in groups.iter_mut().filter(|g| !g.dropped()) {
                for rollout in rollouts {
                    of_solution(tokenizer, task, rollout, separator, [*wrong, *right]);
                }
            }
        }
        StepRewards::Continued { .. } => {
            let seed = split_seed(seed, &[STEPS, round as u64]);
            Continued { ctx, model, stage, rewards, tokenizer, seed }.score(scorer, groups, metrics)?;
        }
    }
    let scored: Vec<&Rollout> = groups.iter().filter(|g| !g.dropped()).flat_map(Group::sampled).collect();
    let count: usize = scored.iter().map(|r| r.read.steps.len()).sum();
    let sum: f64 = scored.iter().flat_map(|r| &r.read.steps).map(|s| s.reward).sum();
    if count > 0 {
        metrics.set(names::STEPS, count as f64 / scored.len() as f64);
        metrics.set(names::STEP_REWARD, sum / count as f64);
    }
    Ok(())
}

fn of_solution(tokenizer: &Tokenizer, task: &Task, rollout: &mut Rollout, separator: &str, values: [f64; 2]) {
    let text = tokenizer.decode(&rollout.tokens, true);
    let solution = task.demonstration.as_ref().unwrap_or(&task.answer);
    let right = right_steps(&text, solution, separator);
    let ends = ends(tokenizer, &rollout.tokens, &steps(&text, separator));
    let steps =
        ends.iter().zip(&right).map(|(end, right)| StepReward { end: *end, reward: values[usize::from(*right)] });
    rollout.read.steps = steps.collect();
    if let (true, Some(end)) = (rollout.read.steps.is_empty(), rollout.tokens.len().checked_sub(1)) {
        rollout.read.steps.push(StepReward { end, reward: values[0] });
    }
}

/// The token at which each piece of the decoded text ends.
fn ends(tokenizer: &Tokenizer, tokens: &[u32], pieces: &[Range<usize>]) -> Vec<usize> {
    let mut ends = vec![];
    let (mut at, mut length) = (0, 0);
    for piece in pieces {
        while at < tokens.len() && length < piece.end {
            at += 1;
            length = tokenizer.decode(&tokens[..at], true).len();
        }
        ends.push(at.max(1) - 1);
    }
    ends
}

/// Expectations by going on from each step.
struct Continued<'a, 'c> {
    ctx: &'a Context<'c>,
    model: &'a Model,
    stage: &'a OnlineStage,
    rewards: &'a StepRewards,
    tokenizer: &'a Tokenizer,
    seed: u64,
}

/// A place that is gone on from: a group, a completion of it (none: before the first token), and its step.
struct Place {
    group: usize,
    of: Option<(usize, usize)>,
    /// Tokens of the completion before it.
    tokens: usize,
}

impl Continued<'_, '_> {
    fn score(&self, scorer: &mut Scorer, groups: &mut [Group], metrics: &mut Metrics) -> Result<()> {
        let StepRewards::Continued { most, give, scale, .. } = self.rewards else { return Ok(()) };
        let mut ends: Vec<Vec<Vec<usize>>> = vec![];
        let mut places = vec![];
        for (g, group) in groups.iter().enumerate() {
            let of_group: Vec<Vec<usize>> = group.rollouts.iter().map(|r| self.ends(r, *most)).collect();
            if !group.dropped() {
                places.push(Place { group: g, of: None, tokens: 0 });
                for (i, ends) in of_group.iter().enumerate() {
                    // After the last step there is nothing to go on with.
                    let inner = ends.iter().take(ends.len().saturating_sub(1)).enumerate();
                    places.extend(inner.map(|(j, end)| Place { group: g, of: Some((i, j)), tokens: end + 1 }));
                }
            }
            ends.push(of_group);
        }
        let expected = self.expect(scorer, groups, &places)?;
        let mut values = places.iter().zip(expected).peekable();
        let (mut before, mut n) = (0.0, 0);
        for (g, group) in groups.iter_mut().enumerate().filter(|(_, group)| !group.dropped()) {
            let prior = values.next().and_then(|(_, value)| value).unwrap_or(0.0);
            (before, n) = (before + prior, n + 1);
            for (i, rollout) in group.rollouts.iter_mut().enumerate() {
                let mut levels = vec![];
                let mut last = prior;
                while let Some((_, value)) =
                    values.next_if(|(p, _)| p.group == g && p.of.is_some_and(|(of, _)| of == i))
                {
                    // A place without room keeps what was expected before it.
                    last = value.unwrap_or(last);
                    levels.push(last);
                }
                levels.push(rollout.reward());
                let rewards = match give {
                    Give::Change => progress(&levels, prior, *scale),
                    Give::Level => levels.iter().map(|level| scale * level).collect(),
                };
                let steps = ends[g][i].iter().zip(rewards).map(|(end, reward)| StepReward { end: *end, reward });
                rollout.read.steps = steps.collect();
            }
        }
        if n > 0 {
            metrics.set(names::STEPS_PRIOR, before / f64::from(n));
        }
        Ok(())
    }

    /// The last tokens of a completion's steps, the last one that of the completion.
    fn ends(&self, rollout: &Rollout, most: usize) -> Vec<usize> {
        let text = self.tokenizer.decode(&rollout.tokens, true);
        let mut ends = ends(self.tokenizer, &rollout.tokens, &steps(&text, self.rewards.separator()));
        ends.dedup();
        ends.truncate(most);
        if let Some(end) = rollout.tokens.len().checked_sub(1) {
            ends.pop();
            ends.push(end);
        }
        ends
    }

    /// The mean reward of going on from each place; nothing where the context has no room.
    fn expect(&self, scorer: &mut Scorer, groups: &[Group], places: &[Place]) -> Result<Vec<Option<f64>>> {
        let StepRewards::Continued { force, samples, max_tokens, .. } = self.rewards else { return Ok(vec![]) };
        let forced = if force.is_empty() { vec![] } else { self.tokenizer.encode(force)? };
        let (mut asked, mut requests) = (vec![], vec![]);
        for (k, place) in places.iter().enumerate() {
            let group = &groups[place.group];
            let (i, j) = place.of.map_or((0, 0), |(i, j)| (i as u64 + 1, j as u64 + 1));
            let before = place.of.map_or(&[][..], |(i, _)| &group.rollouts[i].tokens[..place.tokens]);
            let text = self.tokenizer.decode(before, true);
            // A text that has come to the mark by itself gets no second one.
            let (force, forced) =
                if text.trim_end().ends_with(force.trim()) { ("", &[][..]) } else { (force.as_str(), &forced[..]) };
            let prompt = [group.prompt.as_slice(), before, forced].concat();
            if prompt.len() < self.model.config.max_position_embeddings {
                let path = |s: usize| [place.group as u64, i, j, s as u64];
                let seeds = (0..*samples).map(|s| split_seed(self.seed, &path(s))).collect();
                asked.push((k, format!("{text}{force}"), before.len() + forced.len()));
                requests.push(Request { prompt, seeds });
            }
        }
        let rules = Generation { max_tokens: *max_tokens, ..self.stage.sampling.clone() };
        let (ops, batch) = (self.ctx.ops(), self.stage.max_batch);
        let done = complete(ops, self.tokenizer, self.model, &requests, &rules, batch, None, &mut |_, _| {})?;
        let mut texts = vec![];
        for ((k, head, before), completions) in asked.iter().zip(&done) {
            for c in completions {
                let text = format!("{head}{}", sampling::text(self.tokenizer, &c.tokens, &rules.stop));
                texts.push((*k, text, before + c.tokens.len(), c.stop.truncated()));
            }
        }
        let transcripts: Vec<Transcript> = texts
            .iter()
            .map(|(k, text, n_tokens, truncated)| {
                let task = &groups[places[*k].group].task;
                Transcript { task, text, n_tokens: *n_tokens, truncated: *truncated }
            })
            .collect();
        let mut expected = vec![None; places.len()];
        for ((k, ..), verdict) in texts.iter().zip(scorer.score(&transcripts)?) {
            *expected[*k].get_or_insert(0.0) += verdict.reward() / *samples as f64;
        }
        Ok(expected)
    }
}
