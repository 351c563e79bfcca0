//! Shared by the integration tests: random numbers, comparisons, finite differences.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

use temper_tensor::{Cpu, GradSink, Grads, Ops, Params, Result, Tape, Tensor, Var};

/// SplitMix64 with normal draws.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn normal(&mut self) -> f32 {
        let (a, b) = (self.uniform().max(1e-300), self.uniform());
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    }

    pub fn normals(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * scale).collect()
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

pub fn tensor(rows: usize, cols: usize, values: &[f32]) -> Tensor {
    Cpu::new().upload(rows, cols, values).expect("the values fill the shape")
}

pub fn host(t: &Tensor) -> Vec<f32> {
    Cpu::new().to_host(t).expect("a host tensor can be read")
}

pub fn bits(t: &[f32]) -> Vec<u32> {
    t.iter().map(|x| x.to_bits()).collect()
}

/// `|a - b| / |b|` in the Euclidean norm.
pub fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let diff: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
    (diff / norm.max(1e-30)).sqrt()
}

#[track_caller]
pub fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f64) {
    let error = relative_l2(got, expected);
    assert!(error <= tolerance, "{what}: relative L2 {error:.2e} > {tolerance:.0e}");
}

/// Compares the gradients that backward gives for `sum(c * f(inputs))` (random c) with central differences.
#[track_caller]
pub fn check_inputs(what: &str, inputs: &[(usize, usize, Vec<f32>)], f: impl Fn(&Tape, &[Var]) -> Result<Var>) {
    let (ops, params) = (Cpu::new(), Params::new());
    let run = |values: &[(usize, usize, Vec<f32>)], record: bool| {
        let tape = Tape::new(&ops, &params, record);
        let vars: Vec<Var> = values.iter().map(|(r, c, v)| tape.input(tensor(*r, *c, v), record)).collect();
        let y = f(&tape, &vars).expect(what);
        (host(y.tensor()), record.then(|| differentiate(&tape, &vars, &y)))
    };
    let (_, grads) = run(inputs, true);
    let grads = grads.expect("recorded");
    for (i, (_, _, values)) in inputs.iter().enumerate() {
        for j in 0..values.len() {
            let h = 1e-2f32;
            let at = |delta: f32| {
                let mut moved = inputs.to_vec();
                moved[i].2[j] += delta;
                weighted(&run(&moved, false).0)
            };
            let numeric = (8.0 * (at(h / 2.0) - at(-h / 2.0)) - (at(h) - at(-h))) / (6.0 * f64::from(h));
            let got = f64::from(grads[i][j]);
            let scale = 1.0f64.max(numeric.abs());
            assert!((got - numeric).abs() <= 4e-3 * scale, "{what}: input {i}[{j}]: {got} vs {numeric}");
        }
    }
}

/// Fixed weights of the test loss.
pub fn weight(i: usize) -> f32 {
    ((i * 37 + 11) % 17) as f32 / 8.0 - 1.0
}

pub fn weighted(y: &[f32]) -> f64 {
    y.iter().enumerate().map(|(i, y)| f64::from(weight(i)) * f64::from(*y)).sum()
}

pub fn loss_gradient(y: &Var) -> Tensor {
    let values: Vec<f32> = (0..y.rows() * y.cols()).map(weight).collect();
    tensor(y.rows(), y.cols(), &values)
}

fn differentiate(tape: &Tape, vars: &[Var], y: &Var) -> Vec<Vec<f32>> {
    let mut grads = Grads::zeros(tape.ops(), tape.params()).expect("no parameters");
    let mut sink = GradSink::Accumulate(&mut grads);
    let found = tape.backward(y, loss_gradient(y), &mut sink).expect("backward");
    vars.iter().map(|v| found.get(v).map_or_else(|| vec![0.0; v.rows() * v.cols()], host)).collect()
}
