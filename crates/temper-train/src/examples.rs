//! From a recipe's data sources to token rows with loss weights.

use std::path::Path;

use temper_algo::split_seed;
use temper_data::{
    Cause, Encoded, EpochSampler, Example, Format, Kind, Message, MixtureSampler, Payload, Report, Tokenizer, encode,
    encode_all, load,
};
use temper_env::Task;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::hub;
use crate::recipe::{Batch, DataSource, OfflineStage, Stream};
use crate::transform::{Asked, Transform, copied_spans};

/// The training rows of an offline stage.
#[derive(Debug)]
pub struct Rows {
    /// Rows of all sources, one source after the other.
    pub rows: Vec<(String, Encoded)>,
    /// Number of rows of each source.
    pub sizes: Vec<usize>,
    /// Share of each source, where they have one.
    pub shares: Option<Vec<f64>>,
    /// What was read, kept, dropped and truncated, a source at a time.
    pub reports: Vec<Report>,
}

impl Rows {
    /// Tokens of the longest row, and of all of them.
    pub fn tokens(&self) -> (usize, usize) {
        let lengths = || self.rows.iter().map(|(_, row)| row.ids.len());
        (lengths().max().unwrap_or(0), lengths().sum())
    }

    /// The rows of the next step. With a token budget, the row that no longer fits waits for the next step.
    pub fn draw(&self, batch: &Batch, order: &mut Order, waiting: &mut Option<usize>) -> Vec<usize> {
        if let Some(examples) = batch.examples {
            return (0..examples).map(|_| order.draw(&self.sizes)).collect();
        }
        let budget = batch.tokens.unwrap_or(1);
        let (mut picked, mut tokens) = (vec![], 0);
        loop {
            let row = waiting.take().unwrap_or_else(|| order.draw(&self.sizes));
            tokens += self.rows[row].1.ids.len();
            if tokens > budget && !picked.is_empty() {
                *waiting = Some(row);
                return picked;
            }
            picked.push(row);
        }
    }

    /// A digest of every row: its id, tokens and weights.
    pub fn digest(&self) -> u64 {
        let mut digest = Digest::default();
        for (id, row) in &self.rows {
            digest.bytes(id.as_bytes());
            digest.word(row.ids.len() as u64);
            row.ids.iter().for_each(|&id| digest.word(u64::from(id)));
            row.weights.iter().for_each(|&w| digest.word(u64::from(w.to_bits())));
        }
        digest.value()
    }
}

/// Which row comes next: shuffled passes over all rows, or draws from the sources by their shares.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Every row once a pass.
    Epochs(EpochSampler),
    /// By share, each source in shuffled passes of its own.
    Mixture(MixtureSampler),
}

impl Order {
    /// A new order over `rows`.
    pub fn new(rows: &Rows, seed: u64) -> Result<Self> {
        Ok(match &rows.shares {
            None => Self::Epochs(EpochSampler::new(seed, rows.rows.len())?),
            Some(shares) => {
                let sources: Vec<(f64, usize)> = shares.iter().copied().zip(rows.sizes.iter().copied()).collect();
                Self::Mixture(MixtureSampler::new(seed, &sources)?)
            }
        })
    }

    /// The next row.
    pub fn draw(&mut self, sizes: &[usize]) -> usize {
        match self {
            Self::Epochs(s) => s.next(1)[0],
            Self::Mixture(s) => {
                let (source, row) = s.next(1)[0];
                sizes[..source].iter().sum::<usize>() + row
            }
        }
    }
}

/// The examples of one source, untokenised.
pub fn examples(source: &DataSource, seed: u64) -> Result<Vec<Example>> {
    match source {
        DataSource::File { path, prompt, answer, n, start, .. } => {
            let path = hub::local(path)?;
            let kind = if prompt.is_some() { Kind::Task } else { Kind::Auto };
            let (prompt_column, answer_column) = (prompt.clone(), answer.clone());
            let (examples, _) = load(&path, &Format { kind, prompt_column, answer_column, ..Format::default() })?;
            let end = n.map_or(examples.len(), |n| start.saturating_add(n));
            if *start >= examples.len() || end > examples.len() {
                return Err(Error::user(
                    format!("`{}` has {} rows, rows {start} to {end} were asked for", path.display(), examples.len()),
                    "lower `start` or `n`",
                ));
            }
            Ok(examples.into_iter().skip(*start).take(end - start).collect())
        }
        DataSource::Tasks { tasks, n, .. } => {
            let set = hub::local_tasks(tasks)?.open(seed)?;
            if set.len().is_some_and(|len| len < *n) {
                return Err(Error::user(
                    format!("`{}` has {} tasks, {n} were asked for", set.name(), set.len().unwrap_or(0)),
                    "lower `n`",
                ));
            }
            (0..*n).map(|i| demonstration(set.get(i as u64)?)).collect()
        }
    }
}

/// The texts of an example: what a tokenizer is trained on.
pub fn texts(example: &Example) -> Vec<String> {
    match &example.payload {
        Payload::Chat(conversation) => conversation.messages.iter().map(|m| m.content.clone()).collect(),
        Payload::Text(text) => vec![text.clone()],
        Payload::PromptCompletion { prompt, completion } => vec![format!("{prompt}{completion}")],
        Payload::Task { prompt, answer, .. } => {
            prompt.iter().map(|m| m.content.clone()).chain([answer.clone()]).collect()
        }
    }
}

fn demonstration(task: Task) -> Result<Example> {
    let text = task.demonstration.ok_or_else(|| {
        Error::user(
            format!("task `{}` has no worked solution to train on", task.id),
            "use it as an evaluation or RL task",
        )
    })?;
    let mut messages = task.prompt;
    messages.push(Message::assistant(text));
    Ok(Example { id: task.id, payload: Payload::Chat(messages.into()), tags: task.tags })
}

/// All rows of an offline stage, tokenised; sources without a single supervised token are an error.
///
/// `context` is the model's longest sequence: no row is longer, whatever the stage says.
/// `asked` is the model that the stage starts from; without one, transforms that ask it change nothing.
pub fn prepare(
    stage: &OfflineStage,
    tokenizer: &Tokenizer,
    context: usize,
    asked: Option<Asked>,
    seed: u64,
) -> Result<Rows> {
    let (mask, overflow) = (stage.mask.policy(), stage.overflow.rule());
    let rows = |index: usize, examples: Vec<Example>| {
        let examples = changed(stage, examples, tokenizer, asked, split_seed(seed, &[TRANSFORM, index as u64]))?;
        let (mut rows, mut report) = encode_all(tokenizer, &examples, mask, stage.max_tokens.min(context), overflow)?;
        for transform in &stage.transform {
            if let Transform::CopiedSpans { min_tokens } = transform {
                copied_spans(&mut rows, &mut report, *min_tokens);
            }
        }
        if rows.is_empty() {
            return Err(Error::user(
                format!("no row of source {} is left to train on: {report}", index + 1),
                "lower `min_tokens` of `copied_spans`, or use other data",
            ));
        }
        weigh_prompts(&mut rows, stage.prompt_weight);
        Ok((rows, report))
    };
    collect(&stage.data, seed, rows)
}

/// All rows of a stream that has data of its own, tokenised. `context` is the model's longest sequence.
pub fn of_stream(stream: &Stream, tokenizer: &Tokenizer, context: usize, seed: u64) -> Result<Rows> {
    collect(&stream.data, seed, |_, examples| {
        let most = stream.max_tokens.min(context);
        let (mut rows, report) = encode_all(tokenizer, &examples, stream.mask.policy(), most, stream.overflow.rule())?;
        weigh_prompts(&mut rows, stream.prompt_weight);
        Ok((rows, report))
    })
}

/// What the model would have to write to show a task's solution, or its answer where it has none, as a row of the stream.
///
/// # Errors
/// Why it makes no row.
pub fn shown(stream: &Stream, task: &Task, tokenizer: &Tokenizer, context: usize) -> Result<(String, Encoded), Cause> {
    let mut messages = task.prompt.clone();
    messages.push(Message::assistant(task.demonstration.as_ref().unwrap_or(&task.answer)));
    let example = Example { id: task.id.clone(), payload: Payload::Chat(messages.into()), tags: vec![] };
    let most = stream.max_tokens.min(context);
    let row = encode(tokenizer, &example, stream.mask.policy(), most, stream.overflow.rule())?;
    let mut rows = [(example.id, row)];
    weigh_prompts(&mut rows, stream.prompt_weight);
    let [row] = rows;
    Ok(row)
}

/// The rows of every source.
fn collect(
    data: &[DataSource],
    seed: u64,
    rows: impl Fn(usize, Vec<Example>) -> Result<(Vec<(String, Encoded)>, Report)>,
) -> Result<Rows> {
    let mut all = Rows { rows: vec![], sizes: vec![], shares: None, reports: vec![] };
    for (index, source) in data.iter().enumerate() {
        let (rows, report) = rows(index, examples(source, split_seed(seed, &[index as u64]))?)?;
        all.sizes.push(rows.len());
        all.rows.extend(rows);
        all.reports.push(report);
    }
    let shares: Vec<f64> = data.iter().filter_map(DataSource::share).collect();
    all.shares = (!shares.is_empty()).then_some(shares);
    Ok(all)
}

/// Branch of a stage's seed.
const TRANSFORM: u64 = 5;

/// The examples after every transform.
fn changed(
    stage: &OfflineStage,
    mut examples: Vec<Example>,
    tokenizer: &Tokenizer,
    asked: Option<Asked>,
    seed: u64,
) -> Result<Vec<Example>> {
    for (i, transform) in stage.transform.iter().enumerate() {
        examples = transform.apply(examples, tokenizer, asked, split_seed(seed, &[i as u64]))?;
    }
    Ok(examples)
}

/// Gives the unsupervised tokens (the first one of a row apart, which nothing predicts) a weight.
fn weigh_prompts(rows: &mut [(String, Encoded)], weight: f32) {
    let unsupervised = rows.iter_mut().flat_map(|(_, row)| row.weights.iter_mut().skip(1)).filter(|w| **w == 0.0);
    unsupervised.for_each(|w| *w = weight);
}

/// A sentence for each thing that a person should know about what was read.
pub fn notes(data: &[DataSource], rows: &Rows) -> Vec<String> {
    let name = |i: usize| match &data[i] {
        DataSource::File { path, .. } => {
            Path::new(path).file_name().map_or(path.clone(), |f| f.to_string_lossy().into())
        }
        DataSource::Tasks { .. } => "tasks".to_string(),
    };
    rows.reports.iter().enumerate().map(|(i, report)| format!("{}: {report}", name(i))).collect()
}
