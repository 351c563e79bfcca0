//! Rollouts: tasks drawn, groups sampled, completions scored.

use serde::Serialize;
use temper_algo::split_seed;
use temper_data::{Tokenizer, encode_prompt};
use temper_env::{Scorer, Task, TaskSet, Transcript, Verdict};
use temper_model::{Completion, Engine, Model, Request, Stop};
use temper_tensor::Ops;

use crate::context::Context;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::hub;
use crate::recipe::{Generation, OnlineStage};
use crate::sampling::{decode_stops, sampling};
use crate::state::Progress;
use crate::watch;

/// Branches of a stage's seed.
pub const SAMPLE: u64 = 2;
const SOURCE: u64 = 3;
const MIX: u64 = 4;

/// One completion of a task.
#[derive(Debug, Clone)]
pub struct Rollout {
    /// Sampled tokens, the end-of-turn token included where it was sampled.
    pub tokens: Vec<u32>,
    /// Log-probabilities of these tokens as sampled, at the sampling temperature.
    pub logp_gen: Vec<f32>,
    /// Why sampling ended.
    pub stop: Stop,
    /// The text that is scored: the tokens decoded, without special ones.
    pub text: String,
    /// Mean probability mass that truncating rules cut away.
    pub lost_mass: f64,
    /// What the rewards said.
    pub verdict: Option<Verdict>,
}

impl Rollout {
    /// The weighted reward.
    pub fn reward(&self) -> f64 {
        self.verdict.as_ref().map_or(0.0, Verdict::reward)
    }
    /// Reward part `k`, unweighted.
    pub fn part(&self, k: usize) -> f64 {
        self.verdict.as_ref().and_then(|v| v.parts().get(k)).map_or(0.0, |(_, value)| *value)
    }
    /// Whether it was cut off.
    pub fn truncated(&self) -> bool {
        matches!(self.stop, Stop::MaxTokens | Stop::ContextFull)
    }
    /// Whether the verifier found no answer in it.
    pub fn unparsed(&self) -> bool {
        self.verdict.as_ref().is_some_and(|v| v.failure().is_some())
    }
}

/// The completions of one prompt.
#[derive(Debug, Clone)]
pub struct Group {
    /// The task.
    pub task: Task,
    /// Its prompt, tokenised.
    pub prompt: Vec<u32>,
    /// The completions, G of them.
    pub rollouts: Vec<Rollout>,
    /// Their advantages.
    pub adv: Vec<f64>,
}

impl Group {
    /// Rewards of the completions.
    pub fn rewards(&self) -> Vec<f64> {
        self.rollouts.iter().map(Rollout::reward).collect()
    }
    /// Completions that earned a reward above 0.
    pub fn passes(&self) -> usize {
        self.rollouts.iter().filter(|r| r.reward() > 0.0).count()
    }
    /// Their share.
    pub fn success(&self) -> f64 {
        self.passes() as f64 / self.rollouts.len().max(1) as f64
    }
    /// Sampled tokens.
    pub fn scored(&self) -> usize {
        self.rollouts.iter().map(|r| r.tokens.len()).sum()
    }
    /// Tokens of the prompt (once) and of all completions.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.scored()
    }
}

/// The task sources of an online stage.
#[derive(Debug)]
pub struct Sources {
    sets: Vec<TaskSet>,
    shares: Vec<f64>,
    seed: u64,
}

impl Sources {
    /// Opens the sources.
    pub fn open(stage: &OnlineStage, seed: u64, progress: &mut Progress) -> Result<Self> {
        let open = |(i, mix): (usize, &crate::recipe::TaskMix)| {
            Ok(hub::local_tasks(&mix.source)?.open(split_seed(seed, &[SOURCE, i as u64]))?)
        };
        let sets = stage.tasks.iter().enumerate().map(open).collect::<Result<Vec<_>>>()?;
        if let Some(empty) = sets.iter().find(|s| s.len() == Some(0)) {
            return Err(Error::user(format!("`{}` has no tasks", empty.name()), "check its path and selection"));
        }
        let sizes: Vec<usize> = sets.iter().map(|s| s.len().unwrap_or(0)).collect();
        progress.same_data(&stage.id, &sizes, digest_of(&sets)?)?;
        progress.cursors.resize(sets.len(), 0);
        Ok(Self { sets, shares: stage.tasks.iter().map(|t| t.share).collect(), seed })
    }

    /// The tasks of the next round with their prompts; prompts that are too long are passed over and counted.
    ///
    /// `context` is the model's longest sequence.
    pub fn draw(
        &self,
        ctx: &mut Context,
        stage: &OnlineStage,
        context: usize,
        progress: &mut Progress,
    ) -> Result<Vec<(Task, Vec<u32>)>> {
        let most = stage.max_prompt_tokens.min(context - 1);
        let mut drawn = vec![];
        let mut passed = 0;
        while drawn.len() < stage.prompts_per_step {
            let source = self.source(progress.drawn);
            progress.drawn += 1;
            let task = self.task(source, progress)?;
            let prompt = encode_prompt(ctx.tokenizer()?, &task.prompt)?;
            if prompt.len() <= most {
                passed = 0;
                drawn.push((task, prompt));
                continue;
            }
            passed += 1;
            progress.too_long += 1;
            if progress.too_long == 1 || progress.too_long.is_power_of_two() {
                ctx.note(&format!(
                    "task `{}`: its prompt has {} tokens, the most is {most}; left out ({} so far)",
                    task.id,
                    prompt.len(),
                    progress.too_long
                ));
            }
            if passed > 1000 {
                return Err(Error::user(
                    format!("1000 prompts in a row have more than {most} tokens"),
                    "raise `max_prompt_tokens`, or use a model with a longer context",
                ));
            }
        }
        Ok(drawn)
    }

    /// Which source gives draw number `n`: a function of the seed and `n`.
    fn source(&self, n: u64) -> usize {
        let total: f64 = self.shares.iter().sum();
        let mut at = temper_algo::seed::SplitMix64::new(split_seed(self.seed, &[MIX, n])).next_f64() * total;
        self.shares
            .iter()
            .position(|share| {
                at -= share;
                at < 0.0
            })
            .unwrap_or(self.shares.len() - 1)
    }

    /// The next task of a source: procedural ones in order, files in shuffled passes.
    fn task(&self, source: usize, progress: &mut Progress) -> Result<Task> {
        let set = &self.sets[source];
        let cursor = progress.cursors[source];
        progress.cursors[source] += 1;
        let index = match set.len() {
            None => cursor,
            Some(len) => shuffled(cursor, len as u64, split_seed(self.seed, &[SOURCE, source as u64])),
        };
        Ok(set.get(index)?)
    }
}

/// A digest of every task that comes from a file; procedural ones are functions of the seed.
fn digest_of(sets: &[TaskSet]) -> Result<u64> {
    let mut digest = Digest::default();
    for set in sets {
        for index in 0..set.len().unwrap_or(0) {
            let task = set.get(index as u64)?;
            digest.bytes(task.id.as_bytes());
            task.prompt.iter().for_each(|message| digest.bytes(message.content.as_bytes()));
            digest.bytes(task.answer.as_bytes());
        }
    }
    Ok(digest.value())
}

/// Item `cursor` of endless shuffled passes over `len` items.
fn shuffled(cursor: u64, len: u64, seed: u64) -> u64 {
    let mut random = temper_algo::seed::SplitMix64::new(split_seed(seed, &[cursor / len]));
    let mut order: Vec<u64> = (0..len).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, random.below(i + 1));
    }
    order[(cursor % len) as usize]
}

/// Samples G completions of every task. Seeds are a function of (round, task slot, sample).
pub fn sample(
    ctx: &Context,
    model: &Model,
    stage: &OnlineStage,
    tasks: Vec<(Task, Vec<u32>)>,
    seed: u64,
) -> Result<Vec<Group>> {
    let samples = stage.samples_per_prompt as u64;
    let requests: Vec<Request> = tasks
        .iter()
        .enumerate()
        .map(|(slot, (_, prompt))| Request {
            prompt: prompt.clone(),
            seeds: (0..samples).map(|i| split_seed(seed, &[slot as u64, i])).collect(),
        })
        .collect();
    let completions = complete(
        ctx.ops(),
        ctx.tokenizer()?,
        model,
        &requests,
        &stage.sampling,
        stage.max_batch,
        None,
        &mut |_, _| {},
    )?;
    let groups = tasks.into_iter().zip(completions).map(|((task, prompt), done)| {
        let rollouts = done.into_iter().map(|c| rollout(ctx, c, &stage.sampling)).collect::<Result<Vec<_>>>()?;
        Ok(Group { task, prompt, rollouts, adv: vec![] })
    });
    groups.collect()
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
    let (stops, rules) = (decode_stops(tokenizer, &rules.stop), sampling(rules, tokenizer));
    let abort = || stop.is_some_and(watch::Stop::requested);
    let engine = Engine::new(ops, model, &rules)?.max_batch(max_batch)?.stops(&stops).abort(&abort);
    Ok(engine.generate(requests, &mut |p| progress(p.finished, p.total))?)
}

fn rollout(ctx: &Context, completion: Completion, rules: &Generation) -> Result<Rollout> {
    let text = crate::sampling::text(ctx.tokenizer()?, &completion.tokens, &rules.stop);
    let n = completion.tokens.len().max(1) as f64;
    Ok(Rollout {
        lost_mass: f64::from(completion.lost_mass.iter().sum::<f32>()) / n,
        tokens: completion.tokens,
        logp_gen: completion.logp_gen,
        stop: completion.stop,
        text,
        verdict: None,
    })
}

/// Scores all completions of all groups.
pub fn score(scorer: &mut Scorer, groups: &mut [Group]) -> Result<()> {
    let transcripts: Vec<Transcript> = groups
        .iter()
        .flat_map(|g| {
            g.rollouts.iter().map(|r| Transcript {
                task: &g.task,
                text: &r.text,
                n_tokens: r.tokens.len(),
                truncated: r.truncated(),
            })
        })
        .collect();
    let verdicts = scorer.score(&transcripts)?;
    drop(transcripts);
    let rollouts = groups.iter_mut().flat_map(|g| g.rollouts.iter_mut());
    rollouts.zip(verdicts).for_each(|(r, v)| r.verdict = Some(v));
    Ok(())
}

/// One line of `rollouts.jsonl`.
#[derive(Debug, Serialize)]
pub struct RolloutLine<'a> {
    stage: &'a str,
    step: usize,
    task: &'a str,
    prompt: String,
    completion: &'a str,
    answer: &'a str,
    reward: f64,
    parts: serde_json::Map<String, serde_json::Value>,
    failed: Option<&'a str>,
    stop: &'static str,
    n_tokens: usize,
}

impl<'a> RolloutLine<'a> {
    /// The line of one completion.
    pub fn new(stage: &'a OnlineStage, step: usize, group: &'a Group, rollout: &'a Rollout) -> Self {
        let parts = rollout.verdict.iter().flat_map(Verdict::parts).map(|(k, v)| (k.clone(), (*v).into())).collect();
        Self {
            stage: &stage.id,
            step,
            task: &group.task.id,
            prompt: group.task.prompt_text(),
            completion: &rollout.text,
            answer: &group.task.answer,
            reward: rollout.reward(),
            parts,
            failed: rollout.verdict.as_ref().and_then(Verdict::failure),
            stop: rollout.stop.name(),
            n_tokens: rollout.tokens.len(),
        }
    }
}
