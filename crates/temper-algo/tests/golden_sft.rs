//! Agreement with TRL 1.16 and PyTorch 2.13 in f64; tests/golden/sft_loss.py made the numbers and says how.

use serde::Deserialize;
use temper_algo::{
    Direction, KlEstimator, SequenceMask, SupervisedObjective, SupervisedRows, TokenObjective, WeightedTerm, Weighting,
};

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    #[serde(default)]
    eps: f64,
    #[serde(default)]
    weight: f64,
    target: Vec<i64>,
    logits: Vec<Vec<f64>>,
    logits_ref: Vec<Vec<f64>>,
    loss: f64,
    d_logits: Vec<Vec<f64>>,
}

fn objective(c: &Case) -> SupervisedObjective {
    match c.kind.as_str() {
        "nll" => TokenObjective::Nll {}.into(),
        "dft" => TokenObjective::Dft {}.into(),
        "label_smoothing" => TokenObjective::LabelSmoothing { eps: c.eps }.into(),
        "anchored" => {
            let kl = TokenObjective::ReferenceKl { estimator: KlEstimator::K3 {}, direction: Direction::Reverse };
            let terms = vec![WeightedTerm { weight: c.weight, objective: kl }];
            SupervisedObjective { objective: TokenObjective::Dft {}, terms }
        }
        "asft" => {
            let terms = vec![WeightedTerm { weight: c.weight, objective: TokenObjective::VocabularyKl {} }];
            SupervisedObjective { objective: TokenObjective::Dft {}, terms }
        }
        other => panic!("{other}"),
    }
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + logits.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    logits.iter().map(|z| z - lse).collect()
}

fn close(got: f64, expected: f64) -> bool {
    (got - expected).abs() <= 1e-12 + 1e-10 * expected.abs()
}

#[test]
fn losses_and_gradients_agree() {
    let file: File = serde_json::from_str(include_str!("../../../tests/golden/algo/sft_loss.json")).unwrap();
    assert_eq!(file.cases.len(), 10);
    for (i, c) in file.cases.iter().enumerate() {
        let token = |t: &i64| usize::try_from(*t).unwrap_or(0);
        let (all, of_ref): (Vec<_>, Vec<_>) =
            (c.logits.iter().map(|l| log_softmax(l)).collect(), c.logits_ref.iter().map(|l| log_softmax(l)).collect());
        let pick = |rows: &[Vec<f64>]| rows.iter().zip(&c.target).map(|(l, t)| l[token(t)]).collect::<Vec<f64>>();
        let (logp, logp_ref) = (pick(&all), pick(&of_ref));
        let mean: Vec<f64> = all.iter().map(|l| l.iter().sum::<f64>() / l.len() as f64).collect();
        let divergence = |(p, q): (&Vec<f64>, &Vec<f64>)| q.iter().zip(p).map(|(q, p)| q.exp() * (q - p)).sum::<f64>();
        let kl: Vec<f64> = all.iter().zip(&of_ref).map(divergence).collect();
        let mask: Vec<f32> = c.target.iter().map(|t| f32::from(u8::from(*t >= 0))).collect();
        let weight = Weighting::Token {}.weights(&[SequenceMask::new(0, &mask)]).unwrap().concat();
        let rows = SupervisedRows {
            logp: &logp,
            logp_ref: Some(&logp_ref),
            entropy: None,
            mean_logp: Some(&mean),
            kl_ref: Some(&kl),
            weight: &weight,
            sequences: &[],
        };
        let terms = objective(c).token_terms(&rows).unwrap();
        assert!(close(terms.loss, c.loss), "case {i} {}: {} {}", c.kind, terms.loss, c.loss);
        for (row, expected) in c.d_logits.iter().enumerate() {
            let d_mean = terms.d_mean_logp.as_ref().map_or(0.0, |d| d[row]);
            let d_kl = terms.d_kl_ref.as_ref().map_or(0.0, |d| d[row]);
            for (j, expected) in expected.iter().enumerate() {
                // d logp_t / d z_j = [j = t] - p_j, d mean / d z_j = 1 / V - p_j, d KL(q || p) / d z_j = p_j - q_j
                let p = all[row][j].exp();
                let hit = f64::from(u8::from(j == token(&c.target[row])));
                let got = terms.d_logp[row] * (hit - p)
                    + d_mean * (1.0 / all[row].len() as f64 - p)
                    + d_kl * (p - of_ref[row][j].exp());
                assert!(close(got, *expected), "case {i} {} row {row}: {got} {expected}", c.kind);
            }
        }
    }
}
