//! Identities that the papers prove, over distributions small enough to enumerate.
//!
//! A policy here is a softmax over the completions of one prompt, each one token long, so that log-probs, expectations and
//! gradients with respect to the logits are exact sums.

use temper_algo::{
    Advantage, Correction, Coupling, EntropyBonus, GroupRewards, KlEstimator, KlPenalty, Level, PolicyObjective,
    PolicyTerms, Ratio, Round, RoundAdvantages, Rows, Surrogate,
};

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let lse = logits.iter().map(|z| z.exp()).sum::<f64>().ln();
    logits.iter().map(|z| z - lse).collect()
}

/// d/d(logits) of a function whose derivative in the log-probs is `d_logp`: `d_j - p_j sum(d)`.
fn to_logits(logp: &[f64], d_logp: &[f64]) -> Vec<f64> {
    let total: f64 = d_logp.iter().sum();
    logp.iter().zip(d_logp).map(|(l, d)| d - l.exp() * total).collect()
}

fn objective(surrogate: Surrogate) -> PolicyObjective {
    PolicyObjective { surrogate, ..PolicyObjective::default() }
}

/// One row a completion, all in one group, weighted by their probability under `weight_logp`.
fn terms(o: &PolicyObjective, rows: &Rows, weight_logp: &[f64]) -> PolicyTerms {
    let weight: Vec<f64> = weight_logp.iter().map(|l| l.exp()).collect();
    let sequences = vec![1; weight.len()];
    o.token_terms(&Rows { weight: &weight, sequences: &sequences, groups: &[weight.len()], ..*rows }).unwrap()
}

fn close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance), "{got:?} {expected:?}");
}

const LOGITS: [f64; 4] = [0.3, -0.7, 1.1, 0.0];
const REFERENCE: [f64; 4] = [0.0, 0.5, -0.5, 0.2];
const REWARDS: [f64; 4] = [1.0, 0.0, 0.25, -0.5];

/// The advantages of one group.
fn advantages(advantage: Advantage, rewards: &[f64]) -> Vec<f64> {
    let round = Round { groups: &[GroupRewards::new(rewards)], ..Round::default() };
    match advantage.advantages(&round).unwrap() {
        RoundAdvantages::Rollouts(groups) => groups.concat(),
        RoundAdvantages::Tokens(_) => panic!("one advantage a rollout"),
    }
}

/// NFT, Proposition 4.1 and 4.2: on policy, the gradient is GRPO's, with either normalisation and whatever `eps` and divisor.
#[test]
fn nft_is_grpo_on_policy() {
    let rewards = [1.0, 0.0, 0.0, 1.0, 0.0];
    let logp = [-1.0, -2.0, -0.5, -3.0, -0.1];
    for advantage in
        [Advantage::GroupZScore { eps: 0.0 }, Advantage::GroupZScore { eps: 1e-4 }, Advantage::GroupMean {}]
    {
        let adv = advantages(advantage, &rewards);
        let rows = Rows { logp: &logp, adv: &adv, success: Some(&[0.4; 5]), ..Rows::EMPTY };
        let grpo = terms(&objective(Surrogate::default()), &rows, &logp);
        let nft = terms(&objective(Surrogate::Nft { eps: 1.0 }), &rows, &logp);
        assert_eq!(nft.d_logp, grpo.d_logp);
    }
    // The paper's prompt weights: sqrt((1 - q) / q) and 1 - q on right answers.
    let q: f64 = 0.4;
    let sample = 2f64.sqrt() / 5f64.sqrt() * 3f64.sqrt() / 5f64.sqrt(); // population std sqrt(q (1 - q))
    assert!(((1.0 - q) / sample - ((1.0 - q) / q).sqrt()).abs() < 1e-15);
    assert!((advantages(Advantage::GroupMean {}, &rewards)[0] - (1.0 - q)).abs() < 1e-15);
}

/// With the whole answer space as the group, GVPO is stationary exactly at `pi* = ref e^(R / beta) / Z`, also off policy.
#[test]
fn gvpo_is_stationary_at_the_regularised_optimum() {
    let beta = 0.3;
    let reference = log_softmax(&REFERENCE);
    let tilted: Vec<f64> = reference.iter().zip(REWARDS).map(|(l, r)| l + r / beta).collect();
    let optimum = log_softmax(&tilted);
    let adv = advantages(Advantage::GroupMean {}, &REWARDS);
    let gvpo = objective(Surrogate::Gvpo { beta });
    for behaviour in [LOGITS, REFERENCE] {
        let weights = log_softmax(&behaviour);
        let at =
            |logp: &[f64]| terms(&gvpo, &Rows { logp, logp_ref: Some(&reference), adv: &adv, ..Rows::EMPTY }, &weights);
        let best = at(&optimum);
        assert!(best.loss < 1e-28 && best.d_logp.iter().all(|d| d.abs() < 1e-14), "{best:?}");
        assert!(at(&log_softmax(&LOGITS)).loss > 1e-3);
    }
}

/// CoPG's loss over all pairs, `sum_{i<j} (R_b(i) - R_b(j))^2`, is `2 G` times GVPO's sum.
#[test]
fn gvpo_is_copg_over_all_pairs() {
    let beta = 0.3;
    let (logp, reference) = (log_softmax(&LOGITS), log_softmax(&REFERENCE));
    let adv = advantages(Advantage::GroupMean {}, &REWARDS);
    let ones = [0.0; 4]; // weight e^0
    let rows = Rows { logp: &logp, logp_ref: Some(&reference), adv: &adv, ..Rows::EMPTY };
    let got = terms(&objective(Surrogate::Gvpo { beta }), &rows, &ones);
    let regularised: Vec<f64> = (0..4).map(|i| REWARDS[i] - beta * (logp[i] - reference[i])).collect();
    let mut pairs = 0.0;
    let mut gradient = [0.0; 4];
    for i in 0..4 {
        for j in 0..i {
            let difference = regularised[i] - regularised[j];
            pairs += difference * difference;
            gradient[i] -= 2.0 * beta * difference;
            gradient[j] += 2.0 * beta * difference;
        }
    }
    assert!((8.0 * got.loss - pairs).abs() < 1e-13, "{} {pairs}", got.loss);
    close(&got.d_logp.iter().map(|d| 8.0 * d).collect::<Vec<_>>(), &gradient, 1e-13);
}

/// For a preference pair with rewards 1/2 apart, it is IPO with `tau = beta`: `(h - 1 / (2 tau))^2` up to `tau^2 / 4`.
#[test]
fn gvpo_of_a_pair_is_ipo() {
    let tau = 0.4;
    let (chosen, rejected, chosen_ref, rejected_ref) = (-2.0, -1.5, -2.6, -1.0);
    let rows = Rows {
        logp: &[chosen, rejected],
        logp_ref: Some(&[chosen_ref, rejected_ref]),
        adv: &[0.25, -0.25],
        ..Rows::EMPTY
    };
    let got = terms(&objective(Surrogate::Gvpo { beta: tau }), &rows, &[0.0, 0.0]);
    let h = (chosen - rejected) - (chosen_ref - rejected_ref);
    let ipo = (h - 0.5 / tau).powi(2);
    let slope = 2.0 * (h - 0.5 / tau);
    let scale = tau * tau / 4.0;
    assert!((got.loss - scale * ipo).abs() < 1e-15);
    close(&got.d_logp, &[scale * slope, -scale * slope], 1e-15);
}

/// Pairs drawn independently from the policy: the mean of CoPG's direction is twice the gradient of `E[R] - beta KL`, the
/// regularised policy gradient.
#[test]
fn copg_on_policy_is_the_policy_gradient() {
    let beta = 0.3;
    let (logp, reference) = (log_softmax(&LOGITS), log_softmax(&REFERENCE));
    let mut mean = [0.0; 4];
    for i in 0..4 {
        for j in 0..4 {
            let adv = advantages(Advantage::GroupMean {}, &[REWARDS[i], REWARDS[j]]);
            let rows = Rows {
                logp: &[logp[i], logp[j]],
                logp_ref: Some(&[reference[i], reference[j]]),
                adv: &adv,
                ..Rows::EMPTY
            };
            let got = terms(&objective(Surrogate::Gvpo { beta }), &rows, &[0.0, 0.0]);
            let mut d = vec![0.0; 4];
            d[i] += got.d_logp[0];
            d[j] += got.d_logp[1];
            let probability = (logp[i] + logp[j]).exp();
            mean.iter_mut().zip(to_logits(&logp, &d)).for_each(|(m, g)| *m += probability * g);
        }
    }
    let value = |logits: &[f64]| {
        let p = log_softmax(logits);
        (0..4).map(|i| p[i].exp() * (REWARDS[i] - beta * (p[i] - reference[i]))).sum::<f64>()
    };
    for j in 0..4 {
        let (mut up, mut down) = (LOGITS, LOGITS);
        up[j] += 1e-5;
        down[j] -= 1e-5;
        let gradient = (value(&up) - value(&down)) / 2e-5;
        // GVPO's pair is (difference)^2 / 4, CoPG's direction 2 (difference) grad: -4 / beta times the descent.
        assert!((-mean[j] / beta - gradient).abs() < 1e-9, "{} {gradient}", -mean[j] / beta);
    }
}

/// TRICE over all proposals for three prompts whose memories are given: the control variate has mean zero, so the mean gradient is that of
/// the memories after the move; and where every answer is right there is no gradient whatever was proposed.
#[test]
fn trices_control_variate_has_mean_zero_and_takes_all_variance() {
    let logp = log_softmax(&LOGITS);
    let gradient = |proposals: [usize; 3], right: [bool; 4], memory: [usize; 3]| {
        let rewards = proposals.map(|z| if right[z] { vec![1.0] } else { vec![0.0, 1.0] });
        let groups: Vec<GroupRewards> = rewards.iter().map(|r| GroupRewards::new(r)).collect();
        let round = Round { groups: &groups, ..Round::default() };
        let RoundAdvantages::Rollouts(adv) = Advantage::Trice { threshold: 0.5 }.advantages(&round).unwrap() else {
            panic!("one coefficient a rollout")
        };
        let (mut d, mut moved) = (vec![0.0; 4], [0.0; 4]);
        for m in 0..3 {
            d[proposals[m]] -= adv[m][0];
            if let Some(kept) = adv[m].get(1) {
                d[memory[m]] -= kept;
            }
            moved[if right[proposals[m]] { proposals[m] } else { memory[m] }] -= 1.0;
        }
        (to_logits(&logp, &d), to_logits(&logp, &moved))
    };
    let (mut mean, mut expected) = ([0.0; 4], [0.0; 4]);
    for code in 0..64usize {
        let proposals = [code % 4, code / 4 % 4, code / 16];
        let probability = proposals.iter().map(|z| logp[*z]).sum::<f64>().exp();
        let (got, moved) = gradient(proposals, [true, false, false, true], [0, 3, 3]);
        mean.iter_mut().zip(got).for_each(|(m, g)| *m += probability * g);
        expected.iter_mut().zip(moved).for_each(|(m, g)| *m += probability * g);
        let (solved, _) = gradient(proposals, [true; 4], [0, 3, 3]);
        assert!(solved.iter().all(|d| *d == 0.0), "{proposals:?}: {solved:?}");
    }
    close(&mean, &expected, 1e-14);
}

/// OSFT: likelihood of samples of the policy itself has mean gradient zero at equal temperatures, and sharpens when the
/// samples are colder.
#[test]
fn osft_has_mean_gradient_zero_at_equal_temperatures() {
    let logp = log_softmax(&LOGITS);
    let nll = objective(Surrogate::Nll {});
    let mean = |temperature: f64| {
        let sampled = log_softmax(&LOGITS.map(|z| z / temperature));
        let got = terms(&nll, &Rows { logp: &logp, adv: &[0.0; 4], ..Rows::EMPTY }, &sampled);
        to_logits(&logp, &got.d_logp)
    };
    close(&mean(1.0), &[0.0; 4], 1e-15);
    let cold = mean(0.6);
    assert!(cold[2] < -0.05 && cold[1] > 0.05, "descent raises the likeliest answer: {cold:?}");
    assert!(!nll.needs().names().any(|need| need == "group"));
}

/// GRPO's ratio in the first update after sampling is exactly 1 for every ratio, also in the correction.
#[test]
fn the_first_ratio_is_exactly_one() {
    let logp = [-0.123_456_789, -7.7, -1e-9, -30.1];
    let ratios = [Ratio::Token {}, Ratio::Sequence {}, Ratio::SequenceToken {}, Ratio::Product {}];
    for ratio in ratios.into_iter().chain([Ratio::GeometricMean { clip_low: 0.4, clip_high: 0.4 }]) {
        for correction in [None, Some(Correction::Mask { level: Level::Sequence, low: Some(1.0), high: 1.0 })] {
            let o = PolicyObjective {
                ratio,
                correction,
                surrogate: Surrogate::Importance {},
                ..PolicyObjective::default()
            };
            let rows =
                Rows { logp: &logp, logp_old: Some(&logp), logp_gen: Some(&logp), adv: &[1.0; 4], ..Rows::EMPTY };
            let got = terms(&o, &rows, &[0.0; 4]);
            assert_eq!((got.metrics.ratio_max, got.metrics.ratio_sum, got.loss), (1.0, 4.0, -4.0));
        }
    }
}

/// The importance-weighted `k1` and `k3` have the KL's own gradient on policy; plain `k1` has none, and `k3` the wrong one.
#[test]
fn importance_weighted_kl_has_the_gradient_of_the_kl() {
    let (logp, reference) = (log_softmax(&LOGITS), log_softmax(&REFERENCE));
    let gradient = |estimator, importance| {
        let kl = Some(KlPenalty { estimator, beta: 1.0, importance });
        let o = PolicyObjective { kl, surrogate: Surrogate::None {}, ..PolicyObjective::default() };
        let rows =
            Rows { logp: &logp, logp_old: Some(&logp), logp_ref: Some(&reference), adv: &[0.0; 4], ..Rows::EMPTY };
        to_logits(&logp, &terms(&o, &rows, &logp).d_logp)
    };
    let kl: f64 = logp.iter().zip(&reference).map(|(l, r)| l.exp() * (l - r)).sum();
    let expected: Vec<f64> = logp.iter().zip(&reference).map(|(l, r)| l.exp() * (l - r - kl)).collect();
    for (estimator, importance) in [
        (KlEstimator::K1 {}, true),
        (KlEstimator::K3 {}, true),
        (KlEstimator::K2 {}, false),
        (KlEstimator::K3Plus {}, false),
    ] {
        close(&gradient(estimator, importance), &expected, 1e-15);
    }
    close(&gradient(KlEstimator::K1 {}, false), &[0.0; 4], 1e-15);
    assert!(gradient(KlEstimator::K3 {}, false).iter().zip(&expected).any(|(a, b)| (a - b).abs() > 1e-2));
}

/// Importance-weighted samples of another policy have the policy gradient's mean; so do samples of a third policy with the
/// correction.
#[test]
fn importance_weights_remove_the_bias_of_other_samples() {
    let (now, old, sampled) = (log_softmax(&LOGITS), log_softmax(&REFERENCE), log_softmax(&[0.9, -0.2, 0.1, 0.4]));
    let on_policy =
        terms(&objective(Surrogate::Reinforce {}), &Rows { logp: &now, adv: &REWARDS, ..Rows::EMPTY }, &now);
    let expected = to_logits(&now, &on_policy.d_logp);
    let rows = Rows { logp: &now, logp_old: Some(&old), logp_gen: Some(&sampled), adv: &REWARDS, ..Rows::EMPTY };
    let stale = terms(&objective(Surrogate::Importance {}), &rows, &old);
    close(&to_logits(&now, &stale.d_logp), &expected, 1e-14);
    for level in [Level::Token, Level::Sequence] {
        let correction = Some(Correction::Truncate { level, low: None, high: 1e6 });
        let o = PolicyObjective { correction, ..objective(Surrogate::Importance {}) };
        close(&to_logits(&now, &terms(&o, &rows, &sampled).d_logp), &expected, 1e-14);
    }
}

/// Entropy minimisation: with the surrogate `none` and a coefficient below 0, the loss is the entropy itself.
#[test]
fn entropy_minimisation_is_a_negative_bonus() {
    let entropy = Some(EntropyBonus { coef: -1.0 });
    let o = PolicyObjective { entropy, surrogate: Surrogate::None {}, ..PolicyObjective::default() };
    assert!(o.check(1).is_empty());
    let rows = Rows { logp: &[-1.0, -2.0], adv: &[0.0; 2], entropy: Some(&[0.5, 1.5]), ..Rows::EMPTY };
    let got = terms(&o, &rows, &[0.5f64.ln(); 2]);
    assert_eq!((got.loss, got.d_logp, got.d_entropy), (1.0, vec![0.0; 2], Some(vec![0.5; 2])));
}

/// TOPR: its gradient on policy is REINFORCE's, and a negative sample that the policy has left far behind pushes no more.
#[test]
fn topr_tapers_off() {
    let o = PolicyObjective { ratio: Ratio::Product {}, ..objective(Surrogate::Topr { cap: 1.0 }) };
    let push = |adv: f64, now: f64| {
        let rows = Rows { logp: &[now], logp_old: Some(&[-1.0]), adv: &[adv], ..Rows::EMPTY };
        terms(&o, &rows, &[0.0]).d_logp[0]
    };
    assert_eq!((push(-1.0, -1.0), push(-1.0, 0.0), push(1.0, -30.0)), (1.0, 1.0, -1.0));
    assert!(push(-1.0, -30.0) < 1e-12);
}

#[test]
fn coupling_is_what_the_parts_say() {
    let of = |text: &str| serde_json::from_str::<PolicyObjective>(text).unwrap().coupling();
    assert_eq!(of("{}"), Coupling::Token);
    assert_eq!(of(r#"{ "ratio": { "kind": "sequence_token" } }"#), Coupling::Sequence);
    assert_eq!(
        of(r#"{ "surrogate": { "kind": "reinforce" }, "off_policy_mask": { "threshold": 1 } }"#),
        Coupling::Sequence
    );
    assert_eq!(of(r#"{ "correction": { "kind": "mask", "level": "sequence" } }"#), Coupling::Sequence);
    assert_eq!(of(r#"{ "surrogate": { "kind": "gvpo" } }"#), Coupling::Group);
    assert_eq!(of(r#"{ "surrogate": { "kind": "kl_cov" } }"#), Coupling::Step);
    assert_eq!(of(r#"{ "top_entropy": {} }"#), Coupling::Step);
}

/// A factor of the KL at each token is a beta of each token: of two tokens with beta 0.4, factors 0.5 and 0 leave 0.2 on the first.
#[test]
fn the_kl_has_a_factor_a_token() {
    let objective = |beta| PolicyObjective {
        kl: Some(KlPenalty { estimator: KlEstimator::K3 {}, beta, importance: false }),
        ..PolicyObjective::default()
    };
    let rows = Rows { logp: &[-1.0, -2.0], logp_ref: Some(&[-1.5, -0.5]), adv: &[0.3, -0.2], ..Rows::EMPTY };
    let weights = [0.5f64, 0.25].map(f64::ln);
    let halved = terms(&objective(0.4), &Rows { kl_factor: Some(&[0.5, 0.0]), ..rows }, &weights);
    let (light, none) = (terms(&objective(0.2), &rows, &weights), terms(&PolicyObjective::default(), &rows, &weights));
    assert_eq!(halved.d_logp, [light.d_logp[0], none.d_logp[1]]);
    // exp(-0.5) - 1 + 0.5 = 0.106530660 at the first token.
    assert!((halved.loss - none.loss - 0.5 * 0.2 * 0.106_530_660).abs() < 1e-9, "{} {}", halved.loss, none.loss);
    assert_eq!(halved.metrics.kl, light.metrics.kl, "what is measured has no factor");
}
