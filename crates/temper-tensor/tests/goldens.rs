//! Every fused operation and a whole block against PyTorch in f64 (tests/golden/tensor_ops.py): relative L2 of each
//! tensor at most 1e-5.

mod common;

use std::sync::Arc;

use common::{assert_close, host, tensor};
use safetensors::SafeTensors;
use temper_tensor::{
    AdamState, AdamW, AttnShape, Cpu, GradSink, Grads, HeadCoef, HeadSpec, Ops, ParamId, Params, RopeTable, Segment,
    Segments, Tape, Tensor, Var, adamw_step,
};

const BYTES: &[u8] = include_bytes!("../../../tests/golden/tensor_ops.safetensors");
const TOLERANCE: f64 = 1e-5;

struct Case {
    file: SafeTensors<'static>,
    name: &'static str,
}

impl Case {
    fn open(name: &'static str) -> Self {
        Self { file: SafeTensors::deserialize(BYTES).expect("the golden file is whole"), name }
    }

    fn raw(&self, key: &str) -> (Vec<usize>, Vec<[u8; 4]>) {
        let t = self.file.tensor(&format!("{}/{key}", self.name)).expect(key);
        (t.shape().to_vec(), t.data().as_chunks::<4>().0.to_vec())
    }

    fn values(&self, key: &str) -> Vec<f32> {
        self.raw(key).1.into_iter().map(f32::from_le_bytes).collect()
    }

    fn ids(&self, key: &str) -> Vec<u32> {
        self.raw(key).1.into_iter().map(u32::from_le_bytes).collect()
    }

    fn tensor(&self, key: &str) -> Tensor {
        let shape = self.raw(key).0;
        let (rows, cols) = if shape.len() == 1 { (1, shape[0]) } else { (shape[0], shape[1]) };
        tensor(rows, cols, &self.values(key))
    }

    fn add(&self, params: &mut Params, key: &str) -> ParamId {
        let shape = self.raw(key).0;
        let id = if shape.len() == 1 {
            params.add_vector(&Cpu::new(), key, &self.values(key))
        } else {
            params.add_matrix(key, shape[0], shape[1], &self.values(key))
        };
        id.expect("a new name")
    }

    #[track_caller]
    fn compare(&self, key: &str, got: &[f32]) {
        assert_close(&format!("{}/{key}", self.name), got, &self.values(key), TOLERANCE);
    }

    /// Runs `f` on the inputs and parameters; compares the value and every gradient.
    fn check(
        &self,
        inputs: &[&str],
        param_names: &[&str],
        f: impl for<'a> Fn(&Tape<'a>, &[Var], &[ParamId], &'a RopeTable) -> temper_tensor::Result<Var>,
    ) {
        let (ops, mut params) = (Cpu::new(), Params::new());
        let ids: Vec<ParamId> = param_names.iter().map(|n| self.add(&mut params, n)).collect();
        let mut grads = Grads::zeros(&ops, &params).expect("buffers");
        let table = table(if self.name == "block" { 16 } else { 32 });
        let tape = Tape::new(&ops, &params, true);
        let vars: Vec<Var> = inputs.iter().map(|n| tape.input(self.tensor(n), true)).collect();
        let y = f(&tape, &vars, &ids, &table).expect(self.name);
        self.compare("y", &host(y.tensor()));
        let found = tape.backward(&y, self.tensor("dy"), &mut GradSink::Accumulate(&mut grads)).expect("backward");
        for (var, name) in vars.iter().zip(inputs) {
            self.compare(&format!("d_{name}"), &host(found.get(var).expect("a gradient")));
        }
        for (id, name) in ids.iter().zip(param_names) {
            let grad = grads.get(*id).expect("trainable").values(&ops).expect("readable");
            self.compare(&format!("d_{name}"), &grad);
        }
    }
}

fn table(d: i32) -> RopeTable {
    let inv_freq = (0..d / 2).map(|i| 10000f64.powf(f64::from(-2 * i) / f64::from(d))).collect();
    RopeTable::new(inv_freq, 1.0, 2048)
}

#[test]
fn embedding() {
    let case = Case::open("embedding");
    case.check(&[], &["w"], |t, _, p, _| t.embedding(p[0], &case.ids("ids")));
}

#[test]
fn linear_with_bias() {
    Case::open("linear").check(&["x"], &["w", "b"], |t, v, p, _| t.bias(&t.linear(&v[0], p[0])?, p[1]));
}

#[test]
fn rms_norm() {
    Case::open("rms_norm").check(&["x"], &["w"], |t, v, p, _| t.rms_norm(&v[0], p[0], 1e-5));
}

#[test]
fn rope() {
    let case = Case::open("rope");
    let positions: Arc<[u32]> = case.ids("positions").into();
    case.check(&["x"], &[], |t, v, _, table| t.rope(&v[0], 3, table, &positions));
}

#[test]
fn gates() {
    Case::open("swiglu").check(&["gate", "up"], &[], |t, v, _, _| t.swiglu(&v[0], &v[1]));
    Case::open("geglu").check(&["gate", "up"], &[], |t, v, _, _| t.geglu(&v[0], &v[1]));
}

fn segments(list: &[(usize, usize, Option<usize>)]) -> Arc<Segments> {
    let list = list.iter().map(|&(start, len, parent)| Segment { start, len, parent }).collect();
    Arc::new(Segments::new(list).expect("valid"))
}

#[test]
fn attention_over_packed_sequences_and_a_tree() {
    let layout = segments(&[(0, 5, None), (5, 67, None), (72, 9, Some(1)), (81, 3, Some(1)), (84, 4, Some(2))]);
    let shape = AttnShape { heads: 2, kv_heads: 1, head_dim: 16, scale: 0.25, bf16: false };
    Case::open("attention").check(&["q", "k", "v"], &[], |t, v, _, _| t.attention(&v[0], &v[1], &v[2], &layout, shape));
}

#[test]
fn head_terms_and_their_gradient() {
    let (case, ops) = (Case::open("head"), Cpu::new());
    let mut params = Params::new();
    let w = case.add(&mut params, "w");
    let mut grads = Grads::zeros(&ops, &params).expect("buffers");
    let hidden = case.tensor("hidden");
    let mut d_hidden = ops.zeros(hidden.rows(), hidden.cols()).expect("memory");
    let spec = HeadSpec { temperature: 0.7, entropy: true, argmax: true, ..HeadSpec::default() };
    let (d_logp, d_entropy) = (case.values("d_logp"), case.values("d_entropy"));
    let weight = params.matrix("head", w).expect("a matrix");
    let mut coef = |rows: std::ops::Range<usize>, _: &_| HeadCoef {
        d_logp: d_logp[rows.clone()].to_vec(),
        d_entropy: Some(d_entropy[rows].to_vec()),
        ..HeadCoef::default()
    };
    let targets = case.ids("targets");
    let dw = grads.get_mut(w);
    let terms = ops.head_backward(&hidden, weight, &targets, &spec, &mut coef, &mut d_hidden, dw).expect("head");
    case.compare("logp", &terms.logp);
    case.compare("lse", &terms.lse);
    case.compare("entropy", terms.entropy.as_deref().expect("asked for"));
    assert_eq!(terms.argmax.as_deref().expect("asked for"), case.ids("argmax"));
    case.compare("d_hidden", &host(&d_hidden));
    case.compare("d_w", &grads.get(w).expect("trainable").values(&ops).expect("readable"));
    assert_eq!(ops.head_terms(&hidden, weight, &targets, &spec).expect("head"), terms);
}

#[test]
fn adamw() {
    let (case, ops) = (Case::open("adamw"), Cpu::new());
    let mut params = Params::new();
    let ids = [("w", case.add(&mut params, "w0")), ("b", case.add(&mut params, "b0"))];
    let mut grads = Grads::zeros(&ops, &params).expect("buffers");
    let mut state = AdamState::new(&ops, &params).expect("buffers");
    let hyper = AdamW { lr: 0.05, beta2: 0.95, weight_decay: 0.1, ..AdamW::default() };
    for step in 1..=3 {
        for (name, id) in ids {
            let grad = case.values(&format!("g{name}{step}"));
            grads.get_mut(id).expect("trainable").set_values(&ops, &grad).expect("fits");
        }
        adamw_step(&ops, &mut params, &grads, &mut state, &hyper, 1.0).expect("a step");
        for (name, id) in ids {
            case.compare(&format!("{name}{step}"), &params.values(&ops, id).expect("readable"));
        }
    }
}

#[test]
fn a_whole_block() {
    let layout = segments(&[(0, 4, None), (4, 5, None), (9, 3, Some(1)), (12, 2, Some(1))]);
    let shape = AttnShape { heads: 2, kv_heads: 1, head_dim: 16, scale: 0.25, bf16: false };
    let names = ["norm1", "wq", "wk", "wv", "wo", "norm2", "gate", "up", "down"];
    Case::open("block").check(&["x"], &names, |t, v, p, table| {
        let positions = layout.positions();
        let h = t.rms_norm(&v[0], p[0], 1e-5)?;
        let q = t.rope(&t.linear(&h, p[1])?, 2, table, &positions)?;
        let k = t.rope(&t.linear(&h, p[2])?, 1, table, &positions)?;
        let mixed = t.attention(&q, &k, &t.linear(&h, p[3])?, &layout, shape)?;
        let mid = t.add(&v[0], &t.linear(&mixed, p[4])?)?;
        let h = t.rms_norm(&mid, p[5], 1e-5)?;
        let inner = t.swiglu(&t.linear(&h, p[6])?, &t.linear(&h, p[7])?)?;
        t.add(&mid, &t.linear(&inner, p[8])?)
    });
}
