//! The head against f64, against differences, and its independence of chunks and batches.

use super::*;
use crate::gemm::tests::{distance, random};

struct Case {
    hidden: Vec<f32>,
    w: Vec<f32>,
    m: usize,
    c: usize,
    v: usize,
    targets: Vec<u32>,
    spec: HeadSpec,
    /// Hidden rows, of another width, and head of another model.
    other: Option<[Vec<f32>; 2]>,
}

/// The width of the other model's hidden rows.
const WIDTH: usize = 3;

/// Another model's side of a case.
struct Other {
    hidden: Vec<f32>,
    w: Weight,
}

impl Other {
    fn head(&self) -> OtherHead<'_> {
        OtherHead { hidden: &self.hidden, w: &self.w }
    }
}

impl Case {
    fn new(m: usize, c: usize, v: usize, spec: HeadSpec) -> Self {
        let targets = (0..m * spec.targets_per_row).map(|i| (i * 7919 + 3) % v).map(|t| t as u32).collect();
        let w = random(v * c, 2).iter().map(|x| 3.0 * x / (c as f32).sqrt()).collect();
        Self { hidden: random(m * c, 1), w, m, c, v, targets, spec, other: None }
    }

    fn with_other(self) -> Self {
        Self { other: Some([random(self.m * WIDTH, 21), random(self.v * WIDTH, 22)]), ..self }
    }

    fn other(&self) -> Option<Other> {
        self.other.as_ref().map(|[hidden, w]| Other { hidden: hidden.clone(), w: Weight::from_rows(w, self.v, WIDTH) })
    }

    /// KL(other || this) of every row in f64.
    fn exact_kl(&self, hidden: &[f64], w: &[f64]) -> Vec<f64> {
        let Some([of_other, head]) = &self.other else { return vec![0.0; self.m] };
        let softmax = |w: &[f64], h: &[f64]| {
            let dot = |w: &[f64]| w.iter().zip(h).map(|(w, h)| w * h).sum::<f64>() / f64::from(self.spec.temperature);
            let z: Vec<f64> = w.chunks_exact(h.len()).map(dot).collect();
            let norm = z.iter().map(|z| z.exp()).sum::<f64>().ln();
            z.into_iter().map(|z| z - norm).collect::<Vec<f64>>()
        };
        let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let rows = hidden.chunks_exact(self.c).zip(of_other.chunks_exact(WIDTH));
        rows.map(|(h, other)| {
            let (p, q) = (softmax(w, h), softmax(&wide(head), &wide(other)));
            q.iter().zip(p).map(|(q, p)| q.exp() * (q - p)).sum()
        })
        .collect()
    }

    fn weight(&self) -> Weight {
        Weight::from_rows(&self.w, self.v, self.c)
    }

    fn hidden64(&self) -> Vec<f64> {
        self.hidden.iter().map(|x| f64::from(*x)).collect()
    }

    fn w64(&self) -> Vec<f64> {
        self.w.iter().map(|x| f64::from(*x)).collect()
    }

    /// logp (per target), lse, entropy and mean log-prob of every row in f64.
    fn exact(&self, hidden: &[f64], w: &[f64]) -> [Vec<f64>; 4] {
        let [mut logp, mut lse, mut entropy, mut mean] = [const { Vec::new() }; 4];
        for (r, h) in hidden.chunks_exact(self.c).enumerate() {
            let dot = |w: &[f64]| w.iter().zip(h).map(|(w, h)| w * h).sum::<f64>() / f64::from(self.spec.temperature);
            let z: Vec<f64> = w.chunks_exact(self.c).map(dot).collect();
            let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let norm = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
            let per_row = self.spec.targets_per_row;
            logp.extend(self.targets[r * per_row..(r + 1) * per_row].iter().map(|t| z[*t as usize] - norm));
            entropy.push(-z.iter().map(|z| (z - norm).exp() * (z - norm)).sum::<f64>());
            lse.push(norm);
            mean.push(z.iter().map(|z| z - norm).sum::<f64>() / z.len() as f64);
        }
        [logp, lse, entropy, mean]
    }

    /// Coefficients that are not all alike.
    fn coefficients(&self) -> [Vec<f32>; 3] {
        [random(self.m * self.spec.targets_per_row, 11), random(self.m, 12), random(self.m, 13)]
    }

    fn loss(&self, hidden: &[f64], w: &[f64]) -> f64 {
        let ([logp, _, entropy, mean], [a, b, c]) = (self.exact(hidden, w), self.coefficients());
        let sum = |x: &[f64], c: &[f32]| x.iter().zip(c).map(|(x, c)| x * f64::from(*c)).sum::<f64>();
        let asked = |wanted: bool, x: &[f64], c: &[f32]| if wanted { sum(x, c) } else { 0.0 };
        let kl = sum(&self.exact_kl(hidden, w), &random(self.m, 14));
        sum(&logp, &a) + asked(self.spec.entropy, &entropy, &b) + asked(self.spec.mean_logp, &mean, &c) + kl
    }

    fn backward(&self) -> (HeadTerms, Vec<f32>, Vec<f32>) {
        let [a, b, c] = self.coefficients();
        let (mut d_hidden, mut dw) = (vec![f32::NAN; self.m * self.c], Panels::zeros(self.v, self.c));
        let per_row = self.spec.targets_per_row;
        let mut coef = |rows: Range<usize>, terms: &HeadTerms| {
            assert_eq!(terms.logp.len(), rows.len() * per_row);
            HeadCoef {
                d_logp: a[rows.start * per_row..rows.end * per_row].to_vec(),
                d_entropy: self.spec.entropy.then(|| b[rows.clone()].to_vec()),
                d_mean_logp: self.spec.mean_logp.then(|| c[rows.clone()].to_vec()),
                d_kl: self.other.is_some().then(|| random(self.m, 14)[rows].to_vec()),
            }
        };
        let terms = head_backward(
            &self.hidden,
            self.m,
            &self.weight(),
            &self.targets,
            &self.spec,
            self.other().as_ref().map(Other::head),
            &mut coef,
            &mut d_hidden,
            Some(&mut dw),
        );
        (terms.expect("terms"), d_hidden, dw.to_rows())
    }
}

fn difference(x: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let h = 1e-6;
    let at = |i: usize, h: f64| {
        let mut x = x.to_vec();
        x[i] += h;
        loss(&x)
    };
    (0..x.len()).map(|i| (at(i, h) - at(i, -h)) / (2.0 * h)).collect()
}

fn specs() -> [HeadSpec; 6] {
    let plain = HeadSpec::default();
    [
        plain,
        HeadSpec { temperature: 0.7, entropy: true, argmax: true, ..plain },
        HeadSpec { temperature: 1.3, targets_per_row: 3, entropy: true, ..plain },
        HeadSpec { targets_per_row: 0, entropy: true, ..plain },
        HeadSpec { temperature: 0.6, mean_logp: true, ..plain },
        HeadSpec { temperature: 1.7, entropy: true, mean_logp: true, ..plain },
    ]
}

#[test]
fn terms_agree_with_f64() {
    for spec in specs() {
        for (m, c, v) in [(1, 4, 1), (5, 16, 33), (3, 64, 5000), (40, 8, 100)] {
            let case = Case::new(m, c, v, spec);
            let terms = head_terms(&case.hidden, m, &case.weight(), &case.targets, &spec, None).expect("terms");
            let [logp, lse, entropy, mean] = case.exact(&case.hidden64(), &case.w64());
            let close = |got: &[f32], want: &[f64]| {
                assert_eq!(got.len(), want.len());
                got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 2e-6 * w.abs().max(1.0))
            };
            assert!(close(&terms.logp, &logp) && close(&terms.lse, &lse), "[{m}, {c}] x {v}");
            assert_eq!(terms.entropy.is_some(), spec.entropy);
            assert!(terms.entropy.is_none_or(|e| close(&e, &entropy)), "[{m}, {c}] x {v}");
            assert_eq!((terms.argmax.is_some(), terms.mean_logp.is_some()), (spec.argmax, spec.mean_logp));
            assert!(terms.mean_logp.is_none_or(|e| close(&e, &mean)), "[{m}, {c}] x {v}");
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    for spec in specs() {
        let case = Case::new(4, 6, 37, spec);
        let (_, d_hidden, dw) = case.backward();
        let (hidden, w) = (case.hidden64(), case.w64());
        assert!(distance(&d_hidden, &difference(&hidden, |x| case.loss(x, &w))) < 1e-5, "{spec:?}");
        assert!(distance(&dw, &difference(&w, |x| case.loss(&hidden, x))) < 1e-5, "{spec:?}");
    }
}

#[test]
fn the_kl_to_another_head_agrees_with_f64_and_its_gradient_with_differences() {
    for spec in specs() {
        let case = Case::new(4, 6, 37, spec).with_other();
        let (terms, d_hidden, dw) = case.backward();
        let (hidden, w) = (case.hidden64(), case.w64());
        let kl = terms.kl.clone().expect("kl");
        let exact = case.exact_kl(&hidden, &w);
        assert!(kl.iter().zip(&exact).all(|(a, b)| (f64::from(*a) - b).abs() < 2e-6), "{spec:?}: {kl:?} {exact:?}");
        assert!(distance(&d_hidden, &difference(&hidden, |x| case.loss(x, &w))) < 1e-5, "{spec:?}");
        assert!(distance(&dw, &difference(&w, |x| case.loss(&hidden, x))) < 1e-5, "{spec:?}");
        let other = case.other();
        let other = other.as_ref().map(Other::head);
        let forward = head_terms(&case.hidden, 4, &case.weight(), &case.targets, &spec, other).expect("terms");
        assert_eq!(forward, terms);
        // What the other says of the targets is what it says when it is asked alone, bit for bit.
        let alone = other.map(|o| head_terms(o.hidden, 4, o.w, &case.targets, &spec, None).expect("terms").logp);
        assert_eq!(terms.logp_other, alone, "{spec:?}");
    }
}

/// A model's KL to itself is 0 and pulls nowhere; a head over another vocabulary is refused.
#[test]
fn the_kl_to_oneself_is_nothing() {
    let (case, spec) = (Case::new(3, 5, 2000, HeadSpec::default()), HeadSpec::default());
    let (w, mut d_hidden) = (case.weight(), vec![1.0; 15]);
    let oneself = Some(OtherHead { hidden: &case.hidden, w: &w });
    let mut coef = |rows: Range<usize>, _: &HeadTerms| {
        let (d_logp, d_kl) = (vec![0.0; rows.len()], Some(vec![1.0; rows.len()]));
        HeadCoef { d_logp, d_kl, ..HeadCoef::default() }
    };
    let terms = head_backward(&case.hidden, 3, &w, &case.targets, &spec, oneself, &mut coef, &mut d_hidden, None);
    assert!(terms.expect("terms").kl.expect("kl").iter().all(|kl| kl.abs() < 1e-7));
    assert!(d_hidden.iter().all(|d| d.abs() < 1e-6), "{d_hidden:?}");
    let small = Weight::from_rows(&[0.0; 50], 10, 5);
    let other = Some(OtherHead { hidden: &case.hidden, w: &small });
    let refused = head_terms(&case.hidden, 3, &w, &case.targets, &spec, other);
    assert!(matches!(refused, Err(Error::Count { got: 10, expected: 2000, .. })));
}

#[test]
fn backward_gives_the_terms_of_forward_and_the_samplers_bits() {
    let spec = HeadSpec { temperature: 0.9, entropy: true, argmax: true, ..HeadSpec::default() };
    let case = Case::new(50, 24, 700, spec);
    let w = case.weight();
    let terms = head_terms(&case.hidden, case.m, &w, &case.targets, &spec, None).expect("terms");
    assert_eq!(case.backward().0, terms);
    for r in [0, 1, 17, 49] {
        let hidden = &case.hidden[r * case.c..(r + 1) * case.c];
        let mut logits = vec![0.0; case.v];
        head_logits(hidden, 1, &w, &mut logits);
        let row = row_terms(&logits, case.targets[r], 1.0 / spec.temperature);
        assert_eq!((row.logp, row.lse), (terms.logp[r], terms.lse[r]));
        assert_eq!(Some(row.entropy), terms.entropy.as_ref().map(|e| e[r]));
        assert_eq!(Some(row.argmax), terms.argmax.as_ref().map(|a| a[r]));
    }
}

#[test]
fn chunks_and_threads_do_not_change_bits() {
    // Large enough for several chunks of rows.
    let case = Case::new(400, 4, 49_152, HeadSpec::default());
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(|| case.backward())
    };
    let whole = run(1);
    assert_eq!(run(2), whole);
    for at in [0, 170, 399] {
        let (spec, target) = (&case.spec, &case.targets[at..=at]);
        let alone = head_terms(&case.hidden[at * 4..at * 4 + 4], 1, &case.weight(), target, spec, None).expect("terms");
        assert_eq!(alone.logp[0], whole.0.logp[at]);
    }
}

#[test]
fn rows_without_coefficients_have_no_gradient() {
    let case = Case::new(3, 5, 20, HeadSpec::default());
    let mut d_hidden = vec![1.0; 15];
    let mut coef =
        |rows: Range<usize>, _: &HeadTerms| HeadCoef { d_logp: vec![0.0; rows.len()], ..HeadCoef::default() };
    let spec = HeadSpec::default();
    head_backward(&case.hidden, 3, &case.weight(), &case.targets, &spec, None, &mut coef, &mut d_hidden, None)
        .expect("terms");
    assert!(d_hidden.iter().all(|d| *d == 0.0));
}

#[test]
fn impossible_and_broken_logits() {
    let row = row_terms(&[0.0, f32::NEG_INFINITY, 0.0, 0.0], 1, 1.0);
    assert_eq!((row.logp, row.max, row.argmax), (f32::NEG_INFINITY, 0.0, 0));
    assert!((row.entropy - 3.0_f32.ln()).abs() < 1e-6);
    let far = row_terms(&[1e4, -1e4, 0.0], 0, 1.0);
    assert_eq!((far.logp, far.lse, far.entropy), (0.0, 1e4, 0.0));
    assert!(row_terms(&[0.0, f32::NAN], 0, 1.0).logp.is_nan());
    assert!(row_terms(&[f32::NEG_INFINITY; 2], 0, 1.0).logp.is_nan());
}

#[test]
fn bad_requests_are_errors() {
    let case = Case::new(2, 3, 5, HeadSpec::default());
    let w = case.weight();
    let terms = |targets: &[u32], spec: &HeadSpec| head_terms(&case.hidden, 2, &w, targets, spec, None);
    assert!(matches!(terms(&[0, 5], &HeadSpec::default()), Err(Error::Index { index: 5, len: 5, .. })));
    assert!(matches!(terms(&[0], &HeadSpec::default()), Err(Error::Count { got: 1, expected: 2, .. })));
    for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let spec = HeadSpec { temperature, ..HeadSpec::default() };
        assert!(matches!(terms(&[0, 1], &spec), Err(Error::Value { what: "temperature", .. })));
    }
    let mut coef = |_: Range<usize>, _: &HeadTerms| HeadCoef { d_logp: vec![1.0], ..HeadCoef::default() };
    let (spec, mut d_hidden) = (HeadSpec::default(), vec![0.0; 6]);
    let result = head_backward(&case.hidden, 2, &w, &case.targets, &spec, None, &mut coef, &mut d_hidden, None);
    assert!(matches!(result, Err(Error::Count { got: 1, expected: 2, .. })));
}
