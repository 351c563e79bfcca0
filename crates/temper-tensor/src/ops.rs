//! The device: tensors and the one object-safe trait with every operation, so that a GPU is a second implementation.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::buf::Buf;
use crate::error::{Error, Result};
use crate::gemm::bf16::Rows;
use crate::head::{HeadCoef, HeadSpec, HeadTerms};
use crate::kernels::dropout::Dropout;
use crate::kv::CacheSlot;
use crate::optim::AdamStep;
use crate::params::{Grad, ParamValue};
use crate::segments::Segments;
use crate::weight::Weight;

/// Where a tensor's values lie.
#[derive(Debug, Clone)]
pub enum Storage {
    /// Pooled host memory, 64-byte aligned.
    Host(Buf),
}

/// A row-major matrix of f32. Its contents are reached through [`Ops`] alone.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    storage: Storage,
    /// Names the values; a write gives them another name.
    name: u64,
}

/// A name that nothing had before.
fn new_name() -> u64 {
    static NAMES: AtomicU64 = AtomicU64::new(0);
    NAMES.fetch_add(1, Ordering::Relaxed)
}

impl Tensor {
    pub(crate) fn new(rows: usize, cols: usize, values: Buf) -> Self {
        Self { rows, cols, storage: Storage::Host(values), name: new_name() }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `(rows, columns)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    pub(crate) fn host(&self) -> &[f32] {
        match &self.storage {
            Storage::Host(b) => b,
        }
    }

    pub(crate) fn host_mut(&mut self) -> &mut [f32] {
        self.name = new_name();
        match &mut self.storage {
            Storage::Host(b) => b,
        }
    }

    /// The values as an operand of products.
    pub(crate) fn operand(&self) -> Rows<'_> {
        Rows { values: self.host(), name: Some(self.name) }
    }

    /// The same values read as another shape.
    pub(crate) fn reshaped(mut self, rows: usize, cols: usize) -> Self {
        debug_assert_eq!(self.rows * self.cols, rows * cols);
        (self.rows, self.cols) = (rows, cols);
        self
    }
}

/// Attention's shape: H query heads share `kv_heads` heads of keys and values. Any head size D up to 512 is computed;
/// multiples of 16 take no padding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttnShape {
    /// H, query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// D, the size of one head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(D)`.
    pub scale: f32,
    /// Whether products are of values rounded to bf16, cached keys and values included; sums, softmax and results are f32.
    pub bf16: bool,
}

impl AttnShape {
    /// Checks what the kernels support.
    pub fn check(&self) -> Result<()> {
        let fail = |what, got, expected: &str| Err(Error::AttnShape { what, got, expected: expected.into() });
        if self.kv_heads == 0 || self.heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return fail("heads", self.heads, &format!("a positive multiple of kv_heads ({})", self.kv_heads));
        }
        if self.head_dim == 0 || self.head_dim > 512 {
            return fail("head_dim", self.head_dim, "from 1 to 512");
        }
        Ok(())
    }
}

/// Rotary position tables, computed in f64 and made on demand, 256 positions at a time.
#[derive(Debug)]
pub struct RopeTable {
    inv_freq: Vec<f64>,
    factor: f64,
    positions: usize,
    chunks: Vec<OnceLock<Box<[f32]>>>,
}

impl RopeTable {
    const CHUNK: usize = 256;

    /// `inv_freq[D/2]` are the angles per position (after any scaling rule), `factor` multiplies cosine and sine
    /// (1 for most models), `max_positions` bounds the positions that may be asked for.
    pub fn new(inv_freq: Vec<f64>, factor: f64, max_positions: usize) -> Self {
        let chunks = (0..max_positions.div_ceil(Self::CHUNK)).map(|_| OnceLock::new()).collect();
        Self { inv_freq, factor, positions: max_positions, chunks }
    }

    /// D/2.
    pub fn half(&self) -> usize {
        self.inv_freq.len()
    }

    /// Number of positions available.
    pub fn max_positions(&self) -> usize {
        self.positions
    }

    /// `[cosines D/2, sines D/2]` of one position.
    pub(crate) fn row(&self, position: usize) -> &[f32] {
        let width = 2 * self.half();
        let chunk = self.chunks[position / Self::CHUNK].get_or_init(|| self.chunk(position / Self::CHUNK));
        let at = position % Self::CHUNK * width;
        &chunk[at..at + width]
    }

    fn chunk(&self, index: usize) -> Box<[f32]> {
        let positions = index * Self::CHUNK..(index + 1) * Self::CHUNK;
        let row = |p: usize| {
            let angle = move |f: &f64| p as f64 * f;
            let cos = self.inv_freq.iter().map(angle).map(|a| (a.cos() * self.factor) as f32);
            let sin = self.inv_freq.iter().map(angle).map(|a| (a.sin() * self.factor) as f32);
            cos.chain(sin).collect::<Vec<f32>>()
        };
        positions.flat_map(row).collect()
    }
}

/// How a gated feed-forward combines its two halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `silu(gate) * up`.
    SwiGlu,
    /// `gelu_tanh(gate) * up`.
    GeGlu,
}

/// Elementwise functions of one value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unary {
    /// `x * factor`.
    Scale(f32),
    /// `x + c`.
    AddScalar(f32),
    /// `e^x`.
    Exp,
    /// Natural logarithm.
    Log,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `ln(sigmoid(x))`, stable for large `|x|`.
    LogSigmoid,
    /// `max(x, 0)`.
    Relu,
    /// `x * x`.
    Square,
    /// Square root.
    Sqrt,
    /// `min(max(x, low), high)`; the gradient passes inside the bounds only.
    Clamp(f32, f32),
}

/// Elementwise functions of two values. The second operand may be `[rows, cols]`, `[1, cols]`, `[rows, 1]` or `[1, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// `a / b`.
    Div,
    /// `min(a, b)`; ties send the gradient to `a`.
    Minimum,
}

/// Over what a sum runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// Over columns: one value a row, `[rows, 1]`.
    Cols,
    /// Over rows: one value a column, `[1, cols]`.
    Rows,
    /// Over everything: `[1, 1]`.
    All,
}

/// What attention's backward reads.
#[derive(Debug, Clone, Copy)]
pub struct AttnSaved<'t> {
    /// Queries `[N, H * D]`.
    pub q: &'t Tensor,
    /// Keys `[N, kv_heads * D]`.
    pub k: &'t Tensor,
    /// Values `[N, kv_heads * D]`.
    pub v: &'t Tensor,
    /// The output `[N, H * D]`.
    pub out: &'t Tensor,
    /// Log-sum-exp of each row's scores per head `[N, H]`.
    pub lse: &'t Tensor,
}

/// Gradients of attention's inputs.
#[derive(Debug)]
pub struct AttnGrads {
    /// With respect to the queries.
    pub q: Tensor,
    /// With respect to the keys.
    pub k: Tensor,
    /// With respect to the values.
    pub v: Tensor,
}

/// Every operation of the engine on one device. Shapes: N rows, C columns, `[n, k]` weights, `w: [n, k]` maps k to n.
///
/// Rule for implementations: one output element's order of additions depends on its own reduction length alone, never
/// on the number of rows, their place, their neighbours or the number of threads.
pub trait Ops: Send + Sync {
    /// Short name of the device ("cpu avx512", ...).
    fn name(&self) -> String;
    /// A tensor of zeros.
    fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor>;
    /// A tensor with these row-major values.
    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Tensor>;
    /// The tensor's values, row-major, into `out`.
    fn download(&self, t: &Tensor, out: &mut [f32]) -> Result<()>;
    /// The tensor's values, row-major.
    fn to_host(&self, t: &Tensor) -> Result<Vec<f32>> {
        let mut out = vec![0.0; t.rows * t.cols];
        self.download(t, &mut out)?;
        Ok(out)
    }
    /// A copy.
    fn copy(&self, t: &Tensor) -> Result<Tensor>;
    /// `acc += factor * x`.
    fn add_scaled(&self, acc: &mut Tensor, x: &Tensor, factor: f32) -> Result<()>;

    // Fused operations of a transformer.

    /// Rows of `w: [V, C]` for the ids, `[ids, C]`.
    fn embedding(&self, w: &Weight, ids: &[u32]) -> Result<Tensor>;
    /// `dw[ids[r]] += dy[r]` for the rows `rows` of `dy`.
    fn embedding_dw(&self, dy: &Tensor, ids: &[u32], rows: &[Range<usize>], dw: &mut Grad) -> Result<()>;
    /// `x w^T`, `[N, n]`.
    fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor>;
    /// `base + x w^T`, `[N, n]`: the product's chains go on from the base's values.
    fn linear_onto(&self, base: Tensor, x: &Tensor, w: &Weight) -> Result<Tensor>;
    /// `dy w`, `[N, k]`, added to `acc` where one is given.
    fn linear_dx(&self, dy: &Tensor, w: &Weight, acc: Option<Tensor>) -> Result<Tensor>;
    /// `dw += dy^T x` over the rows `rows`; how `w` is stored decides the type that the operands are rounded to.
    fn linear_dw(&self, dy: &Tensor, x: &Tensor, w: &Weight, rows: &[Range<usize>], dw: &mut Grad) -> Result<()>;
    /// `x / sqrt(mean(x^2) + eps) * w` per row; `w: [1, C]`.
    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor>;
    /// Gradient of [`Ops::rms_norm`] with respect to `x`.
    fn rms_norm_dx(&self, dy: &Tensor, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor>;
    /// `dw += sum over the rows `rows` of dy * x / rms(x)`.
    fn rms_norm_dw(&self, dy: &Tensor, x: &Tensor, eps: f32, rows: &[Range<usize>], dw: &mut Grad) -> Result<()>;
    /// `db += sum over the rows `rows` of dy`.
    fn bias_db(&self, dy: &Tensor, rows: &[Range<usize>], db: &mut Grad) -> Result<()>;
    /// Rotates each head's halves by its row's position; `inverse` rotates back (which is the gradient).
    fn rope(&self, x: &Tensor, heads: usize, table: &RopeTable, positions: &[u32], inverse: bool) -> Result<Tensor>;
    /// Causal attention over segments: the output `[N, H * D]` and the log-sum-exp `[N, H]`.
    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        s: &Segments,
        shape: &AttnShape,
    ) -> Result<(Tensor, Tensor)>;
    /// Gradients of [`Ops::attention`].
    fn attention_backward(&self, dy: &Tensor, saved: &AttnSaved, s: &Segments, shape: &AttnShape) -> Result<AttnGrads>;
    /// Appends k and v to the slots' caches (layer `layer`) and attends over them: `[N, H * D]`.
    fn cached_attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        slots: &mut [CacheSlot],
        layer: usize,
        shape: &AttnShape,
    ) -> Result<Tensor>;
    /// `act(gate) * up`.
    fn glu(&self, kind: Gate, gate: &Tensor, up: &Tensor) -> Result<Tensor>;
    /// Gradients of [`Ops::glu`] with respect to gate and up.
    fn glu_backward(&self, kind: Gate, dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)>;

    /// `x` with values left out and the others scaled up; linear in `x`, so that it is its own gradient. `stream` tells
    /// the places of a model apart.
    fn dropout(&self, x: &Tensor, rule: &Dropout, stream: u64) -> Result<Tensor>;

    // Rows.

    /// Rows of `x` in the given order.
    fn gather_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor>;
    /// `acc[rows[i]] += x[i]`, in order of i.
    fn scatter_add_rows(&self, acc: &mut Tensor, x: &Tensor, rows: &[u32]) -> Result<()>;

    // The language-model head; see `head_terms`, `head_backward` and `head_logits`.

    /// Log-probabilities and what else `spec` asks for, of the scored rows.
    fn head_terms(&self, hidden: &Tensor, w: &Weight, targets: &[u32], spec: &HeadSpec) -> Result<HeadTerms> {
        self.head_terms_to(hidden, w, targets, spec, None)
    }
    /// Terms, and the gradient for coefficients that the callback gives chunk by chunk.
    fn head_backward(
        &self,
        hidden: &Tensor,
        w: &Weight,
        targets: &[u32],
        spec: &HeadSpec,
        coef: &mut dyn FnMut(Range<usize>, &HeadTerms) -> HeadCoef,
        d_hidden: &mut Tensor,
        dw: Option<&mut Grad>,
    ) -> Result<HeadTerms> {
        self.head_backward_to(hidden, w, targets, spec, None, coef, d_hidden, dw)
    }
    /// The terms with the KL over the vocabulary from another model's distribution, given by its hidden rows and its head.
    fn head_terms_to(
        &self,
        hidden: &Tensor,
        w: &Weight,
        targets: &[u32],
        spec: &HeadSpec,
        other: Option<(&Tensor, &Weight)>,
    ) -> Result<HeadTerms>;
    /// These terms and the gradient; the other model gets none.
    fn head_backward_to(
        &self,
        hidden: &Tensor,
        w: &Weight,
        targets: &[u32],
        spec: &HeadSpec,
        other: Option<(&Tensor, &Weight)>,
        coef: &mut dyn FnMut(Range<usize>, &HeadTerms) -> HeadCoef,
        d_hidden: &mut Tensor,
        dw: Option<&mut Grad>,
    ) -> Result<HeadTerms>;
    /// `[S, V]` logits.
    fn head_logits(&self, hidden: &Tensor, w: &Weight) -> Result<Tensor>;

    // Parameters.

    /// One AdamW update of a parameter; `m` and `v` are its moments.
    fn adamw(&self, p: &mut ParamValue, g: &Grad, m: &mut Grad, v: &mut Grad, step: &AdamStep) -> Result<()>;
    /// Sum of squares, in f64 and in a fixed order.
    fn grad_sum_sq(&self, g: &Grad) -> Result<f64>;
    /// Dot product, in f64 and in a fixed order.
    fn grad_dot(&self, a: &Grad, b: &Grad) -> Result<f64>;
    /// Adds the projection of `g` on `out.len()` random sign vectors to `out`; entry `[i, j]` of the gradient has its
    /// own signs, whatever its layout.
    fn grad_project(&self, g: &Grad, seed: u64, out: &mut [f64]) -> Result<()>;
    /// Sets every value.
    fn grad_fill(&self, g: &mut Grad, value: f32) -> Result<()>;
    /// `acc += factor * x`.
    fn grad_add_scaled(&self, acc: &mut Grad, x: &Grad, factor: f32) -> Result<()>;
    /// `g += weight * (p - to)`; returns the sum of squares of `p - to`, in f64 and in a fixed order.
    fn grad_pull(&self, g: &mut Grad, p: &ParamValue, to: &Grad, weight: f32) -> Result<f64>;
    /// `average += share * (p - average)`.
    fn grad_mix(&self, average: &mut Grad, p: &ParamValue, share: f32) -> Result<()>;
    /// `p += share * (x - p)`, with `share = 1` exactly x.
    fn param_mix(&self, p: &mut ParamValue, x: &Grad, share: f32) -> Result<()>;

    // Generic operations.

    /// Elementwise function.
    fn unary(&self, op: Unary, x: &Tensor) -> Result<Tensor>;
    /// Gradient of [`Ops::unary`]; `y` is its result.
    fn unary_backward(&self, op: Unary, dy: &Tensor, x: &Tensor, y: &Tensor) -> Result<Tensor>;
    /// Elementwise function of two tensors; the second is broadcast.
    fn binary(&self, op: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor>;
    /// Gradients of [`Ops::binary`], that of `b` summed to its shape.
    fn binary_backward(&self, op: Binary, dy: &Tensor, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)>;
    /// Sums.
    fn sum(&self, over: Reduce, x: &Tensor) -> Result<Tensor>;
    /// `x` (one value a row, a column, or one in all) repeated to `[rows, cols]`.
    fn expand(&self, x: &Tensor, rows: usize, cols: usize) -> Result<Tensor>;
    /// `a b` with `a: [m, k]`, `b: [k, n]`.
    fn matmul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor>;
    /// `a b^T` with `a: [m, k]`, `b: [n, k]`.
    fn matmul_nt(&self, a: &Tensor, b: &Tensor) -> Result<Tensor>;
    /// Softmax of each row, or its logarithm.
    fn softmax(&self, x: &Tensor, log: bool) -> Result<Tensor>;
    /// Gradient of [`Ops::softmax`]; `y` is its result.
    fn softmax_backward(&self, dy: &Tensor, y: &Tensor, log: bool) -> Result<Tensor>;
    /// `x[r, cols[r]]` for every row, `[rows, 1]`.
    fn pick(&self, x: &Tensor, cols: &[u32]) -> Result<Tensor>;
    /// Gradient of [`Ops::pick`]: `dy[r]` at column `cols[r]` of `[rows, width]`, zero elsewhere.
    fn pick_backward(&self, dy: &Tensor, cols: &[u32], width: usize) -> Result<Tensor>;
    /// Transpose.
    fn transpose(&self, x: &Tensor) -> Result<Tensor>;
    /// The tensors stacked, rows under rows.
    fn concat_rows(&self, parts: &[&Tensor]) -> Result<Tensor>;
    /// Rows `rows` and columns `cols` of `x`.
    fn slice(&self, x: &Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor>;
    /// Gradient of [`Ops::slice`]: `dy` at its place in zeros `[rows, cols]`.
    fn unslice(&self, dy: &Tensor, shape: (usize, usize), at: (usize, usize)) -> Result<Tensor>;
}
