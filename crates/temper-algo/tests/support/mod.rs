//! Lists of every variant, and random ragged steps.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::ops::Range;

use temper_algo::seed::SplitMix64;
use temper_algo::{
    Advantage, Curve, DownSampleRule, EntropyBonus, GpgCount, GroupShaper, KlEstimator, KlPenalty, Moving,
    PolicyObjective, Ratio, RewardShaping, Rows, Schedule, Surrogate, TokenObjective, Weighting, Whiten,
};

pub fn every_advantage() -> Vec<Advantage> {
    let list = vec![
        Advantage::GroupZScore { eps: 1e-4 },
        Advantage::GroupMean {},
        Advantage::BatchZScore { eps: 1e-4 },
        Advantage::Rloo { whiten: Whiten::None },
        Advantage::Rloo { whiten: Whiten::Rollout },
        Advantage::Rloo { whiten: Whiten::Token },
        Advantage::ReinforcePlusPlus { group_mean: false, gamma: 1.0 },
        Advantage::ReinforcePlusPlus { group_mean: true, gamma: 0.9 },
        Advantage::Remax { token_values: false },
        Advantage::Remax { token_values: true },
        Advantage::Opo {},
        Advantage::Gpg { count: GpgCount::Informative },
        Advantage::Gpg { count: GpgCount::NonzeroReward },
        Advantage::MaxRl {},
        Advantage::Gdpo { eps: 1e-4, whiten: Whiten::Rollout },
        Advantage::Gdpo { eps: 1e-6, whiten: Whiten::Token },
        Advantage::PassAtK { k: 2, threshold: 0.5, eps: 1e-6 },
        Advantage::GrpoPassk { scale: true, eps: 1e-6 },
        Advantage::GrpoPassk { scale: false, eps: 1e-6 },
        Advantage::BestOf { keep: 2 },
        Advantage::Returns { baseline: 0.25, gamma: 1.0 },
        Advantage::Returns { baseline: 0.0, gamma: 0.5 },
        Advantage::Gae { gamma: 1.0, lambda: 0.95, whiten: true },
        Advantage::Gae { gamma: 0.9, lambda: 0.5, whiten: false },
        Advantage::Process { outcome: false, eps: 1e-4 },
        Advantage::Process { outcome: true, eps: 1e-6 },
        Advantage::Risk { bundle: 2, low: 0.2, high: 0.8, tail_weight: 1.5, rate: 0.05 },
    ];
    for item in &list {
        match item {
            Advantage::GroupZScore { .. }
            | Advantage::GroupMean {}
            | Advantage::BatchZScore { .. }
            | Advantage::Rloo { .. }
            | Advantage::ReinforcePlusPlus { .. }
            | Advantage::Remax { .. }
            | Advantage::Opo {}
            | Advantage::Gpg { .. }
            | Advantage::MaxRl {}
            | Advantage::Gdpo { .. }
            | Advantage::PassAtK { .. }
            | Advantage::GrpoPassk { .. }
            | Advantage::BestOf { .. }
            | Advantage::Returns { .. }
            | Advantage::Gae { .. }
            | Advantage::Process { .. }
            | Advantage::Risk { .. } => {}
        }
    }
    list
}

pub fn every_group_shaper() -> Vec<GroupShaper> {
    let rules = [DownSampleRule::MaxVariance, DownSampleRule::Extremes, DownSampleRule::Best];
    let down = |rule| [true, false].map(|counts| GroupShaper::DownSample { keep: 2, rule, counts });
    let mut list = vec![GroupShaper::DropConstant { refill: 3 }, GroupShaper::MaskTruncated { counts: false }];
    list.extend(rules.into_iter().flat_map(down));
    for item in &list {
        match item {
            GroupShaper::DropConstant { .. } | GroupShaper::MaskTruncated { .. } | GroupShaper::DownSample { .. } => {}
        }
    }
    list
}

pub fn every_reward_shaping() -> Vec<RewardShaping> {
    let list = vec![
        RewardShaping::Constraint { parts: vec!["style".into()], violated: -0.5, calibrate: true },
        RewardShaping::Trust { outcome: "right".into(), process: "style".into(), coef: 0.3, anneal_steps: 50.0 },
        RewardShaping::Flip { part: "right".into(), probability: 0.25 },
        RewardShaping::LengthBudget { start: 8.0, decay: 0.5, every: 3, weight: 0.5 },
    ];
    for item in &list {
        match item {
            RewardShaping::Constraint { .. }
            | RewardShaping::Trust { .. }
            | RewardShaping::Flip { .. }
            | RewardShaping::LengthBudget { .. } => {}
        }
    }
    list
}

pub fn every_moving_knob() -> Vec<Moving> {
    let list = vec![
        Moving::Schedule { from: 0.1, to: 0.01, curve: Curve::Exponential, begin: 0.1, end: 0.9 },
        Moving::AdaptiveKl { init: 0.1, target: 6.0, rate: 0.1 },
        Moving::TargetEntropy { init: 0.0, target: 0.2, delta: 0.005, min: 0.0, max: 0.05, only_below: true },
    ];
    for item in &list {
        match item {
            Moving::Schedule { .. } | Moving::AdaptiveKl { .. } | Moving::TargetEntropy { .. } => {}
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
    let list = vec![TokenObjective::Nll {}];
    for item in &list {
        match item {
            TokenObjective::Nll {} => {}
        }
    }
    list
}

pub fn every_weighting() -> Vec<Weighting> {
    let list = vec![
        Weighting::Token {},
        Weighting::Sequence {},
        Weighting::SequenceSum {},
        Weighting::Sum {},
        Weighting::Constant { tokens: 16 },
        Weighting::Group {},
    ];
    for item in &list {
        match item {
            Weighting::Token {}
            | Weighting::Sequence {}
            | Weighting::SequenceSum {}
            | Weighting::Sum {}
            | Weighting::Constant { .. }
            | Weighting::Group {} => {}
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
