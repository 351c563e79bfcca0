//! Memory: a training step takes nothing new from the system after the first, and a tape that does not record frees
//! values on the way. One test, because the pool's counters are shared by the process.

mod common;

use std::sync::Arc;

use common::{Rng, tensor};
use temper_tensor::{
    AdamState, AdamW, AttnShape, Cpu, GradSink, Grads, HeadCoef, HeadSpec, Ops, ParamId, Params, Result, RopeTable,
    Segments, Tape, Var, adamw_step, buf, grad_norm,
};

const C: usize = 64;
const N: usize = 256;
const VOCAB: usize = 300;
const LAYERS: usize = 6;

fn block<'a>(tape: &Tape<'a>, x: &Var, w: &[ParamId], rope: &'a RopeTable, s: &Arc<Segments>) -> Result<Var> {
    let shape = AttnShape { heads: 2, kv_heads: 2, head_dim: 32, scale: 0.2, bf16: false };
    let positions = s.positions();
    let q = tape.rope(&tape.linear(x, w[0])?, 2, rope, &positions)?;
    let k = tape.rope(&tape.linear(x, w[1])?, 2, rope, &positions)?;
    let x = tape.add(x, &tape.attention(&q, &k, &tape.linear(x, w[2])?, s, shape)?)?;
    tape.add(&x, &tape.swiglu(&tape.linear(&x, w[3])?, &tape.linear(&x, w[4])?)?)
}

struct Setup {
    params: Params,
    embed: ParamId,
    weights: Vec<Vec<ParamId>>,
    rope: RopeTable,
    segments: Arc<Segments>,
    ids: Vec<u32>,
}

impl Setup {
    fn new() -> Self {
        let (mut params, mut rng) = (Params::new(), Rng(1));
        let embed = params.add_matrix("embed", VOCAB, C, &rng.normals(VOCAB * C, 0.1)).expect("new");
        let mut layer = |i: usize| -> Vec<ParamId> {
            let values = |rng: &mut Rng| rng.normals(C * C, 0.1);
            (0..5).map(|j| params.add_matrix(&format!("{i}.{j}"), C, C, &values(&mut rng)).expect("new")).collect()
        };
        let weights = (0..LAYERS).map(&mut layer).collect();
        let rope = RopeTable::new((0..16).map(|i| 0.5f64.powi(i)).collect(), 1.0, N);
        let segments = Arc::new(Segments::group(100, &[80, 76]).expect("valid"));
        let ids = (0..N as u32).map(|i| i * 7 % VOCAB as u32).collect();
        Self { params, embed, weights, rope, segments, ids }
    }

    fn hidden<'a>(&'a self, tape: &Tape<'a>, checkpoint: bool) -> Result<Var> {
        let mut x = tape.embedding(self.embed, &self.ids)?;
        for w in &self.weights {
            x = if checkpoint {
                let s = Arc::clone(&self.segments);
                tape.checkpoint(&[&x], move |tape, x| block(tape, &x[0], w, &self.rope, &s))?
            } else {
                block(tape, &x, w, &self.rope, &self.segments)?
            };
        }
        Ok(x)
    }

    fn gradients(&self, grads: &mut Grads, checkpoint: bool) -> Result<()> {
        let ops = Cpu::new();
        grads.zero(&ops)?;
        let tape = Tape::new(&ops, &self.params, true);
        let x = self.hidden(&tape, checkpoint)?;
        let mut d = ops.zeros(N, C)?;
        let w = self.params.matrix("head", self.embed)?;
        let mut coef =
            |rows: std::ops::Range<usize>, _: &_| HeadCoef { d_logp: vec![1.0; rows.len()], ..HeadCoef::default() };
        let dw = grads.get_mut(self.embed);
        ops.head_backward(x.tensor(), w, &self.ids, &HeadSpec::default(), &mut coef, &mut d, dw)?;
        tape.backward(&x, d, &mut GradSink::Accumulate(grads))?;
        Ok(())
    }
}

fn peak_of(f: impl FnOnce()) -> usize {
    buf::reset_peak();
    let before = buf::stats().live_bytes;
    f();
    buf::stats().peak_live_bytes - before
}

#[test]
fn steps_reuse_memory_and_forward_passes_free_it() {
    // One thread, so that the number of buffers in use at one time is the same in every step.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(|| {
        let (ops, mut setup) = (Cpu::new(), Setup::new());
        let mut grads = Grads::zeros(&ops, &setup.params).expect("memory");
        let mut state = AdamState::new(&ops, &setup.params).expect("memory");
        let step = |setup: &mut Setup, grads: &mut Grads, state: &mut AdamState| {
            setup.gradients(grads, false).expect("a step");
            assert!(grad_norm(&ops, grads).expect("finite") > 0.0);
            adamw_step(&ops, &mut setup.params, grads, state, &AdamW::default(), 1.0).expect("a step");
        };
        step(&mut setup, &mut grads, &mut state);
        let first = buf::stats().allocations;
        step(&mut setup, &mut grads, &mut state);
        let second = buf::stats().allocations;
        // A block may serve a slightly smaller size, so the second step can still be short of a few.
        assert!(second - first <= first / 50, "{} after {first}", second - first);
        (0..3).for_each(|_| step(&mut setup, &mut grads, &mut state));
        assert_eq!(buf::stats().allocations, second, "later steps allocate nothing");

        let forward = |record| {
            peak_of(|| {
                let tape = Tape::new(&ops, &setup.params, record);
                setup.hidden(&tape, false).expect("forward");
            })
        };
        let (plain, recorded) = (forward(false), forward(true));
        assert!(plain < 10 * N * C * 4, "values are freed when dropped: {plain} bytes");
        assert!(recorded > LAYERS * 5 * N * C * 4, "{recorded} bytes");
        let full = peak_of(|| setup.gradients(&mut grads, false).expect("a step"));
        let kept = peak_of(|| setup.gradients(&mut grads, true).expect("a step"));
        assert!(kept * 2 < full, "checkpointing: {kept} of {full} bytes");
    });
    drop(tensor(1, 1, &[0.0]));
}
