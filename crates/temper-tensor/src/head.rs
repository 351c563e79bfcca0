//! The language-model head: log-probabilities, log-sum-exp, entropy and argmax of the scored rows, and their gradient,
//! without ever holding more than a chunk of rows of logits.

mod row;

#[cfg(test)]
mod tests;

use std::ops::Range;

use rayon::prelude::*;

use crate::buf::{self, Buf};
use crate::error::{Error, Result};
use crate::gemm;
use crate::kernels::par;
use crate::kernels::reduce::argmax;
use crate::panels::Panels;
use crate::weight::Weight;

pub use row::{RowStats, RowTerms, row_stats, row_terms};

/// Floats of logits that are held at one time (32 MiB).
pub(crate) const CHUNK_FLOATS: usize = 8 << 20;

/// Logits that are worth a task of their own.
const TASK: usize = 1 << 14;

/// What is asked of the head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadSpec {
    /// Logits are divided by this (positive, finite) before everything else.
    pub temperature: f32,
    /// Targets per row; `targets` then holds `[M, targets_per_row]` ids.
    pub targets_per_row: usize,
    /// Whether the entropy (nats) is wanted.
    pub entropy: bool,
    /// Whether the most likely token is wanted.
    pub argmax: bool,
    /// Whether the mean log-probability of the vocabulary is wanted: one more pass over a row's logits, while they are in
    /// the cache, and another in backward where its coefficient is not 0.
    pub mean_logp: bool,
}

impl Default for HeadSpec {
    fn default() -> Self {
        Self { temperature: 1.0, targets_per_row: 1, entropy: false, argmax: false, mean_logp: false }
    }
}

/// What another model makes of the same scored rows, its hidden rows and its head: the KL over the vocabulary compares with it.
#[derive(Debug, Clone, Copy)]
pub struct OtherHead<'a> {
    /// Hidden rows `[M, C']`.
    pub hidden: &'a [f32],
    /// The head `[V, C']`.
    pub w: &'a Weight,
}

/// Values of M scored rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeadTerms {
    /// Log-probability of each target, `[M, targets_per_row]`.
    pub logp: Vec<f32>,
    /// Log-sum-exp of the tempered logits, `[M]`.
    pub lse: Vec<f32>,
    /// Entropy in nats, `[M]`.
    pub entropy: Option<Vec<f32>>,
    /// First of the most likely tokens, `[M]`.
    pub argmax: Option<Vec<u32>>,
    /// Mean of the log-probabilities of all V tokens, `[M]`.
    pub mean_logp: Option<Vec<f32>>,
    /// KL(other || this) over the vocabulary in nats, `[M]`; there with another head only.
    pub kl: Option<Vec<f32>>,
    /// Log-probability of each target under the other head, shaped as `logp`; there with another head only.
    pub logp_other: Option<Vec<f32>>,
}

/// The loss's derivative with respect to the terms of some rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeadCoef {
    /// With respect to `logp`, same shape.
    pub d_logp: Vec<f32>,
    /// With respect to `entropy`.
    pub d_entropy: Option<Vec<f32>>,
    /// With respect to `mean_logp`.
    pub d_mean_logp: Option<Vec<f32>>,
    /// With respect to `kl`.
    pub d_kl: Option<Vec<f32>>,
}

/// `[m, V]` logits of `hidden [m, C]`.
pub fn head_logits(hidden: &[f32], m: usize, w: &Weight, logits: &mut [f32]) {
    w.linear(hidden, m, logits, false);
}

/// The terms of all rows; forward only.
pub fn head_terms(
    hidden: &[f32],
    m: usize,
    w: &Weight,
    targets: &[u32],
    spec: &HeadSpec,
    other: Option<OtherHead>,
) -> Result<HeadTerms> {
    let mut all = HeadTerms::empty(spec, other.is_some());
    for_chunks(hidden, m, w, targets, spec, other, |_, _, terms| {
        all.append(terms);
        Ok(())
    })?;
    Ok(all)
}

/// The terms of all rows and the gradient. For each chunk of rows, `coef` gets the chunk's range of rows and its terms
/// alone and returns the loss's derivatives for them. `d_hidden [m, C]` is overwritten, `dw` added to.
pub fn head_backward(
    hidden: &[f32],
    m: usize,
    w: &Weight,
    targets: &[u32],
    spec: &HeadSpec,
    other: Option<OtherHead>,
    coef: &mut dyn FnMut(Range<usize>, &HeadTerms) -> HeadCoef,
    d_hidden: &mut [f32],
    mut dw: Option<&mut Panels>,
) -> Result<HeadTerms> {
    let mut all = HeadTerms::empty(spec, other.is_some());
    let (c, v, per_row) = (w.k(), w.n(), spec.targets_per_row);
    w.not_quantised("head_backward")?;
    check_count("values of d_hidden", d_hidden.len(), m * c)?;
    for_chunks(hidden, m, w, targets, spec, other, |rows, chunk, terms| {
        let Chunk { logits, stats, targets, other } = chunk;
        let coef = coef(rows.clone(), &terms);
        check_count("coefficients of logp", coef.d_logp.len(), rows.len() * per_row)?;
        for (what, d) in [
            ("coefficients of entropy", &coef.d_entropy),
            ("coefficients of mean_logp", &coef.d_mean_logp),
            ("coefficients of kl", &coef.d_kl),
        ] {
            if let Some(d) = d {
                check_count(what, d.len(), rows.len())?;
            }
        }
        par::rows1(rows.len(), (logits, v), |part, logits| {
            for (r, row) in part.zip(logits.chunks_exact_mut(v)) {
                let of = |d: &Option<Vec<f32>>| d.as_ref().map_or(0.0, |d| d[r]);
                let (d_entropy, d_mean, d_kl) = (of(&coef.d_entropy), of(&coef.d_mean_logp), of(&coef.d_kl));
                let span = r * per_row..(r + 1) * per_row;
                stats[r].gradient(row, &targets[span.clone()], &coef.d_logp[span], d_entropy, d_mean, d_kl);
                if let Some((logits, stats)) = other.filter(|_| d_kl != 0.0) {
                    stats[r].take_off(&logits[r * v..(r + 1) * v], d_kl, row);
                }
            }
        });
        w.linear_dx(&*logits, rows.len(), &mut d_hidden[rows.start * c..rows.end * c], false)?;
        if let Some(dw) = dw.as_deref_mut() {
            w.linear_dw(logits, &hidden[rows.start * c..rows.end * c], rows.len(), dw)?;
        }
        all.append(terms);
        Ok(())
    })?;
    Ok(all)
}

impl HeadTerms {
    fn empty(spec: &HeadSpec, other: bool) -> Self {
        Self {
            entropy: spec.entropy.then(Vec::new),
            argmax: spec.argmax.then(Vec::new),
            mean_logp: spec.mean_logp.then(Vec::new),
            kl: other.then(Vec::new),
            logp_other: other.then(Vec::new),
            ..Self::default()
        }
    }

    fn append(&mut self, chunk: Self) {
        self.logp.extend(chunk.logp);
        self.lse.extend(chunk.lse);
        for (all, more) in [
            (&mut self.entropy, chunk.entropy),
            (&mut self.mean_logp, chunk.mean_logp),
            (&mut self.kl, chunk.kl),
            (&mut self.logp_other, chunk.logp_other),
        ] {
            if let (Some(all), Some(more)) = (all, more) {
                all.extend(more);
            }
        }
        if let (Some(all), Some(more)) = (&mut self.argmax, chunk.argmax) {
            all.extend(more);
        }
    }
}

fn check_count(what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::Count { op: "head", what, got, expected }) }
}

fn check(hidden: &[f32], m: usize, w: &Weight, targets: &[u32], spec: &HeadSpec) -> Result<()> {
    if w.n() == 0 {
        return Err(Error::Value { op: "head", what: "vocabulary", got: "0".into(), expected: "at least 1 token" });
    }
    check_count("values of hidden", hidden.len(), m * w.k())?;
    let t = spec.temperature;
    if !(t > 0.0 && t.is_finite()) {
        let expected = "a positive finite number";
        return Err(Error::Value { op: "head", what: "temperature", got: t.to_string(), expected });
    }
    check_count("targets", targets.len(), m * spec.targets_per_row)?;
    match targets.iter().find(|t| **t as usize >= w.n()) {
        Some(t) => Err(Error::Index { op: "head", index: *t as usize, len: w.n() }),
        None => Ok(()),
    }
}

/// Some rows' logits, their normalisation and their targets, and what the other model says of the same rows.
struct Chunk<'a> {
    logits: &'a mut [f32],
    stats: &'a [RowStats],
    targets: &'a [u32],
    other: Option<(&'a [f32], &'a [RowStats])>,
}

/// Runs `each(rows, chunk, terms)` for chunks of rows.
fn for_chunks(
    hidden: &[f32],
    m: usize,
    w: &Weight,
    targets: &[u32],
    spec: &HeadSpec,
    other: Option<OtherHead>,
    mut each: impl FnMut(Range<usize>, Chunk, HeadTerms) -> Result<()>,
) -> Result<()> {
    check(hidden, m, w, targets, spec)?;
    if let Some(other) = &other {
        check_count("values of the other hidden", other.hidden.len(), m * other.w.k())?;
        check_count("tokens of the other head", other.w.n(), w.n())?;
    }
    let (v, per_row) = (w.n(), spec.targets_per_row);
    let rows = gemm::even_rows(m, (CHUNK_FLOATS / v).max(1));
    // One size of block for every chunk, however many rows there are.
    let most = (CHUNK_FLOATS / v).max(1).min(buf::room(m));
    let block = || Buf::dirty_in(rows.min(m) * v, most * v);
    let (mut logits, mut others) = (block(), other.map(|_| block()));
    for start in (0..m).step_by(rows.max(1)) {
        let range = start..(start + rows).min(m);
        let n = range.len() * v;
        let part = |hidden: &[f32], w: &Weight, logits: &mut [f32]| {
            head_logits(&hidden[range.start * w.k()..range.end * w.k()], range.len(), w, logits);
            all_stats(logits, v, 1.0 / spec.temperature)
        };
        let stats = part(hidden, w, &mut logits[..n]);
        let of_other = other.zip(others.as_mut()).map(|(other, logits)| {
            let stats = part(other.hidden, other.w, &mut logits[..n]);
            (&logits[..n], stats)
        });
        let other = of_other.as_ref().map(|(logits, stats)| (*logits, stats.as_slice()));
        let (logits, targets) = (&mut logits[..n], &targets[range.start * per_row..range.end * per_row]);
        let terms = chunk_terms(logits, v, &stats, targets, spec, other);
        each(range, Chunk { logits, stats: &stats, targets, other }, terms)?;
    }
    Ok(())
}

fn all_stats(logits: &[f32], v: usize, inv_temperature: f32) -> Vec<RowStats> {
    let stats = |row: &[f32]| row_stats(row, inv_temperature);
    if logits.len() <= v.max(TASK) {
        return logits.chunks_exact(v).map(stats).collect();
    }
    logits.par_chunks_exact(v).with_min_len(TASK.div_ceil(v)).map(stats).collect()
}

fn chunk_terms(
    logits: &[f32],
    v: usize,
    stats: &[RowStats],
    targets: &[u32],
    spec: &HeadSpec,
    other: Option<(&[f32], &[RowStats])>,
) -> HeadTerms {
    let logp = |(logits, stats): (&[f32], &[RowStats])| {
        let of = |(i, t): (usize, &u32)| {
            let r = i / spec.targets_per_row;
            stats[r].logp(logits[r * v + *t as usize])
        };
        targets.iter().enumerate().map(of).collect()
    };
    let rows = || logits.par_chunks_exact(v).with_min_len(TASK.div_ceil(v));
    let means = || rows().zip(stats).map(|(row, stats)| stats.mean_logp(row)).collect();
    let most_likely = || rows().map(argmax).collect();
    let divergences = |(others, of): (&[f32], &[RowStats])| {
        let row = |r: usize| of[r].kl(&others[r * v..(r + 1) * v], &stats[r], &logits[r * v..(r + 1) * v]);
        (0..stats.len()).into_par_iter().with_min_len(TASK.div_ceil(v)).map(row).collect()
    };
    HeadTerms {
        logp: logp((logits, stats)),
        lse: stats.iter().map(RowStats::lse).collect(),
        entropy: spec.entropy.then(|| stats.iter().map(|s| s.entropy).collect()),
        argmax: spec.argmax.then(most_likely),
        mean_logp: spec.mean_logp.then(means),
        kl: other.map(divergences),
        logp_other: other.map(logp),
    }
}
