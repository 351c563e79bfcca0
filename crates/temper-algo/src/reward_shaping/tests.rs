//! Hand numbers, and the law of the noise.

use super::judged::trust_weight;
use super::length::{budget, triangle};
use super::*;

const NAMES: [&str; 2] = ["right", "style"];

fn input(lengths: &[usize]) -> ShapingInput<'_> {
    ShapingInput {
        names: &NAMES,
        weights: &[1.0, 0.0],
        lengths,
        draws: &[0.1, 0.9, 0.3, 0.5],
        ..ShapingInput::default()
    }
}

fn parts() -> Vec<Vec<f64>> {
    vec![vec![1.0, 0.2], vec![0.0, 0.8], vec![1.0, 0.4], vec![0.0, 0.6]]
}

fn rewards() -> Vec<f64> {
    parts().iter().map(|p| p[0]).collect()
}

/// The rewards after one shaping.
fn shape(shaping: &RewardShaping, input: &ShapingInput) -> Result<Vec<f64>, Error> {
    let mut group = Shaped { rewards: rewards(), parts: parts() };
    shaping.apply(&mut group, input)?;
    Ok(group.rewards)
}

#[test]
fn constraints_by_hand() {
    let mut shaping = RewardShaping::Constraint { parts: vec!["style".into()], violated: -1.0, calibrate: false };
    assert_eq!(shape(&shaping, &input(&[])).unwrap(), [-1.0, 0.0, -1.0, 0.0]);
    let RewardShaping::Constraint { calibrate, .. } = &mut shaping else { panic!() };
    *calibrate = true;
    assert!(shaping.needs_greedy());
    assert!(matches!(shape(&shaping, &input(&[])), Err(Error::Missing { name: "greedy", .. })));
    let calibrated = shape(&shaping, &ShapingInput { greedy: Some(0.0), ..input(&[]) }).unwrap();
    assert_eq!(calibrated, [-1.0, 0.5, -1.0, 0.5]);
}

#[test]
fn trust_by_hand() {
    // Right rollouts have process rewards 0.2 and 0.4, wrong ones 0.8 and 0.6: gamma = e^(0.3 - 0.7).
    let shaping =
        RewardShaping::Trust { outcome: "right".into(), process: "style".into(), coef: 0.5, anneal_steps: 10.0 };
    let at = |step| shape(&shaping, &ShapingInput { step, ..input(&[]) }).unwrap();
    assert!((at(0)[0] - (1.0 + 0.5 * (-0.4f64).exp() * 0.2)).abs() < 1e-15);
    assert!((at(20)[1] - 0.5 * (-2.4f64).exp() * 0.8).abs() < 1e-15);
    assert_eq!(trust_weight(&[1.0, 0.0], &[0.9, 0.1]), 1.0);
    assert_eq!(trust_weight(&[1.0, 1.0], &[0.9, 0.1]), 0.0);
}

/// Over all draws: the expected reward is p + (1 - 2p) r, so centred rewards shrink by 1 - 2p.
#[test]
fn flips_scale_the_signal_by_one_minus_twice_their_probability() {
    for probability in [0.1, 0.25, 0.5, 0.9] {
        let shaping = RewardShaping::Flip { part: "right".into(), probability, of: FlipUnit::Rollout };
        let n = 1000;
        let mut mean = [0.0; 4];
        for d in 0..n {
            let draws = [(d as f64 + 0.5) / n as f64; 4];
            let noisy = shape(&shaping, &ShapingInput { draws: &draws, ..input(&[]) }).unwrap();
            mean.iter_mut().zip(noisy).for_each(|(m, r)| *m += r / n as f64);
        }
        let centred = |r: &[f64]| r.iter().map(|x| x - r.iter().sum::<f64>() / 4.0).collect::<Vec<_>>();
        for (noisy, clean) in centred(&mean).into_iter().zip(centred(&rewards())) {
            assert!((noisy - (1.0 - 2.0 * probability) * clean).abs() < 1e-12);
        }
    }
}

/// A whole prompt is flipped or is not; what follows reads the flipped part.
#[test]
fn a_wrong_label_and_its_rescue_by_hand() {
    let flip = RewardShaping::Flip { part: "right".into(), probability: 0.5, of: FlipUnit::Prompt };
    let rescue = RewardShaping::Rescue { part: "right".into(), with: "style".into(), threshold: 0.0, weight: 0.5 };
    let mut group = Shaped { rewards: rewards(), parts: parts() };
    flip.apply(&mut group, &ShapingInput { group_draw: 0.6, ..input(&[]) }).unwrap();
    assert_eq!(group.rewards, [1.0, 0.0, 1.0, 0.0]);
    flip.apply(&mut group, &ShapingInput { group_draw: 0.4, ..input(&[]) }).unwrap();
    assert_eq!(group.rewards, [0.0, 1.0, 0.0, 1.0]);
    assert_eq!(group.parts.iter().map(|p| p[0]).collect::<Vec<_>>(), group.rewards);
    rescue.apply(&mut group, &input(&[])).unwrap();
    assert_eq!(group.rewards, [0.1, 1.0, 0.2, 1.0]);
}

#[test]
fn budgets_by_hand() {
    assert_eq!([0, 9, 10, 25].map(|step| budget(256.0, 0.5, 10, step)), [256.0, 256.0, 128.0, 64.0]);
    assert_eq!(budget(2.0, 0.1, 1, 50), 1.0);
    assert_eq!([0.0, 0.5, 1.0, 1.75, 3.0].map(triangle), [0.0, 0.5, 1.0, 0.25, 0.0]);
    let shaping = RewardShaping::LengthBudget { start: 8.0, decay: 0.5, every: 4, weight: 2.0 };
    let got = shape(&shaping, &ShapingInput { step: 4, ..input(&[2, 4, 6, 100]) }).unwrap();
    assert_eq!(got, [2.0, 2.0, 2.0, 0.0]);
}

#[test]
fn majorities_and_diversity_by_hand() {
    assert_eq!(majority_rewards(&[Some(3), None, Some(5), Some(5), None, None]), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    assert_eq!(majority_rewards(&[Some(3), Some(5)]), [1.0, 0.0]);
    assert_eq!(majority_rewards::<u64>(&[None, None]), [0.0, 0.0]);
    // Classes of 2 and 1 of 3: (3 - 2) / 2 and (3 - 1) / 2.
    let classes = [Some(1), Some(1), Some(2), None];
    assert_eq!(diversity_rewards(&[1.0, 2.0, 1.0, 0.5], &classes, 0.1), [0.5, 1.0, 1.0, 0.5]);
    assert_eq!(diversity_rewards(&[1.0, 1.0], &[Some(1), Some(1)], 0.1), [0.1, 0.1]);
    assert_eq!(diversity_rewards(&[1.0], &[Some(1)], 0.1), [1.0]);
}

#[test]
fn what_compares_within_the_group_by_hand() {
    let parts = vec![vec![1.0, 0.0], vec![1.0, 0.0], vec![0.0, 0.0], vec![1.0, 0.0]];
    let rewards: Vec<f64> = parts.iter().map(|p| p[0]).collect();
    let input = ShapingInput {
        answers: &[Some("3"), Some("4"), Some("4"), None],
        texts: &["3", "2+2 => 4", "4", "3"],
        intrinsic: &[0.5, -0.5, 0.0, 0.0],
        ..input(&[])
    };
    let run = |s: RewardShaping, input: &ShapingInput| {
        let mut group = Shaped { rewards: rewards.clone(), parts: parts.clone() };
        s.apply(&mut group, input).map(|()| group.rewards)
    };
    let apply = |s: RewardShaping| run(s, &input).unwrap();
    assert_eq!(apply(RewardShaping::Majority { weight: 2.0 }), [1.0, 3.0, 2.0, 1.0]);
    // Right are the first, the second and the last, which says nothing: two answers that differ.
    let diverse = |same| RewardShaping::Diversity { same, floor: 0.1, threshold: 0.5 };
    assert_eq!(apply(diverse(Same::Answer)), [1.0, 1.0, 0.0, 1.0]);
    assert_eq!(apply(diverse(Same::Text)), [0.5, 1.0, 0.0, 0.5]);
    let episodic: RewardShaping = serde_json::from_str(r#"{"kind": "episodic"}"#).unwrap();
    assert_eq!(apply(episodic), [1.5, 0.5, 0.0, 1.0]);
    let without = run(RewardShaping::Majority { weight: 1.0 }, &ShapingInput { answers: &[], ..input });
    assert!(matches!(without, Err(Error::GroupLength { name: "answers", .. })));
}

#[test]
fn progress_telescopes() {
    let steps = progress(&[0.3, 0.1, 0.9], 0.2, 0.5);
    assert!((steps.iter().sum::<f64>() - 0.5 * 0.7).abs() < 1e-15);
}

#[test]
fn bad_settings_are_named() {
    let fields = |s: &RewardShaping| s.check(&NAMES).into_iter().map(|p| p.field).collect::<Vec<_>>();
    assert_eq!(
        fields(&RewardShaping::Flip { part: "wrong".into(), probability: 0.0, of: FlipUnit::Prompt }),
        ["part", "probability"]
    );
    let budget = RewardShaping::LengthBudget { start: 0.0, decay: 2.0, every: 0, weight: f64::NAN };
    assert_eq!(fields(&budget), ["start", "decay", "every", "weight"]);
    let missing = RewardShaping::Flip { part: "wrong".into(), probability: 0.5, of: FlipUnit::Prompt };
    assert!(shape(&missing, &input(&[])).is_err());
}
