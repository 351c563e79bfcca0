//! The language-model head: log-probabilities, log-sum-exp, entropy and argmax of the scored rows, and their gradient,
//! without ever holding more than a chunk of rows of logits.

use std::ops::Range;

use crate::buf::Buf;
use crate::error::{Error, Result};
use crate::gemm::{linear, linear_dw, linear_dx};
use crate::kernels::math;
use crate::panels::Panels;

/// Floats of logits that are held at one time (32 MiB).
const CHUNK_FLOATS: usize = 8 << 20;

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
}

impl Default for HeadSpec {
    fn default() -> Self {
        Self { temperature: 1.0, targets_per_row: 1, entropy: false, argmax: false }
    }
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
}

/// The loss's derivative with respect to the terms of some rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeadCoef {
    /// With respect to `logp`, same shape.
    pub d_logp: Vec<f32>,
    /// With respect to `entropy`.
    pub d_entropy: Option<Vec<f32>>,
}

/// What one row of logits says about one token. The sampler and the trainer both call [`row_terms`], so their
/// log-probabilities agree bitwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowTerms {
    /// Log-probability of the target.
    pub logp: f32,
    /// Log-sum-exp of the tempered logits.
    pub lse: f32,
    /// Largest tempered logit.
    pub max: f32,
    /// Entropy in nats.
    pub entropy: f32,
    /// Index of the first largest logit.
    pub argmax: u32,
}

/// Normalisation of one row of logits, from which any token's log-probability follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowStats {
    /// Largest tempered logit.
    pub max: f32,
    /// `ln(sum(exp(z - max)))`.
    pub ln_sum: f64,
    /// Entropy in nats.
    pub entropy: f32,
    inv_temperature: f32,
}

impl RowStats {
    /// Log-sum-exp of the tempered logits.
    pub fn lse(&self) -> f32 {
        (f64::from(self.max) + self.ln_sum) as f32
    }

    /// Log-probability of a token of the row, given its logit (before temperature).
    pub fn logp(&self, logit: f32) -> f32 {
        (f64::from(logit * self.inv_temperature) - f64::from(self.max) - self.ln_sum) as f32
    }
}

/// Normalises a row of logits divided by the temperature.
pub fn row_stats(logits: &[f32], inv_temperature: f32) -> RowStats {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, l| m.max(l * inv_temperature));
    let (mut sum, mut weighted) = (0.0_f64, 0.0_f64);
    for l in logits {
        let z = f64::from(l * inv_temperature - max);
        sum += z.exp();
        weighted += if z > -1e3 { z * z.exp() } else { 0.0 };
    }
    let ln_sum = sum.ln();
    RowStats { max, ln_sum, entropy: (ln_sum - weighted / sum) as f32, inv_temperature }
}

/// Log-probability of `target` (below `logits.len()`), log-sum-exp, largest logit, entropy and argmax of one row.
pub fn row_terms(logits: &[f32], target: u32, inv_temperature: f32) -> RowTerms {
    let stats = row_stats(logits, inv_temperature);
    RowTerms {
        logp: stats.logp(logits[target as usize]),
        lse: stats.lse(),
        max: stats.max,
        entropy: stats.entropy,
        argmax: argmax(logits),
    }
}

/// Index of the first largest value; 0 when all are NaN or there are none.
pub fn argmax(row: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, v) in row.iter().enumerate() {
        if *v > best.1 {
            best = (i, *v);
        }
    }
    best.0 as u32
}

/// `[m, V]` logits of `hidden [m, C]`.
pub fn head_logits(hidden: &[f32], m: usize, w: &Panels, logits: &mut [f32]) {
    linear(hidden, m, w, logits, false);
}

/// The terms of all rows; forward only.
pub fn head_terms(hidden: &[f32], m: usize, w: &Panels, targets: &[u32], spec: &HeadSpec) -> Result<HeadTerms> {
    let mut all = HeadTerms::empty(spec);
    for_chunks(hidden, m, w, targets, spec, |_, _, _, _, terms| {
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
    w: &Panels,
    targets: &[u32],
    spec: &HeadSpec,
    coef: &mut dyn FnMut(Range<usize>, &HeadTerms) -> HeadCoef,
    d_hidden: &mut [f32],
    mut dw: Option<&mut Panels>,
) -> Result<HeadTerms> {
    let mut all = HeadTerms::empty(spec);
    let (c, v, per_row) = (w.k(), w.n(), spec.targets_per_row);
    for_chunks(hidden, m, w, targets, spec, |rows, logits, stats, targets, terms| {
        let coef = coef(rows.clone(), &terms);
        check_count("coefficients of logp", coef.d_logp.len(), rows.len() * per_row)?;
        if let Some(d) = &coef.d_entropy {
            check_count("coefficients of entropy", d.len(), rows.len())?;
        }
        for (r, row) in logits.chunks_exact_mut(v).enumerate() {
            let d_entropy = coef.d_entropy.as_ref().map_or(0.0, |d| d[r]);
            let span = r * per_row..(r + 1) * per_row;
            row_gradient(row, &stats[r], &targets[span.clone()], &coef.d_logp[span], d_entropy);
        }
        linear_dx(logits, rows.len(), w, &mut d_hidden[rows.start * c..rows.end * c], false);
        if let Some(dw) = dw.as_deref_mut() {
            linear_dw(logits, &hidden[rows.start * c..rows.end * c], rows.len(), dw);
        }
        all.append(terms);
        Ok(())
    })?;
    Ok(all)
}

/// Replaces a row of logits by the loss's gradient with respect to them.
fn row_gradient(row: &mut [f32], stats: &RowStats, targets: &[u32], d_logp: &[f32], d_entropy: f32) {
    let inv_t = stats.inv_temperature;
    let total: f32 = d_logp.iter().sum();
    let shift = stats.max + stats.ln_sum as f32;
    for l in row.iter_mut() {
        let logp = *l * inv_t - shift;
        let p = math::exp::<true>(logp);
        *l = -inv_t * p * (total + d_entropy * (logp + stats.entropy));
    }
    for (t, d) in targets.iter().zip(d_logp) {
        row[*t as usize] += inv_t * d;
    }
}

impl HeadTerms {
    fn empty(spec: &HeadSpec) -> Self {
        Self { entropy: spec.entropy.then(Vec::new), argmax: spec.argmax.then(Vec::new), ..Self::default() }
    }

    fn append(&mut self, chunk: Self) {
        self.logp.extend(chunk.logp);
        self.lse.extend(chunk.lse);
        if let (Some(all), Some(more)) = (&mut self.entropy, chunk.entropy) {
            all.extend(more);
        }
        if let (Some(all), Some(more)) = (&mut self.argmax, chunk.argmax) {
            all.extend(more);
        }
    }
}

fn check_count(what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::Count { op: "head", what, got, expected }) }
}

fn check(m: usize, w: &Panels, targets: &[u32], spec: &HeadSpec) -> Result<()> {
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

/// Runs `each(rows, logits, row statistics, targets, terms)` for chunks of rows.
fn for_chunks(
    hidden: &[f32],
    m: usize,
    w: &Panels,
    targets: &[u32],
    spec: &HeadSpec,
    mut each: impl FnMut(Range<usize>, &mut [f32], &[RowStats], &[u32], HeadTerms) -> Result<()>,
) -> Result<()> {
    check(m, w, targets, spec)?;
    let (c, v) = (w.k(), w.n());
    let rows = (CHUNK_FLOATS / v.max(1)).clamp(1, m.max(1));
    let mut logits = Buf::dirty(rows * v);
    let inv_t = 1.0 / spec.temperature;
    for start in (0..m).step_by(rows) {
        let range = start..(start + rows).min(m);
        let logits = &mut logits[..range.len() * v];
        head_logits(&hidden[range.start * c..range.end * c], range.len(), w, logits);
        let targets = &targets[range.start * spec.targets_per_row..range.end * spec.targets_per_row];
        let stats: Vec<_> = logits.chunks_exact(v).map(|row| row_stats(row, inv_t)).collect();
        let terms = chunk_terms(logits, v, &stats, targets, spec);
        each(range, logits, &stats, targets, terms)?;
    }
    Ok(())
}

fn chunk_terms(logits: &[f32], v: usize, stats: &[RowStats], targets: &[u32], spec: &HeadSpec) -> HeadTerms {
    let logp = |(i, t): (usize, &u32)| {
        let r = i / spec.targets_per_row;
        stats[r].logp(logits[r * v + *t as usize])
    };
    HeadTerms {
        logp: targets.iter().enumerate().map(logp).collect(),
        lse: stats.iter().map(RowStats::lse).collect(),
        entropy: spec.entropy.then(|| stats.iter().map(|s| s.entropy).collect()),
        argmax: spec.argmax.then(|| logits.chunks_exact(v).map(argmax).collect()),
    }
}
