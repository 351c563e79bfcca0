//! The battery of the supervised objectives: every token objective alone and as a term of a list.

mod support;

use std::ops::Range;

use support::{Case, case, every_token_objective};
use temper_algo::{
    Coupling, Direction, Divergence, Error, KlEstimator, Needs, SupervisedObjective, SupervisedRows, TokenObjective,
    TokenValues, WeightedTerm,
};

const STEP: f64 = 1e-6;

/// A random ragged step; `adv` stands in for the mean log-prob of the vocabulary, `success` for the KL to the reference over it.
struct Step(Case);

impl Step {
    fn new(seed: u64, spread: f64) -> Self {
        let mut c = case(seed, spread);
        c.adv.iter_mut().for_each(|m| *m -= 4.0);
        Self(c)
    }

    fn at(&self, rows: Range<usize>) -> SupervisedRows<'_> {
        SupervisedRows {
            logp: &self.0.logp[rows.clone()],
            logp_ref: Some(&self.0.logp_ref[rows.clone()]),
            entropy: Some(&self.0.entropy[rows.clone()]),
            mean_logp: Some(&self.0.adv[rows.clone()]),
            kl_ref: Some(&self.0.success[rows.clone()]),
            weight: &self.0.weight[rows],
            sequences: &[],
        }
    }

    fn rows(&self) -> SupervisedRows<'_> {
        SupervisedRows { sequences: &self.0.sequences, ..self.at(0..self.0.logp.len()) }
    }

    fn changed(&self, change: impl Fn(&mut Case)) -> Self {
        let mut c = self.0.clone();
        change(&mut c);
        Self(c)
    }
}

/// Each token objective alone, and all of a list of three together.
fn every_supervised() -> Vec<SupervisedObjective> {
    let mut list: Vec<SupervisedObjective> = every_token_objective().into_iter().map(Into::into).collect();
    let term = |weight, objective| WeightedTerm { weight, objective };
    list.push(SupervisedObjective {
        objective: TokenObjective::Focal { gamma: 1.0 },
        terms: vec![
            term(0.3, TokenObjective::ReferenceKl { estimator: KlEstimator::K3 {}, direction: Direction::Reverse }),
            term(0.2, TokenObjective::LabelSmoothing { eps: 0.2 }),
            term(0.1, TokenObjective::EntropyBonus {}),
            term(0.4, TokenObjective::VocabularyKl {}),
            term(0.5, TokenObjective::Ift { gamma: 0.8, detach: false }),
        ],
    });
    list
}

/// Whether its slope leaves out a coefficient that moves with the model.
fn detached(objective: &TokenObjective) -> bool {
    match objective {
        TokenObjective::Dft {}
        | TokenObjective::Chord {}
        | TokenObjective::Eaft { .. }
        | TokenObjective::ReferenceWeighted { .. }
        | TokenObjective::Ift { detach: true, .. } => true,
        TokenObjective::Nll {}
        | TokenObjective::LabelSmoothing { .. }
        | TokenObjective::Probability { .. }
        | TokenObjective::Focal { .. }
        | TokenObjective::ReferenceKl { .. }
        | TokenObjective::FDivergence { .. }
        | TokenObjective::Ift { .. }
        | TokenObjective::VocabularyKl {}
        | TokenObjective::EntropyBonus {} => false,
    }
}

#[test]
fn derivatives_agree_with_finite_differences() {
    for (i, objective) in every_supervised().into_iter().enumerate() {
        let step = Step::new(100 + i as u64, 0.6);
        let terms = objective.token_terms(&step.rows()).unwrap();
        let loss = |change: &dyn Fn(&mut Case)| objective.token_terms(&step.changed(change).rows()).unwrap().loss;
        for row in 0..step.0.logp.len() {
            let of = |d: &Option<Vec<f64>>| d.as_ref().map_or(0.0, |d| d[row]);
            let slopes = [
                (terms.d_logp[row], loss(&|c| c.logp[row] += STEP) - loss(&|c| c.logp[row] -= STEP)),
                (of(&terms.d_entropy), loss(&|c| c.entropy[row] += STEP) - loss(&|c| c.entropy[row] -= STEP)),
                (of(&terms.d_mean_logp), loss(&|c| c.adv[row] += STEP) - loss(&|c| c.adv[row] -= STEP)),
                (of(&terms.d_kl_ref), loss(&|c| c.success[row] += STEP) - loss(&|c| c.success[row] -= STEP)),
            ];
            if detached(&objective.objective) {
                // Coefficient times NLL: the slope is what x is to logp.
                let part = objective.objective.coupling() == Coupling::Token;
                let x = objective.objective.term(&values(&step, row)).x * step.0.weight[row];
                assert!(!part || (terms.d_logp[row] * step.0.logp[row] - x).abs() < 1e-12, "{objective:?}");
                assert!(terms.d_entropy.is_none_or(|d| d[row] == 0.0));
                break;
            }
            for (name, (slope, numeric)) in ["logp", "entropy", "mean_logp", "kl_ref"].into_iter().zip(slopes) {
                let numeric = numeric / (2.0 * STEP);
                assert!((slope - numeric).abs() < 1e-7, "{objective:?} {name} row {row}: {slope} {numeric}");
            }
        }
    }
}

fn values(step: &Step, row: usize) -> TokenValues {
    let c = &step.0;
    let (logp, logp_ref, entropy) = (c.logp[row], c.logp_ref[row], c.entropy[row]);
    TokenValues { logp, logp_ref, entropy, mean_logp: c.adv[row], kl_ref: c.success[row] }
}

/// A detached coefficient is known from the value: loss is coefficient times NLL, so `sum(logp * d_logp)` is the loss.
#[test]
fn detached_terms_are_a_coefficient_times_nll() {
    for objective in every_token_objective().into_iter().filter(detached) {
        let step = Step::new(31, 0.8);
        let terms = SupervisedObjective::from(objective).token_terms(&step.rows()).unwrap();
        let by_slope: f64 = terms.d_logp.iter().zip(&step.0.logp).map(|(d, l)| d * l).sum();
        assert!((by_slope - terms.loss).abs() < 1e-12, "{objective:?}");
    }
}

#[test]
fn extremes_stay_finite() {
    for objective in every_supervised() {
        for (logp, reference) in [(-1e4, 0.0), (0.0, -1e4), (-80.0, -1e-9), (-1e-300, -1e-300), (0.0, 0.0)] {
            for entropy in [0.0, -1e-7, 12.0] {
                let step = Step::new(1, 0.1).changed(|c| {
                    c.logp.fill(logp);
                    c.logp_ref.fill(reference);
                    c.entropy.fill(entropy);
                });
                let terms = objective.token_terms(&step.rows()).unwrap();
                let finite = |d: &Vec<f64>| d.iter().all(|d| (*d as f32).is_finite());
                assert!(terms.loss.is_finite() && finite(&terms.d_logp), "{objective:?} {logp} {reference}: {terms:?}");
                assert!(terms.d_entropy.is_none_or(|d| finite(&d)));
            }
        }
    }
}

#[test]
fn masked_tokens_contribute_exactly_nothing() {
    for objective in every_supervised() {
        let step = Step::new(5, 0.5);
        let terms = objective.token_terms(&step.rows()).unwrap();
        let poisoned = step.changed(|c| {
            for row in (0..c.logp.len()).filter(|row| c.weight[*row] == 0.0).collect::<Vec<_>>() {
                for values in [&mut c.logp, &mut c.logp_ref, &mut c.entropy, &mut c.adv, &mut c.success] {
                    values[row] = f64::NAN;
                }
            }
        });
        assert_eq!(objective.token_terms(&poisoned.rows()).unwrap(), terms, "{objective:?}");
        for row in (0..step.0.logp.len()).filter(|row| step.0.weight[*row] == 0.0) {
            assert_eq!(terms.d_logp[row], 0.0);
        }
    }
}

#[test]
fn any_split_gives_the_same_step() {
    for objective in every_supervised() {
        let step = Step::new(7, 0.4);
        let whole = objective.token_terms(&step.rows()).unwrap();
        for cut in 0..=step.0.sequences.len() {
            let (left, right) = step.0.split(cut);
            let parts = [left, right].map(|part| objective.token_terms(&Step(part).rows()).unwrap());
            assert!((parts[0].loss + parts[1].loss - whole.loss).abs() < 1e-13);
            assert_eq!([parts[0].d_logp.as_slice(), &parts[1].d_logp].concat(), whole.d_logp, "{objective:?}");
        }
        if objective.coupling() == Coupling::Token {
            for row in 0..step.0.logp.len() {
                let one = objective.token_terms(&step.at(row..row + 1)).unwrap();
                assert_eq!(one.d_logp[0], whole.d_logp[row]);
            }
        }
        let (left, right) = step.0.split(2);
        let swapped = objective.token_terms(&Step(right.join(&left)).rows()).unwrap();
        assert!((swapped.loss - whole.loss).abs() < 1e-13);
        assert_eq!([&swapped.d_logp[right.logp.len()..], &swapped.d_logp[..right.logp.len()]].concat(), whole.d_logp);
    }
}

#[test]
fn missing_and_broken_inputs_are_named() {
    for objective in every_supervised() {
        let step = Step::new(2, 0.2);
        let all = step.rows();
        let without = [
            (Needs::LOGP_REF, "logp_ref", SupervisedRows { logp_ref: None, ..all }),
            (Needs::ENTROPY, "entropy", SupervisedRows { entropy: None, ..all }),
            (Needs::MEAN_LOGP, "mean_logp", SupervisedRows { mean_logp: None, ..all }),
            (Needs::KL_REF, "kl_ref", SupervisedRows { kl_ref: None, ..all }),
        ];
        for (need, name, rows) in without {
            let got = objective.token_terms(&rows);
            let missing = matches!(got, Err(Error::Missing { name: found, .. }) if found == name);
            assert_eq!(missing, objective.needs().contains(need), "{objective:?}: {got:?}");
        }
        let short = SupervisedRows { weight: &all.weight[1..], ..all };
        assert!(matches!(objective.token_terms(&short), Err(Error::Length { name: "weight", .. })));
        let row = step.0.weight.iter().position(|w| *w != 0.0).unwrap();
        let nan = step.changed(|c| c.logp[row] = f64::NAN);
        let got = objective.token_terms(&nan.rows());
        assert!(matches!(got, Err(Error::NotFinite { name: "logp", row: r, .. }) if r == row));
        if objective.coupling() > Coupling::Token {
            let uncovered = SupervisedRows { sequences: &[1], ..all };
            assert!(matches!(objective.token_terms(&uncovered), Err(Error::Length { name: "sequences", .. })));
        }
    }
}

#[test]
fn empty_input_is_nothing() {
    for objective in every_supervised() {
        let none: &[f64] = &[];
        let rows = SupervisedRows {
            logp_ref: Some(none),
            entropy: Some(none),
            mean_logp: Some(none),
            kl_ref: Some(none),
            ..SupervisedRows::default()
        };
        assert_eq!(objective.token_terms(&rows).unwrap().loss, 0.0);
    }
}

fn slopes(objective: TokenObjective, step: &Step) -> Vec<f64> {
    SupervisedObjective::from(objective).token_terms(&step.rows()).unwrap().d_logp
}

fn close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance), "{a:?}\n{b:?}");
}

#[test]
fn identities() {
    let step = Step::new(11, 0.5);
    let nll = SupervisedObjective::default().token_terms(&step.rows()).unwrap();
    let family = |q| TokenObjective::Probability { q, min_p: None, max_p: None };
    let loss = |o: TokenObjective| SupervisedObjective::from(o).token_terms(&step.rows()).unwrap().loss;
    // The probability family: NLL at q = 0 and in the limit, 1 - p at q = 1.
    assert_eq!(slopes(family(0.0), &step), nll.d_logp);
    close(&slopes(family(1e-9), &step), &nll.d_logp, 1e-8);
    assert!((loss(family(1e-9)) - nll.loss).abs() < 1e-7);
    let weight: f64 = step.0.weight.iter().sum();
    let p: f64 = step.0.weight.iter().zip(&step.0.logp).map(|(w, l)| w * l.exp()).sum();
    assert!((loss(family(1.0)) - (weight - p)).abs() < 1e-12);
    // DFT's gradient is p times NLL's, which is that of 1 - p.
    let scaled: Vec<f64> = nll.d_logp.iter().zip(&step.0.logp).map(|(d, l)| d * l.exp()).collect();
    close(&slopes(TokenObjective::Dft {}, &step), &scaled, 1e-15);
    close(&slopes(TokenObjective::Dft {}, &step), &slopes(family(1.0), &step), 1e-15);
    // CHORD's weight by hand: at p = 1/2 and 1/4 a quarter and 3/16, at p = 1 nothing.
    for (p, weight) in [(0.5f64, 0.25), (0.25, 0.1875), (1.0, 0.0)] {
        let term = TokenObjective::Chord {}.term(&TokenValues { logp: p.ln(), ..TokenValues::default() });
        assert!((term.d_logp + weight).abs() < 1e-15 && (term.x + weight * p.ln()).abs() < 1e-15);
    }
    // No smoothing, no focus, no propagation.
    assert_eq!(slopes(TokenObjective::LabelSmoothing { eps: 0.0 }, &step), nll.d_logp);
    close(&slopes(TokenObjective::Focal { gamma: 0.0 }, &step), &nll.d_logp, 1e-15);
    // EAFT with the entropy at its scale is NLL.
    let flat = step.changed(|c| c.entropy.fill(3.0));
    assert_eq!(slopes(TokenObjective::Eaft { alpha: 2.0, scale: 3.0 }, &flat), nll.d_logp);
    // k1 to the reference has NLL's gradient with the other sign.
    let k1 = TokenObjective::ReferenceKl { estimator: KlEstimator::K1 {}, direction: Direction::Forward };
    close(&slopes(k1, &step), &nll.d_logp, 1e-15);
}

#[test]
fn at_the_reference_penalties_vanish_and_weights_are_one() {
    let mut step = Step::new(12, 0.5);
    step.0.logp_ref = step.0.logp.clone();
    let nll = SupervisedObjective::default().token_terms(&step.rows()).unwrap();
    for estimator in [KlEstimator::K2 {}, KlEstimator::K3 {}] {
        for direction in [Direction::Reverse, Direction::Forward] {
            let kl = TokenObjective::ReferenceKl { estimator, direction };
            let terms = SupervisedObjective::from(kl).token_terms(&step.rows()).unwrap();
            assert!(terms.loss == 0.0 && terms.d_logp.iter().all(|d| *d == 0.0));
        }
    }
    close(&slopes(TokenObjective::ReferenceWeighted { beta: 0.7 }, &step), &nll.d_logp, 1e-15);
    for divergence in
        [Divergence::Pearson, Divergence::SquaredHellinger, Divergence::JensenShannon, Divergence::ReverseKl]
    {
        close(&slopes(TokenObjective::FDivergence { divergence, beta: 0.7 }, &step), &nll.d_logp, 1e-15);
    }
    // Away from it, f-divergences become NLL as beta goes to 0.
    let step = Step::new(12, 0.5);
    let tiny = TokenObjective::FDivergence { divergence: Divergence::Pearson, beta: 1e-12 };
    close(&slopes(tiny, &step), &slopes(TokenObjective::Nll {}, &step), 1e-11);
}

/// An anchor of weight 0 is no setting (`check` says so), but as a limit it is the base.
#[test]
fn anchored_with_no_weight_is_its_base() {
    let step = Step::new(13, 0.5);
    let anchor = TokenObjective::ReferenceKl { estimator: KlEstimator::K3 {}, direction: Direction::Reverse };
    let anchored = |weight| SupervisedObjective {
        objective: TokenObjective::Dft {},
        terms: vec![WeightedTerm { weight, objective: anchor }],
    };
    let none = anchored(0.0);
    assert_eq!(none.token_terms(&step.rows()).unwrap().d_logp, slopes(TokenObjective::Dft {}, &step));
    assert_eq!((none.check().len(), anchored(0.1).check().len()), (1, 0));
    assert_eq!((anchored(0.1).needs(), anchored(0.1).coupling()), (Needs::LOGP_REF, Coupling::Token));
}

/// Every option changes the result.
#[test]
fn options_have_an_effect() {
    let o = |text: &str| toml::from_str::<TokenObjective>(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let pairs = [
        ("kind = 'label_smoothing'\neps = 0.1", "eps = 0.2"),
        ("kind = 'probability'\nq = 1.0", "q = 2.0"),
        ("kind = 'probability'\nq = 1.0", "q = 1.0\nmin_p = 0.05"),
        ("kind = 'probability'\nq = 1.0", "q = 1.0\nmax_p = 0.05"),
        ("kind = 'focal'\n", "gamma = 1.0"),
        ("kind = 'eaft'\n", "alpha = 2.0"),
        ("kind = 'eaft'\n", "scale = 2.0"),
        ("kind = 'reference_kl'\n", "estimator = { kind = 'k2' }"),
        ("kind = 'reference_kl'\n", "direction = 'forward'"),
        ("kind = 'reference_weighted'\nbeta = 0.1", "beta = 1.0"),
        ("kind = 'f_divergence'\ndivergence = 'pearson'\nbeta = 0.5", "divergence = 'reverse_kl'\nbeta = 0.5"),
        ("kind = 'f_divergence'\ndivergence = 'pearson'\nbeta = 0.5", "divergence = 'pearson'\nbeta = 0.1"),
        ("kind = 'ift'\n", "gamma = 0.5"),
        ("kind = 'ift'\n", "detach = true"),
    ];
    for (text, other) in pairs {
        let first = o(text);
        let second = o(&format!("{}\n{other}", text.lines().next().unwrap()));
        assert_ne!(slopes(first, &Step::new(17, 0.5)), slopes(second, &Step::new(17, 0.5)), "{text} {other}");
        assert!(first.check().is_empty() && second.check().is_empty());
    }
}

#[test]
fn lists_read_as_people_write_them() {
    let text = r#"
        objective = { kind = "dft" }
        terms = [{ weight = 0.1, objective = { kind = "reference_kl" } }]
    "#;
    let objective: SupervisedObjective = toml::from_str(text).unwrap();
    assert_eq!(objective.needs().names().collect::<Vec<_>>(), ["logp_ref"]);
    assert!(objective.check().is_empty());
    for objective in every_supervised() {
        let text = toml::to_string(&objective).unwrap();
        assert_eq!(toml::from_str::<SupervisedObjective>(&text).unwrap(), objective);
        assert!(toml::from_str::<SupervisedObjective>(&format!("nothing = 1\n{text}")).is_err());
    }
}

/// The papers once more, over sequences as they write them.
mod transcription {
    use super::*;

    fn kl(estimator: KlEstimator, ratio: f64) -> f64 {
        match estimator {
            KlEstimator::K1 {} => ratio.ln(),
            KlEstimator::K2 {} => ratio.ln().powi(2) / 2.0,
            KlEstimator::K3 {} | KlEstimator::K3Plus {} => 1.0 / ratio - 1.0 + ratio.ln(),
        }
    }

    /// The loss of one sequence's trained tokens with weights `w`, in probabilities.
    fn sequence(objective: &TokenObjective, c: &Case, rows: &[usize]) -> f64 {
        let (p, q) = (|t: usize| c.logp[t].exp(), |t: usize| c.logp_ref[t].exp());
        let sum = |x: &dyn Fn(usize) -> f64| rows.iter().map(|t| c.weight[*t] * x(*t)).sum::<f64>();
        match *objective {
            TokenObjective::Nll {} => sum(&|t| p(t).recip().ln()),
            TokenObjective::LabelSmoothing { eps } => sum(&|t| -((1.0 - eps) * c.logp[t] + eps * c.adv[t])),
            TokenObjective::Dft {} => sum(&|t| -p(t) * p(t).ln()),
            TokenObjective::Chord {} => sum(&|t| -p(t) * (1.0 - p(t)) * p(t).ln()),
            TokenObjective::Probability { q: power, min_p, max_p } => sum(&|t| {
                let kept = p(t) >= min_p.unwrap_or(0.0) && p(t) <= max_p.unwrap_or(1.0);
                if kept { (1.0 - p(t).powf(power)) / power } else { 0.0 }
            }),
            TokenObjective::Focal { gamma } => sum(&|t| -(1.0 - p(t)).powf(gamma) * p(t).ln()),
            TokenObjective::Eaft { alpha, scale } => sum(&|t| -(c.entropy[t] / scale).powf(alpha) * p(t).ln()),
            TokenObjective::ReferenceKl { estimator, direction: Direction::Reverse } => {
                sum(&|t| kl(estimator, p(t) / q(t)))
            }
            TokenObjective::ReferenceKl { estimator, direction: Direction::Forward } => {
                sum(&|t| kl(estimator, q(t) / p(t)))
            }
            TokenObjective::ReferenceWeighted { beta } => {
                let ratio: f64 = rows.iter().map(|t| p(*t) / q(*t)).product();
                let coefficient = 2.0 * (1.0 - 1.0 / (1.0 + (-beta * ratio.ln()).exp()));
                sum(&|t| -coefficient * p(t).ln())
            }
            TokenObjective::FDivergence { divergence, beta } => {
                sum(&|t| -conjugate(divergence, beta, p(t) / q(t)) / beta)
            }
            TokenObjective::Ift { gamma, .. } => {
                let charge =
                    |i: usize| -> f64 { (i..rows.len()).map(|s| gamma.powi((s - i) as i32) * -c.logp[rows[s]]).sum() };
                let total: f64 = (0..rows.len()).map(charge).sum();
                let share = |i: usize| charge(i) * rows.len() as f64 / total;
                rows.iter().enumerate().map(|(i, t)| c.weight[*t] * share(i) * -c.logp[*t]).sum()
            }
            TokenObjective::VocabularyKl {} => sum(&|t| c.success[t]),
            TokenObjective::EntropyBonus {} => sum(&|t| -c.entropy[t]),
        }
    }

    /// `phi(r) - phi(0)` with phi(r) = -f*(-r), from the textbook conjugates; the tests stay where no slope passes 4.
    fn conjugate(divergence: Divergence, beta: f64, ratio: f64) -> f64 {
        let r = beta * ratio.ln();
        let dual = |t: f64| match divergence {
            Divergence::Pearson => t * t / 4.0 + t,
            Divergence::SquaredHellinger => t / (1.0 - t),
            Divergence::JensenShannon => -(2.0 - t.exp()).ln(),
            // f*(t) = e^(t - 1) for f = x ln x, with the reward shifted by one so that its slope at 0 is 1.
            Divergence::ReverseKl => t.exp(),
        };
        dual(0.0) - dual(-r)
    }

    #[test]
    fn losses_agree() {
        for objective in every_token_objective() {
            for seed in 0..20 {
                let step = Step::new(2000 + seed, 0.7);
                let (mut expected, mut start) = (0.0, 0);
                for length in &step.0.sequences {
                    let rows: Vec<usize> = (start..start + length).filter(|t| step.0.weight[*t] != 0.0).collect();
                    start += length;
                    if !rows.is_empty() {
                        expected += sequence(&objective, &step.0, &rows);
                    }
                }
                let got = SupervisedObjective::from(objective).token_terms(&step.rows()).unwrap().loss;
                assert!((got - expected).abs() < 1e-12, "{objective:?}: {got} {expected}");
            }
        }
    }
}

#[test]
fn schemas_are_strict() {
    let schema = serde_json::to_string(&schemars::schema_for!(SupervisedObjective)).unwrap();
    assert!(schema.contains("f_divergence") && schema.contains("\"additionalProperties\":false"));
}
