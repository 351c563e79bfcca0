//! Lists of every variant, and random ragged steps.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::match_same_arms)]

use std::ops::Range;

use temper_algo::seed::SplitMix64;
use temper_algo::{
    Advantage, Correction, Curve, Direction, Divergence, DownSampleRule, EntropyBonus, FlipUnit, GpgCount, GroupShaper,
    KlEstimator, KlPenalty, Knob, Level, OffPolicyMask, PolicyObjective, Ratio, RewardShaping, Rows, Same, Schedule,
    Surrogate, TokenObjective, TopEntropy, Weighting, Whiten,
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
        Advantage::Trice { threshold: 0.5 },
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
            | Advantage::Risk { .. }
            | Advantage::Trice { .. } => {}
        }
    }
    list
}

pub fn every_group_shaper() -> Vec<GroupShaper> {
    let rules = [DownSampleRule::MaxVariance, DownSampleRule::Extremes, DownSampleRule::Best];
    let down = |rule| [true, false].map(|counts| GroupShaper::DownSample { keep: 2, rule, counts });
    let mut list = vec![
        GroupShaper::DropConstant { refill: 3, part: None },
        GroupShaper::DropConstant { refill: 0, part: Some("right".into()) },
        GroupShaper::DropUnsolved { threshold: 0.25 },
        GroupShaper::MaskTruncated { counts: false },
    ];
    list.extend(rules.into_iter().flat_map(down));
    for item in &list {
        match item {
            GroupShaper::DropConstant { .. } | GroupShaper::DropUnsolved { .. } => {}
            GroupShaper::MaskTruncated { .. } | GroupShaper::DownSample { .. } => {}
        }
    }
    list
}

pub fn every_reward_shaping() -> Vec<RewardShaping> {
    let list = vec![
        RewardShaping::Constraint { parts: vec!["style".into()], violated: -0.5, calibrate: true },
        RewardShaping::Trust { outcome: "right".into(), process: "style".into(), coef: 0.3, anneal_steps: 50.0 },
        RewardShaping::Flip { part: "right".into(), probability: 0.25, of: FlipUnit::Prompt },
        RewardShaping::Rescue { part: "right".into(), with: "style".into(), threshold: 0.1, weight: 0.5 },
        RewardShaping::LengthBudget { start: 8.0, decay: 0.5, every: 3, weight: 0.5 },
        RewardShaping::Majority { weight: 2.0 },
        RewardShaping::Diversity { same: Same::Text, floor: 0.2, threshold: 0.25 },
        RewardShaping::Episodic { exploit: 0.1, explore: 0.0, k: 2, capacity: 9, threshold: 0.5 },
    ];
    for item in &list {
        match item {
            RewardShaping::Constraint { .. }
            | RewardShaping::Trust { .. }
            | RewardShaping::Flip { .. }
            | RewardShaping::Rescue { .. }
            | RewardShaping::LengthBudget { .. }
            | RewardShaping::Majority { .. }
            | RewardShaping::Diversity { .. }
            | RewardShaping::Episodic { .. } => {}
        }
    }
    list
}

pub fn every_knob() -> Vec<Knob> {
    let list = vec![
        Knob::Schedule { from: 0.1, to: 0.01, curve: Curve::Exponential, begin: 0.1, end: 0.9 },
        Knob::AdaptiveKl { init: 0.1, target: 6.0, rate: 0.1 },
        Knob::TargetEntropy { init: 0.0, target: 0.2, delta: 0.005, min: 0.0, max: 0.05, only_below: true },
    ];
    for item in &list {
        match item {
            Knob::Schedule { .. } | Knob::AdaptiveKl { .. } | Knob::TargetEntropy { .. } => {}
        }
    }
    list
}

pub fn every_ratio() -> Vec<Ratio> {
    let list = vec![
        Ratio::Token {},
        Ratio::Sequence {},
        Ratio::SequenceToken {},
        Ratio::Product {},
        Ratio::GeometricMean { clip_low: 0.3, clip_high: 0.25 },
    ];
    for item in &list {
        match item {
            Ratio::Token {} | Ratio::Sequence {} | Ratio::SequenceToken {} | Ratio::Product {} => {}
            Ratio::GeometricMean { .. } => {}
        }
    }
    list
}

pub fn every_surrogate() -> Vec<Surrogate> {
    let (clip_low, clip_high) = (0.2, 0.28);
    let list = vec![
        Surrogate::Reinforce {},
        Surrogate::Importance {},
        Surrogate::Clip { clip_low, clip_high, delta: None },
        Surrogate::Clip { clip_low, clip_high, delta: Some(1.5) },
        Surrogate::Cispo { clip_low: 0.3, clip_high: 0.4 },
        Surrogate::Sapo { temperature_pos: 1.0, temperature_neg: 1.3 },
        Surrogate::Vespo { k_pos: 2.0, lambda_pos: 3.0, k_neg: 3.0, lambda_neg: 2.0 },
        Surrogate::DppoTv { clip_low: 0.05, clip_high: 0.04, cap: 1.6 },
        Surrogate::DppoKl { clip_low: 0.01, clip_high: 0.02, cap: 1.6 },
        Surrogate::ClipCov { clip_low, clip_high, share: 0.3, cov_low: -0.2, cov_high: 1.5 },
        Surrogate::KlCov { share: 0.3, coef: 0.7 },
        Surrogate::Nft { eps: 0.6 },
        Surrogate::Topr { cap: 1.0 },
        Surrogate::Raft {},
        Surrogate::RewardWeighted { temperature: 0.8, cap: 5.0 },
        Surrogate::Nll {},
        Surrogate::Gvpo { beta: 0.6 },
        Surrogate::None {},
    ];
    for item in &list {
        match item {
            Surrogate::Reinforce {} | Surrogate::Importance {} | Surrogate::Clip { .. } | Surrogate::Cispo { .. } => {}
            Surrogate::Sapo { .. } | Surrogate::Vespo { .. } | Surrogate::DppoTv { .. } | Surrogate::DppoKl { .. } => {}
            Surrogate::ClipCov { .. } | Surrogate::KlCov { .. } | Surrogate::Nft { .. } | Surrogate::Topr { .. } => {}
            Surrogate::Raft {} | Surrogate::RewardWeighted { .. } | Surrogate::Nll {} | Surrogate::Gvpo { .. } => {}
            Surrogate::None {} => {}
        }
    }
    list
}

/// Whether the gradient of the surrogate, on policy, is the advantage's, token by token.
pub fn is_policy_gradient(surrogate: &Surrogate) -> bool {
    match surrogate {
        Surrogate::Reinforce {} | Surrogate::Importance {} | Surrogate::Clip { .. } | Surrogate::Cispo { .. } => true,
        Surrogate::Sapo { .. } | Surrogate::Vespo { .. } | Surrogate::DppoTv { .. } | Surrogate::DppoKl { .. } => true,
        Surrogate::KlCov { .. } | Surrogate::Nft { .. } | Surrogate::Topr { .. } => true,
        Surrogate::ClipCov { .. } | Surrogate::Raft {} | Surrogate::RewardWeighted { .. } => false,
        Surrogate::Nll {} | Surrogate::Gvpo { .. } | Surrogate::None {} => false,
    }
}

/// Whether a stopped gradient makes the derivative another than that of the value.
pub fn stops_gradients(o: &PolicyObjective) -> bool {
    let surrogate = match o.surrogate {
        Surrogate::Cispo { .. } | Surrogate::Vespo { .. } | Surrogate::DppoTv { .. } | Surrogate::DppoKl { .. } => true,
        Surrogate::Topr { .. } | Surrogate::Nft { .. } => true,
        Surrogate::ClipCov { .. } | Surrogate::KlCov { .. } => true, // the choice is held
        Surrogate::Reinforce {} | Surrogate::Importance {} | Surrogate::Clip { .. } | Surrogate::Sapo { .. } => false,
        Surrogate::Raft {} | Surrogate::RewardWeighted { .. } | Surrogate::Nll {} => false,
        Surrogate::Gvpo { .. } | Surrogate::None {} => false,
    };
    let ratio = o.ratio == (Ratio::SequenceToken {});
    surrogate || ratio || o.kl.is_some_and(|kl| kl.estimator == (KlEstimator::K3Plus {}))
}

pub fn every_kl() -> Vec<KlEstimator> {
    let list = vec![KlEstimator::K1 {}, KlEstimator::K2 {}, KlEstimator::K3 {}, KlEstimator::K3Plus {}];
    for item in &list {
        match item {
            KlEstimator::K1 {} | KlEstimator::K2 {} | KlEstimator::K3 {} | KlEstimator::K3Plus {} => {}
        }
    }
    list
}

pub fn every_correction() -> Vec<Correction> {
    let mut list = vec![];
    for level in [Level::Token, Level::Sequence] {
        list.push(Correction::Truncate { level, low: None, high: 1.2 });
        list.push(Correction::Truncate { level, low: Some(0.8), high: 1.3 });
        list.push(Correction::Mask { level, low: Some(0.7), high: 1.4 });
    }
    for item in &list {
        match item {
            Correction::Truncate { .. } | Correction::Mask { .. } => {}
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
        TokenObjective::Chord {},
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
        TokenObjective::VocabularyKl {},
        TokenObjective::EntropyBonus {},
    ];
    for item in &list {
        match item {
            TokenObjective::Nll {}
            | TokenObjective::LabelSmoothing { .. }
            | TokenObjective::Dft {}
            | TokenObjective::Chord {}
            | TokenObjective::Probability { .. }
            | TokenObjective::Focal { .. }
            | TokenObjective::Eaft { .. }
            | TokenObjective::ReferenceKl { .. }
            | TokenObjective::ReferenceWeighted { .. }
            | TokenObjective::FDivergence { .. }
            | TokenObjective::Ift { .. }
            | TokenObjective::VocabularyKl {}
            | TokenObjective::EntropyBonus {} => {}
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
        Weighting::GroupSum {},
    ];
    for item in &list {
        match item {
            Weighting::Token {}
            | Weighting::Sequence {}
            | Weighting::GroupSum {}
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

/// Every legal pair of ratio and surrogate, each without and with a KL and an entropy term; every KL, correction and selection
/// on the surrogates that they may meet in different ways.
pub fn every_objective() -> Vec<PolicyObjective> {
    let mut list = vec![];
    let entropy = Some(EntropyBonus { coef: 0.05 });
    let kl = |estimator, importance| Some(KlPenalty { estimator, beta: 0.3, importance });
    for base in every_pair() {
        list.push(base.clone());
        list.push(PolicyObjective { kl: kl(KlEstimator::K3 {}, false), entropy, ..base });
    }
    for base in some_pairs() {
        for estimator in every_kl() {
            list.push(PolicyObjective { kl: kl(estimator, false), ..base.clone() });
            list.push(PolicyObjective { kl: kl(estimator, true), ..base.clone() });
        }
        let (top_entropy, off_policy_mask) =
            (Some(TopEntropy { share: 0.45 }), Some(OffPolicyMask { threshold: 0.05 }));
        list.push(PolicyObjective { top_entropy, ..base.clone() });
        list.push(PolicyObjective { off_policy_mask, kl: kl(KlEstimator::K3 {}, false), ..base.clone() });
        for correction in every_correction() {
            let absorbs = matches!(base.surrogate, Surrogate::Vespo { .. });
            if !(absorbs && correction.level() == Level::Sequence) {
                list.push(PolicyObjective { correction: Some(correction), entropy, ..base.clone() });
            }
        }
        let correction = Some(Correction::Mask { level: Level::Token, low: Some(0.7), high: 1.4 });
        list.push(PolicyObjective { correction, off_policy_mask, top_entropy, entropy, ..base });
    }
    list
}

/// Every legal pair of ratio and surrogate.
pub fn every_pair() -> Vec<PolicyObjective> {
    let mut list = vec![];
    for ratio in every_ratio() {
        for surrogate in every_surrogate() {
            let entropy = Some(EntropyBonus { coef: 0.05 }).filter(|_| surrogate == Surrogate::None {});
            list.push(PolicyObjective { ratio, surrogate, entropy, ..PolicyObjective::default() });
        }
    }
    list.retain(|objective| objective.check(8).is_empty());
    list
}

/// The pairs that corrections, selections and KL penalties may meet in different ways.
fn some_pairs() -> Vec<PolicyObjective> {
    let wanted = |o: &PolicyObjective| match o.surrogate {
        Surrogate::Reinforce {} | Surrogate::Clip { delta: None, .. } | Surrogate::Vespo { .. } => true,
        Surrogate::ClipCov { .. } | Surrogate::Topr { .. } => o.ratio == (Ratio::Token {}),
        _ => false,
    };
    every_pair().into_iter().filter(wanted).collect()
}

/// A ragged step with masked tokens, a fully masked and an empty sequence, in groups of two and three.
#[derive(Clone, Debug)]
pub struct Case {
    pub logp: Vec<f64>,
    pub logp_old: Vec<f64>,
    pub logp_gen: Vec<f64>,
    pub logp_ref: Vec<f64>,
    pub entropy: Vec<f64>,
    pub success: Vec<f64>,
    pub adv: Vec<f64>,
    pub weight: Vec<f64>,
    pub sequences: Vec<usize>,
    pub groups: Vec<usize>,
}

/// Random numbers; old, sampled and reference log-probs differ from the present ones by up to `spread`.
pub fn case(seed: u64, spread: f64) -> Case {
    let mut rng = SplitMix64::new(seed);
    let sequences = vec![3, 0, 5, 2, 4];
    let rows: usize = sequences.iter().sum();
    let mut draw = |low: f64, high: f64| (0..rows).map(|_| low + (high - low) * rng.next_f64()).collect::<Vec<f64>>();
    let logp = draw(-4.0, -0.01);
    let near = |noise: Vec<f64>| logp.iter().zip(noise).map(|(l, n)| (l + spread * n).min(-1e-3)).collect();
    let (logp_old, logp_gen, logp_ref) = (near(draw(-1.0, 1.0)), near(draw(-1.0, 1.0)), near(draw(-1.0, 1.0)));
    let mut weight = draw(0.1, 0.4);
    for masked in [1, 5, 8, 9] {
        weight[masked] = 0.0; // 8 and 9 are the whole fourth sequence
    }
    let (entropy, adv, success) = (draw(0.1, 2.0), draw(-2.0, 2.0), draw(0.2, 0.8));
    let groups = vec![2, 3];
    Case { logp_old, logp_gen, logp_ref, entropy, success, adv, weight, sequences, groups, logp: logp.clone() }
}

impl Case {
    pub fn rows(&self) -> Rows<'_> {
        Rows { sequences: &self.sequences, groups: &self.groups, ..self.rows_at(0..self.logp.len()) }
    }

    pub fn rows_at(&self, rows: Range<usize>) -> Rows<'_> {
        Rows {
            logp: &self.logp[rows.clone()],
            logp_old: Some(&self.logp_old[rows.clone()]),
            logp_gen: Some(&self.logp_gen[rows.clone()]),
            logp_ref: Some(&self.logp_ref[rows.clone()]),
            entropy: Some(&self.entropy[rows.clone()]),
            success: Some(&self.success[rows.clone()]),
            kl_factor: None,
            adv: &self.adv[rows.clone()],
            weight: &self.weight[rows],
            sequences: &[],
            groups: &[],
        }
    }

    /// All arrays over tokens.
    pub fn arrays(&mut self) -> [&mut Vec<f64>; 8] {
        [
            &mut self.logp,
            &mut self.logp_old,
            &mut self.logp_gen,
            &mut self.logp_ref,
            &mut self.entropy,
            &mut self.success,
            &mut self.adv,
            &mut self.weight,
        ]
    }

    /// Sequences before and from `cut`; the groups too where `cut` is the end of the first, else none.
    pub fn split(&self, cut: usize) -> (Self, Self) {
        let row: usize = self.sequences[..cut].iter().sum();
        let (mut left, mut right) = (self.clone(), self.clone());
        left.arrays().into_iter().for_each(|array| array.truncate(row));
        right.arrays().into_iter().for_each(|array| drop(array.drain(..row)));
        left.sequences.truncate(cut);
        right.sequences.drain(..cut);
        let groups = |sequences: usize| self.groups.iter().copied().filter(|g| *g == sequences).collect();
        (left.groups, right.groups) = (groups(cut), groups(self.sequences.len() - cut));
        (left, right)
    }

    pub fn join(&self, other: &Self) -> Self {
        let (mut joined, mut other) = (self.clone(), other.clone());
        for (left, right) in joined.arrays().into_iter().zip(other.arrays()) {
            left.append(right);
        }
        joined.sequences.append(&mut other.sequences);
        joined.groups.append(&mut other.groups);
        joined
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
