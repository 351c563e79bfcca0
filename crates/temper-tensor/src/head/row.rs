//! One row of logits: its normalisation, what it says about a token, and its gradient.
#![allow(clippy::inline_always)] // bodies are compiled into each instruction-set level's function

use crate::isa::{mul_add, multiversion};
use crate::kernels::math::{exp, ln_f64};
use crate::kernels::reduce::{argmax, lane_max, tree};
use crate::panels::LANES;

/// Values that are summed in f32 before the sum goes on in f64.
const BLOCK: usize = 64 * LANES;

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

/// Normalisation of one row of logits, from which any token's log-probability follows. With z the logits times the
/// inverse temperature:
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowStats {
    /// Largest z.
    pub max: f32,
    /// `ln(sum(exp(z - max)))`.
    pub ln_sum: f64,
    /// Entropy in nats.
    pub entropy: f32,
    sum: f64,
    inv_temperature: f32,
}

impl RowStats {
    /// `sum(exp(z - max))`.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Log-sum-exp of z.
    pub fn lse(&self) -> f32 {
        (f64::from(self.max) + self.ln_sum) as f32
    }

    /// Log-probability of a token of the row, given its logit (before temperature).
    pub fn logp(&self, logit: f32) -> f32 {
        (f64::from(logit * self.inv_temperature) - f64::from(self.max) - self.ln_sum) as f32
    }

    /// Mean of the log-probabilities of the whole row: `mean(z) - log-sum-exp`.
    pub(super) fn mean_logp(&self, logits: &[f32]) -> f32 {
        let mean = total(logits) / logits.len() as f64 * f64::from(self.inv_temperature);
        (mean - f64::from(self.max) - self.ln_sum) as f32
    }

    /// KL of this row's distribution to another's, in nats: `sum_j q_j (ln q_j - ln p_j)`, q of this row.
    pub(super) fn kl(&self, row: &[f32], other: &Self, of_other: &[f32]) -> f32 {
        let block = |(a, b): (&[f32], &[f32])| f64::from(divergence(a, b, self, other));
        (row.chunks(BLOCK).zip(of_other.chunks(BLOCK)).map(block).sum::<f64>() / self.sum) as f32
    }

    /// Takes `factor` times this row's probabilities off a gradient with respect to the logits of another model: the second part of the
    /// gradient of the KL to it, `inv (p_j - q_j)`.
    pub(super) fn take_off(&self, row: &[f32], factor: f32, gradient: &mut [f32]) {
        take_off(row, self, factor * self.inv_temperature, gradient);
    }

    /// Replaces the row of logits by the loss's gradient with respect to them, for the derivatives `d_logp` of the
    /// targets' log-probabilities, `d_entropy` of the entropy, `d_mean` of the mean log-probability and `d_kl` of the KL of another
    /// distribution to this one, of which the part in the other's probabilities is left to [`Self::take_off`].
    pub(super) fn gradient(
        &self,
        row: &mut [f32],
        targets: &[u32],
        d_logp: &[f32],
        d_entropy: f32,
        d_mean: f32,
        d_kl: f32,
    ) {
        // d mean_logp / d logit_j = inv (1 / V - p_j): its second part goes with the targets'.
        let total: f32 = d_logp.iter().sum::<f32>() + d_mean - d_kl;
        if total == 0.0 && d_entropy == 0.0 {
            row.fill(0.0);
        } else {
            gradient_row(row, self, total, d_entropy);
        }
        if d_mean != 0.0 {
            let even = self.inv_temperature * d_mean / row.len() as f32;
            for d in row.iter_mut() {
                *d += even;
            }
        }
        for (t, d) in targets.iter().zip(d_logp) {
            row[*t as usize] += self.inv_temperature * d;
        }
    }
}

/// Normalises a row of logits multiplied by `inv_temperature`. A row that holds NaN has NaN statistics.
pub fn row_stats(logits: &[f32], inv_temperature: f32) -> RowStats {
    let (max, sum, weighted) = sums(logits, inv_temperature);
    let ln_sum = if sum.is_finite() && sum > 0.0 { ln_f64(sum) } else { f64::NAN };
    RowStats { max, ln_sum, entropy: (ln_sum - weighted / sum) as f32, sum, inv_temperature }
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

/// The sum of a row: lanes in f32 within a block, blocks in f64.
fn total(logits: &[f32]) -> f64 {
    let block = |part: &[f32]| {
        let (mut lanes, (chunks, rest)) = ([0.0_f32; LANES], part.as_chunks::<LANES>());
        for chunk in chunks {
            lanes.iter_mut().zip(chunk).for_each(|(l, x)| *l += x);
        }
        lanes.iter_mut().zip(rest).for_each(|(l, x)| *l += x);
        f64::from(tree(lanes))
    };
    logits.chunks(BLOCK).map(block).sum()
}

/// `sum(e)` and `sum(z e)` with `e = exp(z)`, `z = logit * inv - max`, over at most [`BLOCK`] values.
#[inline(always)]
fn block<const FMA: bool>(logits: &[f32], inv: f32, max: f32) -> (f32, f32) {
    let (mut sums, mut weighted) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for l in 0..LANES {
            let z = chunk[l] * inv - max;
            let e = exp::<FMA>(z);
            // An impossible token (-inf) counts nothing, rather than 0 times infinity.
            let z = if z < -200.0 { 0.0 } else { z };
            sums[l] += e;
            weighted[l] = mul_add::<FMA>(z, e, weighted[l]);
        }
    }
    for (l, logit) in rest.iter().enumerate() {
        let z = logit * inv - max;
        let e = exp::<FMA>(z);
        let z = if z < -200.0 { 0.0 } else { z };
        sums[l] += e;
        weighted[l] = mul_add::<FMA>(z, e, weighted[l]);
    }
    (tree(sums), tree(weighted))
}

#[inline(always)]
fn sums_body<const FMA: bool>(logits: &[f32], inv: f32) -> (f32, f64, f64) {
    let max = lane_max(logits) * inv;
    let (mut sum, mut weighted) = (0.0_f64, 0.0_f64);
    for part in logits.chunks(BLOCK) {
        let (s, w) = block::<FMA>(part, inv, max);
        sum += f64::from(s);
        weighted += f64::from(w);
    }
    (max, sum, weighted)
}

/// d logp_t / d logit_j = inv (\[j = t\] - p_j); d entropy / d logit_j = -inv p_j (ln p_j + entropy).
#[inline(always)]
fn gradient_body<const FMA: bool>(row: &mut [f32], stats: &RowStats, total: f32, d_entropy: f32) {
    let (inv, max) = (stats.inv_temperature, stats.max);
    let (ln_sum, factor) = (stats.ln_sum as f32, -f64::from(inv) / stats.sum);
    let factor = factor as f32;
    for logit in row {
        let z = *logit * inv - max;
        let p = factor * exp::<FMA>(z);
        let z = if z < -200.0 { -200.0 } else { z };
        *logit = p * mul_add::<FMA>(d_entropy, z - ln_sum + stats.entropy, total);
    }
}

/// `sum(e^a ((a - ln_a) - (b - ln_b)))` with a and b the tempered logits less their largest.
#[inline(always)]
fn divergence_body<const FMA: bool>(row: &[f32], other: &[f32], of: &RowStats, to: &RowStats) -> f32 {
    let difference = (to.ln_sum - of.ln_sum) as f32;
    let term = |a: f32, b: f32| {
        let (a, b) = (a * of.inv_temperature - of.max, b * to.inv_temperature - to.max);
        // An impossible token (-inf) of the first counts nothing, whatever the second says.
        if a < -200.0 { 0.0 } else { exp::<FMA>(a) * (a - b + difference) }
    };
    let mut lanes = [0.0_f32; LANES];
    let ((chunks, rest), (others, others_rest)) = (row.as_chunks::<LANES>(), other.as_chunks::<LANES>());
    for (a, b) in chunks.iter().zip(others) {
        for l in 0..LANES {
            lanes[l] += term(a[l], b[l]);
        }
    }
    lanes.iter_mut().zip(rest.iter().zip(others_rest)).for_each(|(lane, (a, b))| *lane += term(*a, *b));
    tree(lanes)
}

#[inline(always)]
fn take_off_body<const FMA: bool>(row: &[f32], of: &RowStats, factor: f32, gradient: &mut [f32]) {
    let factor = (f64::from(factor) / of.sum) as f32;
    for (d, logit) in gradient.iter_mut().zip(row) {
        *d -= factor * exp::<FMA>(logit * of.inv_temperature - of.max);
    }
}

multiversion! {
    fn divergence(row: &[f32], other: &[f32], of: &RowStats, to: &RowStats) -> f32 = divergence_body, divergence_at;
    fn take_off(row: &[f32], of: &RowStats, factor: f32, gradient: &mut [f32]) = take_off_body, take_off_at;
    fn sums(logits: &[f32], inv: f32) -> (f32, f64, f64) = sums_body, sums_at;
    fn gradient_row(row: &mut [f32], stats: &RowStats, total: f32, d_entropy: f32) = gradient_body, gradient_row_at;
}
