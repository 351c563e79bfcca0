//! Lists of every variant, and random ragged steps.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::ops::Range;

use temper_algo::seed::SplitMix64;
use temper_algo::{
    Advantage, Direction, Divergence, EntropyBonus, KlEstimator, KlPenalty, PolicyObjective, Ratio, Rows, Schedule,
    Surrogate, TokenObjective, Weighting,
};

pub fn every_advantage() -> Vec<Advantage> {
    let list = vec![Advantage::GroupZScore { eps: 1e-4 }, Advantage::GroupMean {}];
    for item in &list {
        match item {
            Advantage::GroupZScore { .. } | Advantage::GroupMean {} => {}
        }
    }
    list
}

pub fn every_ratio() -> Vec<Ratio> {
    let list = vec![Ratio::Token {}, Ratio::Sequence {}];
    for item in &list {
        match item {
            Ratio::Token {} | Ratio::Sequence {} => {}
        }
    }
    list
}

pub fn every_surrogate() -> Vec<Surrogate> {
    let list = vec![Surrogate::Reinforce {}, Surrogate::Clip { clip_low: 0.2, clip_high: 0.28 }];
    for item in &list {
        match item {
            Surrogate::Reinforce {} | Surrogate::Clip { .. } => {}
        }
    }
    list
}

pub fn every_kl() -> Vec<KlEstimator> {
    let list = vec![KlEstimator::K1 {}, KlEstimator::K2 {}, KlEstimator::K3 {}];
    for item in &list {
        match item {
            KlEstimator::K1 {} | KlEstimator::K2 {} | KlEstimator::K3 {} => {}
        }
    }
    list
}

pub fn every_token_objective() -> Vec<TokenObjective> {
    let kl = |estimator, direction| TokenObjective::ReferenceKl { estimator, direction };
    let f = |divergence| TokenObjective::FDivergence { divergence, beta: 0.4 };
    let list = vec![
        TokenObjective::Nll {},
        TokenObjective::LabelSmoothing { eps: 0.1 },
        TokenObjective::Dft {},
        TokenObjective::Probability { q: 0.5, min_p: None, max_p: None },
        TokenObjective::Probability { q: 1.0, min_p: Some(0.1), max_p: None },
        TokenObjective::Probability { q: 3.0, min_p: None, max_p: Some(0.6) },
        TokenObjective::Focal { gamma: 2.0 },
        TokenObjective::Focal { gamma: 0.5 },
        TokenObjective::Eaft { alpha: 1.5, scale: 3.0 },
        kl(KlEstimator::K1 {}, Direction::Reverse),
        kl(KlEstimator::K2 {}, Direction::Forward),
        kl(KlEstimator::K3 {}, Direction::Reverse),
        kl(KlEstimator::K3 {}, Direction::Forward),
        TokenObjective::ReferenceWeighted { beta: 0.3 },
        f(Divergence::Pearson),
        f(Divergence::SquaredHellinger),
        f(Divergence::JensenShannon),
        f(Divergence::ReverseKl),
        TokenObjective::Ift { gamma: 0.9, detach: false },
        TokenObjective::Ift { gamma: 0.9, detach: true },
        TokenObjective::EntropyBonus {},
    ];
    for item in &list {
        match item {
            TokenObjective::Nll {}
            | TokenObjective::LabelSmoothing { .. }
            | TokenObjective::Dft {}
            | TokenObjective::Probability { .. }
            | TokenObjective::Focal { .. }
            | TokenObjective::Eaft { .. }
            | TokenObjective::ReferenceKl { .. }
            | TokenObjective::ReferenceWeighted { .. }
            | TokenObjective::FDivergence { .. }
            | TokenObjective::Ift { .. }
            | TokenObjective::EntropyBonus {} => {}
        }
    }
    list
}

pub fn every_weighting() -> Vec<Weighting> {
    let list =
        vec![Weighting::Token {}, Weighting::Sequence {}, Weighting::Constant { tokens: 16 }, Weighting::Group {}];
    for item in &list {
        match item {
            Weighting::Token {} | Weighting::Sequence {} | Weighting::Constant { .. } | Weighting::Group {} => {}
        }
    }
    list
}

pub fn every_schedule() -> Vec<Schedule> {
    let list = vec![
        Schedule::Constant { warmup_steps: Some(4), warmup_ratio: None },
        Schedule::Linear { warmup_steps: None, warmup_ratio: Some(0.25), min_ratio: 0.125 },
        Schedule::Cosine { warmup_steps: None, warmup_ratio: None, min_ratio: 0.0 },
    ];
    for item in &list {
        match item {
            Schedule::Constant { .. } | Schedule::Linear { .. } | Schedule::Cosine { .. } => {}
        }
    }
    list
}

/// Every combination of ratio, surrogate, KL and entropy bonus.
pub fn every_objective() -> Vec<PolicyObjective> {
    let kls = || {
        std::iter::once(None).chain(every_kl().into_iter().map(|estimator| Some(KlPenalty { estimator, beta: 0.3 })))
    };
    let mut list = vec![];
    for ratio in every_ratio() {
        for surrogate in every_surrogate() {
            for kl in kls() {
                for entropy in [None, Some(EntropyBonus { coef: 0.05 })] {
                    list.push(PolicyObjective { ratio, surrogate, kl, entropy, ..PolicyObjective::default() });
                }
            }
        }
    }
    list
}

/// A ragged step with masked tokens, a fully masked and an empty sequence.
#[derive(Clone, Debug)]
pub struct Case {
    pub logp: Vec<f64>,
    pub logp_old: Vec<f64>,
    pub logp_ref: Vec<f64>,
    pub entropy: Vec<f64>,
    pub adv: Vec<f64>,
    pub weight: Vec<f64>,
    pub sequences: Vec<usize>,
}

/// Random numbers; old and reference log-probs differ from the present ones by up to `spread`.
pub fn case(seed: u64, spread: f64) -> Case {
    let mut rng = SplitMix64::new(seed);
    let sequences = vec![3, 0, 5, 2, 4];
    let rows: usize = sequences.iter().sum();
    let mut draw = |low: f64, high: f64| (0..rows).map(|_| low + (high - low) * rng.next_f64()).collect::<Vec<f64>>();
    let logp = draw(-4.0, -0.01);
    let near = |noise: Vec<f64>| logp.iter().zip(noise).map(|(l, n)| l + spread * n).collect();
    let (logp_old, logp_ref) = (near(draw(-1.0, 1.0)), near(draw(-1.0, 1.0)));
    let mut weight = draw(0.1, 0.4);
    for masked in [1, 5, 8, 9] {
        weight[masked] = 0.0; // 8 and 9 are the whole fourth sequence
    }
    Case { logp_old, logp_ref, entropy: draw(0.1, 2.0), adv: draw(-2.0, 2.0), weight, sequences, logp: logp.clone() }
}

impl Case {
    pub fn rows(&self) -> Rows<'_> {
        Rows { sequences: &self.sequences, ..self.rows_at(0..self.logp.len()) }
    }

    pub fn rows_at(&self, rows: Range<usize>) -> Rows<'_> {
        Rows {
            logp: &self.logp[rows.clone()],
            logp_old: Some(&self.logp_old[rows.clone()]),
            logp_ref: Some(&self.logp_ref[rows.clone()]),
            entropy: Some(&self.entropy[rows.clone()]),
            adv: &self.adv[rows.clone()],
            weight: &self.weight[rows],
            sequences: &[],
        }
    }

    /// Sequences before and from `cut`.
    pub fn split(&self, cut: usize) -> (Self, Self) {
        let row: usize = self.sequences[..cut].iter().sum();
        let part = |rows: Range<usize>, sequences: &[usize]| Self {
            logp: self.logp[rows.clone()].to_vec(),
            logp_old: self.logp_old[rows.clone()].to_vec(),
            logp_ref: self.logp_ref[rows.clone()].to_vec(),
            entropy: self.entropy[rows.clone()].to_vec(),
            adv: self.adv[rows.clone()].to_vec(),
            weight: self.weight[rows].to_vec(),
            sequences: sequences.to_vec(),
        };
        (part(0..row, &self.sequences[..cut]), part(row..self.logp.len(), &self.sequences[cut..]))
    }

    pub fn join(&self, other: &Self) -> Self {
        let both = |a: &[f64], b: &[f64]| [a, b].concat();
        Self {
            logp: both(&self.logp, &other.logp),
            logp_old: both(&self.logp_old, &other.logp_old),
            logp_ref: both(&self.logp_ref, &other.logp_ref),
            entropy: both(&self.entropy, &other.entropy),
            adv: both(&self.adv, &other.adv),
            weight: both(&self.weight, &other.weight),
            sequences: [self.sequences.as_slice(), &other.sequences].concat(),
        }
    }

    /// Equal weights and advantages within each sequence, as sequence-level objectives have them.
    pub fn spread_weights_evenly(&mut self) {
        let mut start = 0;
        for length in &self.sequences {
            for row in start..start + length {
                if self.weight[row] != 0.0 {
                    self.weight[row] = 0.25;
                    self.adv[row] = self.adv[start];
                }
            }
            start += length;
        }
    }
}
