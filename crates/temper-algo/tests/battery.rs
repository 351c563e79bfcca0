//! One battery over every variant of every slot: an exhaustive `match` beside each list forces new variants into it.

mod support;

use support::{Case, case, every_objective};
use temper_algo::{
    Advantage, Coupling, Error, KlEstimator, Needs, PolicyMetrics, PolicyObjective, Ratio, Schedule, SequenceMask,
    Surrogate, TokenObjective, Weighting,
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
    for (i, objective) in every_objective().into_iter().enumerate() {
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
    for objective in every_objective() {
        let objective = PolicyObjective { kl: None, entropy: None, ..objective };
        let mut c = case(3, 0.0);
        c.logp_old = c.logp.clone();
        if objective.ratio == (Ratio::Sequence {}) {
            c.spread_weights_evenly();
        }
        for rows in [c.rows(), temper_algo::Rows { logp_old: None, ..c.rows() }] {
            let terms = objective.token_terms(&rows).unwrap();
            assert_eq!(terms.metrics.ratio_max, 1.0);
            for row in 0..c.logp.len() {
                let expected = -c.adv[row] * c.weight[row];
                assert!(
                    (terms.d_logp[row] - expected).abs() <= 1e-16,
                    "{objective:?}: {} {expected}",
                    terms.d_logp[row]
                );
                let exact = objective.coupling() == Coupling::Token;
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
            for values in [
                &mut poisoned.logp,
                &mut poisoned.logp_old,
                &mut poisoned.logp_ref,
                &mut poisoned.adv,
                &mut poisoned.entropy,
            ] {
                values[row] = f64::NAN;
            }
            assert_eq!(terms.d_logp[row], 0.0);
        }
        assert!(c.weight.contains(&0.0));
        assert_eq!(objective.token_terms(&poisoned.rows()).unwrap(), terms, "{objective:?}");
    }
}

#[test]
fn any_split_into_micro_batches_gives_the_same_step() {
    for objective in every_objective() {
        let c = case(7, 0.4);
        let whole = objective.token_terms(&c.rows()).unwrap();
        for cut in 0..=c.sequences.len() {
            let (left, right) = c.split(cut);
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
        assert!((swapped.loss - whole.loss).abs() < 1e-14);
        assert_eq!([&swapped.d_logp[right.logp.len()..], &swapped.d_logp[..right.logp.len()]].concat(), whole.d_logp);
    }
}

#[test]
fn missing_and_broken_inputs_are_named() {
    for objective in every_objective() {
        let c = case(2, 0.2);
        for (need, name) in [(Needs::LOGP_REF, "logp_ref"), (Needs::ENTROPY, "entropy")] {
            let rows = temper_algo::Rows { logp_ref: None, entropy: None, ..c.rows() };
            let rows = if name == "entropy" { temper_algo::Rows { logp_ref: Some(&c.logp_ref), ..rows } } else { rows };
            let got = objective.token_terms(&rows);
            if objective.needs().contains(need) && (name == "entropy" || got.is_err()) {
                assert!(
                    matches!(got, Err(Error::Missing { name: found, .. }) if found == name),
                    "{objective:?}: {got:?}"
                );
            }
        }
        let short = temper_algo::Rows { adv: &c.adv[1..], ..c.rows() };
        assert!(matches!(objective.token_terms(&short), Err(Error::Length { name: "adv", .. })));
        let mut nan = c.clone();
        let row = nan.weight.iter().position(|w| *w != 0.0).unwrap();
        nan.logp[row] = f64::NAN;
        assert!(
            matches!(objective.token_terms(&nan.rows()), Err(Error::NotFinite { name: "logp", row: r, .. }) if r == row)
        );
        if objective.coupling() > Coupling::Token {
            let uncovered = temper_algo::Rows { sequences: &[1], ..c.rows() };
            assert!(matches!(objective.token_terms(&uncovered), Err(Error::Length { name: "sequences", .. })));
        }
    }
}

#[test]
fn empty_input_is_nothing() {
    for objective in every_objective() {
        let none: &[f64] = &[];
        let rows = temper_algo::Rows { logp_ref: Some(none), entropy: Some(none), ..temper_algo::Rows::default() };
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
    support::every_ratio().iter().for_each(round_trip::<Ratio>);
    support::every_surrogate().iter().for_each(round_trip::<Surrogate>);
    support::every_kl().iter().for_each(round_trip::<KlEstimator>);
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
    assert_eq!(objective.surrogate, Surrogate::Clip { clip_low: 0.2, clip_high: 0.28 });
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
fn schemas_are_strict() {
    let schema = serde_json::to_string(&schemars_schema()).unwrap();
    assert!(schema.contains("group_z_score") && schema.contains("\"additionalProperties\":false"));
}

fn schemars_schema() -> schemars::Schema {
    schemars::schema_for!(PolicyObjective)
}
