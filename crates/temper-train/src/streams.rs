//! Streams in training: further losses, on rows of their own, in the optimiser steps of either loop.
//!
//! A stream's weights are made for the whole optimiser step from its own rows and multiplied by its coefficient; its gradient is
//! added to what the stage's own loss has put there, before the one norm, the one clip and the one update.

use temper_algo::stats::Running;
use temper_algo::{Needs, split_seed};
use temper_data::{Cause, Encoded};

use crate::adapter::Reference;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::examples::{self, Order, Rows};
use crate::learner::Learner;
use crate::metrics::{self as names, Metrics};
use crate::recipe::{Overflow, Stream};
use crate::rollout::Group;
use crate::state::Progress;
use crate::supervised::{Settings, Step};

/// Branch of a stage's seed, and of a stream's own.
const STREAM: u64 = 11;
const ORDER: u64 = 1;

/// The seed of a stage's stream number `k`.
pub(crate) fn seed(stage: u64, k: usize) -> u64 {
    split_seed(stage, &[STREAM, k as u64])
}

/// A tokenised example with its id.
type Row = (String, Encoded);

/// The rows of a stage's streams, in their order; nothing for those that show the round's tasks.
pub(crate) struct Streams(Vec<Option<Rows>>);

/// What a stream that shows the round's tasks trains on in one optimiser step.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a> {
    pub rows: &'a [Row],
    /// Their number over that of the step's tasks.
    pub share: f64,
}

impl Streams {
    /// Reads the data, and compares it with what a resumed stage began with.
    pub(crate) fn open(
        ctx: &mut Context,
        stage: &str,
        streams: &[Stream],
        context: usize,
        progress: &mut Progress,
    ) -> Result<Self> {
        let (seed, begun) = (ctx.stage_seed(stage), progress.step > 0);
        progress.streams.resize_with(streams.len(), Default::default);
        let mut all = vec![];
        for (k, (stream, cursor)) in streams.iter().zip(&mut progress.streams).enumerate() {
            if stream.demonstrations.is_some() {
                all.push(None);
                continue;
            }
            let seed = self::seed(seed, k);
            let rows = examples::of_stream(stream, ctx.tokenizer()?, context, seed)?;
            for note in examples::notes(&stream.data, &rows) {
                ctx.data_note(stage, &format!("stream `{}`: {note}", stream.id));
            }
            cursor.data.same(
                &format!("stream `{}` of stage `{stage}`", stream.id),
                begun,
                &rows.sizes,
                rows.digest(),
            )?;
            if cursor.order.is_none() {
                cursor.order = Some(Order::new(&rows, split_seed(seed, &[ORDER]))?);
            }
            all.push(Some(rows));
        }
        Ok(Self(all))
    }

    /// Tokens of each stream's longest row, and of all its rows; of demonstrations the most that they can have.
    pub(crate) fn tokens(&self, streams: &[Stream], context: usize) -> Vec<(usize, usize)> {
        self.0.iter().zip(streams).map(|(rows, s)| rows.as_ref().map_or(s.bound(context), Rows::tokens)).collect()
    }

    /// Adds the gradients of one optimiser step. `streams` are the settings as they are now, `shown` what those train on that show the
    /// round's tasks.
    pub(crate) fn step(
        &self,
        streams: &[Stream],
        shown: &[Shown],
        settings: Settings,
        learner: &mut Learner,
        reference: Option<&Reference>,
        progress: &mut Progress,
    ) -> Result<Beside> {
        let mut done = Beside::default();
        for (k, (stream, cursor)) in streams.iter().zip(&mut progress.streams).enumerate() {
            let (rows, share): (Vec<&Row>, f64) = match (&self.0[k], &mut cursor.order, stream.batch) {
                (Some(rows), Some(order), Some(batch)) => {
                    let picked = rows.draw(&batch, order, &mut cursor.waiting);
                    (picked.into_iter().map(|i| &rows.rows[i]).collect(), 1.0)
                }
                _ => shown.get(k).map_or((vec![], 1.0), |s| (s.rows.iter().collect(), s.share)),
            };
            let coefficient = stream.weight * share;
            if rows.is_empty() || coefficient == 0.0 {
                continue;
            }
            let loss = stream.loss();
            let step = Step {
                settings: Settings { seed: seed(settings.seed, k), ..settings },
                reference: reference.filter(|_| loss.needs().contains(Needs::LOGP_REF)),
                loss: &loss,
                weighting: stream.weighting,
                coefficient,
                input: None,
                rows: &rows,
            };
            let sums = step.run(learner, None)?;
            done.parts.push(Part {
                id: stream.id.clone(),
                weighted: sums.loss,
                own: Running::from_iter([sums.loss / stream.weight]),
                nll: sums.nll.into_iter().collect(),
                tokens: sums.tokens,
            });
        }
        Ok(done)
    }
}

/// The rows of every stream that shows the round's tasks: the demonstrations of those that it asks for, in the order of the round.
pub(crate) fn shown(
    ctx: &mut Context,
    streams: &[Stream],
    groups: &[&Group],
    context: usize,
    progress: &mut Progress,
) -> Result<Vec<Vec<Row>>> {
    let mut all = vec![];
    for (stream, cursor) in streams.iter().zip(&mut progress.streams) {
        let mut rows = vec![];
        for group in groups.iter().filter(|g| stream.demonstrations.is_some_and(|d| d.applies(&g.rewards()))) {
            match examples::shown(stream, &group.task, ctx.tokenizer()?, context) {
                Ok(row) => rows.push(row),
                Err(cause @ Cause::TooLong { .. }) if stream.overflow != Overflow::Error => {
                    cursor.left_out += 1;
                    if cursor.left_out.is_power_of_two() {
                        let (id, n) = (&group.task.id, cursor.left_out);
                        ctx.note(&format!("stream `{}`: task `{id}`: {cause}; left out ({n} so far)", stream.id));
                    }
                }
                Err(cause) => {
                    return Err(Error::user(
                        format!(
                            "stream `{}`: the demonstration of task `{}` makes no row: {cause}",
                            stream.id, group.task.id
                        ),
                        "use tasks whose solutions the chat template can write",
                    ));
                }
            }
        }
        all.push(rows);
    }
    Ok(all)
}

/// What the streams of one or several optimiser steps added up to.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    id: String,
    weighted: f64,
    /// Losses of the steps before the coefficient.
    own: Running,
    /// Of the steps' examples.
    nll: Running,
    tokens: u64,
}

impl Beside {
    /// Their part of the loss, all steps together.
    pub(crate) fn loss(&self) -> f64 {
        self.parts.iter().map(|p| p.weighted).sum()
    }

    /// Tokens computed.
    pub(crate) fn tokens(&self) -> u64 {
        self.parts.iter().map(|p| p.tokens).sum()
    }

    /// Whether nothing was trained on.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Takes another step's in.
    pub(crate) fn add(&mut self, step: Self) {
        for part in step.parts {
            match self.parts.iter_mut().find(|p| p.id == part.id) {
                None => self.parts.push(part),
                Some(sum) => {
                    sum.weighted += part.weighted;
                    sum.own = sum.own.merge(part.own);
                    sum.nll = sum.nll.merge(part.nll);
                    sum.tokens += part.tokens;
                }
            }
        }
    }

    /// The streams' own numbers; those that trained on nothing have none.
    pub(crate) fn write(&self, metrics: &mut Metrics) {
        for part in &self.parts {
            metrics.set(names::stream(&part.id, names::STREAM_LOSS), part.own.mean().unwrap_or(0.0));
            metrics.set(names::stream(&part.id, names::STREAM_NLL), part.nll.mean().unwrap_or(0.0));
            metrics.set(names::stream(&part.id, names::STREAM_EXAMPLES), part.nll.count() as f64);
        }
    }
}
