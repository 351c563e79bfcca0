//! A sequence that grows: tokens with their authors, and the key/value cache behind them.

use crate::error::{Error, Result};
use crate::model::{Attend, Model};
use serde::{Deserialize, Serialize};
use temper_tensor::{CacheSlot, HeadSpec, KvCache, Ops, Tape};

/// Who wrote a token. Only the model's own tokens are ever trained on by reinforcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Author {
    /// Instructions and templates.
    System,
    /// The user, or a task's prompt.
    User,
    /// Sampled from the model.
    Model,
    /// Written by another model or taken from a demonstration.
    Teacher,
    /// A tool's or an environment's answer.
    Environment,
}

/// One sequence of tokens and what has been computed of it. A fork is cheap: full pages of the cache are shared.
///
/// The cache holds what the weights said when it was filled. After the weights change, call [`Session::forget`].
#[derive(Debug, Clone)]
pub struct Session {
    tokens: Vec<u32>,
    authors: Vec<Author>,
    logp_gen: Vec<f32>,
    drawn: usize,
    cache: KvCache,
    /// Hidden row of the last token, once the cache holds all tokens.
    last: Option<Vec<f32>>,
}

impl Session {
    /// An empty session for `model`.
    pub fn new(model: &Model) -> Self {
        let cache = model.new_cache();
        Self { tokens: Vec::new(), authors: Vec::new(), logp_gen: Vec::new(), drawn: 0, cache, last: None }
    }

    /// Appends tokens that were not sampled here. Nothing is computed yet.
    pub fn push(&mut self, tokens: &[u32], author: Author) {
        for &token in tokens {
            self.append(token, author, 0.0);
        }
    }

    /// A second session with the same past.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.clone()
    }

    /// Drops what has been computed; it is computed again when it is needed.
    pub fn forget(&mut self) {
        self.cache.truncate(0);
        self.last = None;
    }

    /// The tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Who wrote each token.
    pub fn authors(&self) -> &[Author] {
        &self.authors
    }

    /// Log-probability of each token as it was sampled; 0 where it was not.
    pub fn logp_gen(&self) -> &[f32] {
        &self.logp_gen
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Number of tokens that were sampled here; the next draw's index in the sequence's random numbers.
    pub fn drawn(&self) -> usize {
        self.drawn
    }

    /// Number of tokens whose keys and values are computed.
    pub fn cached(&self) -> usize {
        self.cache.len()
    }

    /// Log-probabilities of `tokens` as the continuation of this session, which does not grow by them. Computes the
    /// session's own tokens first where that has not happened.
    pub fn score(&mut self, ops: &dyn Ops, model: &Model, tokens: &[u32], temperature: f32) -> Result<Vec<f32>> {
        model.check_ids(tokens)?;
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        self.check(model)?;
        model.check_length("a session with the tokens to score", self.len() + tokens.len() - 1)?;
        while let pending @ 1.. = self.pending() {
            advance(ops, model, &mut [(self, pending.min(PREFILL_ROWS))])?;
        }
        let spec = HeadSpec { temperature, ..HeadSpec::default() };
        let weight = model.params.matrix("head", model.head())?;
        let tape = Tape::new(ops, &model.params, false);
        let first = self.last.clone().unwrap_or_default();
        let mut rows = tape.input(ops.upload(1, first.len(), &first)?, false);
        if let [body @ .., _] = tokens
            && !body.is_empty()
        {
            let mut cache = self.cache.clone();
            let mut slots = [CacheSlot { cache: &mut cache, rows: 0..body.len() }];
            let more = model.hidden(&tape, body, Attend::Cache(&mut slots), false)?;
            rows = tape.concat_rows(&[&rows, &more])?;
        }
        Ok(ops.head_terms(rows.tensor(), weight, tokens, &spec)?.logp)
    }

    /// Whether this session can be computed by `model` and has something to predict from.
    pub(super) fn check(&self, model: &Model) -> Result<()> {
        let of = |c: &KvCache| {
            let dtype = if c.bf16() { "bf16" } else { "f32" };
            format!("{} layers of {} heads of size {} in {dtype}", c.layers(), c.kv_heads(), c.head_dim())
        };
        let (found, expected) = (of(&self.cache), of(&model.new_cache()));
        if found != expected {
            return Err(Error::OtherModel { found, expected });
        }
        if self.is_empty() {
            return Err(Error::NothingBefore { what: "an empty session" });
        }
        model.check_ids(&self.tokens)
    }

    /// Number of tokens not yet computed.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    /// Takes the hidden row that predicts the next token, if it is computed.
    pub(super) fn ready(&self) -> Option<&[f32]> {
        self.last.as_deref()
    }

    /// Appends a token that was sampled from the row that [`Session::ready`] gave.
    pub(super) fn sampled(&mut self, token: u32, logp: f32) {
        self.append(token, Author::Model, logp);
        self.drawn += 1;
    }

    fn append(&mut self, token: u32, author: Author, logp: f32) {
        self.tokens.push(token);
        self.authors.push(author);
        self.logp_gen.push(logp);
        self.last = None;
    }
}

/// Most rows of one sequence that are computed at a time outside the engine.
const PREFILL_ROWS: usize = 256;

/// Computes the next `rows` pending tokens of each session, all in one batch. How the work is cut changes no bit.
pub(super) fn advance(ops: &dyn Ops, model: &Model, work: &mut [(&mut Session, usize)]) -> Result<()> {
    let before: Vec<usize> = work.iter().map(|(s, _)| s.cache.len()).collect();
    let done = forward(ops, model, work);
    if done.is_err() {
        // Layers may hold different numbers of positions now.
        work.iter_mut().zip(before).for_each(|((s, _), len)| s.cache.truncate(len));
    }
    done
}

fn forward(ops: &dyn Ops, model: &Model, work: &mut [(&mut Session, usize)]) -> Result<()> {
    let (mut ids, mut slots, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mut finished: Vec<&mut Option<Vec<f32>>> = Vec::new();
    for (session, rows) in work.iter_mut() {
        let (at, start) = (session.cache.len(), ids.len());
        ids.extend_from_slice(&session.tokens[at..at + *rows]);
        slots.push(CacheSlot { cache: &mut session.cache, rows: start..ids.len() });
        if at + *rows == session.tokens.len() {
            ends.push(ids.len() as u32 - 1);
            finished.push(&mut session.last);
        }
    }
    let tape = Tape::new(ops, &model.params, false);
    let hidden = model.hidden(&tape, &ids, Attend::Cache(&mut slots), false)?;
    if ends.is_empty() {
        return Ok(());
    }
    let rows = ops.to_host(tape.gather_rows(&hidden, &ends)?.tensor())?;
    finished.into_iter().zip(rows.chunks_exact(model.config.hidden_size)).for_each(|(last, row)| {
        *last = Some(row.to_vec());
    });
    Ok(())
}
