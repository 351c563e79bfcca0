//! From rows to loss and derivatives.

use super::{PolicyObjective, PolicyTerms};
use crate::ratio::bounded_exp;
use crate::surrogate::group::{GroupTerms, gvpo};
use crate::{Rows, Surrogate, SurrogateInput, SurrogateTerm};

/// Bounds of a token's log-correction inside VESPO's weight (the released code's `ln 1e-8` and 20).
const LOG_FACTOR: (f64, f64) = (-18.420_680_743_952_367, 20.0);

/// What is known of the rows before the surrogate is evaluated.
struct Known<'a> {
    rows: &'a Rows<'a>,
    /// `logp - logp_old` `[M]`.
    difference: Vec<f64>,
    /// After the ratio slot `[M]`.
    log_ratio: Vec<f64>,
    /// Of the correction `[M]`.
    correction: Option<Vec<f64>>,
    /// Of the selections `[M]`.
    selected: Option<Vec<bool>>,
    /// Of the surrogate's choice over the step `[M]`.
    chosen: Option<Vec<bool>>,
    /// A group-coupled surrogate, evaluated.
    group: Option<GroupTerms>,
}

impl PolicyObjective {
    /// [`token_terms`](Self::token_terms) of rows that were validated.
    pub(super) fn evaluate(&self, rows: &Rows) -> PolicyTerms {
        let known = self.known(rows);
        let mut terms = PolicyTerms { d_logp: vec![0.0; rows.logp.len()], ..PolicyTerms::default() };
        terms.d_entropy = self.entropy.map(|_| vec![0.0; rows.logp.len()]);
        let mut d_log_ratio = vec![0.0; rows.logp.len()];
        for row in rows.live() {
            let weight = rows.weight[row];
            let term = self.surrogate_term(&known, row);
            d_log_ratio[row] = weight * term.d_log_ratio;
            terms.d_logp[row] = known.group.as_ref().map_or(weight * term.d_logp, |group| group.d_logp[row]);
            let extra = self.add_penalties(&known, row, &mut terms, &mut d_log_ratio);
            terms.loss += weight * (term.x + extra);
            self.count(&known, row, &term, &mut terms);
        }
        if self.uses_ratio() {
            let through_ratio = self.ratio.backward(d_log_ratio, &known.difference, rows);
            for (d, r) in terms.d_logp.iter_mut().zip(through_ratio) {
                *d += r;
            }
        }
        terms
    }

    fn known<'a>(&self, rows: &'a Rows<'a>) -> Known<'a> {
        let difference: Vec<f64> = match rows.logp_old {
            None => vec![0.0; rows.logp.len()],
            Some(old) => rows.logp.iter().zip(old).map(|(now, old)| now - old).collect(),
        };
        let log_ratio = self.used_ratio().forward(&difference, rows);
        let correction = self.correction.zip(rows.logp_gen).map(|(c, logp_gen)| c.factors(rows, logp_gen));
        let group = match (self.surrogate, rows.logp_ref) {
            (Surrogate::Gvpo { beta }, Some(logp_ref)) => Some(gvpo(beta, rows, logp_ref)),
            _ => None,
        };
        let mut known = Known {
            selected: self.selected(rows),
            chosen: self.surrogate.choose(rows, &log_ratio),
            rows,
            difference,
            log_ratio,
            correction,
            group,
        };
        if self.surrogate.absorbs_correction() {
            absorb(&mut known);
        }
        known
    }

    fn selected(&self, rows: &Rows) -> Option<Vec<bool>> {
        let top = self.top_entropy.zip(rows.entropy).map(|(top, entropy)| top.keep(rows, entropy));
        let sampled = self.correction.and(rows.logp_gen).or(rows.logp_old).unwrap_or(rows.logp);
        let drift = self.off_policy_mask.map(|mask| mask.keep(rows, sampled));
        match (top, drift) {
            (Some(a), Some(b)) => Some(a.into_iter().zip(b).map(|(a, b)| a && b).collect()),
            (a, b) => a.or(b),
        }
    }

    /// The surrogate at `row`, times the factor.
    fn surrogate_term(&self, known: &Known, row: usize) -> SurrogateTerm {
        let rows = known.rows;
        if let Some(group) = &known.group {
            return SurrogateTerm { x: group.x[row], ..SurrogateTerm::default() };
        }
        let mut term = self.surrogate.term(&SurrogateInput {
            log_ratio: known.log_ratio[row],
            logp: rows.logp[row],
            adv: rows.adv[row],
            success: rows.success.map_or(0.0, |success| success[row]),
            chosen: known.chosen.as_ref().is_some_and(|chosen| chosen[row]),
        });
        let own = self.used_ratio().clip_side(known.difference[row], rows.adv[row]);
        if own != crate::ClipSide::Inside {
            term.clip = own;
        }
        let kept = known.selected.as_ref().is_none_or(|kept| kept[row]);
        let factor = known.correction.as_ref().filter(|_| !self.surrogate.absorbs_correction()).map_or(1.0, |c| c[row]);
        let factor = if kept { factor } else { 0.0 };
        SurrogateTerm {
            x: factor * term.x,
            d_log_ratio: factor * term.d_log_ratio,
            d_logp: factor * term.d_logp,
            clip: term.clip,
        }
    }

    /// KL and entropy at `row`: adds their derivatives and metrics and returns their share of x.
    fn add_penalties(&self, known: &Known, row: usize, terms: &mut PolicyTerms, d_log_ratio: &mut [f64]) -> f64 {
        let rows = known.rows;
        let mut x = 0.0;
        if let (Some(kl), Some(logp_ref)) = (self.kl, rows.logp_ref) {
            let term = kl.estimator.term(rows.logp[row], logp_ref[row]);
            let (ratio, slope) = if kl.importance { bounded_exp(known.log_ratio[row]) } else { (1.0, 0.0) };
            let beta = kl.beta * rows.kl_factor.map_or(1.0, |factor| factor[row]);
            x += beta * ratio * term.x;
            terms.d_logp[row] += rows.weight[row] * beta * ratio * term.d_logp;
            d_log_ratio[row] += rows.weight[row] * beta * slope * term.x;
            terms.metrics.kl.get_or_insert_default().add(ratio * term.x);
        }
        if let Some(entropy) = rows.entropy {
            terms.metrics.entropy.get_or_insert_default().add(entropy[row]);
            if let (Some(bonus), Some(d)) = (self.entropy, &mut terms.d_entropy) {
                x -= bonus.coef * entropy[row];
                d[row] = -rows.weight[row] * bonus.coef;
            }
        }
        x
    }

    fn count(&self, known: &Known, row: usize, term: &SurrogateTerm, terms: &mut PolicyTerms) {
        let metrics = &mut terms.metrics;
        let one = |yes: bool| f64::from(u8::from(yes));
        metrics.add_token(known.rows.weight[row] * term.x, term.clip, known.log_ratio[row]);
        if self.surrogate.has_other_bound() {
            metrics.other.get_or_insert_default().add(one(term.clip == crate::ClipSide::Other));
        }
        if let Some(correction) = &known.correction {
            metrics.correction.get_or_insert_default().add(correction[row]);
        }
        if let Some(selected) = &known.selected {
            metrics.selected.get_or_insert_default().add(one(selected[row]));
        }
    }
}

/// The sum of a sequence's log-corrections into its log-ratio.
fn absorb(known: &mut Known) {
    let Some(correction) = &known.correction else { return };
    for range in known.rows.sequence_ranges() {
        let live = range.clone().filter(|row| known.rows.weight[*row] != 0.0);
        let sum: f64 = live.map(|row| correction[row].ln().clamp(LOG_FACTOR.0, LOG_FACTOR.1)).sum();
        known.log_ratio[range].iter_mut().for_each(|l| *l += sum);
    }
}
