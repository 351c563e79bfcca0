//! Independent scalar transcriptions of the papers, on random ragged inputs.

mod support;

use proptest::prelude::*;
use support::{Case, case};
use temper_algo::{EntropyBonus, KlEstimator, KlPenalty, PolicyObjective, Ratio, SequenceMask, Surrogate, Weighting};

/// PPO-clip / GSPO with KL and entropy, written sequence by sequence as the papers do.
fn transcription(c: &Case, o: &PolicyObjective) -> f64 {
    let mut loss = 0.0;
    let mut start = 0;
    for length in &c.sequences {
        let rows: Vec<usize> = (start..start + length).filter(|t| c.weight[*t] != 0.0).collect();
        start += length;
        let mean: f64 = rows.iter().map(|t| c.logp[*t] - c.logp_old[*t]).sum::<f64>() / rows.len().max(1) as f64;
        for t in rows {
            let r = match o.ratio {
                Ratio::Token {} => c.logp[t].exp() / c.logp_old[t].exp(),
                Ratio::Sequence {} => mean.exp(),
            };
            let policy = match o.surrogate {
                Surrogate::Reinforce {} => -c.adv[t] * c.logp[t],
                Surrogate::Clip { clip_low, clip_high } => {
                    let inside = r.max(1.0 - clip_low).min(1.0 + clip_high);
                    -(r * c.adv[t]).min(inside * c.adv[t])
                }
            };
            let kl = o.kl.map_or(0.0, |KlPenalty { estimator, beta }| {
                let q = c.logp_ref[t].exp() / c.logp[t].exp();
                beta * match estimator {
                    KlEstimator::K1 {} => -q.ln(),
                    KlEstimator::K2 {} => q.ln().powi(2) / 2.0,
                    KlEstimator::K3 {} => q - 1.0 - q.ln(),
                }
            });
            let bonus = o.entropy.map_or(0.0, |EntropyBonus { coef }| coef * c.entropy[t]);
            loss += c.weight[t] * (policy + kl - bonus);
        }
    }
    loss
}

#[test]
fn losses_agree_with_the_transcription() {
    for (i, objective) in support::every_objective().iter().enumerate() {
        for seed in 0..20 {
            let c = case(1000 + 31 * i as u64 + seed, 0.7);
            let (got, expected) = (objective.token_terms(&c.rows()).unwrap().loss, transcription(&c, objective));
            assert!((got - expected).abs() < 1e-12, "{objective:?}: {got} {expected}");
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
