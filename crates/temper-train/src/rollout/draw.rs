//! Tasks drawn from the sources of a stage.

use temper_algo::seed::SplitMix64;
use temper_algo::split_seed;
use temper_data::encode_prompt;
use temper_env::{Task, TaskSet};

use super::{MIX, SOURCE};
use crate::context::Context;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::hub;
use crate::recipe::{OnlineStage, TaskMix};
use crate::state::Progress;

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
        let open = |(i, mix): (usize, &TaskMix)| {
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
        let mut at = SplitMix64::new(split_seed(self.seed, &[MIX, n])).next_f64() * total;
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
    let mut random = SplitMix64::new(split_seed(seed, &[cursor / len]));
    let mut order: Vec<u64> = (0..len).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, random.below(i + 1));
    }
    order[(cursor % len) as usize]
}
