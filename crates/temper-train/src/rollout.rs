//! Rollouts: tasks drawn, groups sampled, completions scored.

use serde::Serialize;
use temper_algo::seed::SplitMix64;
use temper_algo::{Fate, GroupRewards, Rollouts, ShapingInput, StepReward, fates, split_seed};
use temper_data::{Tokenizer, encode_prompt};
use temper_env::{Scorer, Task, TaskSet, Transcript, Verdict};
use temper_model::{Completion, Engine, Model, Request, Stop};
use temper_tensor::Ops;

use crate::context::Context;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::hub;
use crate::online::Readings;
use crate::recipe::{Generation, OnlineStage};
use crate::sampling::{decode_stops, sampling};
use crate::state::Progress;
use crate::watch;

/// Branches of a stage's seed.
pub const SAMPLE: u64 = 2;
const SOURCE: u64 = 3;
const MIX: u64 = 4;
/// Randomness of reward shaping.
pub const NOISE: u64 = 5;

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
    /// What reference and critic said.
    pub read: Readings,
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
    /// Share of right completions among all that were sampled, also those that are not trained on.
    pub success: f64,
    /// A greedy completion, where a part needs its reward.
    pub greedy: Option<Rollout>,
    /// Rewards `[G]` after shaping; as scored where nothing shapes them.
    pub shaped: Vec<f64>,
    /// Which completions are trained on `[G]`.
    pub fates: Vec<Fate>,
    /// Advantages of their tokens `[G][T]`; empty for completions that are not trained on.
    pub adv: Vec<Vec<f64>>,
}

impl Group {
    /// Rewards of the completions, as scored.
    pub fn rewards(&self) -> Vec<f64> {
        self.rollouts.iter().map(Rollout::reward).collect()
    }
    /// Completions that earned a reward above 0.
    pub fn passes(&self) -> usize {
        self.rollouts.iter().filter(|r| r.reward() > 0.0).count()
    }
    /// Whether no completion of it is trained on.
    pub fn dropped(&self) -> bool {
        !self.fates.contains(&Fate::Kept)
    }
    /// The group with the completions that are trained on alone; nothing of a dropped one.
    pub fn trained(mut self) -> Option<Self> {
        let kept = || {
            let mut fates = self.fates.iter();
            move || fates.next() == Some(&Fate::Kept)
        };
        let (mut stays, mut counts) = (kept(), kept());
        self.rollouts.retain(|_| stays());
        self.adv.retain(|_| counts());
        (!self.rollouts.is_empty()).then_some(self)
    }
    /// Tokens that were computed in sampling it: the prompt once, and all completions.
    pub fn sampled_tokens(&self) -> u64 {
        (self.tokens() + self.greedy.as_ref().map_or(0, |g| g.tokens.len())) as u64
    }
    /// Mean advantage of completion `i`; 0 where it is not trained on.
    pub fn mean_adv(&self, i: usize) -> f64 {
        self.adv.get(i).map_or(0.0, |adv| adv.iter().sum::<f64>() / adv.len().max(1) as f64)
    }
    /// Completion lengths `[G]`, tokens.
    pub fn lengths(&self) -> Vec<usize> {
        self.rollouts.iter().map(|r| r.tokens.len()).collect()
    }
    /// Reward parts `[G][K]`, unweighted.
    fn parts(&self, parts: usize) -> Vec<Vec<f64>> {
        self.rollouts.iter().map(|r| (0..parts).map(|k| r.part(k)).collect()).collect()
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

    /// The next `n` tasks with their prompts; prompts that are too long are passed over and counted.
    ///
    /// `context` is the model's longest sequence.
    pub fn draw(
        &self,
        ctx: &mut Context,
        stage: &OnlineStage,
        context: usize,
        n: usize,
        progress: &mut Progress,
    ) -> Result<Vec<(Task, Vec<u32>)>> {
        let most = stage.max_prompt_tokens.min(context - 1);
        let mut drawn = vec![];
        let mut passed = 0;
        while drawn.len() < n {
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
    let mut groups = vec![];
    for ((task, prompt), done) in tasks.into_iter().zip(completions) {
        let rollouts = done.into_iter().map(|c| rollout(ctx, c, &stage.sampling)).collect::<Result<Vec<_>>>()?;
        groups.push(Group {
            task,
            prompt,
            rollouts,
            success: 0.0,
            greedy: None,
            shaped: vec![],
            fates: vec![],
            adv: vec![],
        });
    }
    if stage.needs_greedy() {
        sample_greedy(ctx, model, stage, &mut groups)?;
    }
    Ok(groups)
}

/// Adds a greedy completion to every group: the baseline of ReMax.
fn sample_greedy(ctx: &Context, model: &Model, stage: &OnlineStage, groups: &mut [Group]) -> Result<()> {
    let rules = Generation { temperature: 0.0, top_k: None, top_p: None, min_p: None, ..stage.sampling.clone() };
    let requests: Vec<Request> = groups.iter().map(|g| Request { prompt: g.prompt.clone(), seeds: vec![0] }).collect();
    let done = complete(ctx.ops(), ctx.tokenizer()?, model, &requests, &rules, stage.max_batch, None, &mut |_, _| {})?;
    for (group, completions) in groups.iter_mut().zip(done) {
        group.greedy = completions.into_iter().next().map(|c| rollout(ctx, c, &rules)).transpose()?;
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
        read: Readings::default(),
    })
}

/// Scores all completions of all groups.
pub fn score(scorer: &mut Scorer, groups: &mut [Group]) -> Result<()> {
    let transcripts: Vec<Transcript> = groups
        .iter()
        .flat_map(|g| {
            g.rollouts.iter().chain(&g.greedy).map(|r| Transcript {
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
    rollouts.zip(verdicts).for_each(|(r, v)| r.verdict = Some(v));
    Ok(())
}

/// Shapes the rewards of scored groups and decides which completions are trained on. Noise is a function of (`seed`, slot,
/// sample).
pub fn shape(stage: &OnlineStage, groups: &mut [Group], step: u64, seed: u64) -> Result<()> {
    for (slot, group) in groups.iter_mut().enumerate() {
        group.success = group.passes() as f64 / group.rollouts.len().max(1) as f64;
        group.shaped = shaped(stage, group, step, split_seed(seed, &[slot as u64]))?;
        let truncated: Vec<bool> = group.rollouts.iter().map(Rollout::truncated).collect();
        group.fates = fates(&stage.group, &Rollouts { rewards: &group.shaped, truncated: &truncated });
    }
    Ok(())
}

fn shaped(stage: &OnlineStage, group: &Group, step: u64, seed: u64) -> Result<Vec<f64>> {
    let names: Vec<&str> = stage.rewards.iter().map(|r| r.name.as_str()).collect();
    let weights: Vec<f64> = stage.rewards.iter().map(|r| r.weight).collect();
    let parts = group.parts(names.len());
    let lengths = group.lengths();
    let draw = |i: usize| SplitMix64::new(split_seed(seed, &[i as u64])).next_f64();
    let draws: Vec<f64> = (0..group.rollouts.len()).map(draw).collect();
    let input = ShapingInput {
        names: &names,
        weights: &weights,
        parts: &parts,
        lengths: &lengths,
        greedy: group.greedy.as_ref().map(Rollout::reward),
        draws: &draws,
        step,
    };
    stage.shaping.iter().try_fold(group.rewards(), |rewards, s| Ok(s.apply(&rewards, &input)?))
}

/// Advantages of all tokens that are trained on, over the completions of the round that count.
pub fn advantages(stage: &OnlineStage, groups: &mut [Group], progress: &mut Progress) -> Result<()> {
    // A group without any is not there: neither bundles nor means see it.
    let counted: Vec<Counted> = (0..groups.len())
        .map(|index| Counted::new(index, &groups[index], stage.rewards.len()))
        .filter(|c| !c.members.is_empty())
        .collect();
    for group in &mut *groups {
        group.adv = vec![vec![]; group.rollouts.len()];
    }
    let views: Vec<GroupRewards> = counted.iter().map(Counted::view).collect();
    let part_weights: Vec<f64> = stage.rewards.iter().map(|r| r.weight).collect();
    let round = temper_algo::Round { groups: &views, part_weights: &part_weights, state: progress.advantage };
    let all = stage.objective.advantage.advantages(&round)?;
    progress.advantage = stage.objective.advantage.remember(&round);
    for (g, counted) in counted.iter().enumerate() {
        let group = &mut groups[counted.index];
        for (i, rollout) in counted.members.iter().enumerate().filter(|(_, r)| group.fates[**r] == Fate::Kept) {
            group.adv[*rollout] = all.tokens(g, i, counted.lengths[i]);
        }
    }
    Ok(())
}

/// The completions of a group that count where it is compared.
struct Counted {
    index: usize,
    members: Vec<usize>,
    rewards: Vec<f64>,
    parts: Vec<Vec<f64>>,
    lengths: Vec<usize>,
    greedy: Option<f64>,
    values: Vec<Vec<f64>>,
    steps: Vec<Vec<StepReward>>,
}

impl Counted {
    fn new(index: usize, group: &Group, parts: usize) -> Self {
        let members: Vec<usize> = (0..group.rollouts.len()).filter(|i| group.fates[*i] != Fate::Dropped).collect();
        let (rows, lengths) = (group.parts(parts), group.lengths());
        Self {
            index,
            rewards: members.iter().map(|i| group.shaped[*i] - group.rollouts[*i].read.cost).collect(),
            parts: members.iter().map(|i| rows[*i].clone()).collect(),
            lengths: members.iter().map(|i| lengths[*i]).collect(),
            greedy: group.greedy.as_ref().map(Rollout::reward),
            values: given(&members, |i| &group.rollouts[i].read.values),
            steps: given(&members, |i| &group.rollouts[i].read.steps),
            members,
        }
    }

    fn view(&self) -> GroupRewards<'_> {
        GroupRewards {
            parts: &self.parts,
            lengths: &self.lengths,
            greedy: self.greedy,
            values: &self.values,
            steps: &self.steps,
            ..GroupRewards::new(&self.rewards)
        }
    }
}

/// One list a member; nothing where nobody has any.
fn given<'a, T: Clone + 'a>(members: &[usize], of: impl Fn(usize) -> &'a Vec<T>) -> Vec<Vec<T>> {
    let all: Vec<Vec<T>> = members.iter().map(|i| of(*i).clone()).collect();
    if all.iter().all(Vec::is_empty) { vec![] } else { all }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// NFT's share of right answers is of everything that was sampled, whatever is trained on afterwards.
    #[test]
    fn the_share_of_right_answers_is_of_all_samples() {
        let stage = r#"
            id = "rl"
            tasks = [{ source = { kind = "tiny_world", families = ["copying"], levels = [1], split = "train" } }]
            steps = 1
            prompts_per_step = 1
            samples_per_prompt = 4
            sampling = { max_tokens = 4 }
            rewards = [{ name = "correct", weight = 1.0, kind = "verifier" }]
            group = [{ kind = "down_sample", keep = 2, rule = "best", counts = true }]
            optimizer = { kind = "adamw", lr = 1e-3 }
        "#;
        let stage: OnlineStage = toml::from_str(stage).unwrap();
        let task = stage.tasks[0].source.open(0).unwrap().get(0).unwrap();
        let rollout = |reward: f64| Rollout {
            tokens: vec![1],
            logp_gen: vec![-1.0],
            stop: Stop::Eos,
            text: String::new(),
            lost_mass: 0.0,
            verdict: Some(Verdict::Graded { reward, parts: vec![("correct".into(), reward)] }),
            read: Readings::default(),
        };
        let rollouts = [1.0, 0.0, 0.0, 0.0].map(rollout).to_vec();
        let adv = vec![vec![0.0]; 4];
        let group =
            Group { task, prompt: vec![1], rollouts, success: 0.0, greedy: None, shaped: vec![], fates: vec![], adv };
        let mut groups = vec![group];
        shape(&stage, &mut groups, 0, 0).unwrap();
        let trained = groups.remove(0).trained().unwrap();
        assert_eq!((trained.rollouts.len(), trained.success), (2, 0.25));
    }
}
