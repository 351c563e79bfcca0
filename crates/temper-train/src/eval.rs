//! Evaluation: tasks measured on a model, with intervals.

use std::collections::BTreeMap;

use temper_algo::{split_seed, stats};
use temper_data::{Encoded, Format, Overflow, Report, Tokenizer, encode_all, encode_prompt, load};
use temper_env::{Pair, RewardKind, RewardPart, Scorer, Task, Transcript};
use temper_model::{Completion, Model, Request, ScoredSequence, Stop};
use temper_tensor::Ops;

use crate::context::{Context, Outcome};
use crate::error::{Error, Result};
use crate::hub;
use crate::ledger::{Cell, TaskRow};
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
/// Sequences scored between two looks at the wish to stop.
const SCORED_AT_ONCE: usize = 64;
/// Sequences sampled at the same time.
const MAX_BATCH: usize = 32;

/// A model as it is measured.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The device.
    pub ops: &'a dyn Ops,
    /// The model.
    pub model: &'a Model,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The run's seed: items and samples are functions of it and of the task's id.
    pub seed: u64,
    /// The wish to stop, heard in the middle of a measurement, which then ends with [`temper_model::Error::Aborted`].
    pub stop: Option<&'a crate::watch::Stop>,
}

impl Subject<'_> {
    /// An error once a stop was asked for.
    fn go_on(&self) -> Result<()> {
        let stop = self.stop.is_some_and(crate::watch::Stop::requested);
        if stop { Err(temper_model::Error::Aborted.into()) } else { Ok(()) }
    }
}

/// Measures one task; `stage` names the measurement. The items and their seeds are the same at every stage, so that stages
/// compare item by item. The metric is `accuracy` or `nll`.
pub fn measure(
    subject: Subject,
    task: &EvalTask,
    stage: &str,
    watch: &mut dyn FnMut(&Event),
) -> Result<(&'static str, Cell)> {
    let seed = split_seed(subject.seed, &task.id.bytes().map(u64::from).collect::<Vec<_>>());
    let begin = |n: usize, watch: &mut dyn FnMut(&Event)| watch(&Event::EvalBegin { stage, task: &task.id, n });
    let tasks = match &task.source {
        EvalSource::Nll { path, mask, max_row_tokens } => {
            let (rows, report, of) = nll_rows(subject, path, *mask, *max_row_tokens, task)?;
            begin(rows.len(), watch);
            return Ok(("nll", Cell { of: Some(of), ..nll_cell(subject, &rows, &report, stage, task)? }));
        }
        EvalSource::Tasks { tasks } => hub::local_tasks(tasks)?.open(split_seed(seed, &[TASKS]))?,
    };
    if let Some(pairs) = tasks.pairs() {
        let of = Some(pairs.len());
        let pairs: Vec<Pair> = pairs.iter().take(task.n).cloned().collect();
        begin(pairs.len(), watch);
        return Ok(("accuracy", Cell { of, ..pair_cell(subject, &pairs, stage, task)? }));
    }
    let n = tasks.len().map_or(task.n, |len| len.min(task.n));
    let item = |i: usize| {
        subject.go_on()?;
        Ok(tasks.get(i as u64)?)
    };
    let items = (0..n).map(item).collect::<Result<Vec<Task>>>()?;
    begin(n, watch);
    let cell = task_cell(subject, &items, stage, task, split_seed(seed, &[SAMPLES]), watch)?;
    Ok(("accuracy", Cell { of: tasks.len(), ..cell }))
}

/// Measures all tasks of the recipe and `more`, into the ledger and `ledger.json`.
///
/// A wish to stop is heard at the next token or batch; what was measured since the last checkpoint is measured again after a
/// resume.
pub fn measure_all(ctx: &mut Context, model: &Model, stage: &str, more: &[EvalTask]) -> Result<Outcome> {
    let recipe = ctx.recipe;
    for (task, target) in recipe.eval_tasks().chain(more.iter().map(|t| (t, true))) {
        if ctx.stop_requested() {
            return Ok(Outcome::Interrupted);
        }
        let (metric, cell) = {
            let (ops, tokenizer, stop, watch) = ctx.measuring()?;
            let subject = Subject { ops, model, tokenizer, seed: recipe.seed, stop: Some(stop) };
            match measure(subject, task, stage, &mut |event| watch.event(event)) {
                Err(Error::Model(temper_model::Error::Aborted)) => return Ok(Outcome::Interrupted),
                measured => measured?,
            }
        };
        let row = TaskRow { id: task.id.clone(), target, metric: metric.into() };
        ctx.state.ledger.add(row, cell, split_seed(recipe.seed, &[BOOTSTRAP]));
        let ledger = ctx.state.ledger.clone();
        if let Some(cell) = ledger.cells.last() {
            ctx.emit(&Event::EvalEnd { cell, target });
        }
        ctx.dir.write_json(&ctx.dir.ledger(), &ledger)?;
    }
    Ok(Outcome::Done)
}

fn empty(stage: &str, task: &EvalTask, items: Vec<f32>) -> Cell {
    Cell {
        stage: stage.into(),
        task: task.id.clone(),
        n: items.len(),
        accuracy: None,
        low: None,
        high: None,
        tokens: None,
        of: None,
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

/// The 95% interval over items: Wilson's where every item is right or wrong, Student's otherwise.
fn interval(cell: &mut Cell, right_or_wrong: bool) -> Result<()> {
    let values: Vec<f64> = cell.items.iter().map(|&x| f64::from(x)).collect();
    let found = if right_or_wrong {
        stats::wilson(values.iter().sum::<f64>() as u64, values.len() as u64, CONFIDENCE)?
    } else if values.len() < 2 {
        return Ok(());
    } else {
        stats::mean_interval(&values, CONFIDENCE)?
    };
    (cell.low, cell.high) = (Some(found.low), Some(found.high));
    Ok(())
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len().max(1) as f64
}

/// Accuracy, pass@k, lengths and causes of failure of sampled or greedy completions.
fn task_cell(
    subject: Subject,
    items: &[Task],
    stage: &str,
    task: &EvalTask,
    seed: u64,
    watch: &mut dyn FnMut(&Event),
) -> Result<Cell> {
    let rules = Generation {
        temperature: task.temperature.unwrap_or(if task.samples > 1 { 1.0 } else { 0.0 }),
        top_k: None,
        top_p: None,
        min_p: None,
        max_tokens: task.max_tokens,
        stop: task.stop.clone(),
        ignore_eos: false,
    };
    let room = subject.model.config.max_position_embeddings;
    let (mut kept, mut requests, mut too_long) = (vec![], vec![], 0);
    for (i, item) in items.iter().enumerate() {
        subject.go_on()?;
        let prompt = encode_prompt(subject.tokenizer, &item.prompt)?;
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
    let mut tick = |done: usize, of: usize| watch(&Event::EvalProgress { done, of });
    let done =
        complete(subject.ops, subject.tokenizer, subject.model, &requests, &rules, MAX_BATCH, subject.stop, &mut tick)?;
    let text = |c: &Completion| sampling::text(subject.tokenizer, &c.tokens, &task.stop);
    let texts: Vec<Vec<String>> = done.iter().map(|c| c.iter().map(text).collect()).collect();
    let flat =
        || kept.iter().zip(&done).zip(&texts).flat_map(|((t, c), x)| c.iter().zip(x).map(move |(c, x)| (*t, c, x)));
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
    interval(&mut cell, task.samples == 1)?;
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
fn row_logp(subject: Subject, rows: &[Encoded]) -> Result<Vec<(f64, f64)>> {
    let weights: Vec<Vec<f64>> = rows.iter().map(|r| r.weights.iter().map(|&w| f64::from(w)).collect()).collect();
    let sequences: Vec<ScoredSequence> =
        rows.iter().zip(&weights).map(|(r, w)| ScoredSequence { ids: &r.ids, scored: w }).collect();
    let mut scored = vec![];
    for some in sequences.chunks(SCORED_AT_ONCE) {
        subject.go_on()?;
        scored.extend(subject.model.score(subject.ops, some, 1.0, MICRO_TOKENS)?);
    }
    if let Some(row) = scored.iter().position(|s| !s.total().is_finite()) {
        return Err(Error::user(
            format!("the log-probability of row {} is {}", row + 1, scored[row].total()),
            "the model has diverged: start again with a lower learning rate",
        ));
    }
    Ok(scored.iter().map(|s| (s.total(), s.weight.iter().sum())).collect())
}

fn pair_cell(subject: Subject, pairs: &[Pair], stage: &str, task: &EvalTask) -> Result<Cell> {
    let whole = |text: &String| {
        let ids = subject.tokenizer.encode_with_bos(text)?;
        let weights = ids.iter().map(|_| 1.0).collect();
        Ok(Encoded { ids, weights, ..Encoded::default() })
    };
    let rows = pairs.iter().flat_map(|p| [&p.good, &p.bad]).map(whole).collect::<Result<Vec<_>>>()?;
    let sums = row_logp(subject, &rows)?;
    let items = sums.chunks(2).map(|pair| f32::from(u8::from(pair[0].0 > pair[1].0))).collect();
    let mut cell = empty(stage, task, items);
    cell.accuracy = Some(mean(&cell.items));
    interval(&mut cell, true)?;
    Ok(cell)
}

/// The rows as they are written (no end token is added to texts and completions, as perplexities are usually taken), what
/// was left out, and how many rows the file has.
fn nll_rows(
    subject: Subject,
    path: &str,
    mask: Mask,
    max_tokens: usize,
    task: &EvalTask,
) -> Result<(Vec<Encoded>, Report, usize)> {
    let (mut examples, _) = load(&hub::local(path)?, &Format::default())?;
    let of = examples.len();
    examples.truncate(task.n);
    let most = max_tokens.min(subject.model.config.max_position_embeddings);
    let (rows, report) = encode_all(subject.tokenizer, &examples, mask.policy(), most, Overflow::Truncate)?;
    let mut rows: Vec<Encoded> = rows.into_iter().map(|(_, row)| row).collect();
    rows.iter_mut().for_each(Encoded::without_added_end);
    rows.retain(|row| row.supervised() > 0);
    if rows.is_empty() {
        return Err(Error::user(
            format!("no row of `{path}` has a token whose likelihood could be measured"),
            "give rows of at least two tokens, or look at --mask",
        ));
    }
    Ok((rows, report, of))
}

fn nll_cell(subject: Subject, rows: &[Encoded], report: &Report, stage: &str, task: &EvalTask) -> Result<Cell> {
    let sums = row_logp(subject, rows)?;
    let (total, tokens) = sums.iter().fold((0.0, 0.0), |(s, t), (a, b)| (s + a, t + b));
    let nll = -total / tokens;
    // Linearised ratio: the items' mean is the NLL itself, and their spread is that of a mean over tokens.
    let scale = sums.len() as f64 / tokens;
    let items = sums.iter().map(|(s, t)| (nll + (-s - nll * t) * scale) as f32).collect();
    let mut cell = empty(stage, task, items);
    cell.nll = Some(nll);
    cell.tokens = Some(tokens);
    interval(&mut cell, false)?;
    cell.truncated = Some(report.truncated as f64 / report.kept.max(1) as f64);
    cell.dropped = report.dropped.iter().map(|(cause, d)| (cause.clone(), d.count)).collect();
    Ok(cell)
}
