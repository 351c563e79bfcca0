//! What this machine can do, and what a model's work reaches of it: products at the model's shapes, the phases of a training
//! step and of a GRPO round, and decoding.
//!
//! A piece of work can be no faster than its arithmetic at the ceiling of multiply-adds and its traffic at the ceiling of
//! memory; `reach` is the larger of these two times over the measured one. Arithmetic counts the products with weights, traffic the
//! weights, gradients and moments that must be read or written once; attention, norms and activations are left out.

use serde::Serialize;
use temper_model::{Attend, Batch, Config, Engine, Model, Request, Sampling};
use temper_tensor::probe::{self, Ceilings, best};
use temper_tensor::{
    AdamState, AdamW, Grad, GradSink, Grads, HeadCoef, HeadSpec, HeadTerms, Ops, Panels, ParamValue, Tape, Weight,
    adamw_step, dot, f32_products, grad_norm,
};

use crate::error::{Error, Result};
use crate::models::Compute;

/// Rows of a product, and tokens of a training step: four sequences of 256.
const ROWS: usize = 1024;
const LENGTH: usize = 256;
/// Runs of a piece of work, of which the shortest counts.
const PRODUCT_RUNS: usize = 10;
const RUNS: usize = 3;
/// Tokens of a prompt and of a completion.
const PROMPT: usize = 64;
const COMPLETION: usize = 64;

/// One piece of work.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// `products`, `training step`, `GRPO round` or `decoding`.
    pub part: &'static str,
    /// What was done.
    pub what: String,
    /// The shortest run, seconds.
    pub seconds: f64,
    /// Tokens that went through, where it makes sense to count them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Floating-point operations of its products with weights, in 1e9 a second.
    pub gflops: f64,
    /// Bytes that have to be moved, in 1e9 a second.
    pub gbytes: f64,
    /// Share of what the ceilings allow, 0 to 1.
    pub reach: f64,
}

/// All that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What f32 products run on.
    pub isa: &'static str,
    /// Instructions of bf16 products.
    pub bf16: &'static str,
    /// Threads.
    pub threads: usize,
    /// f32 products on registers, 1e9 operations a second: multiply-adds, or on tiles six bf16 products each.
    pub f32_gflops: f64,
    /// bf16 products on registers, 1e9 operations a second.
    pub bf16_gflops: f64,
    /// Reading memory, 1e9 bytes a second.
    pub read_gbytes: f64,
    /// Copying memory, 1e9 bytes a second, read and written.
    pub copy_gbytes: f64,
    /// The work, in the order in which it was measured.
    pub work: Vec<Measured>,
}

/// The shape of SmolLM2-135M, for want of a model.
pub fn default_shape() -> Config {
    Config {
        num_key_value_heads: 3,
        intermediate_size: 1536,
        max_position_embeddings: 8192,
        rope_theta: 100_000.0,
        ..Config::llama(49_152, 576, 30, 9)
    }
}

/// Measures the machine and this model's work on it; `tell` hears what comes next.
pub fn bench(ops: &dyn Ops, model: Model, dtype: Compute, tell: &mut dyn FnMut(&str)) -> Result<Report> {
    tell("the machine's ceilings");
    let ceilings = probe::ceilings();
    let model = match dtype {
        Compute::F32 | Compute::Quantised => model,
        Compute::Bf16 => model.in_bf16(),
    };
    let mut bench = Bench { ops, dtype, ceilings, work: vec![] };
    tell("products");
    bench.products(&model)?;
    tell("decoding");
    bench.decoding(&model)?;
    if dtype != Compute::Quantised {
        tell("a training step and a GRPO round");
        bench.training(model)?;
    }
    Ok(Report {
        isa: f32_products(),
        bf16: dot().name(),
        threads: rayon::current_num_threads(),
        f32_gflops: ceilings.f32_flops,
        bf16_gflops: ceilings.bf16_flops,
        read_gbytes: ceilings.read,
        copy_gbytes: ceilings.copy,
        work: bench.work,
    })
}

struct Bench<'a> {
    ops: &'a dyn Ops,
    dtype: Compute,
    ceilings: Ceilings,
    work: Vec<Measured>,
}

/// Values of the matrices of a model: all blocks together, and the head.
fn matrices(model: &Model) -> (f64, f64) {
    over_matrices(model, |w| w.n() * w.k())
}

/// Bytes of them that products read.
fn matrix_bytes(model: &Model) -> (f64, f64) {
    over_matrices(model, Weight::bytes)
}

fn over_matrices(model: &Model, of: impl Fn(&Weight) -> usize) -> (f64, f64) {
    let (mut body, mut head) = (0, 0);
    for (id, param) in model.params.iter() {
        match &param.value {
            ParamValue::Matrix(w) if id == model.head() => head = of(w),
            ParamValue::Matrix(w) if id != model.embedding() => body += of(w),
            _ => {}
        }
    }
    (body as f64, head as f64)
}

/// Token ids without structure.
fn ids(config: &Config, n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i * 31) % config.vocab_size) as u32).collect()
}

impl Bench<'_> {
    /// Bytes of a weight that training's products read.
    fn width(&self) -> f64 {
        if self.dtype == Compute::F32 { 4.0 } else { 2.0 }
    }

    fn add(
        &mut self,
        part: &'static str,
        what: impl Into<String>,
        seconds: f64,
        tokens: Option<usize>,
        need: (f64, f64),
    ) {
        let (flops, bytes) = need;
        let peak = match self.dtype {
            Compute::F32 => self.ceilings.f32_flops,
            Compute::Bf16 => self.ceilings.bf16_flops,
            // Nothing says what integers could do at most: memory alone counts.
            Compute::Quantised => f64::INFINITY,
        };
        let least = (flops / (1e9 * peak)).max(bytes / (1e9 * self.ceilings.read.max(self.ceilings.copy)));
        let (gflops, gbytes) = (flops / seconds / 1e9, bytes / seconds / 1e9);
        self.work.push(Measured { part, what: what.into(), seconds, tokens, gflops, gbytes, reach: least / seconds });
    }

    /// The three products of each shape that the model's matrices have.
    fn products(&mut self, model: &Model) -> Result<()> {
        let mut shapes: Vec<(usize, usize)> = vec![];
        for (_, p) in model.params.iter() {
            if matches!(p.value, ParamValue::Matrix(_)) && !shapes.contains(&p.shape()) {
                shapes.push(p.shape());
            }
        }
        for (n, k) in shapes {
            if self.dtype == Compute::Quantised {
                self.forward_product(model, (n, k))?;
                continue;
            }
            // As many rows as the head has at a time.
            let m = ROWS.min((8 << 20) / n.max(1)).max(1);
            let weight = Weight::from_rows(&vec![0.01; n * k], n, k);
            let weight = if self.dtype == Compute::F32 { weight } else { weight.in_bf16() };
            let (x, dy) = (self.ops.upload(m, k, &vec![0.5; m * k])?, self.ops.upload(m, n, &vec![0.5; m * n])?);
            let mut dw = Grad::Matrix(Panels::zeros(n, k));
            let need = (2.0 * (m * n * k) as f64, self.width() * (n * k) as f64);
            let ops = self.ops;
            let y = timed(PRODUCT_RUNS, || ops.linear(&x, &weight))?;
            let dx = timed(PRODUCT_RUNS, || ops.linear_dx(&dy, &weight, None))?;
            let rows = std::iter::once(0..m).collect::<Vec<_>>();
            let grad = timed(PRODUCT_RUNS, || ops.linear_dw(&dy, &x, &weight, &rows, &mut dw))?;
            for (name, seconds) in [("forward", y), ("to the input", dx), ("to the weight", grad)] {
                self.add("products", format!("{m} rows, {k} -> {n}, {name}"), seconds, None, need);
            }
        }
        Ok(())
    }

    /// The one product that quantised blocks have, of the first matrix of a shape.
    fn forward_product(&mut self, model: &Model, (n, k): (usize, usize)) -> Result<()> {
        let matrix = model.params.iter().find_map(|(_, p)| match &p.value {
            ParamValue::Matrix(w) if p.shape() == (n, k) => Some(w),
            _ => None,
        });
        let Some(w) = matrix else { return Ok(()) };
        let m = ROWS.min((8 << 20) / n.max(1)).max(1);
        let (ops, x) = (self.ops, self.ops.upload(m, k, &vec![0.5; m * k])?);
        let seconds = timed(PRODUCT_RUNS, || ops.linear(&x, w))?;
        let need = (2.0 * (m * n * k) as f64, w.bytes() as f64);
        self.add("products", format!("{m} rows, {k} -> {n}, forward"), seconds, None, need);
        Ok(())
    }

    /// Reading a prompt, and sampling one sequence and sixteen at a time.
    fn decoding(&mut self, model: &Model) -> Result<()> {
        let ((body, head), (body_bytes, head_bytes)) = (matrices(model), matrix_bytes(model));
        let batch = sequences(model, 2)?;
        let rows = batch.rows();
        let ops = self.ops;
        let prefill = timed(RUNS, || hidden(ops, model, &batch))?;
        self.add("decoding", "reading a prompt", prefill, Some(rows), (2.0 * rows as f64 * body, body_bytes));
        for batch in [1, 16] {
            let seconds = self.sample(model, 1, batch, COMPLETION)? - self.sample(model, 1, batch, 1)?;
            let steps = (COMPLETION - 1) as f64;
            let need = (2.0 * steps * batch as f64 * (body + head), steps * (body_bytes + head_bytes));
            let tokens = Some(batch * (COMPLETION - 1));
            self.add("decoding", format!("{batch} at a time"), seconds.max(1e-9), tokens, need);
        }
        Ok(())
    }

    /// Seconds of sampling `each` completions for each of `prompts` prompts, all at once.
    fn sample(&self, model: &Model, prompts: usize, each: usize, max_tokens: usize) -> Result<f64> {
        let rules = Sampling { max_tokens, ..Sampling::default() };
        let engine = Engine::new(self.ops, model, &rules)?.max_batch(prompts * each)?;
        let seeds = |i: usize| (0..each as u64).map(|s| 1000 * i as u64 + s).collect();
        let requests: Vec<Request> =
            (0..prompts).map(|i| Request { prompt: ids(&model.config, PROMPT, i), seeds: seeds(i) }).collect();
        timed(RUNS, || engine.generate(&requests, &mut |_| ()))
    }

    fn training(&mut self, mut model: Model) -> Result<()> {
        let (ops, (body, head)) = (self.ops, matrices(&model));
        let round = (4, 8);
        let sampling = self.sample(&model, round.0, round.1, COMPLETION)?;
        let sampled = round.0 * round.1 * COMPLETION;
        let read = (round.0 * PROMPT) as f64 * body + sampled as f64 * (body + head);
        let need = (2.0 * read, COMPLETION as f64 * self.width() * (body + head));
        self.add("GRPO round", "sampling 4 x 8 x 64", sampling, Some(sampled), need);

        let groups = groups(&model, round)?;
        let mut state = State { grads: Grads::zeros(ops, &model.params)?, adam: AdamState::new(ops, &model.params)? };
        let update = timed(RUNS, || state.step(ops, &mut model, &groups))?;
        let (rows, scored) = (groups.rows() as f64, groups.scored() as f64);
        let traffic = optimiser_bytes(&model, self.dtype);
        self.add("GRPO round", "update", update, Some(groups.scored()), (6.0 * (rows * body + scored * head), traffic));

        let batch = sequences(&model, ROWS / LENGTH)?;
        let mut phases = [f64::MAX; 4];
        for _ in 0..RUNS {
            let took = state.step(ops, &mut model, &batch)?;
            phases.iter_mut().zip(took).for_each(|(best, s)| *best = best.min(s));
        }
        let (rows, scored) = (batch.rows() as f64, batch.scored() as f64);
        let weights = self.width() * body;
        let needs = [
            ("forward", (2.0 * rows * body, weights)),
            ("head, forward and backward", (6.0 * scored * head, (2.0 * self.width() + 8.0) * head)),
            ("backward", (4.0 * rows * body, weights + 8.0 * body)),
            ("optimiser", (0.0, traffic)),
        ];
        for ((what, need), seconds) in needs.into_iter().zip(phases) {
            self.add("training step", what, seconds, Some(batch.rows()), need);
        }
        let all = (6.0 * (rows * body + scored * head), traffic);
        self.add("training step", "in all", phases.iter().sum(), Some(batch.rows()), all);
        Ok(())
    }
}

/// The norm reads the gradient; the update reads it, weight and moments, and writes these; clearing writes the gradient; in bf16
/// the weight is read once more and written rounded.
fn optimiser_bytes(model: &Model, dtype: Compute) -> f64 {
    let each = if dtype == Compute::F32 { 36.0 } else { 42.0 };
    each * model.params.count(true) as f64
}

struct State {
    grads: Grads,
    adam: AdamState,
}

impl State {
    /// A step on a batch whose scored tokens all count alike: seconds of forward, head, backward and optimiser.
    fn step(&mut self, ops: &dyn Ops, model: &mut Model, batch: &Batch) -> Result<[f64; 4]> {
        let mut clock = Clock::start();
        let tape = Tape::new(ops, &model.params, true);
        let hidden = model.hidden(&tape, &batch.ids, Attend::Segments(&batch.segments), false)?;
        let scored = tape.gather_rows(&hidden, &batch.src)?;
        drop(hidden);
        let forward = clock.lap();
        let (rows, cols) = scored.tensor().shape();
        let mut d = ops.zeros(rows, cols)?;
        let weight = -1.0 / batch.scored().max(1) as f32;
        let mut coef = |rows: std::ops::Range<usize>, _: &HeadTerms| HeadCoef {
            d_logp: vec![weight; rows.len()],
            ..HeadCoef::default()
        };
        let matrix = model.params.matrix("head", model.head())?;
        let dw = self.grads.get_mut(model.head());
        ops.head_backward(scored.tensor(), matrix, &batch.tgt, &HeadSpec::default(), &mut coef, &mut d, dw)?;
        let head = clock.lap();
        tape.backward(&scored, d, &mut GradSink::Accumulate(&mut self.grads))?;
        drop((scored, tape));
        let backward = clock.lap();
        let norm = grad_norm(ops, &self.grads)?;
        let hyper = AdamW { lr: 1e-6, ..AdamW::default() };
        adamw_step(ops, &mut model.params, &self.grads, &mut self.adam, &hyper, (1.0 / norm.max(1.0)) as f32)?;
        self.grads.zero(ops)?;
        Ok([forward, head, backward, clock.lap()])
    }
}

struct Clock(std::time::Instant);

impl Clock {
    fn start() -> Self {
        Self(std::time::Instant::now())
    }

    /// Seconds since the start or the last lap.
    fn lap(&mut self) -> f64 {
        let now = std::time::Instant::now();
        let seconds = (now - self.0).as_secs_f64();
        self.0 = now;
        seconds
    }
}

/// Packed sequences, every token scored.
fn sequences(model: &Model, count: usize) -> Result<Batch> {
    let length = LENGTH.min(model.config.max_position_embeddings);
    let all: Vec<Vec<u32>> = (0..count).map(|i| ids(&model.config, length + 1, i)).collect();
    let scored = vec![1.0; length + 1];
    let all: Vec<_> = all.iter().map(|ids| temper_model::ScoredSequence { ids, scored: &scored }).collect();
    Ok(Batch::sequences(&all)?.0)
}

/// Groups of completions that share their prompt.
fn groups(model: &Model, (prompts, each): (usize, usize)) -> Result<Batch> {
    let prompt: Vec<Vec<u32>> = (0..prompts).map(|i| ids(&model.config, PROMPT, i)).collect();
    let completions: Vec<Vec<u32>> = (0..prompts * each).map(|i| ids(&model.config, COMPLETION, prompts + i)).collect();
    let own = |i: usize| completions[i * each..(i + 1) * each].iter().map(Vec::as_slice).collect();
    let groups: Vec<(&[u32], Vec<&[u32]>)> =
        prompt.iter().enumerate().map(|(i, prompt)| (prompt.as_slice(), own(i))).collect();
    Ok(Batch::groups(&groups)?)
}

/// Hidden rows, nothing recorded.
fn hidden(ops: &dyn Ops, model: &Model, batch: &Batch) -> Result<()> {
    let tape = Tape::new(ops, &model.params, false);
    model.hidden(&tape, &batch.ids, Attend::Segments(&batch.segments), false)?;
    Ok(())
}

/// The shortest of several runs, in seconds; what they make is dropped inside the measurement.
fn timed<T, E: Into<Error>>(runs: usize, mut run: impl FnMut() -> std::result::Result<T, E>) -> Result<f64> {
    let mut outcome = Ok(());
    let seconds = best(runs, || {
        if outcome.is_ok() {
            outcome = run().map(drop).map_err(Into::into);
        }
    });
    outcome.map(|()| seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use temper_tensor::Cpu;

    #[test]
    fn every_part_is_measured() {
        let mut config = Config::llama(300, 64, 2, 4);
        config.max_position_embeddings = 256;
        let ops = Cpu::new();
        for dtype in [Compute::F32, Compute::Bf16] {
            let mut told = vec![];
            let model = Model::init(&ops, &config, 1).unwrap();
            let report = bench(&ops, model, dtype, &mut |what| told.push(what.to_owned())).unwrap();
            for part in ["products", "training step", "GRPO round", "decoding"] {
                assert!(report.work.iter().any(|w| w.part == part), "{part}");
            }
            // How fast is no test's business.
            assert!(report.f32_gflops > 0.0 && report.bf16_gflops > 0.0 && report.read_gbytes > 0.0);
            for w in &report.work {
                assert!(w.seconds > 0.0 && w.gflops >= 0.0 && w.reach > 0.0, "{w:?}");
            }
            assert_eq!(told.len(), 4);
        }
    }

    #[test]
    fn the_default_shape_is_smollm2s() {
        let config = default_shape();
        config.validate().unwrap();
        assert_eq!(config.parameter_count(), 134_515_008);
    }
}
