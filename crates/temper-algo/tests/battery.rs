//! One battery over every variant of every slot: an exhaustive `match` beside each list forces new variants into it.

mod support;

use support::{Case, case, every_objective};
use temper_algo::{
    Advantage, Correction, Coupling, Error, GroupShaper, KlEstimator, Knob, Needs, PolicyMetrics, PolicyObjective,
    Ratio, RewardShaping, Schedule, SequenceMask, Surrogate, TokenObjective, Weighting,
};

const STEP: f64 = 1e-6;

/// Central difference of the loss in one input.
fn slope(c: &Case, objective: &PolicyObjective, change: impl Fn(&mut Case, f64)) -> f64 {
    let at = |by: f64| {
        let mut moved = c.clone();
        change(&mut moved, by);
        objective.token_terms(&moved.rows()).unwrap().loss
    };
    (at(STEP) - at(-STEP)) / (2.0 * STEP)
}

#[test]
fn derivatives_agree_with_finite_differences() {
    // Stopped gradients are differentiated in tests/reference.rs, where they can be held.
    let plain = every_objective().into_iter().filter(|o| !support::stops_gradients(o));
    for (i, objective) in plain.enumerate() {
        let c = case(i as u64, 0.6);
        let terms = objective.token_terms(&c.rows()).unwrap();
        for row in 0..c.logp.len() {
            let numeric = slope(&c, &objective, |c, by| c.logp[row] += by);
            assert!(
                (terms.d_logp[row] - numeric).abs() < 1e-7,
                "{objective:?} row {row}: {} {numeric}",
                terms.d_logp[row]
            );
            let numeric = slope(&c, &objective, |c, by| c.entropy[row] += by);
            let d_entropy = terms.d_entropy.as_ref().map_or(0.0, |d| d[row]);
            assert!((d_entropy - numeric).abs() < 1e-7, "{objective:?} row {row}: entropy {d_entropy} {numeric}");
        }
    }
}

#[test]
fn on_policy_the_gradient_is_reinforce() {
    for objective in support::every_pair().into_iter().filter(|o| support::is_policy_gradient(&o.surrogate)) {
        let mut c = case(3, 0.0);
        c.logp_old = c.logp.clone();
        if objective.ratio.coupling() == Coupling::Sequence {
            c.spread_weights_evenly();
        }
        // The whole sequence's ratio, with its gradient, enters the term of each of its tokens.
        let product = objective.ratio == (Ratio::Product {});
        let held =
            matches!(objective.surrogate, Surrogate::Cispo { .. } | Surrogate::Vespo { .. } | Surrogate::Topr { .. });
        let counts = [2.0, 0.0, 4.0, 0.0, 4.0];
        for rows in [c.rows(), temper_algo::Rows { logp_old: None, ..c.rows() }] {
            let terms = objective.token_terms(&rows).unwrap();
            assert_eq!(terms.metrics.ratio_max, 1.0);
            let sequence = |row: usize| [0, 0, 0, 2, 2, 2, 2, 2, 3, 3, 4, 4, 4, 4][row];
            for row in 0..c.logp.len() {
                let times = if product && !held { counts[sequence(row)] } else { 1.0 };
                let expected = -c.adv[row] * c.weight[row] * times;
                assert!(
                    (terms.d_logp[row] - expected).abs() <= 1e-15,
                    "{objective:?}: {} {expected}",
                    terms.d_logp[row]
                );
                let exact = objective.ratio == Ratio::default();
                assert!(!exact || terms.d_logp[row] == expected, "{objective:?} is not exact");
            }
        }
    }
}

#[test]
fn extremes_stay_finite() {
    for objective in every_objective() {
        for (logp, old) in [(-1e4, 0.0), (0.0, -1e4), (-80.0, -1e-9), (-1e-300, -1e-300)] {
            for adv in [-3.0, 0.0, 3.0] {
                let mut c = case(1, 0.1);
                c.logp.fill(logp);
                c.logp_old.fill(old);
                c.logp_gen.fill(old.midpoint(logp));
                c.logp_ref.fill(old);
                c.adv.fill(adv);
                let terms = objective.token_terms(&c.rows()).unwrap();
                assert!(
                    terms.loss.is_finite() && terms.d_logp.iter().all(|d| (*d as f32).is_finite()),
                    "{objective:?}"
                );
            }
        }
    }
}

#[test]
fn masked_tokens_contribute_exactly_nothing() {
    for objective in every_objective() {
        let c = case(5, 0.5);
        let terms = objective.token_terms(&c.rows()).unwrap();
        let mut poisoned = c.clone();
        for row in (0..c.logp.len()).filter(|row| c.weight[*row] == 0.0) {
            for values in poisoned.arrays().into_iter().take(7) {
                values[row] = f64::NAN; // all but the weights
            }
            assert_eq!(terms.d_logp[row], 0.0);
        }
        assert!(c.weight.contains(&0.0));
        assert_eq!(objective.token_terms(&poisoned.rows()).unwrap(), terms, "{objective:?}");
    }
}

/// Where a step may be cut: between sequences, between groups, or nowhere.
fn cuts(objective: &PolicyObjective) -> &'static [usize] {
    match objective.coupling() {
        Coupling::Token | Coupling::Sequence => &[0, 1, 2, 3, 4, 5],
        Coupling::Group => &[0, 2, 5],
        Coupling::Step => &[0, 5],
    }
}

#[test]
fn any_split_into_micro_batches_gives_the_same_step() {
    for objective in every_objective() {
        let c = case(7, 0.4);
        let whole = objective.token_terms(&c.rows()).unwrap();
        for cut in cuts(&objective) {
            let (mut left, mut right) = c.split(*cut);
            if *cut == 0 || *cut == 5 {
                (left.groups, right.groups) = if *cut == 0 { (vec![], vec![2, 3]) } else { (vec![2, 3], vec![]) };
            }
            let parts = [left, right].map(|part| objective.token_terms(&part.rows()).unwrap());
            assert!((parts[0].loss + parts[1].loss - whole.loss).abs() < 1e-14);
            assert_eq!([parts[0].d_logp.as_slice(), &parts[1].d_logp].concat(), whole.d_logp);
            let merged = parts[0].metrics.merge(parts[1].metrics);
            for ((name, a), (_, b)) in merged.entries().into_iter().zip(whole.metrics.entries()) {
                assert!((a - b).abs() < 1e-13, "{name}");
            }
        }
    }
}

#[test]
fn a_step_coupled_objective_does_not_survive_a_cut() {
    let differs = |o: &PolicyObjective| {
        (0..8).any(|seed| {
            let c = case(seed, 0.4);
            let (left, right) = c.split(2);
            let parts = [left, right].map(|part| o.token_terms(&part.rows()).unwrap().loss);
            (parts[0] + parts[1] - o.token_terms(&c.rows()).unwrap().loss).abs() > 1e-9
        })
    };
    // A correction may leave so little of the loss that the choice shows in none of the seeds.
    let ranks = |o: &&PolicyObjective| o.coupling() == Coupling::Step && o.correction.is_none();
    for objective in every_objective().iter().filter(ranks) {
        assert!(differs(objective), "{objective:?} says `step`, but a cut changes nothing");
    }
}

#[test]
fn token_coupled_objectives_may_be_cut_anywhere() {
    for objective in every_objective().into_iter().filter(|o| o.coupling() == Coupling::Token) {
        let c = case(7, 0.4);
        let whole = objective.token_terms(&c.rows()).unwrap();
        for row in 0..c.logp.len() {
            let one = objective.token_terms(&c.rows_at(row..row + 1)).unwrap();
            assert_eq!(one.d_logp[0], whole.d_logp[row]);
        }
    }
}

#[test]
fn the_order_of_sequences_changes_nothing() {
    for objective in every_objective() {
        let c = case(9, 0.4);
        let whole = objective.token_terms(&c.rows()).unwrap();
        let (left, right) = c.split(2);
        let swapped = objective.token_terms(&right.join(&left).rows()).unwrap();
        assert!((swapped.loss - whole.loss).abs() < 1e-13);
        assert_eq!([&swapped.d_logp[right.logp.len()..], &swapped.d_logp[..right.logp.len()]].concat(), whole.d_logp);
    }
}

#[test]
fn missing_and_broken_inputs_are_named() {
    for objective in every_objective() {
        let c = case(2, 0.2);
        for name in objective.needs().names() {
            let rows = match name {
                "logp_ref" => temper_algo::Rows { logp_ref: None, ..c.rows() },
                "logp_gen" => temper_algo::Rows { logp_gen: None, ..c.rows() },
                "entropy" => temper_algo::Rows { entropy: None, ..c.rows() },
                "success" => temper_algo::Rows { success: None, ..c.rows() },
                _ => continue, // `logp_old` may be absent, `group` is of the rewards
            };
            let got = objective.token_terms(&rows);
            assert!(matches!(got, Err(Error::Missing { name: found, .. }) if found == name), "{objective:?}: {got:?}");
        }
        assert!(!objective.needs().contains(Needs::VALUE));
        let short = temper_algo::Rows { adv: &c.adv[1..], ..c.rows() };
        assert!(matches!(objective.token_terms(&short), Err(Error::Length { name: "adv", .. })));
        let mut nan = c.clone();
        let row = nan.weight.iter().position(|w| *w != 0.0).unwrap();
        nan.logp[row] = f64::NAN;
        assert!(
            matches!(objective.token_terms(&nan.rows()), Err(Error::NotFinite { name: "logp", row: r, .. }) if r == row)
        );
        if objective.ratio.coupling() > Coupling::Token {
            let uncovered = temper_algo::Rows { sequences: &[1], ..c.rows() };
            assert!(matches!(objective.token_terms(&uncovered), Err(Error::Length { name: "sequences", .. })));
        }
    }
}

#[test]
fn empty_input_is_nothing() {
    for objective in every_objective() {
        let none: &[f64] = &[];
        let rows = temper_algo::Rows { logp_ref: Some(none), entropy: Some(none), ..temper_algo::Rows::EMPTY };
        let rows = temper_algo::Rows { logp_gen: Some(none), success: Some(none), ..rows };
        let terms = objective.token_terms(&rows).unwrap();
        assert_eq!((terms.loss, terms.metrics), (0.0, PolicyMetrics::default()));
        assert!(terms.metrics.entries().iter().all(|(_, v)| *v == 0.0));
    }
}

/// With x = 1 everywhere, each mean has to come out as 1 (the constant-length one as its formula), whatever the lengths.
#[test]
fn weights_average() {
    let masks: [Vec<f32>; 5] = [vec![1.0; 3], vec![1.0], vec![0.0, 1.0, 0.5], vec![1.0; 7], vec![0.0, 1.0]];
    let step: Vec<SequenceMask> = masks.iter().enumerate().map(|(i, m)| SequenceMask::new(i as u64 / 2, m)).collect();
    for weighting in support::every_weighting() {
        let weights = weighting.weights(&step).unwrap();
        let total: f64 = weights.iter().flatten().sum();
        let expected = match weighting {
            Weighting::Token {} | Weighting::Sequence {} | Weighting::Group {} => 1.0,
            Weighting::GroupSum {} => masks.iter().flatten().map(|m| f64::from(*m)).sum::<f64>() / 3.0,
            Weighting::SequenceSum {} => masks.iter().flatten().map(|m| f64::from(*m)).sum::<f64>() / 5.0,
            Weighting::Sum {} => masks.iter().flatten().map(|m| f64::from(*m)).sum(),
            Weighting::Constant { tokens } => {
                masks.iter().flatten().map(|m| f64::from(*m)).sum::<f64>() / (5.0 * f64::from(tokens))
            }
        };
        assert!((total - expected).abs() < 1e-14, "{weighting:?}: {total}");
        let zero_where_masked = |(w, m): (&f64, &f32)| (*w == 0.0) == (*m == 0.0);
        assert!(weights.iter().flatten().zip(masks.iter().flatten()).all(zero_where_masked));
        assert!(weighting.check().is_empty());
    }
    assert_eq!(Weighting::Constant { tokens: 0 }.check().len(), 1);
}

#[test]
fn schedules_stay_within_their_bounds_and_end_where_they_say() {
    for schedule in support::every_schedule() {
        let values: Vec<f64> = (0..=40).map(|k| schedule.value(k, 40)).collect();
        assert!(values.iter().all(|v| (0.0..=1.0).contains(v)));
        let end = match schedule {
            Schedule::Constant { .. } => 1.0,
            Schedule::Linear { min_ratio, .. } | Schedule::Cosine { min_ratio, .. } => min_ratio,
        };
        assert!((values[40] - end).abs() < 1e-15);
        assert!(schedule.check().is_empty());
    }
}

fn round_trip<T>(value: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let json = serde_json::to_string(value).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value);
    let toml = toml::to_string(value).unwrap();
    assert_eq!(&toml::from_str::<T>(&toml).unwrap(), value);
    let extra = toml.lines().fold("no_such_key = 1\n".to_owned(), |text, line| text + line + "\n");
    let error = toml::from_str::<T>(&extra).expect_err(&extra).to_string();
    assert!(error.contains("no_such_key"), "{error}");
}

#[test]
fn serde_round_trips_and_refuses_unknown_keys() {
    support::every_advantage().iter().for_each(round_trip::<Advantage>);
    support::every_group_shaper().iter().for_each(round_trip::<GroupShaper>);
    support::every_reward_shaping().iter().for_each(round_trip::<RewardShaping>);
    support::every_knob().iter().for_each(round_trip::<Knob>);
    support::every_ratio().iter().for_each(round_trip::<Ratio>);
    support::every_surrogate().iter().for_each(round_trip::<Surrogate>);
    support::every_kl().iter().for_each(round_trip::<KlEstimator>);
    support::every_correction().iter().for_each(round_trip::<Correction>);
    support::every_token_objective().iter().for_each(round_trip::<TokenObjective>);
    support::every_weighting().iter().for_each(round_trip::<Weighting>);
    support::every_schedule().iter().for_each(round_trip::<Schedule>);
    every_objective().iter().for_each(round_trip::<PolicyObjective>);
}

#[test]
fn recipes_read_as_people_write_them() {
    let text = r#"
        advantage = { kind = "group_mean" }
        weighting = { kind = "constant", tokens = 256 }
        kl = { beta = 0.04 }
        [surrogate]
        kind = "clip"
        clip_high = 0.28
    "#;
    let objective: PolicyObjective = toml::from_str(text).unwrap();
    assert_eq!(objective.surrogate, Surrogate::Clip { clip_low: 0.2, clip_high: 0.28, delta: None });
    assert_eq!(objective.kl.unwrap().estimator, KlEstimator::K3 {});
    assert_eq!(objective.needs().names().collect::<Vec<_>>(), ["logp_old", "logp_ref", "group"]);
    assert!(objective.check(8).is_empty());
    assert!(toml::from_str::<PolicyObjective>("kl = { estimator = { kind = \"k4\" }, beta = 1 }").is_err());
}

#[test]
fn illegal_settings_are_reported_together() {
    let text = r#"
        advantage = { kind = "group_z_score", eps = -1 }
        ratio = { kind = "sequence" }
        surrogate = { kind = "reinforce" }
        weighting = { kind = "constant", tokens = 0 }
        kl = { beta = 0 }
        entropy = { coef = nan }
    "#;
    let problems = toml::from_str::<PolicyObjective>(text).unwrap().check(1);
    let fields: Vec<&str> = problems.iter().map(|p| p.field.as_str()).collect();
    assert_eq!(fields, ["advantage.eps", "weighting.tokens", "ratio", "advantage", "kl.beta", "entropy.coef"]);
    assert!(problems.iter().all(|p| !p.hint.is_empty()));
    assert_eq!(problems[0].clone().within("stage.grpo").field, "stage.grpo.advantage.eps");
}

#[test]
fn illegal_combinations_are_reported() {
    let cases = [
        (r#"{ "surrogate": { "kind": "dppo_tv" }, "ratio": { "kind": "sequence" } }"#, "ratio"),
        (r#"{ "surrogate": { "kind": "vespo" } }"#, "ratio"),
        (r#"{ "ratio": { "kind": "geometric_mean" } }"#, "ratio"),
        (r#"{ "kl": { "estimator": { "kind": "k1" }, "beta": 0.1 } }"#, "kl.estimator"),
        (r#"{ "surrogate": { "kind": "none" } }"#, "surrogate"),
        (r#"{ "surrogate": { "kind": "nll" }, "advantage": { "kind": "group_mean" } }"#, "advantage"),
        (r#"{ "surrogate": { "kind": "clip", "delta": 1.1 } }"#, "surrogate.delta"),
        (r#"{ "correction": { "kind": "mask", "high": 0.5 } }"#, "correction.high"),
        (r#"{ "top_entropy": { "share": 1 } }"#, "top_entropy.share"),
        (r#"{ "surrogate": { "kind": "gvpo" }, "top_entropy": {} }"#, "top_entropy"),
        (r#"{ "surrogate": { "kind": "gvpo" }, "correction": { "kind": "truncate" } }"#, "correction"),
        (r#"{ "off_policy_mask": { "threshold": 0 } }"#, "off_policy_mask.threshold"),
    ];
    for (text, field) in cases {
        let problems = serde_json::from_str::<PolicyObjective>(text).unwrap().check(8);
        let fields: Vec<&str> = problems.iter().map(|p| p.field.as_str()).collect();
        assert_eq!(fields, [field], "{text}: {problems:?}");
        assert!(!problems[0].hint.is_empty() && !problems[0].message.is_empty());
    }
}

#[test]
fn options_change_the_result() {
    let loss = |text: &str| {
        let objective: PolicyObjective = serde_json::from_str(text).expect(text);
        let terms = (0..20).map(|seed| objective.token_terms(&case(seed, 1.5).rows()).unwrap());
        terms.fold(0.0, |sum, t| {
            sum + t.loss + t.d_logp.iter().enumerate().map(|(i, d)| d * (i + 1) as f64).sum::<f64>()
        })
    };
    let options = [
        (r#""kind": "cispo""#, vec![r#""clip_low": 0.1"#, r#""clip_high": 0.1"#]),
        (r#""kind": "clip""#, vec![r#""clip_low": 0.1"#, r#""clip_high": 0.1"#, r#""delta": 1.5"#]),
        (r#""kind": "sapo""#, vec![r#""temperature_pos": 2"#, r#""temperature_neg": 2"#]),
        (r#""kind": "vespo""#, vec![r#""k_pos": 1"#, r#""k_neg": 1"#, r#""lambda_pos": 1"#, r#""lambda_neg": 1"#]),
        (r#""kind": "dppo_tv""#, vec![r#""clip_low": 0.01"#, r#""clip_high": 0.01"#, r#""cap": 1"#]),
        (r#""kind": "dppo_kl""#, vec![r#""clip_low": 0.01"#, r#""clip_high": 0.01"#, r#""cap": 1"#]),
        (
            r#""kind": "clip_cov""#,
            vec![
                r#""clip_low": 0.1"#,
                r#""clip_high": 0.1"#,
                r#""share": 0.3"#,
                r#""cov_low": -9"#,
                r#""cov_high": 1.1"#,
            ],
        ),
        (r#""kind": "kl_cov""#, vec![r#""share": 0.3"#, r#""coef": 0.3"#]),
        (r#""kind": "nft""#, vec![r#""eps": 0.2"#]),
        (r#""kind": "topr""#, vec![r#""cap": 1.3"#]),
        (r#""kind": "reward_weighted""#, vec![r#""temperature": 0.5"#, r#""cap": 2"#]),
        (r#""kind": "gvpo""#, vec![r#""beta": 0.5"#]),
    ];
    for (kind, options) in options {
        let plain = loss(&format!(r#"{{ "surrogate": {{ {kind} }} }}"#));
        for option in options {
            assert_ne!(plain, loss(&format!(r#"{{ "surrogate": {{ {kind}, {option} }} }}"#)), "{kind} {option}");
        }
    }
    let plain = loss("{}");
    for text in [
        r#"{ "correction": { "kind": "truncate" } }"#,
        r#"{ "correction": { "kind": "truncate", "high": 1.5 } }"#,
        r#"{ "correction": { "kind": "truncate", "low": 0.5 } }"#,
        r#"{ "correction": { "kind": "truncate", "level": "sequence" } }"#,
        r#"{ "correction": { "kind": "mask" } }"#,
        r#"{ "top_entropy": {} }"#,
        r#"{ "top_entropy": { "share": 0.5 } }"#,
        r#"{ "off_policy_mask": { "threshold": 0.01 } }"#,
        r#"{ "kl": { "beta": 0.1 } }"#,
        r#"{ "kl": { "beta": 0.1, "importance": true } }"#,
        r#"{ "ratio": { "kind": "sequence" } }"#,
        r#"{ "ratio": { "kind": "sequence_token" } }"#,
        r#"{ "ratio": { "kind": "product" } }"#,
        r#"{ "ratio": { "kind": "geometric_mean", "clip_low": 0.1 } }"#,
        r#"{ "ratio": { "kind": "geometric_mean", "clip_high": 0.1 } }"#,
    ] {
        assert_ne!(plain, loss(text), "{text}");
    }
}

#[test]
fn schemas_are_strict() {
    let schema = serde_json::to_string(&schemars_schema()).unwrap();
    assert!(schema.contains("group_z_score") && schema.contains("\"additionalProperties\":false"));
}

fn schemars_schema() -> schemars::Schema {
    schemars::schema_for!(PolicyObjective)
}
