//! Independent scalar transcriptions of the papers, on random ragged inputs.

mod support;

use proptest::prelude::*;
use support::{Case, case};
use temper_algo::{
    Correction, EntropyBonus, KlEstimator, KlPenalty, Level, PolicyObjective, Ratio, SequenceMask, Surrogate,
    Weighting, split_seed,
};

/// The live rows of the sequences, group by group.
fn live(c: &Case) -> Vec<Vec<Vec<usize>>> {
    let (mut groups, mut row, mut sequence) = (vec![], 0, 0);
    for size in &c.groups {
        let mut group = vec![];
        for length in &c.sequences[sequence..sequence + size] {
            group.push((row..row + length).filter(|t| c.weight[*t] != 0.0).collect());
            row += length;
        }
        sequence += size;
        groups.push(group);
    }
    groups
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The ratio of row `t` in its sequence `rows`. What is in `sg` is read from `at`.
fn ratio(o: &PolicyObjective, c: &Case, at: &Case, rows: &[usize], t: usize) -> f64 {
    let l = |t: usize| c.logp[t] - c.logp_old[t];
    match o.ratio {
        Ratio::Token {} => c.logp[t].exp() / c.logp_old[t].exp(),
        Ratio::Sequence {} => mean(rows.iter().map(|t| l(*t))).exp(),
        Ratio::SequenceToken {} => {
            let held = mean(rows.iter().map(|t| at.logp[*t] - at.logp_old[*t])).exp();
            held * c.logp[t].exp() / at.logp[t].exp()
        }
        Ratio::Product {} => rows.iter().map(|t| c.logp[*t].exp() / c.logp_old[*t].exp()).product(),
        Ratio::GeometricMean { clip_low, clip_high } => {
            let clipped = |t: usize| {
                let (value, held) = (l(t), l(t).max(-clip_low).min(clip_high));
                if c.adv[t] > 0.0 { value.min(held) } else { value.max(held) }
            };
            mean(rows.iter().map(|t| clipped(*t))).exp()
        }
    }
}

/// Correction of row `t` for samples of another policy.
fn correction(o: &PolicyObjective, at: &Case, rows: &[usize], t: usize) -> f64 {
    let Some(correction) = o.correction else { return 1.0 };
    let rho: f64 = match correction.level() {
        Level::Token => at.logp_old[t].exp() / at.logp_gen[t].exp(),
        Level::Sequence => rows.iter().map(|t| at.logp_old[*t].exp() / at.logp_gen[*t].exp()).product(),
    };
    match correction {
        Correction::Truncate { low, high, .. } => rho.min(high).max(low.unwrap_or(0.0)),
        Correction::Mask { low, high, .. } => {
            if rho <= high && low.is_none_or(|low| rho >= low) {
                rho
            } else {
                0.0
            }
        }
    }
}

/// 1 where the policy gradient of row `t` is wanted.
fn kept(o: &PolicyObjective, at: &Case, rows: &[usize], t: usize) -> f64 {
    let mut keep = true;
    if let Some(top) = o.top_entropy {
        let mut all: Vec<f64> = live(at).concat().concat().iter().map(|t| at.entropy[*t]).collect();
        all.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let position = (1.0 - top.share) * (all.len() - 1) as f64;
        let below = position as usize;
        let threshold = all[below] * (1.0 - position.fract()) + all.get(below + 1).unwrap_or(&0.0) * position.fract();
        keep &= at.entropy[t] >= threshold;
    }
    if let Some(mask) = o.off_policy_mask {
        let sampled = if o.correction.is_some() { &at.logp_gen } else { &at.logp_old };
        keep &= at.adv[t] >= 0.0 || mean(rows.iter().map(|t| sampled[*t] - at.logp[*t])) <= mask.threshold;
    }
    f64::from(u8::from(keep))
}

/// The rows whose covariance the step's rule picks.
fn picked(o: &PolicyObjective, at: &Case) -> Vec<usize> {
    let rows = live(at).concat().concat();
    let (adv, logp) = (mean(rows.iter().map(|t| at.adv[*t])), mean(rows.iter().map(|t| at.logp[*t])));
    let cov = |t: usize| (at.adv[t] - adv) * (at.logp[t] - logp);
    let (share, mut rows) = match o.surrogate {
        Surrogate::KlCov { share, .. } => {
            let mut rows = rows.clone();
            rows.sort_by(|a, b| cov(*b).partial_cmp(&cov(*a)).unwrap());
            (share, rows)
        }
        Surrogate::ClipCov { clip_low, clip_high, share, cov_low, cov_high } => {
            let clipped = |t: usize| {
                let r = (at.logp[t] - at.logp_old[t]).exp();
                r * at.adv[t] > r.min(1.0 + clip_high).max(1.0 - clip_low) * at.adv[t]
            };
            let mut inside: Vec<usize> =
                rows.iter().copied().filter(|t| cov(*t) > cov_low && cov(*t) < cov_high).collect();
            inside.retain(|t| !clipped(*t));
            inside.sort_by_key(|t| split_seed(0, &[at.logp[*t].to_bits(), at.adv[*t].to_bits()]));
            (share, inside)
        }
        _ => return vec![],
    };
    rows.truncate(1.max((share * live(at).concat().concat().len() as f64).floor() as usize));
    rows
}

/// Every policy objective as its paper writes it, sequence by sequence; what is in `sg` is read from `at`, so that the
/// derivative in `c` at `c = at` is the gradient.
fn transcription(c: &Case, at: &Case, o: &PolicyObjective) -> f64 {
    let chosen = picked(o, at);
    let mut loss = 0.0;
    for group in live(c) {
        let errors: Vec<f64> = group
            .iter()
            .filter(|rows| !rows.is_empty())
            .map(|rows| match o.surrogate {
                Surrogate::Gvpo { beta } => {
                    let implicit = beta * rows.iter().map(|t| c.logp[*t] - c.logp_ref[*t]).sum::<f64>();
                    implicit - mean(rows.iter().map(|t| c.adv[*t]))
                }
                _ => 0.0,
            })
            .collect();
        let mean_error = mean(errors.iter().copied());
        for (i, rows) in group.iter().filter(|rows| !rows.is_empty()).enumerate() {
            for &t in rows {
                let (r, held) = (ratio(o, c, at, rows, t), ratio(o, at, at, rows, t));
                let (adv, logp) = (c.adv[t], c.logp[t]);
                let factor = kept(o, at, rows, t) * correction(o, at, rows, t);
                let plain = |clip_low: f64, clip_high: f64| {
                    let inside = r.max(1.0 - clip_low).min(1.0 + clip_high);
                    -(r * adv).min(inside * adv)
                };
                let (p, p_old) = (at.logp[t].exp(), at.logp_old[t].exp());
                let trusted = |divergence: f64, low: f64, high: f64| {
                    let away = if adv > 0.0 { p > p_old && divergence > high } else { p < p_old && divergence > low };
                    f64::from(u8::from(!away))
                };
                let policy = match o.surrogate {
                    Surrogate::Reinforce {} => -adv * logp,
                    Surrogate::Importance {} => -r * adv,
                    Surrogate::Clip { clip_low, clip_high, delta } => {
                        let x = plain(clip_low, clip_high);
                        if adv < 0.0 { delta.map_or(x, |delta| x.min(-delta * adv)) } else { x }
                    }
                    Surrogate::Cispo { clip_low, clip_high } => {
                        -held.max(1.0 - clip_low).min(1.0 + clip_high) * adv * logp
                    }
                    Surrogate::Sapo { temperature_pos, temperature_neg } => {
                        let tau = if adv > 0.0 { temperature_pos } else { temperature_neg };
                        -4.0 / (tau * (1.0 + (tau * (1.0 - r)).exp())) * adv
                    }
                    Surrogate::Vespo { k_pos, lambda_pos, k_neg, lambda_neg } => {
                        let (k, lambda) = if adv >= 0.0 { (k_pos, lambda_pos) } else { (k_neg, lambda_neg) };
                        let w: f64 = rows.iter().map(|t| correction(o, at, rows, *t).max(1e-8)).product::<f64>() * held;
                        let w = w.max(1e-8);
                        -kept(o, at, rows, t) * w.powf(k) * (lambda * (1.0 - w)).exp() * adv * logp
                    }
                    Surrogate::DppoTv { clip_low, clip_high, cap } => {
                        -trusted((p - p_old).abs(), clip_low, clip_high) * held.min(cap) * adv * logp
                    }
                    Surrogate::DppoKl { clip_low, clip_high, cap } => {
                        let kl = p_old * (p_old / p).ln() + (1.0 - p_old) * ((1.0 - p_old) / (1.0 - p)).ln();
                        -trusted(kl, clip_low, clip_high) * held.min(cap) * adv * logp
                    }
                    Surrogate::ClipCov { clip_low, clip_high, .. } => {
                        if chosen.contains(&t) {
                            0.0
                        } else {
                            plain(clip_low, clip_high)
                        }
                    }
                    Surrogate::KlCov { coef, .. } => {
                        let pays = f64::from(u8::from(chosen.contains(&t)));
                        -r * adv + pays * coef * (c.logp[t] - c.logp_old[t]).abs()
                    }
                    Surrogate::Nft { eps } if adv < 0.0 => {
                        let q = c.success[t];
                        let (z, held) = ((1.0 - q * r) / (1.0 - q), (1.0 - q * held) / (1.0 - q));
                        let straight_through = held.max(eps) + (z - held);
                        adv * (1.0 - q) / q * straight_through.ln()
                    }
                    Surrogate::Nft { .. } => -adv * r.ln(),
                    Surrogate::Topr { cap } => -(if adv < 0.0 { held.min(cap) } else { 1.0 }) * adv * logp,
                    Surrogate::Raft {} => -f64::from(u8::from(adv > 0.0)) * logp,
                    Surrogate::RewardWeighted { temperature, cap } => -(adv / temperature).exp().min(cap) * logp,
                    Surrogate::Nll {} => -logp,
                    Surrogate::Gvpo { .. } => (errors[i] - mean_error).powi(2) / 2.0,
                    Surrogate::None {} => 0.0,
                };
                let factor = if matches!(o.surrogate, Surrogate::Vespo { .. }) { 1.0 } else { factor };
                let kl = o.kl.map_or(0.0, |KlPenalty { estimator, beta, importance }| {
                    let q = c.logp_ref[t].exp() / c.logp[t].exp();
                    let q_held = at.logp_ref[t].exp() / at.logp[t].exp();
                    let value = match estimator {
                        KlEstimator::K1 {} => -q.ln(),
                        KlEstimator::K2 {} => q.ln().powi(2) / 2.0,
                        KlEstimator::K3 {} => q - 1.0 - q.ln(),
                        KlEstimator::K3Plus {} => {
                            q_held - 1.0 - q_held.ln() + q.ln().powi(2) / 2.0 - q_held.ln().powi(2) / 2.0
                        }
                    };
                    beta * value * if importance { r } else { 1.0 }
                });
                let bonus = o.entropy.map_or(0.0, |EntropyBonus { coef }| coef * c.entropy[t]);
                loss += c.weight[t] * (factor * policy + kl - bonus);
            }
        }
    }
    loss
}

#[test]
fn losses_agree_with_the_transcription() {
    for (i, objective) in support::every_objective().iter().enumerate() {
        for seed in 0..8 {
            let c = case(1000 + 31 * i as u64 + seed, 0.7);
            let (got, expected) = (objective.token_terms(&c.rows()).unwrap().loss, transcription(&c, &c, objective));
            assert!((got - expected).abs() < 1e-12 * expected.abs().max(1.0), "{objective:?}: {got} {expected}");
        }
    }
}

#[test]
fn gradients_agree_with_the_transcription() {
    let step = 1e-6;
    for (i, objective) in support::every_objective().iter().enumerate() {
        let at = case(5000 + i as u64, 0.7);
        let terms = objective.token_terms(&at.rows()).unwrap();
        for row in 0..at.logp.len() {
            let moved = |by: f64| {
                let mut c = at.clone();
                c.logp[row] += by;
                transcription(&c, &at, objective)
            };
            let numeric = (moved(step) - moved(-step)) / (2.0 * step);
            let got = terms.d_logp[row];
            assert!((got - numeric).abs() < 1e-7 * numeric.abs().max(1.0), "{objective:?} row {row}: {got} {numeric}");
        }
    }
}

/// The weighted mean that each weighting stands for, written as nested averages.
fn nested(weighting: Weighting, groups: &[Vec<Vec<f64>>]) -> f64 {
    let mean = |v: &[f64]| if v.is_empty() { 0.0 } else { v.iter().sum::<f64>() / v.len() as f64 };
    let sequences: Vec<&Vec<f64>> = groups.iter().flatten().collect();
    match weighting {
        Weighting::Token {} => mean(&groups.concat().concat()),
        Weighting::Sequence {} => mean(&sequences.iter().map(|s| mean(s)).collect::<Vec<_>>()),
        Weighting::SequenceSum {} => mean(&sequences.iter().map(|s| s.iter().sum()).collect::<Vec<_>>()),
        Weighting::Sum {} => sequences.iter().map(|s| s.iter().sum::<f64>()).sum(),
        Weighting::Constant { tokens } => {
            mean(&sequences.iter().map(|s| s.iter().sum::<f64>() / f64::from(tokens)).collect::<Vec<_>>())
        }
        Weighting::Group {} => mean(&groups.iter().map(|g| mean(&g.concat())).collect::<Vec<_>>()),
        Weighting::GroupSum {} => mean(&groups.iter().map(|g| g.concat().iter().sum()).collect::<Vec<_>>()),
    }
}

proptest! {
    #[test]
    fn weights_are_the_nested_averages(
        groups in prop::collection::vec(prop::collection::vec(prop::collection::vec(-2.0f64..2.0, 0..6), 1..5), 1..5)
    ) {
        let ones: Vec<Vec<Vec<f32>>> = groups.iter().map(|g| g.iter().map(|s| vec![1.0; s.len()]).collect()).collect();
        let step: Vec<SequenceMask> = ones
            .iter()
            .enumerate()
            .flat_map(|(i, g)| g.iter().map(move |m| SequenceMask::new(i as u64, m)))
            .collect();
        for weighting in support::every_weighting() {
            let weights = weighting.weights(&step).unwrap().concat();
            let got: f64 = weights.iter().zip(groups.concat().concat()).map(|(w, x)| w * x).sum();
            let expected = nested(weighting, &groups);
            prop_assert!((got - expected).abs() < 1e-12, "{:?}: {} {}", weighting, got, expected);
        }
    }
}
