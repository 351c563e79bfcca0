//! Rollouts of another learner: what an earlier stage of the run sampled, read from the run's `rollouts.jsonl`.
//!
//! A learner broadcasts decoded text with its rewards; another one re-tokenises it as if the text were its own and takes the ratio to
//! its own policy before the update (SAPO, arXiv 2509.08721, B093).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};

use serde::Deserialize;
use serde_json::Value;
use temper_algo::group_reuse::mix_shared;
use temper_algo::{Fate, is_constant, split_seed};
use temper_data::{Message, Tokenizer, encode_answer, encode_prompt};
use temper_env::{Task, Verdict, Verifier};
use temper_model::Stop;

use super::{Group, Origin, SHARE, inject, shape};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::recipe::OnlineStage;

/// What a learner tells others of one completion.
#[derive(Debug, Clone, Deserialize)]
struct Heard {
    stage: String,
    step: usize,
    task: String,
    prompt: String,
    completion: String,
    answer: String,
    reward: f64,
    parts: BTreeMap<String, f64>,
    stop: String,
    origin: Value,
}

/// The groups that another stage sampled, by round (from 1).
#[derive(Debug, Default)]
pub struct Peer {
    rounds: BTreeMap<usize, Vec<Vec<Heard>>>,
}

impl Peer {
    /// Reads what the stage that `stage` shares with has sampled; nothing where it shares with none.
    pub fn open(ctx: &Context, stage: &OnlineStage) -> Result<Option<Self>> {
        let Some(shared) = &stage.shared else { return Ok(None) };
        let path = ctx.dir.rollouts();
        let file = std::fs::File::open(&path).map_err(|e| Error::io(&path, e))?;
        let mut peer = Self::default();
        for line in BufReader::new(file).lines() {
            let line = line.map_err(|e| Error::io(&path, e))?;
            // A line that was being written is none of an earlier stage.
            let Ok(heard) = serde_json::from_str::<Heard>(&line) else { continue };
            if heard.stage == shared.stage && heard.origin == "sampled" {
                peer.add(heard);
            }
        }
        Ok(Some(peer))
    }

    fn add(&mut self, heard: Heard) {
        let round = self.rounds.entry(heard.step).or_default();
        match round.last_mut().filter(|group| group[0].task == heard.task) {
            Some(group) => group.push(heard),
            None => round.push(vec![heard]),
        }
    }

    /// Adds groups of the peer's same round behind the learner's own, and leaves out those of either that are not drawn.
    /// Both are drawn from groups with a signal. The rewards are the peer's.
    pub(super) fn mix(
        &self,
        tokenizer: &Tokenizer,
        stage: &OnlineStage,
        context: usize,
        groups: &mut Vec<Group>,
        step: usize,
        seed: u64,
    ) -> Result<()> {
        let Some(shared) = &stage.shared else { return Ok(()) };
        let theirs = self.rounds.get(&(step + 1)).map_or(&[][..], Vec::as_slice);
        let own: Vec<bool> = groups.iter().map(|g| !g.dropped()).collect();
        let others: Vec<bool> =
            theirs.iter().map(|g| !is_constant(&g.iter().map(|heard| heard.reward).collect::<Vec<_>>())).collect();
        let seed = split_seed(seed, &[SHARE, step as u64]);
        let (local, foreign) = mix_shared(&own, &others, shared.local, shared.groups, seed);
        for (_, group) in groups.iter_mut().enumerate().filter(|(i, _)| !local.contains(i)) {
            group.fates.fill(Fate::Dropped);
        }
        let mut added = vec![];
        for i in foreign {
            added.extend(group(tokenizer, stage, context, &theirs[i])?);
        }
        shape::shape(stage, &mut added, step as u64, seed)?;
        for group in &mut added {
            let right = group.rollouts.iter().filter(|r| r.reward() > 0.0).count();
            group.success = right as f64 / group.rollouts.len() as f64;
        }
        groups.extend(added);
        Ok(())
    }
}

/// A group as this learner would have sampled it; `None` where its chat template cannot write it, or its context
/// cannot hold it.
fn group(tokenizer: &Tokenizer, stage: &OnlineStage, context: usize, heard: &[Heard]) -> Result<Option<Group>> {
    let prompt = vec![Message::user(heard[0].prompt.clone())];
    // The reward came with the text: nothing is verified here.
    let verifier = Verifier::Exact { trim: true, ignore_case: false, collapse_spaces: false };
    let Heard { task: id, answer, .. } = heard[0].clone();
    let task = Task { id, prompt: prompt.clone(), answer, verifier, tags: vec![], demonstration: None };
    let mut group = Group::new(task, encode_prompt(tokenizer, &prompt)?);
    for heard in heard {
        let Ok(Some(mut tokens)) = encode_answer(tokenizer, &prompt, &heard.completion) else { return Ok(None) };
        let ended = heard.stop == Stop::Eos.name();
        if !ended && tokens.last().is_some_and(|last| tokenizer.eos_ids().contains(last)) {
            tokens.pop();
        }
        if group.prompt.len() + tokens.len() > context {
            return Ok(None);
        }
        let mut rollout = inject::member(tokenizer, tokens, vec![], Origin::Shared);
        rollout.stop = if ended { Stop::Eos } else { Stop::MaxTokens };
        let parts = stage.rewards.iter().map(|r| (r.name.clone(), heard.parts.get(&r.name).copied().unwrap_or(0.0)));
        rollout.verdict = Some(Verdict::Graded { reward: heard.reward, parts: parts.collect(), said: None });
        group.rollouts.push(rollout);
    }
    Ok(Some(group))
}
