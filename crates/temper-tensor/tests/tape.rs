//! The tape on a small transformer: checkpointing, accumulation, frozen parameters, hooks, sinks, misuse.

mod common;

use std::sync::Arc;

use common::{Rng, assert_close, bits, host, tensor};
use temper_tensor::{
    AttnShape, CacheSlot, Cpu, Error, Examples, GradSink, Grads, Held, Hooks, KvCache, Ops, ParamId, Params, Result,
    RopeTable, Segments, Tape, Tensor, Var,
};

const C: usize = 32;
const VOCAB: usize = 23;
const SHAPE: AttnShape = AttnShape { heads: 2, kv_heads: 1, head_dim: 16, scale: 0.25, bf16: false };

#[derive(Clone, Copy)]
struct Layer {
    norm1: ParamId,
    q: ParamId,
    k: ParamId,
    v: ParamId,
    o: ParamId,
    norm2: ParamId,
    gate: ParamId,
    up: ParamId,
    down: ParamId,
}

struct Model {
    params: Params,
    embed: ParamId,
    layers: Vec<Layer>,
    last: ParamId,
    rope: RopeTable,
}

impl Model {
    fn new() -> Self {
        let (mut params, mut rng) = (Params::new(), Rng(77));
        let mut matrix = |params: &mut Params, name: &str, n: usize, k: usize| {
            params.add_matrix(name, n, k, &rng.normals(n * k, 0.2)).expect("a new name")
        };
        let vector = |params: &mut Params, name: &str| {
            let values: Vec<f32> = (0..C).map(|i| 1.0 + 0.01 * i as f32).collect();
            params.add_vector(&Cpu::new(), name, &values).expect("a new name")
        };
        let embed = matrix(&mut params, "embed", VOCAB, C);
        let layer = |i: usize| Layer {
            norm1: vector(&mut params, &format!("{i}.norm1")),
            q: matrix(&mut params, &format!("{i}.q"), 32, C),
            k: matrix(&mut params, &format!("{i}.k"), 16, C),
            v: matrix(&mut params, &format!("{i}.v"), 16, C),
            o: matrix(&mut params, &format!("{i}.o"), C, 32),
            norm2: vector(&mut params, &format!("{i}.norm2")),
            gate: matrix(&mut params, &format!("{i}.gate"), 40, C),
            up: matrix(&mut params, &format!("{i}.up"), 40, C),
            down: matrix(&mut params, &format!("{i}.down"), C, 40),
        };
        let layers = (0..2).map(layer).collect();
        let last = vector(&mut params, "norm");
        let rope = RopeTable::new((0..8).map(|i| 0.1f64.powi(i)).collect(), 1.0, 512);
        Self { params, embed, layers, last, rope }
    }

    fn block<'a>(&'a self, tape: &Tape<'a>, i: usize, x: &Var, s: &Arc<Segments>) -> Result<Var> {
        let l = self.layers[i];
        let positions = s.positions();
        let h = tape.rms_norm(x, l.norm1, 1e-5)?;
        let q = tape.rope(&tape.linear(&h, l.q)?, 2, &self.rope, &positions)?;
        let k = tape.rope(&tape.linear(&h, l.k)?, 1, &self.rope, &positions)?;
        let mixed = tape.attention(&q, &k, &tape.linear(&h, l.v)?, s, SHAPE)?;
        let x = tape.add(x, &tape.linear(&mixed, l.o)?)?;
        let x = tape.point(&format!("layer.{i}.mid"), &x)?;
        let h = tape.rms_norm(&x, l.norm2, 1e-5)?;
        let inner = tape.swiglu(&tape.linear(&h, l.gate)?, &tape.linear(&h, l.up)?)?;
        tape.add(&x, &tape.linear(&inner, l.down)?)
    }

    fn body<'a>(&'a self, tape: &Tape<'a>, mut x: Var, s: &Arc<Segments>, checkpoint: bool) -> Result<Var> {
        for i in 0..self.layers.len() {
            let s = Arc::clone(s);
            x = if checkpoint {
                tape.checkpoint(&[&x], move |tape, x| self.block(tape, i, &x[0], &s))?
            } else {
                self.block(tape, i, &x, &s)?
            };
        }
        tape.rms_norm(&x, self.last, 1e-5)
    }

    fn hidden<'a>(&'a self, tape: &Tape<'a>, ids: &[u32], s: &Arc<Segments>, checkpoint: bool) -> Result<Var> {
        self.body(tape, tape.embedding(self.embed, ids)?, s, checkpoint)
    }

    /// The value and the gradient of `sum(d * hidden)`.
    fn step(&self, ids: &[u32], s: &Arc<Segments>, d: &[f32], checkpoint: bool) -> (Vec<f32>, Grads) {
        let ops = Cpu::new();
        let mut grads = Grads::zeros(&ops, &self.params).expect("memory");
        let tape = Tape::new(&ops, &self.params, true);
        let y = self.hidden(&tape, ids, s, checkpoint).expect("forward");
        tape.backward(&y, tensor(ids.len(), C, d), &mut GradSink::Accumulate(&mut grads)).expect("backward");
        (host(y.tensor()), grads)
    }
}

fn ids(n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng(seed);
    (0..n).map(|_| rng.below(VOCAB) as u32).collect()
}

fn values(grads: &Grads) -> Vec<Vec<f32>> {
    grads.iter().map(|(_, g)| g.values(&Cpu::new()).expect("readable")).collect()
}

fn sequences(lengths: &[usize]) -> Arc<Segments> {
    Arc::new(Segments::sequences(lengths).expect("valid"))
}

#[test]
fn checkpointing_changes_no_bit() {
    let (model, s) = (Model::new(), Arc::new(Segments::group(70, &[9, 5]).expect("valid")));
    let (ids, d) = (ids(84, 1), Rng(2).normals(84 * C, 1.0));
    let (plain, kept) = (model.step(&ids, &s, &d, false), model.step(&ids, &s, &d, true));
    assert_eq!(bits(&plain.0), bits(&kept.0));
    for (a, b) in values(&plain.1).iter().zip(values(&kept.1)) {
        assert_eq!(bits(a), bits(&b));
    }
}

#[test]
fn recording_changes_no_bit_of_the_forward() {
    let (model, s, ops) = (Model::new(), sequences(&[20]), Cpu::new());
    let run = |record| {
        let tape = Tape::new(&ops, &model.params, record);
        bits(&host(model.hidden(&tape, &ids(20, 1), &s, false).expect("forward").tensor()))
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn cached_decoding_equals_the_recorded_forward_bitwise() {
    let (model, ops, n) = (Model::new(), Cpu::new(), 75);
    let ids = ids(n, 3);
    let trained = model.step(&ids, &sequences(&[n]), &vec![0.0; n * C], true).0;
    let mut cache = KvCache::new(2, &SHAPE);
    let mut decoded = Vec::new();
    let mut at = 0;
    for count in [5, 1, 1, 58, 1, 1, 8] {
        let tape = Tape::new(&ops, &model.params, false);
        let mut x = tape.embedding(model.embed, &ids[at..at + count]).expect("known ids");
        let positions: Arc<[u32]> = (at as u32..(at + count) as u32).collect();
        for (i, l) in model.layers.iter().enumerate() {
            let block = |x: &Var, cache: &mut KvCache| -> Result<Var> {
                let h = tape.rms_norm(x, l.norm1, 1e-5)?;
                let q = tape.rope(&tape.linear(&h, l.q)?, 2, &model.rope, &positions)?;
                let k = tape.rope(&tape.linear(&h, l.k)?, 1, &model.rope, &positions)?;
                let v = tape.linear(&h, l.v)?;
                let mixed = tape.cached_attention(&q, &k, &v, &mut [CacheSlot { cache, rows: 0..count }], i, SHAPE)?;
                let x = tape.add(x, &tape.linear(&mixed, l.o)?)?;
                let h = tape.rms_norm(&x, l.norm2, 1e-5)?;
                let inner = tape.swiglu(&tape.linear(&h, l.gate)?, &tape.linear(&h, l.up)?)?;
                tape.add(&x, &tape.linear(&inner, l.down)?)
            };
            x = block(&x, &mut cache).expect("forward");
        }
        decoded.extend(host(tape.rms_norm(&x, model.last, 1e-5).expect("forward").tensor()));
        at += count;
    }
    assert_eq!(bits(&decoded), bits(&trained));
}

#[test]
fn thread_count_changes_no_bit_of_a_step() {
    let (model, s) = (Model::new(), Arc::new(Segments::group(70, &[9, 80, 5]).expect("valid")));
    let (ids, d) = (ids(164, 1), Rng(2).normals(164 * C, 1.0));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let (y, grads) = pool.install(|| model.step(&ids, &s, &d, true));
        (bits(&y), values(&grads).iter().map(|g| bits(g)).collect::<Vec<_>>())
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}

#[test]
fn two_micro_batches_accumulate_to_the_whole_batch() {
    let (model, ops) = (Model::new(), Cpu::new());
    let (ids, d) = (ids(60, 4), Rng(5).normals(60 * C, 1.0));
    let whole = model.step(&ids, &sequences(&[25, 10, 25]), &d, false).1;
    let mut halves = Grads::zeros(&ops, &model.params).expect("memory");
    for (rows, lengths) in [(0..35, &[25, 10][..]), (35..60, &[25][..])] {
        let tape = Tape::new(&ops, &model.params, true);
        let s = sequences(lengths);
        let y = model.hidden(&tape, &ids[rows.clone()], &s, false).expect("forward");
        let d = tensor(rows.len(), C, &d[rows.start * C..rows.end * C]);
        tape.backward(&y, d, &mut GradSink::Accumulate(&mut halves)).expect("backward");
    }
    for (a, b) in values(&halves).iter().zip(values(&whole)) {
        assert_close("halves", a, &b, 1e-6);
    }
}

#[test]
fn a_sequence_without_loss_has_no_gradient() {
    let (model, ops, s) = (Model::new(), Cpu::new(), sequences(&[12, 9]));
    let all = ids(21, 6);
    let mut d = Rng(7).normals(21 * C, 1.0);
    d[12 * C..].fill(0.0);
    let mut grads = Grads::zeros(&ops, &model.params).expect("memory");
    let tape = Tape::new(&ops, &model.params, true);
    let x = tape.input(tensor(21, C, &Rng(8).normals(21 * C, 1.0)), true);
    let y = model.body(&tape, x.clone(), &s, false).expect("forward");
    let found = tape.backward(&y, tensor(21, C, &d), &mut GradSink::Accumulate(&mut grads)).expect("backward");
    let dx = host(found.get(&x).expect("a gradient"));
    assert!(dx[12 * C..].iter().all(|v| *v == 0.0));
    assert!(dx[..12 * C].iter().any(|v| *v != 0.0));
    let with = model.step(&all, &s, &d, false).1;
    let without = model.step(&all[..12], &sequences(&[12]), &d[..12 * C], false).1;
    for (a, b) in values(&with).iter().zip(values(&without)) {
        assert_close("with and without", a, &b, 1e-6);
    }
}

#[test]
fn frozen_parameters_get_nothing_and_the_rest_the_same() {
    let (mut model, s) = (Model::new(), sequences(&[15]));
    let (ids, d) = (ids(15, 9), Rng(10).normals(15 * C, 1.0));
    let full = model.step(&ids, &s, &d, false).1;
    let chosen = model.layers[1].up;
    for id in model.params.iter().map(|(id, _)| id).collect::<Vec<_>>() {
        model.params.get_mut(id).trainable = id == chosen;
    }
    for checkpoint in [false, true] {
        let part = model.step(&ids, &s, &d, checkpoint).1;
        assert_eq!(part.iter().map(|(id, _)| id).collect::<Vec<_>>(), [chosen]);
        let of = |g: &Grads| bits(&g.get(chosen).expect("trainable").values(&Cpu::new()).expect("readable"));
        assert_eq!(of(&part), of(&full));
    }
}

#[test]
fn soft_prompts_receive_gradients() {
    let (model, ops, s) = (Model::new(), Cpu::new(), Arc::new(Segments::group(3, &[4, 2]).expect("valid")));
    let prompt = Rng(11).normals(3 * C, 0.5);
    let d = Rng(12).normals(9 * C, 1.0);
    let run = |prompt: &[f32]| {
        let mut grads = Grads::zeros(&ops, &model.params).expect("memory");
        let tape = Tape::new(&ops, &model.params, true);
        let soft = tape.input(tensor(3, C, prompt), true);
        let x = tape.concat_rows(&[&soft, &tape.embedding(model.embed, &ids(6, 13)).expect("known ids")]);
        let y = model.body(&tape, x.expect("fits"), &s, true).expect("forward");
        let loss: f64 = host(y.tensor()).iter().zip(&d).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let mut found = tape.backward(&y, tensor(9, C, &d), &mut GradSink::Accumulate(&mut grads)).expect("backward");
        (loss, host(&found.take(&soft).expect("a gradient")))
    };
    let grad = run(&prompt).1;
    for at in [0, 40, 95] {
        let moved = |delta: f32| {
            let mut prompt = prompt.clone();
            prompt[at] += delta;
            run(&prompt).0
        };
        let numeric = (moved(1e-3) - moved(-1e-3)) / 2e-3;
        assert!((numeric - f64::from(grad[at])).abs() < 2e-2 * numeric.abs().max(1.0), "{numeric} {}", grad[at]);
    }
}

#[test]
fn hooks_capture_replace_and_inject() {
    let (model, ops, s) = (Model::new(), Cpu::new(), sequences(&[6]));
    let run = |hooks: &Hooks, checkpoint: bool| {
        let mut grads = Grads::zeros(&ops, &model.params).expect("memory");
        let tape = Tape::new(&ops, &model.params, true).with_hooks(hooks);
        let y = model.hidden(&tape, &ids(6, 14), &s, checkpoint)?;
        let value = host(y.tensor());
        tape.backward(&y, tensor(6, C, &Rng(3).normals(6 * C, 1.0)), &mut GradSink::Accumulate(&mut grads))?;
        Ok::<_, Error>((value, values(&grads)))
    };
    let mut capture = Hooks::new();
    capture.capture("layer.1.mid");
    let (plain, _) = run(&capture, true).expect("forward");
    let mid = capture.captured("layer.1.mid").expect("captured");
    assert_eq!(mid.shape(), (6, C));
    assert!(capture.captured("layer.0.mid").is_none());

    let mut same = Hooks::new();
    same.replace("layer.1.mid", (*mid).clone());
    let (value, grads) = run(&same, true).expect("forward");
    assert_eq!(bits(&value), bits(&plain));
    assert!(grads[0].iter().all(|g| *g == 0.0), "replacement stops the gradient");

    let mut shift = Hooks::new();
    shift.inject("layer.0.mid", tensor(1, C, &[0.5; C]));
    let (moved, grads) = run(&shift, true).expect("forward");
    assert_ne!(bits(&moved), bits(&plain));
    assert!(grads[0].iter().any(|g| *g != 0.0), "injection passes the gradient on");
    assert_eq!(bits(&moved), bits(&run(&shift, false).expect("forward").0));

    let mut wrong = Hooks::new();
    wrong.inject("layer.0.mid", tensor(2, C, &[0.5; 2 * C]));
    assert!(run(&wrong, true).expect_err("refused").to_string().contains("layer.0.mid"));
}

/// Gradients of each example alone, and the sinks that reduce them in one pass.
#[test]
fn per_example_sinks_agree_with_separate_gradients() {
    let (model, ops) = (Model::new(), Cpu::new());
    let lengths = [7, 4, 9];
    let (ids, d) = (ids(20, 15), Rng(16).normals(20 * C, 1.0));
    let starts = [0, 7, 11];
    let alone: Vec<Grads> = starts
        .iter()
        .zip(lengths)
        .map(|(&at, n)| model.step(&ids[at..at + n], &sequences(&[n]), &d[at * C..(at + n) * C], false).1)
        .collect();
    let s = sequences(&lengths);
    let run = |sink: &mut GradSink, checkpoint: bool| {
        let tape = Tape::new(&ops, &model.params, true);
        let y = model.hidden(&tape, &ids, &s, checkpoint).expect("forward");
        tape.backward(&y, tensor(20, C, &d), sink).expect("backward");
        sink.finish(&ops).expect("finish");
    };
    let examples = || Examples::new(s.owners());
    let dot = |a: &Grads, b: &Grads| a.iter().zip(b.iter()).map(|(a, b)| ops.grad_dot(a.1, b.1).expect("fits")).sum();
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} vs {b}");

    for checkpoint in [false, true] {
        let mut squares = [0.0; 3];
        run(&mut GradSink::SumSq { examples: examples(), held: Held::default(), out: &mut squares }, checkpoint);
        squares.iter().zip(&alone).for_each(|(a, g)| near(*a, dot(g, g)));
    }
    let mut dots = [0.0; 3];
    run(&mut GradSink::Dot { examples: examples(), saved: &alone[1], out: &mut dots }, false);
    dots.iter().zip(&alone).for_each(|(a, g)| near(*a, dot(&alone[1], g)));

    let mut projected = vec![vec![0.0; 300]; 3];
    run(&mut GradSink::Project { examples: examples(), seed: 5, out: &mut projected }, true);
    for (p, g) in projected.iter().zip(&alone) {
        let mut want = vec![0.0; 300];
        let sink = &mut GradSink::Project { examples: examples(), seed: 5, out: std::slice::from_mut(&mut want) };
        g.iter().for_each(|(id, g)| sink.add_example(&ops, &model.params, id, 0, g).expect("fits"));
        p.iter().zip(&want).for_each(|(a, b)| assert!((a - b).abs() < 1e-3 * dot(g, g).sqrt()));
        // Sign projections keep the norm on average.
        let square: f64 = p.iter().map(|x| x * x).sum::<f64>() / 300.0;
        assert!((square / dot(g, g) - 1.0).abs() < 0.4, "{square} {}", dot(g, g));
    }
}

#[test]
fn squares_of_a_tied_parameter_are_taken_after_adding() {
    let (ops, mut params) = (Cpu::new(), Params::new());
    let w = params.add_matrix("tied", 8, 8, &Rng(1).normals(64, 1.0)).expect("new");
    let run = |sink: &mut GradSink| {
        let tape = Tape::new(&ops, &params, true);
        let x = tape.embedding(w, &[3, 1, 3, 5]).expect("known ids");
        // Rows are taken in another order: they still belong to their examples.
        let y = tape.linear(&tape.gather_rows(&x, &[2, 0, 3, 1]).expect("rows"), w).expect("fits");
        tape.backward(&y, tensor(4, 8, &Rng(2).normals(32, 1.0)), sink).expect("backward");
        sink.finish(&ops).expect("finish");
    };
    let owners: Arc<[u32]> = [0, 0, 1, 1].into();
    let mut squares = [0.0; 2];
    run(&mut GradSink::SumSq { examples: Examples::new(owners.clone()), held: Held::new(&[w]), out: &mut squares });
    // Dot with each unit matrix gives every entry of the examples' gradients.
    let mut entries = [Vec::new(), Vec::new()];
    for i in 0..64 {
        let mut unit = Grads::zeros(&ops, &params).expect("memory");
        let mut one = vec![0.0; 64];
        one[i] = 1.0;
        unit.get_mut(w).expect("trainable").set_values(&ops, &one).expect("fits");
        let mut dots = [0.0; 2];
        run(&mut GradSink::Dot { examples: Examples::new(owners.clone()), saved: &unit, out: &mut dots });
        entries.iter_mut().zip(dots).for_each(|(e, d)| e.push(d));
    }
    for (square, entries) in squares.iter().zip(entries) {
        let want: f64 = entries.iter().map(|x| x * x).sum();
        assert!((square - want).abs() < 1e-4 * want, "{square} vs {want}");
    }
}

#[test]
fn rows_that_lost_their_example_are_an_error() {
    let (ops, mut params) = (Cpu::new(), Params::new());
    let w = params.add_matrix("w", 4, 2, &[0.1; 8]).expect("new");
    let tape = Tape::new(&ops, &params, true);
    let x = tape.input(tensor(2, 3, &[1.0; 6]), true);
    let y = tape.linear(&tape.transpose(&x).expect("fits"), w).expect("fits");
    let mut out = [0.0];
    let examples = Examples::new([0, 0].into());
    let sink = &mut GradSink::SumSq { examples, held: Held::default(), out: &mut out };
    let message = tape.backward(&y, tensor(3, 4, &[1.0; 12]), sink).expect_err("refused").to_string();
    assert!(message.contains("`w`"), "{message}");
}

#[test]
fn misuse_is_an_error() {
    let (model, ops) = (Model::new(), Cpu::new());
    let tape = Tape::new(&ops, &model.params, true);
    let other = Tape::new(&ops, &model.params, true);
    let x = tape.embedding(model.embed, &[1, 2]).expect("known ids");
    assert!(matches!(other.scale(&x, 2.0), Err(Error::ForeignVar { op: "unary" })));
    let y = x.clone();
    let leaked = tape.checkpoint(&[&x], move |t, v| t.add(&v[0], &y));
    assert!(matches!(leaked, Err(Error::ForeignVar { .. })));
    assert!(other.scale(&x.detach(), 2.0).is_ok());

    let [q, k, v] = [2 * 16, 16, 16].map(|w| tape.input(tensor(1, w, &vec![0.0; w]), false));
    let mut cache = KvCache::new(1, &SHAPE);
    let mut slots = [CacheSlot { cache: &mut cache, rows: 0..1 }];
    let refused = tape.cached_attention(&q, &k, &v, &mut slots, 0, SHAPE);
    assert!(matches!(refused, Err(Error::NotDifferentiable { .. })));

    assert!(matches!(tape.embedding(model.embed, &[99]), Err(Error::Index { index: 99, len: VOCAB, .. })));
    assert!(matches!(tape.linear(&x, model.last), Err(Error::ParamKind { expected: "matrix", .. })));
    assert!(matches!(tape.rms_norm(&x, model.embed, 1e-5), Err(Error::ParamKind { expected: "vector", .. })));

    let mut grads = Grads::zeros(&ops, &model.params).expect("memory");
    let sink = &mut GradSink::Accumulate(&mut grads);
    let d = || tensor(2, C, &[0.0; 2 * C]);
    assert!(matches!(tape.backward(&x, tensor(1, 1, &[0.0]), sink), Err(Error::Shape { .. })));
    let x = tape.embedding(model.embed, &[1, 2]).expect("known ids");
    assert!(tape.backward(&x, d(), sink).is_ok());
    assert!(matches!(tape.backward(&x, d(), sink), Err(Error::NotRecorded)));
    let constant = tape.input(d(), false);
    assert!(matches!(tape.backward(&constant, d(), sink), Err(Error::NotRecorded)));
}

#[test]
fn backward_from_several_values_adds_up() {
    let (ops, params) = (Cpu::new(), Params::new());
    let mut grads = Grads::zeros(&ops, &params).expect("none");
    let tape = Tape::new(&ops, &params, true);
    let x = tape.input(tensor(1, 2, &[1.0, 2.0]), true);
    let (a, b) = (tape.square(&x).expect("fits"), tape.scale(&x, 3.0).expect("fits"));
    let one = || -> Tensor { tensor(1, 2, &[1.0, 1.0]) };
    let found = tape.backward_all(vec![(a, one()), (b, one())], &mut GradSink::Accumulate(&mut grads));
    assert_eq!(host(found.expect("backward").get(&x).expect("a gradient")), [5.0, 7.0]);
}
