//! Evaluation: tasks measured on a model, with intervals.

use std::collections::BTreeMap;

use temper_algo::{split_seed, stats};
use temper_data::{Encoded, Format, Overflow, encode_all, encode_prompt, load};
use temper_env::{Pair, RewardKind, RewardPart, Scorer, Task, Transcript};
use temper_model::{Batch, Completion, Model, Request, ScoredSequence, Stop};
use temper_tensor::HeadSpec;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::hub;
use crate::learner::terms;
use crate::ledger::{Cell, TaskRow};
use crate::offline::micro_batches;
use crate::recipe::{EvalSource, EvalTask, Generation, Mask};
use crate::rollout::complete;
use crate::sampling;
use crate::watch::Event;

const TASKS: u64 = 11;
const SAMPLES: u64 = 12;
const BOOTSTRAP: u64 = 13;
const CONFIDENCE: f64 = 0.95;
/// Tokens scored at once by likelihood tasks.
const MICRO_TOKENS: usize = 1024;
/// Sequences sampled at the same time.
const MAX_BATCH: usize = 32;

/// Measures one task after `stage`. The items and their seeds are the same after every stage, so that stages compare
/// item by item.
pub fn measure(ctx: &mut Context, model: &Model, task: &EvalTask, target: bool, stage: &str) -> Result<(TaskRow, Cell)> {
    let seed = split_seed(ctx.recipe.seed, &task.id.bytes().map(u64::from).collect::<Vec<_>>());
    let row = |metric: &str| TaskRow { id: task.id.clone(), target, metric: metric.into() };
    let mut cell = match &task.source {
        EvalSource::Nll { path, mask, max_row_tokens } => {
            let rows = nll_rows(ctx, path, *mask, *max_row_tokens, task.n)?;
            ctx.emit(&Event::EvalBegin { stage, task: &task.id, n: rows.len() });
            return Ok((row("nll"), nll_cell(ctx, model, &rows, stage, task)?));
        }
        EvalSource::Tasks { tasks } => {
            let set = hub::local_tasks(tasks)?.open(split_seed(seed, &[TASKS]))?;
            if let Some(pairs) = set.pairs() {
                let pairs: Vec<Pair> = pairs.iter().take(task.n).cloned().collect();
                ctx.emit(&Event::EvalBegin { stage, task: &task.id, n: pairs.len() });
                pair_cell(ctx, model, &pairs, stage, task)?
            } else {
                let n = set.len().map_or(task.n, |len| len.min(task.n));
                let items = (0..n).map(|i| Ok(set.get(i as u64)?)).collect::<Result<Vec<Task>>>()?;
                ctx.emit(&Event::EvalBegin { stage, task: &task.id, n });
                task_cell(ctx, model, &items, stage, task, split_seed(seed, &[SAMPLES]))?
            }
        }
    };
    if let Some(accuracy) = cell.accuracy
        && task.samples == 1
    {
        let right = (accuracy * cell.n as f64).round() as u64;
        let interval = stats::wilson(right, cell.n as u64, CONFIDENCE)?;
        (cell.low, cell.high) = (interval.low, interval.high);
    }
    Ok((row("accuracy"), cell))
}

/// Measures all tasks of the recipe and `more`, into the ledger and `ledger.json`.
pub fn measure_all(ctx: &mut Context, model: &Model, stage: &str, more: &[EvalTask]) -> Result<()> {
    let tasks: Vec<(EvalTask, bool)> = ctx.recipe.eval_tasks().map(|(t, target)| (t.clone(), target)).collect();
    for (task, target) in tasks.into_iter().chain(more.iter().map(|t| (t.clone(), true))) {
        let (row, cell) = measure(ctx, model, &task, target, stage)?;
        let seed = split_seed(ctx.recipe.seed, &[BOOTSTRAP]);
        ctx.state.ledger.add(row, cell, seed);
        let ledger = ctx.state.ledger.clone();
        if let Some(cell) = ledger.cells.last() {
            ctx.emit(&Event::EvalEnd { cell, target });
        }
        ctx.dir.write_json(&ctx.dir.ledger(), &ledger)?;
    }
    Ok(())
}

fn empty(stage: &str, task: &EvalTask, items: Vec<f32>) -> Cell {
    Cell {
        stage: stage.into(),
        task: task.id.clone(),
        n: items.len(),
        accuracy: None,
        low: 0.0,
        high: 0.0,
        pass_at_k: None,
        nll: None,
        mean_length: None,
        unparsed: None,
        truncated: None,
        dropped: BTreeMap::new(),
        change: None,
        items,
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len().max(1) as f64
}

/// Accuracy, pass@k, lengths and causes of failure of sampled or greedy completions.
fn task_cell(ctx: &mut Context, model: &Model, items: &[Task], stage: &str, task: &EvalTask, seed: u64) -> Result<Cell> {
    let rules = Generation {
        temperature: task.temperature.unwrap_or(if task.samples > 1 { 1.0 } else { 0.0 }),
        top_k: None,
        top_p: None,
        min_p: None,
        max_tokens: task.max_tokens,
        stop: task.stop.clone(),
    };
    let room = model.config.max_position_embeddings;
    let (mut kept, mut requests, mut too_long) = (vec![], vec![], 0);
    for (i, item) in items.iter().enumerate() {
        let prompt = encode_prompt(ctx.tokenizer()?, &item.prompt)?;
        if prompt.len() >= room {
            too_long += 1;
            continue;
        }
        kept.push(item);
        requests.push(Request {
            prompt,
            seeds: (0..task.samples as u64).map(|s| split_seed(seed, &[i as u64, s])).collect(),
        });
    }
    if kept.is_empty() {
        return Err(Error::user(
            format!("evaluation task `{}` has no item whose prompt fits the model's context of {room} tokens", task.id),
            "use shorter items or another model",
        ));
    }
    let mut ticks = vec![];
    let done = complete(ctx, model, &requests, &rules, MAX_BATCH, &mut |done, of| ticks.push((done, of)))?;
    drop(ticks);
    let tokenizer = ctx.tokenizer()?;
    let text = |c: &Completion| sampling::text(tokenizer, &c.tokens, &task.stop);
    let texts: Vec<Vec<String>> = done.iter().map(|c| c.iter().map(text).collect()).collect();
    let flat = || kept.iter().zip(&done).zip(&texts).flat_map(|((t, c), x)| c.iter().zip(x).map(move |(c, x)| (*t, c, x)));
    let cut = |stop: Stop| matches!(stop, Stop::MaxTokens | Stop::ContextFull);
    let transcripts: Vec<Transcript> = flat()
        .map(|(t, c, text)| Transcript { task: t, text, n_tokens: c.tokens.len(), truncated: cut(c.stop) })
        .collect();
    let mut scorer = Scorer::new(&[RewardPart { name: "correct".into(), weight: 1.0, kind: RewardKind::Verifier }])?;
    let verdicts = scorer.score(&transcripts)?;
    let total = verdicts.len().max(1) as f64;
    let rewards: Vec<f32> = verdicts.iter().map(|v| v.reward() as f32).collect();
    let per_item: Vec<&[f32]> = rewards.chunks(task.samples).collect();

    let mut cell = empty(stage, task, per_item.iter().map(|r| mean(r) as f32).collect());
    cell.accuracy = Some(mean(&cell.items));
    let interval = stats::mean_interval(&cell.items.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), CONFIDENCE);
    if let Ok(interval) = interval {
        (cell.low, cell.high) = (interval.low, interval.high);
    }
    cell.mean_length = Some(flat().map(|(_, c, _)| c.tokens.len() as f64).sum::<f64>() / total);
    cell.unparsed = Some(verdicts.iter().filter(|v| v.failure().is_some()).count() as f64 / total);
    cell.truncated = Some(flat().filter(|(_, c, _)| cut(c.stop)).count() as f64 / total);
    if too_long > 0 {
        cell.dropped.insert("prompt longer than the context".into(), too_long);
    }
    if task.samples > 1 {
        cell.pass_at_k = Some(pass_at_k(&per_item)?);
    }
    Ok(cell)
}

/// pass@k for k = 1, 2, 4, ... up to the number of samples.
fn pass_at_k(per_item: &[&[f32]]) -> Result<BTreeMap<usize, f64>> {
    let samples = per_item.first().map_or(0, |r| r.len());
    let ks = std::iter::successors(Some(1), |k| Some(k * 2)).take_while(|&k| k <= samples);
    ks.map(|k| {
        let values = per_item.iter().map(|rewards| {
            let right = rewards.iter().filter(|&&r| r >= 1.0).count();
            stats::pass_at_k(rewards.len() as u64, right as u64, k as u64)
        });
        let sum = values.sum::<Result<f64, _>>()?;
        Ok((k, sum / per_item.len() as f64))
    })
    .collect()
}

/// Log-probability of every row's weighted tokens: `(sum of weight * logp, sum of weight)`.
fn row_logp(ctx: &Context, model: &Model, rows: &[Encoded]) -> Result<Vec<(f64, f64)>> {
    let mut found = vec![];
    for part in micro_batches(rows.iter().map(|r| r.ids.len()), MICRO_TOKENS) {
        let rows = &rows[part];
        let weights: Vec<Vec<f64>> = rows.iter().map(|r| r.weights.iter().map(|&w| f64::from(w)).collect()).collect();
        let sequences: Vec<ScoredSequence> =
            rows.iter().zip(&weights).map(|(r, w)| ScoredSequence { ids: &r.ids, scored: w }).collect();
        let (batch, weight) = Batch::sequences(&sequences)?;
        let logp = if batch.tgt.is_empty() { vec![] } else { terms(ctx.ops(), model, &batch, &HeadSpec::default())?.logp };
        let mut scored = logp.iter().zip(&weight);
        for w in &weights {
            let n = w.iter().skip(1).filter(|w| **w != 0.0).count();
            let part = scored.by_ref().take(n);
            found.push(part.fold((0.0, 0.0), |(s, t), (&l, &w)| (s + w * f64::from(l), t + w)));
        }
    }
    Ok(found)
}

fn pair_cell(ctx: &Context, model: &Model, pairs: &[Pair], stage: &str, task: &EvalTask) -> Result<Cell> {
    let tokenizer = ctx.tokenizer()?;
    let whole = |text: &String| {
        let ids = tokenizer.encode_with_bos(text)?;
        let weights = ids.iter().map(|_| 1.0).collect();
        Ok(Encoded { ids, weights, ..Encoded::default() })
    };
    let rows = pairs.iter().flat_map(|p| [&p.good, &p.bad]).map(whole).collect::<Result<Vec<_>>>()?;
    let sums = row_logp(ctx, model, &rows)?;
    let items = sums.chunks(2).map(|pair| f32::from(u8::from(pair[0].0 > pair[1].0))).collect();
    let mut cell = empty(stage, task, items);
    cell.accuracy = Some(mean(&cell.items));
    Ok(cell)
}

fn nll_rows(ctx: &Context, path: &str, mask: Mask, max_tokens: usize, n: usize) -> Result<Vec<Encoded>> {
    let (mut examples, _) = load(&hub::local(path)?, &Format::auto())?;
    examples.truncate(n);
    let (rows, _) = encode_all(ctx.tokenizer()?, &examples, mask.policy(), max_tokens, Overflow::Truncate)?;
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

fn nll_cell(ctx: &Context, model: &Model, rows: &[Encoded], stage: &str, task: &EvalTask) -> Result<Cell> {
    let sums = row_logp(ctx, model, rows)?;
    let (total, tokens) = sums.iter().fold((0.0, 0.0), |(s, t), (a, b)| (s + a, t + b));
    let items: Vec<f32> = sums.iter().map(|(s, t)| (-s / t.max(1.0)) as f32).collect();
    let interval = stats::mean_interval(&items.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), CONFIDENCE);
    let mut cell = empty(stage, task, items);
    cell.nll = Some(-total / tokens.max(1.0));
    if let Ok(interval) = interval {
        (cell.low, cell.high) = (interval.low, interval.high);
    }
    Ok(cell)
}
