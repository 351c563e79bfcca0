//! Continuous batching: finished sequences leave, waiting ones enter, a shared prompt is computed once.

use super::sampling::{Draw, Sampling, draw, uniform};
use super::session::{Author, Session, advance};
use crate::error::{Error, Result};
use crate::model::Model;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use temper_tensor::{Ops, awake};

/// A prompt to be completed once per seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// One completion for each. A completion depends on the prompt, its seed, the rules and the weights alone.
    pub seeds: Vec<u64>,
}

/// A session to be continued once per seed.
#[derive(Debug, Clone)]
pub struct Turn {
    /// What comes before; at least one token.
    pub session: Session,
    /// One continuation for each.
    pub seeds: Vec<u64>,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// One of `stop_ids`, which is its last token.
    Eos,
    /// The caller's predicate held, whether or not the last token is one of `stop_ids` too.
    StopString,
    /// It has `max_tokens` tokens.
    MaxTokens,
    /// The model's context is full.
    ContextFull,
}

impl Stop {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::StopString => "stop_string",
            Self::MaxTokens => "max_tokens",
            Self::ContextFull => "context_full",
        }
    }

    /// Whether the completion was cut off rather than ended.
    pub fn truncated(self) -> bool {
        matches!(self, Self::MaxTokens | Self::ContextFull)
    }
}

/// What was sampled after one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The tokens, a stop token included.
    pub tokens: Vec<u32>,
    /// Log-probability of each over the whole vocabulary at the sampling temperature (1 if greedy); bitwise what the
    /// trainer's head gives for the same weights.
    pub logp_gen: Vec<f32>,
    /// Entropy (nats) of the distribution that each token was drawn from, before truncating rules.
    pub entropy: Vec<f32>,
    /// Probability that truncating rules cut away at each token; 0 without such rules.
    pub lost_mass: Vec<f32>,
    /// Why it ended.
    pub stop: Stop,
}

/// A completion with the session that holds it.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The session, the completion's tokens included.
    pub session: Session,
    /// The completion.
    pub completion: Completion,
}

/// How far the engine has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Completions that ended.
    pub finished: usize,
    /// Completions asked for.
    pub total: usize,
    /// Tokens sampled so far.
    pub tokens: usize,
}

type Stops<'e> = dyn Fn(&[u32]) -> bool + Sync + 'e;
type Abort<'e> = dyn Fn() -> bool + Sync + 'e;

/// Samples completions, many at a time. The order of work depends on the settings; the results do not.
pub struct Engine<'e> {
    ops: &'e dyn Ops,
    model: &'e Model,
    rules: &'e Sampling,
    max_batch: usize,
    prefill_rows: usize,
    stops: Option<&'e Stops<'e>>,
    abort: Option<&'e Abort<'e>>,
}

impl std::fmt::Debug for Engine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Engine {{ rules: {:?}, max_batch: {}, prefill_rows: {} }}",
            self.rules, self.max_batch, self.prefill_rows
        )
    }
}

impl<'e> Engine<'e> {
    /// An engine for up to 16 sequences at a time, which computes up to 256 prompt tokens between two draws.
    ///
    /// # Errors
    /// Rules out of range.
    pub fn new(ops: &'e dyn Ops, model: &'e Model, rules: &'e Sampling) -> Result<Self> {
        rules.validate()?;
        model.check_ids(&rules.stop_ids)?;
        Ok(Self { ops, model, rules, max_batch: 16, prefill_rows: 256, stops: None, abort: None })
    }

    /// Sequences that are sampled at the same time.
    ///
    /// # Errors
    /// 0.
    pub fn max_batch(mut self, max_batch: usize) -> Result<Self> {
        self.max_batch = at_least_one("max_batch", max_batch)?;
        Ok(self)
    }

    /// Prompt tokens that are computed between two draws of the running sequences.
    ///
    /// # Errors
    /// 0.
    pub fn prefill_rows(mut self, prefill_rows: usize) -> Result<Self> {
        self.prefill_rows = at_least_one("prefill_rows", prefill_rows)?;
        Ok(self)
    }

    /// A predicate over a completion's tokens so far that ends it, for stop strings. It must depend on the tokens alone.
    #[must_use]
    pub fn stops(mut self, stops: &'e Stops<'e>) -> Self {
        self.stops = Some(stops);
        self
    }

    /// Asked between two draws; once it holds, everything sampled so far is thrown away with [`Error::Aborted`].
    #[must_use]
    pub fn abort(mut self, abort: &'e Abort<'e>) -> Self {
        self.abort = Some(abort);
        self
    }

    /// Completes every prompt once per seed. Caches are freed as completions end.
    ///
    /// # Errors
    /// A prompt that is empty, has foreign ids, or fills the context; logits that are not finite.
    pub fn generate(&self, requests: &[Request], progress: &mut dyn FnMut(Progress)) -> Result<Vec<Vec<Completion>>> {
        let turn = |r: &Request| {
            let mut session = Session::new(self.model);
            session.push(&r.prompt, Author::User);
            Turn { session, seeds: r.seeds.clone() }
        };
        let done = Run::new(self, requests.iter().map(turn).collect(), false)?.finish(progress)?;
        Ok(done.into_iter().map(|group| group.into_iter().map(|s| s.completion).collect()).collect())
    }

    /// Continues every session once per seed, and gives the continued sessions back with their caches.
    ///
    /// # Errors
    /// As [`Engine::generate`], and a session of another model.
    pub fn sample(&self, turns: Vec<Turn>, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Vec<Sample>>> {
        Run::new(self, turns, true)?.finish(progress)
    }
}

/// [`Engine::generate`] with the usual settings; `progress` gets the completions that ended and all that were asked for.
///
/// # Errors
/// As [`Engine::new`] and [`Engine::generate`].
pub fn generate(
    ops: &dyn Ops,
    model: &Model,
    requests: &[Request],
    rules: &Sampling,
    max_batch: usize,
    stops: &(dyn Fn(&[u32]) -> bool + Sync),
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Vec<Completion>>> {
    let engine = Engine::new(ops, model, rules)?.max_batch(max_batch)?.stops(stops);
    engine.generate(requests, &mut |p| progress(p.finished, p.total))
}

fn at_least_one(field: &'static str, value: usize) -> Result<usize> {
    let refuse = || Error::Sampling { field, found: "0".into(), expected: "at least 1" };
    if value == 0 { Err(refuse()) } else { Ok(value) }
}

/// One call's work.
struct Run<'r> {
    engine: &'r Engine<'r>,
    keep: bool,
    /// Sequences that have not begun: turn, sample, seed.
    queue: VecDeque<(usize, usize, u64)>,
    /// Sessions that sequences have yet to fork from.
    bases: BTreeMap<usize, Base>,
    slots: Vec<Slot>,
    /// Logits of the present draws.
    logits: Vec<f32>,
    done: Vec<Vec<Option<Sample>>>,
    progress: Progress,
}

/// What the sequences of a turn have in common.
struct Base {
    session: Session,
    /// Sequences that have not forked yet.
    left: usize,
    /// Whether a slot waits for it.
    wanted: bool,
}

/// A place in the batch.
struct Slot {
    turn: usize,
    sample: usize,
    seed: u64,
    /// None while the turn's session is being computed.
    session: Option<Session>,
    completion: Completion,
}

impl<'r> Run<'r> {
    fn new(engine: &'r Engine<'r>, turns: Vec<Turn>, keep: bool) -> Result<Self> {
        let done: Vec<Vec<Option<Sample>>> = turns.iter().map(|t| t.seeds.iter().map(|_| None).collect()).collect();
        let (mut queue, mut bases) = (VecDeque::new(), BTreeMap::new());
        for (t, turn) in turns.into_iter().enumerate() {
            turn.session.check(engine.model)?;
            engine.model.check_length(&format!("prompt {t} with its first sampled token"), turn.session.len() + 1)?;
            queue.extend(turn.seeds.iter().enumerate().map(|(s, &seed)| (t, s, seed)));
            bases.insert(t, Base { session: turn.session, left: turn.seeds.len(), wanted: false });
        }
        let progress = Progress { total: queue.len(), ..Progress::default() };
        Ok(Self { engine, keep, queue, bases, slots: Vec::new(), logits: Vec::new(), done, progress })
    }

    fn finish(mut self, report: &mut dyn FnMut(Progress)) -> Result<Vec<Vec<Sample>>> {
        awake(|| self.work(report))?;
        Ok(self.done.into_iter().map(|group| group.into_iter().flatten().collect()).collect())
    }

    fn work(&mut self, report: &mut dyn FnMut(Progress)) -> Result<()> {
        loop {
            // A slot that becomes free is filled before the next forward pass.
            loop {
                self.admit();
                self.fork();
                if self.draw()? == 0 {
                    break;
                }
            }
            report(self.progress);
            if self.slots.is_empty() {
                return Ok(());
            }
            if self.engine.abort.is_some_and(|abort| abort()) {
                return Err(Error::Aborted);
            }
            self.compute()?;
        }
    }

    /// Fills free slots from the queue.
    fn admit(&mut self) {
        while self.slots.len() < self.engine.max_batch
            && let Some((turn, sample, seed)) = self.queue.pop_front()
        {
            if let Some(base) = self.bases.get_mut(&turn) {
                base.wanted = true;
            }
            self.slots.push(Slot { turn, sample, seed, session: None, completion: Completion::empty() });
        }
    }

    /// Gives waiting slots their session where it is computed; the last one takes it.
    fn fork(&mut self) {
        for slot in self.slots.iter_mut().filter(|s| s.session.is_none()) {
            let Some(base) = self.bases.get_mut(&slot.turn).filter(|b| b.session.ready().is_some()) else { continue };
            base.left -= 1;
            slot.session = if base.left > 0 {
                Some(base.session.fork())
            } else {
                self.bases.remove(&slot.turn).map(|b| b.session)
            };
        }
    }

    /// Draws a token for every sequence whose last row is computed; returns how many ended by it.
    fn draw(&mut self) -> Result<usize> {
        let mut ready: Vec<&mut Slot> = self.slots.iter_mut().filter(|s| s.row().is_some()).collect();
        if ready.is_empty() {
            return Ok(0);
        }
        self.progress.tokens += ready.len();
        let rows: Vec<f32> = ready.iter().filter_map(|s| s.row()).flatten().copied().collect();
        self.engine.logits(&rows, ready.len(), &mut self.logits)?;
        let width = self.engine.model.config.vocab_size;
        ready
            .par_iter_mut()
            .zip(self.logits.par_chunks_exact(width))
            .try_for_each(|(slot, logits)| slot.draw(logits, self.engine.rules))?;
        Ok(self.collect())
    }

    /// Takes the completions that ended out of the batch.
    fn collect(&mut self) -> usize {
        let before = self.slots.len();
        for mut slot in std::mem::take(&mut self.slots) {
            match slot.stop(self.engine) {
                Some(stop) => {
                    slot.completion.stop = stop;
                    let (turn, sample) = (slot.turn, slot.sample);
                    self.done[turn][sample] = slot.into_sample(self.keep);
                }
                None => self.slots.push(slot),
            }
        }
        let finished = before - self.slots.len();
        self.progress.finished += finished;
        finished
    }

    /// One forward pass: a row of every running sequence, and prompts up to the budget.
    fn compute(&mut self) -> Result<()> {
        let mut work: Vec<(&mut Session, usize)> = Vec::new();
        for session in self.slots.iter_mut().filter_map(|s| s.session.as_mut()) {
            let pending = session.pending();
            work.push((session, pending));
        }
        let mut budget = self.engine.prefill_rows;
        for base in self.bases.values_mut().filter(|b| b.wanted) {
            let rows = base.session.pending().min(budget);
            if rows > 0 {
                budget -= rows;
                work.push((&mut base.session, rows));
            }
        }
        advance(self.engine.ops, self.engine.model, &mut work)
    }
}

impl Engine<'_> {
    /// `[n, V]` logits of n hidden rows, on the host.
    fn logits(&self, rows: &[f32], n: usize, out: &mut Vec<f32>) -> Result<()> {
        let hidden = self.ops.upload(n, self.model.config.hidden_size, rows)?;
        let weight = self.model.params.matrix("head", self.model.head())?;
        let logits = self.ops.head_logits(&hidden, weight)?;
        out.resize(n * self.model.config.vocab_size, 0.0);
        Ok(self.ops.download(&logits, out)?)
    }
}

impl Slot {
    /// The hidden row to draw from.
    fn row(&self) -> Option<&[f32]> {
        self.session.as_ref().and_then(Session::ready)
    }

    fn draw(&mut self, logits: &[f32], rules: &Sampling) -> Result<()> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let Some(Draw { token, logp, entropy, lost_mass }) = draw(logits, rules, uniform(self.seed, session.drawn()))
        else {
            let value = logits.iter().copied().find(|l| !l.is_finite()).unwrap_or(f32::NAN);
            return Err(Error::BadLogits { value, position: session.len() });
        };
        session.sampled(token, logp);
        let c = &mut self.completion;
        c.tokens.push(token);
        c.logp_gen.push(logp);
        c.entropy.push(entropy);
        c.lost_mass.push(lost_mass);
        Ok(())
    }

    /// Whether the sequence has ended, and why.
    fn stop(&self, engine: &Engine) -> Option<Stop> {
        let tokens = &self.completion.tokens;
        let last = tokens.last()?;
        if engine.stops.is_some_and(|stops| stops(tokens)) {
            Some(Stop::StopString)
        } else if engine.rules.stop_ids.contains(last) {
            Some(Stop::Eos)
        } else if tokens.len() >= engine.rules.max_tokens {
            Some(Stop::MaxTokens)
        } else if self.session.as_ref().is_some_and(|s| s.len() >= engine.model.config.max_position_embeddings) {
            Some(Stop::ContextFull)
        } else {
            None
        }
    }

    fn into_sample(self, keep: bool) -> Option<Sample> {
        let mut session = self.session?;
        if !keep {
            session.forget();
        }
        Some(Sample { session, completion: self.completion })
    }
}

impl Completion {
    fn empty() -> Self {
        let (tokens, logp_gen, entropy, lost_mass) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // Every slot gets its reason before the completion is given out.
        Self { tokens, logp_gen, entropy, lost_mass, stop: Stop::MaxTokens }
    }
}
