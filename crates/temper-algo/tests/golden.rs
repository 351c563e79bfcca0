//! Agreement with TRL 1.16 and transformers 5.23 in f64; tests/golden/grpo_loss.py made the numbers and says how.

use serde::Deserialize;
use temper_algo::{
    Advantage, Correction, EntropyBonus, GroupRewards, KlEstimator, KlPenalty, Level, OffPolicyMask, PolicyObjective,
    Ratio, Round, RoundAdvantages, Rows, Schedule, SequenceMask, Surrogate, TopEntropy, Weighting, Whiten,
};

#[derive(Deserialize)]
struct File<T> {
    cases: Vec<T>,
}

#[derive(Deserialize)]
struct Case {
    loss_type: String,
    level: String,
    clip_low: f64,
    clip_high: f64,
    beta: f64,
    scale_rewards: bool,
    max_tokens: u32,
    rewards: Vec<Vec<f64>>,
    adv: Vec<Vec<f64>>,
    mask: Vec<Vec<f32>>,
    logp: Vec<Vec<f64>>,
    logp_old: Vec<Vec<f64>>,
    logp_ref: Vec<Vec<f64>>,
    loss: f64,
    d_logp: Vec<Vec<f64>>,
    metrics: std::collections::BTreeMap<String, f64>,
    delta: Option<f64>,
    #[serde(default)]
    importance_kl: bool,
    top_entropy: Option<f64>,
    off_policy_mask: Option<f64>,
    entropy_coef: Option<f64>,
    mode: Option<String>,
    mode_low: Option<f64>,
    mode_high: Option<f64>,
    entropy: Option<Vec<Vec<f64>>>,
    logp_gen: Option<Vec<Vec<f64>>>,
    d_entropy: Option<Vec<Vec<f64>>>,
}

/// TRL's `vllm_importance_sampling_mode`.
fn correction(c: &Case) -> Option<Correction> {
    let (low, high) = (c.mode_low, c.mode_high.unwrap_or(3.0));
    Some(match c.mode.as_deref()? {
        "token_truncate" => Correction::Truncate { level: Level::Token, low, high },
        "token_mask" => Correction::Mask { level: Level::Token, low, high },
        "sequence_truncate" => Correction::Truncate { level: Level::Sequence, low, high },
        "sequence_mask" => Correction::Mask { level: Level::Sequence, low, high },
        other => panic!("{other}"),
    })
}

fn surrogate(c: &Case) -> Surrogate {
    let (clip_low, clip_high) = (c.clip_low, c.clip_high);
    match c.loss_type.as_str() {
        "cispo" => Surrogate::Cispo { clip_low: 1.0, clip_high: clip_high - 1.0 },
        "sapo" => Surrogate::Sapo { temperature_pos: 1.0, temperature_neg: 1.05 },
        "vespo" => Surrogate::Vespo { k_pos: 2.0, lambda_pos: 3.0, k_neg: 3.0, lambda_neg: 2.0 },
        "gmpo" => Surrogate::Importance {},
        _ => Surrogate::Clip { clip_low, clip_high, delta: c.delta },
    }
}

fn ratio(c: &Case) -> Ratio {
    match (c.loss_type.as_str(), c.level.as_str()) {
        ("vespo", _) => Ratio::Product {},
        ("gmpo", _) => Ratio::GeometricMean { clip_low: c.clip_low, clip_high: c.clip_high },
        (_, "token") => Ratio::Token {},
        _ => Ratio::Sequence {},
    }
}

fn objective(c: &Case) -> PolicyObjective {
    PolicyObjective {
        advantage: if c.scale_rewards { Advantage::default() } else { Advantage::GroupMean {} },
        ratio: ratio(c),
        surrogate: surrogate(c),
        correction: correction(c),
        top_entropy: c.top_entropy.map(|share| TopEntropy { share }),
        off_policy_mask: c.off_policy_mask.map(|threshold| OffPolicyMask { threshold }),
        kl: (c.beta > 0.0).then_some(KlPenalty {
            estimator: KlEstimator::K3 {},
            beta: c.beta,
            importance: c.importance_kl,
        }),
        kl_reward: None,
        entropy: c.entropy_coef.map(|coef| EntropyBonus { coef }),
        weighting: match c.loss_type.as_str() {
            "grpo" | "sapo" | "gmpo" => Weighting::Sequence {},
            "dr_grpo" => Weighting::Constant { tokens: c.max_tokens },
            // bnpo averages over the tokens of a micro-batch, dapo over those of the step; with one micro-batch they agree.
            "bnpo" | "dapo" | "cispo" | "vespo" => Weighting::Token {},
            // A sequence's sum, averaged over sequences.
            "luspo" => Weighting::Constant { tokens: 1 },
            other => panic!("{other}"),
        },
    }
}

fn close(got: f64, expected: f64) -> bool {
    (got - expected).abs() <= 1e-12 + 1e-10 * expected.abs()
}

#[test]
fn losses_gradients_and_metrics_agree_with_trl() {
    let file: File<Case> = serde_json::from_str(include_str!("../../../tests/golden/algo/grpo_loss.json")).unwrap();
    assert_eq!(file.cases.len(), 48);
    for (i, c) in file.cases.iter().enumerate() {
        let objective = objective(c);
        assert!(objective.check(4).is_empty(), "case {i}: {:?}", objective.check(4));
        let groups: Vec<GroupRewards> = c.rewards.iter().map(|r| GroupRewards::new(r)).collect();
        let round = Round { groups: &groups, ..Round::default() };
        let RoundAdvantages::Rollouts(adv) = objective.advantage.advantages(&round).unwrap() else { panic!() };
        let adv = adv.concat();
        // Groups of equal rewards are exact zeros here and rounding noise over eps (up to 1e-12) there.
        assert!(adv.iter().zip(c.adv.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-11), "case {i}: {adv:?}");

        let step: Vec<SequenceMask> = c.mask.iter().map(|mask| SequenceMask::new(0, mask)).collect();
        let weight = objective.weighting.weights(&step).unwrap().concat();
        let sequences: Vec<usize> = c.mask.iter().map(Vec::len).collect();
        let adv: Vec<f64> = adv.iter().zip(&sequences).flat_map(|(a, n)| vec![*a; *n]).collect();
        let (logp, old, reference) = (c.logp.concat(), c.logp_old.concat(), c.logp_ref.concat());
        let (entropy, logp_gen) = (c.entropy.as_ref().map(|e| e.concat()), c.logp_gen.as_ref().map(|l| l.concat()));
        let rows = Rows {
            logp: &logp,
            logp_old: Some(&old),
            logp_ref: Some(&reference),
            logp_gen: logp_gen.as_deref(),
            entropy: entropy.as_deref(),
            adv: &adv,
            weight: &weight,
            sequences: &sequences,
            ..Rows::EMPTY
        };
        let terms = objective.token_terms(&rows).unwrap();
        assert!(close(terms.loss, c.loss), "case {i} {}: loss {} {}", c.loss_type, terms.loss, c.loss);
        for (row, (got, expected)) in terms.d_logp.iter().zip(c.d_logp.iter().flatten()).enumerate() {
            assert!(close(*got, *expected), "case {i} {}: row {row}: {got} {expected}", c.loss_type);
        }
        if let Some(expected) = &c.d_entropy {
            let got = terms.d_entropy.as_ref().unwrap();
            assert!(got.iter().zip(expected.iter().flatten()).all(|(a, b)| close(*a, *b)), "case {i}: entropy");
        }
        // What the engine hands over is f32.
        let narrow = |v: &[f64]| v.iter().map(|x| f64::from(*x as f32)).collect::<Vec<f64>>();
        let columns = [&logp, &old, &reference, &adv].map(|v| narrow(v));
        let (entropy, logp_gen) = (entropy.as_deref().map(narrow), logp_gen.as_deref().map(narrow));
        let rows = Rows {
            logp: &columns[0],
            logp_old: Some(&columns[1]),
            logp_ref: Some(&columns[2]),
            adv: &columns[3],
            entropy: entropy.as_deref(),
            logp_gen: logp_gen.as_deref(),
            ..rows
        };
        let rounded = objective.token_terms(&rows).unwrap();
        let size = |d: &mut dyn Iterator<Item = f64>| d.map(|d| d * d).sum::<f64>().sqrt();
        let expected = || c.d_logp.iter().flatten();
        let error = size(&mut rounded.d_logp.iter().zip(expected()).map(|(a, b)| a - b));
        assert!(error <= 1e-5 * size(&mut expected().copied()), "case {i} {}: {error:e} in f32", c.loss_type);
        assert!((rounded.loss - c.loss).abs() <= 1e-5 * c.loss.abs().max(0.1), "case {i}: {} in f32", rounded.loss);
        let entries: std::collections::BTreeMap<_, _> = terms.metrics.entries().into_iter().collect();
        // TRL counts sequences at the sequence level and also empty ones; we count tokens throughout.
        let token_level = c.level == "token" && c.loss_type != "cispo";
        for (name, expected) in c.metrics.iter().filter(|(name, _)| token_level || *name == "kl" || *name == "entropy")
        {
            assert!(
                (entries[name.as_str()] - expected).abs() < 1e-6,
                "case {i}: {name} {} {expected}",
                entries[name.as_str()]
            );
        }
        assert_eq!(c.metrics.contains_key("kl"), c.beta > 0.0);
    }
}

#[derive(Deserialize)]
struct ScheduleCase {
    kind: String,
    warmup_steps: u64,
    total: u64,
    #[serde(default)]
    min_ratio: f64,
    values: Vec<f64>,
}

#[test]
fn schedules_agree_with_transformers() {
    let file: File<ScheduleCase> =
        serde_json::from_str(include_str!("../../../tests/golden/algo/schedule.json")).unwrap();
    for c in file.cases {
        let (warmup_steps, warmup_ratio, min_ratio) = (Some(c.warmup_steps), None, c.min_ratio);
        let schedule = match c.kind.as_str() {
            "constant" => Schedule::Constant { warmup_steps, warmup_ratio },
            "linear" => Schedule::Linear { warmup_steps, warmup_ratio, min_ratio },
            _ => Schedule::Cosine { warmup_steps, warmup_ratio, min_ratio },
        };
        for (step, expected) in c.values.iter().enumerate() {
            let got = schedule.value(step as u64, c.total);
            assert!((got - expected).abs() < 1e-12, "{} {step}: {got} {expected}", c.kind);
        }
    }
}

#[derive(Deserialize)]
struct AdvantageCase {
    part_weights: Vec<f64>,
    parts: Vec<Vec<Vec<f64>>>,
    rewards: Vec<Vec<f64>>,
    group: Vec<Vec<f64>>,
    batch: Vec<Vec<f64>>,
    none: Vec<Vec<f64>>,
    gdpo: Vec<Vec<f64>>,
    rloo: Vec<Vec<f64>>,
    rloo_normalized: Vec<Vec<f64>>,
}

/// tests/golden/advantages.py runs the lines of TRL 1.16 that compute advantages.
#[test]
fn advantages_agree_with_trl() {
    let file: File<AdvantageCase> =
        serde_json::from_str(include_str!("../../../tests/golden/algo/advantages.json")).unwrap();
    assert_eq!(file.cases.len(), 6);
    for c in file.cases {
        let groups: Vec<GroupRewards> = c
            .rewards
            .iter()
            .zip(&c.parts)
            .map(|(rewards, parts)| GroupRewards { parts, ..GroupRewards::new(rewards) })
            .collect();
        let round = Round { groups: &groups, part_weights: &c.part_weights, ..Round::default() };
        for (advantage, expected) in [
            (Advantage::default(), &c.group),
            (Advantage::BatchZScore { eps: 1e-4 }, &c.batch),
            (Advantage::GroupMean {}, &c.none),
            (Advantage::Gdpo { eps: 1e-4, whiten: Whiten::Rollout }, &c.gdpo),
            (Advantage::Rloo { whiten: Whiten::None }, &c.rloo),
            (Advantage::Rloo { whiten: Whiten::Rollout }, &c.rloo_normalized),
        ] {
            let RoundAdvantages::Rollouts(got) = advantage.advantages(&round).unwrap() else { panic!() };
            for (a, b) in got.concat().into_iter().zip(expected.concat()) {
                // All-equal groups are exact zeros here and rounding noise over eps there.
                assert!((a - b).abs() < 1e-11, "{advantage:?}: {a} {b}");
            }
        }
    }
}
