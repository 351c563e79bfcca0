//! Shared by the integration tests: random numbers, comparisons, finite differences.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

use temper_tensor::{Cpu, GradSink, Grads, Ops, ParamId, Params, Result, Tape, Tensor, Var};

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

/// One argument of a checked function: `[rows, cols]` values.
pub type Arg = (usize, usize, Vec<f32>);

/// Compares the gradients that backward gives for `sum(c * f(inputs))` with central differences.
#[track_caller]
pub fn check_inputs(what: &str, inputs: &[Arg], f: impl Fn(&Tape, &[Var]) -> Result<Var>) {
    check(what, inputs, &[], |tape, vars, _| f(tape, vars));
}

/// The same for a function of inputs and parameters (those with one row are vectors).
#[track_caller]
pub fn check(what: &str, inputs: &[Arg], params: &[Arg], f: impl Fn(&Tape, &[Var], &[ParamId]) -> Result<Var>) {
    let run = |inputs: &[Arg], params: &[Arg], record: bool| evaluate(what, inputs, params, record, &f);
    let grads = run(inputs, params, true).1;
    let at = |arg: usize, j: usize, delta: f32| {
        let (mut inputs, mut params) = (inputs.to_vec(), params.to_vec());
        let n = inputs.len();
        let moved = if arg < n { &mut inputs[arg] } else { &mut params[arg - n] };
        moved.2[j] += delta;
        weighted(&run(&inputs, &params, false).0)
    };
    for (arg, (_, _, values)) in inputs.iter().chain(params).enumerate() {
        for (j, got) in grads[arg].iter().enumerate().take(values.len()) {
            let h = 1e-2f32;
            let (near, far) = (at(arg, j, h / 2.0) - at(arg, j, -h / 2.0), at(arg, j, h) - at(arg, j, -h));
            let numeric = (8.0 * near - far) / (6.0 * f64::from(h));
            let got = f64::from(*got);
            let scale = 1.0f64.max(numeric.abs());
            assert!((got - numeric).abs() <= 4e-3 * scale, "{what}: argument {arg}[{j}]: {got} vs {numeric}");
        }
    }
}

/// The value, and on record the gradients of all arguments.
fn evaluate(
    what: &str,
    inputs: &[Arg],
    values: &[Arg],
    record: bool,
    f: &impl Fn(&Tape, &[Var], &[ParamId]) -> Result<Var>,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let ops = Cpu::new();
    let (params, ids) = make_params(values);
    let tape = Tape::new(&ops, &params, record);
    let vars: Vec<Var> = inputs.iter().map(|(r, c, v)| tape.input(tensor(*r, *c, v), record)).collect();
    let y = f(&tape, &vars, &ids).expect(what);
    let value = host(y.tensor());
    if !record {
        return (value, Vec::new());
    }
    let mut grads = Grads::zeros(&ops, &params).expect("memory");
    let found = tape.backward(&y, loss_gradient(&y), &mut GradSink::Accumulate(&mut grads)).expect("backward");
    let of_input = |v: &Var| found.get(v).map_or_else(|| vec![0.0; v.rows() * v.cols()], host);
    let of_param = |id: &ParamId| grads.get(*id).expect("trainable").values(&ops).expect("readable");
    (value, vars.iter().map(of_input).chain(ids.iter().map(of_param)).collect())
}

pub fn make_params(values: &[Arg]) -> (Params, Vec<ParamId>) {
    let mut params = Params::new();
    let add = |(i, (rows, cols, v)): (usize, &Arg)| {
        let name = format!("p{i}");
        let id = match rows {
            1 => params.add_vector(&Cpu::new(), &name, v),
            _ => params.add_matrix(&name, *rows, *cols, v),
        };
        id.expect("a new name")
    };
    let ids = values.iter().enumerate().map(add).collect();
    (params, ids)
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
