//! The CPU device: checks shapes, takes buffers from the pool, calls the kernels.

mod checks;
mod generic;
mod gradients;

use std::ops::Range;

use checks::{count, ids_below, same_shape, shape};

use crate::attention::{self, Bf16, F32};
use crate::buf::{self, Buf};
use crate::error::{Error, Result};
use crate::head::{self, HeadCoef, HeadSpec, HeadTerms, OtherHead};
use crate::isa::{dot, isa};
use crate::kernels::dropout::{self, Dropout};
use crate::kernels::{adamw, elementwise, embed, glu, norm, rope};
use crate::kv::CacheSlot;
use crate::ops::{AttnGrads, AttnSaved, AttnShape, Binary, Gate, Ops, Reduce, RopeTable, Tensor, Unary};
use crate::optim::AdamStep;
use crate::params::{Grad, ParamValue};
use crate::segments::Segments;
use crate::weight::Weight;

/// The CPU: kernels for the instruction-set level found at run time, threads from rayon's current pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu;

impl Cpu {
    /// The device.
    pub fn new() -> Self {
        Self
    }
}

fn zeros(rows: usize, cols: usize) -> Tensor {
    Tensor::new(rows, cols, Buf::zeros_in(rows * cols, buf::room(rows) * cols))
}

/// A tensor that is about to be overwritten whole.
fn fresh(rows: usize, cols: usize) -> Tensor {
    Tensor::new(rows, cols, Buf::dirty_in(rows * cols, buf::room(rows) * cols))
}

fn uploaded(rows: usize, cols: usize, values: &[f32]) -> Tensor {
    Tensor::new(rows, cols, Buf::from_slice(values))
}

/// Values of some rows.
fn part<'t>(t: &'t Tensor, rows: &Range<usize>) -> &'t [f32] {
    &t.host()[rows.start * t.cols..rows.end * t.cols]
}

fn other_head<'a>(other: Option<(&'a Tensor, &'a Weight)>) -> Option<OtherHead<'a>> {
    other.map(|(hidden, w)| OtherHead { hidden: hidden.host(), w })
}

impl Ops for Cpu {
    fn name(&self) -> String {
        format!("cpu {}, bf16 by {}", isa().name(), dot().name())
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor> {
        Ok(zeros(rows, cols))
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Tensor> {
        count("upload", "values", values.len(), rows * cols)?;
        Ok(uploaded(rows, cols, values))
    }

    fn download(&self, t: &Tensor, out: &mut [f32]) -> Result<()> {
        count("download", "values", out.len(), t.rows * t.cols)?;
        out.copy_from_slice(t.host());
        Ok(())
    }

    fn copy(&self, t: &Tensor) -> Result<Tensor> {
        Ok(t.clone())
    }

    fn add_scaled(&self, acc: &mut Tensor, x: &Tensor, factor: f32) -> Result<()> {
        same_shape("add_scaled", "x", x, acc.shape())?;
        if factor == 1.0 {
            elementwise::add_into(acc.host_mut(), x.host());
        } else {
            elementwise::add_scaled(acc.host_mut(), x.host(), factor);
        }
        Ok(())
    }

    fn embedding(&self, w: &Weight, ids: &[u32]) -> Result<Tensor> {
        ids_below("embedding", ids, w.n())?;
        let mut y = fresh(ids.len(), w.k());
        embed::embedding(w, ids, y.host_mut());
        Ok(y)
    }

    fn embedding_dw(&self, dy: &Tensor, ids: &[u32], rows: &[Range<usize>], dw: &mut Grad) -> Result<()> {
        gradients::embedding(dy, ids, rows, dw)
    }

    fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor> {
        same_shape("linear", "x", x, (x.rows, w.k()))?;
        let mut y = fresh(x.rows, w.n());
        w.linear(x.operand(), x.rows, y.host_mut(), false);
        Ok(y)
    }

    fn linear_onto(&self, mut base: Tensor, x: &Tensor, w: &Weight) -> Result<Tensor> {
        same_shape("linear_onto", "x", x, (x.rows, w.k()))?;
        same_shape("linear_onto", "base", &base, (x.rows, w.n()))?;
        w.linear(x.operand(), x.rows, base.host_mut(), true);
        Ok(base)
    }

    fn linear_dx(&self, dy: &Tensor, w: &Weight, acc: Option<Tensor>) -> Result<Tensor> {
        same_shape("linear_dx", "dy", dy, (dy.rows, w.n()))?;
        let add = acc.is_some();
        let mut dx = acc.unwrap_or_else(|| fresh(dy.rows, w.k()));
        same_shape("linear_dx", "acc", &dx, (dy.rows, w.k()))?;
        w.linear_dx(dy.operand(), dy.rows, dx.host_mut(), add)?;
        Ok(dx)
    }

    fn linear_dw(&self, dy: &Tensor, x: &Tensor, w: &Weight, rows: &[Range<usize>], dw: &mut Grad) -> Result<()> {
        gradients::linear(dy, x, w, rows, dw)
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
        same_shape("rms_norm", "w", w, (1, x.cols))?;
        let (mut y, mut inv) = (fresh(x.rows, x.cols), Buf::dirty(x.rows));
        norm::rms_norm(x.host(), w.host(), eps, y.host_mut(), &mut inv);
        Ok(y)
    }

    fn rms_norm_dx(&self, dy: &Tensor, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
        same_shape("rms_norm_dx", "dy", dy, x.shape())?;
        same_shape("rms_norm_dx", "w", w, (1, x.cols))?;
        let (mut dx, mut inv) = (fresh(x.rows, x.cols), Buf::dirty(x.rows));
        norm::rms_inv(x.host(), x.cols, eps, &mut inv);
        norm::rms_norm_dx(dy.host(), x.host(), w.host(), &inv, dx.host_mut());
        Ok(dx)
    }

    fn rms_norm_dw(&self, dy: &Tensor, x: &Tensor, eps: f32, rows: &[Range<usize>], dw: &mut Grad) -> Result<()> {
        gradients::rms_norm(dy, x, eps, rows, dw)
    }

    fn bias_db(&self, dy: &Tensor, rows: &[Range<usize>], db: &mut Grad) -> Result<()> {
        gradients::bias(dy, rows, db)
    }

    fn rope(&self, x: &Tensor, heads: usize, table: &RopeTable, positions: &[u32], inverse: bool) -> Result<Tensor> {
        let d = 2 * table.half();
        same_shape("rope", "x", x, (positions.len(), heads * d))?;
        ids_below("rope", positions, table.max_positions())?;
        let mut y = fresh(x.rows, x.cols);
        rope::rope(x.host(), heads, d, |r| table.row(positions[r] as usize), inverse, y.host_mut());
        Ok(y)
    }

    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        s: &Segments,
        shape: &AttnShape,
    ) -> Result<(Tensor, Tensor)> {
        checks::attention("attention", q, k, v, shape)?;
        same_shape("attention", "q", q, (s.rows(), q.cols))?;
        let (mut out, mut lse) = (fresh(q.rows, q.cols), fresh(q.rows, shape.heads));
        let forward = if shape.bf16 { attention::forward::<Bf16> } else { attention::forward::<F32> };
        forward(q.host(), k.host(), v.host(), s, shape, out.host_mut(), lse.host_mut());
        Ok((out, lse))
    }

    fn attention_backward(&self, dy: &Tensor, saved: &AttnSaved, s: &Segments, shape: &AttnShape) -> Result<AttnGrads> {
        let AttnSaved { q, k, v, out, lse } = *saved;
        checks::attention("attention_backward", q, k, v, shape)?;
        same_shape("attention_backward", "dy", dy, q.shape())?;
        same_shape("attention_backward", "out", out, q.shape())?;
        same_shape("attention_backward", "lse", lse, (s.rows(), shape.heads))?;
        let mut grads = AttnGrads { q: fresh(q.rows, q.cols), k: zeros(k.rows, k.cols), v: zeros(v.rows, v.cols) };
        let saved =
            attention::Saved { q: q.host(), k: k.host(), v: v.host(), out: out.host(), lse: lse.host(), dy: dy.host() };
        let (dq, dk, dv) = (grads.q.host_mut(), grads.k.host_mut(), grads.v.host_mut());
        let backward = if shape.bf16 { attention::backward::<Bf16> } else { attention::backward::<F32> };
        backward(&saved, s, shape, dq, dk, dv);
        Ok(grads)
    }

    fn cached_attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        slots: &mut [CacheSlot],
        layer: usize,
        shape: &AttnShape,
    ) -> Result<Tensor> {
        checks::attention("cached_attention", q, k, v, shape)?;
        checks::slots(slots, q.rows, layer, shape)?;
        let mut out = fresh(q.rows, q.cols);
        let cached = if shape.bf16 { attention::cached::<Bf16> } else { attention::cached::<F32> };
        cached(q.host(), k.host(), v.host(), slots, layer, shape, out.host_mut());
        Ok(out)
    }

    fn glu(&self, kind: Gate, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        same_shape("glu", "up", up, gate.shape())?;
        let mut y = fresh(gate.rows, gate.cols);
        match kind {
            Gate::SwiGlu => glu::swiglu(gate.host(), up.host(), y.host_mut()),
            Gate::GeGlu => glu::geglu(gate.host(), up.host(), y.host_mut()),
        }
        Ok(y)
    }

    fn glu_backward(&self, kind: Gate, dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
        same_shape("glu_backward", "up", up, gate.shape())?;
        same_shape("glu_backward", "dy", dy, gate.shape())?;
        let (mut d_gate, mut d_up) = (fresh(gate.rows, gate.cols), fresh(gate.rows, gate.cols));
        let backward = match kind {
            Gate::SwiGlu => glu::swiglu_backward,
            Gate::GeGlu => glu::geglu_backward,
        };
        backward(dy.host(), gate.host(), up.host(), d_gate.host_mut(), d_up.host_mut());
        Ok((d_gate, d_up))
    }

    fn dropout(&self, x: &Tensor, rule: &Dropout, stream: u64) -> Result<Tensor> {
        count("dropout", "row keys", rule.rows.len(), x.rows)?;
        let mut y = fresh(x.rows, x.cols);
        dropout::dropout(x.host(), x.cols, rule, stream, y.host_mut());
        Ok(y)
    }

    fn gather_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        ids_below("gather_rows", rows, x.rows)?;
        let mut y = fresh(rows.len(), x.cols);
        elementwise::gather_rows(x.host(), x.cols, rows, y.host_mut());
        Ok(y)
    }

    fn scatter_add_rows(&self, acc: &mut Tensor, x: &Tensor, rows: &[u32]) -> Result<()> {
        ids_below("scatter_add_rows", rows, acc.rows)?;
        same_shape("scatter_add_rows", "x", x, (rows.len(), acc.cols))?;
        let width = acc.cols;
        elementwise::scatter_add_rows(acc.host_mut(), width, x.host(), rows);
        Ok(())
    }

    fn head_terms_to(
        &self,
        hidden: &Tensor,
        w: &Weight,
        targets: &[u32],
        spec: &HeadSpec,
        other: Option<(&Tensor, &Weight)>,
    ) -> Result<HeadTerms> {
        same_shape("head_terms", "hidden", hidden, (hidden.rows, w.k()))?;
        head::head_terms(hidden.host(), hidden.rows, w, targets, spec, other_head(other))
    }

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
    ) -> Result<HeadTerms> {
        same_shape("head_backward", "hidden", hidden, (hidden.rows, w.k()))?;
        same_shape("head_backward", "d_hidden", d_hidden, hidden.shape())?;
        let dw = dw.map(|g| checks::matrix("head_backward", g, (w.n(), w.k()))).transpose()?;
        let (rows, other) = (hidden.rows, other_head(other));
        head::head_backward(hidden.host(), rows, w, targets, spec, other, coef, d_hidden.host_mut(), dw)
    }

    fn head_logits(&self, hidden: &Tensor, w: &Weight) -> Result<Tensor> {
        same_shape("head_logits", "hidden", hidden, (hidden.rows, w.k()))?;
        let mut logits = fresh(hidden.rows, w.n());
        head::head_logits(hidden.host(), hidden.rows, w, logits.host_mut());
        Ok(logits)
    }

    fn adamw(&self, p: &mut ParamValue, g: &Grad, m: &mut Grad, v: &mut Grad, step: &AdamStep) -> Result<()> {
        let n = gradients::flat(g).len();
        count("adamw", "values of m", gradients::flat(m).len(), n)?;
        count("adamw", "values of v", gradients::flat(v).len(), n)?;
        let (m, v) = (gradients::flat_mut(m), gradients::flat_mut(v));
        let mut outcome = Ok(());
        let mut update = |values: &mut [f32]| match count("adamw", "values of the parameter", values.len(), n) {
            Ok(()) => adamw::adamw(values, gradients::flat(g), m, v, step),
            Err(wrong) => outcome = Err(wrong),
        };
        match p {
            ParamValue::Matrix(w) => {
                if !w.update(update) {
                    return Err(Error::Frozen { op: "adamw" });
                }
            }
            ParamValue::Vector(t) => update(t.host_mut()),
        }
        outcome
    }

    fn grad_sum_sq(&self, g: &Grad) -> Result<f64> {
        Ok(crate::kernels::reduce::sum_sq(gradients::flat(g)))
    }

    fn grad_dot(&self, a: &Grad, b: &Grad) -> Result<f64> {
        let (a, b) = (gradients::flat(a), gradients::flat(b));
        count("grad_dot", "values", b.len(), a.len())?;
        Ok(crate::kernels::reduce::dot(a, b))
    }

    fn grad_project(&self, g: &Grad, seed: u64, out: &mut [f64]) -> Result<()> {
        gradients::project(g, seed, out);
        Ok(())
    }

    fn grad_fill(&self, g: &mut Grad, value: f32) -> Result<()> {
        elementwise::fill(gradients::flat_mut(g), value);
        Ok(())
    }

    fn grad_add_scaled(&self, acc: &mut Grad, x: &Grad, factor: f32) -> Result<()> {
        count("grad_add_scaled", "values", gradients::flat(x).len(), gradients::flat(acc).len())?;
        if factor == 1.0 {
            elementwise::add_into(gradients::flat_mut(acc), gradients::flat(x));
        } else {
            elementwise::add_scaled(gradients::flat_mut(acc), gradients::flat(x), factor);
        }
        Ok(())
    }

    fn grad_pull(&self, g: &mut Grad, p: &ParamValue, to: &Grad, weight: f32) -> Result<f64> {
        gradients::pull(g, p, to, weight)
    }

    fn grad_mix(&self, average: &mut Grad, p: &ParamValue, share: f32) -> Result<()> {
        gradients::mix_in(average, p, share)
    }

    fn param_mix(&self, p: &mut ParamValue, x: &Grad, share: f32) -> Result<()> {
        gradients::mix_param(p, x, share)
    }

    fn unary(&self, op: Unary, x: &Tensor) -> Result<Tensor> {
        Ok(generic::unary(op, x))
    }

    fn unary_backward(&self, op: Unary, dy: &Tensor, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        same_shape("unary_backward", "dy", dy, x.shape())?;
        same_shape("unary_backward", "y", y, x.shape())?;
        Ok(generic::unary_backward(op, dy, x, y))
    }

    fn binary(&self, op: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        checks::broadcast("binary", a, b)?;
        Ok(generic::binary(op, a, b))
    }

    fn binary_backward(&self, op: Binary, dy: &Tensor, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
        checks::broadcast("binary_backward", a, b)?;
        same_shape("binary_backward", "dy", dy, a.shape())?;
        Ok(generic::binary_backward(op, dy, a, b))
    }

    fn sum(&self, over: Reduce, x: &Tensor) -> Result<Tensor> {
        Ok(generic::sum(over, x))
    }

    fn expand(&self, x: &Tensor, rows: usize, cols: usize) -> Result<Tensor> {
        if (x.rows != 1 && x.rows != rows) || (x.cols != 1 && x.cols != cols) {
            return shape("expand", "x", x, format!("one row or {rows}, one column or {cols}"));
        }
        Ok(generic::expand(x, rows, cols))
    }

    fn matmul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        same_shape("matmul", "b", b, (a.cols, b.cols))?;
        Ok(generic::matmul_nt(a, &generic::transpose(b)))
    }

    fn matmul_nt(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        same_shape("matmul_nt", "b", b, (b.rows, a.cols))?;
        Ok(generic::matmul_nt(a, b))
    }

    fn softmax(&self, x: &Tensor, log: bool) -> Result<Tensor> {
        Ok(generic::softmax(x, log))
    }

    fn softmax_backward(&self, dy: &Tensor, y: &Tensor, log: bool) -> Result<Tensor> {
        same_shape("softmax_backward", "dy", dy, y.shape())?;
        Ok(generic::softmax_backward(dy, y, log))
    }

    fn pick(&self, x: &Tensor, cols: &[u32]) -> Result<Tensor> {
        count("pick", "columns", cols.len(), x.rows)?;
        ids_below("pick", cols, x.cols)?;
        let values: Vec<f32> = cols.iter().enumerate().map(|(r, &c)| x.host()[r * x.cols + c as usize]).collect();
        Ok(uploaded(x.rows, 1, &values))
    }

    fn pick_backward(&self, dy: &Tensor, cols: &[u32], width: usize) -> Result<Tensor> {
        same_shape("pick_backward", "dy", dy, (cols.len(), 1))?;
        ids_below("pick_backward", cols, width)?;
        let mut dx = zeros(cols.len(), width);
        for (r, (&c, d)) in cols.iter().zip(dy.host()).enumerate() {
            dx.host_mut()[r * width + c as usize] = *d;
        }
        Ok(dx)
    }

    fn transpose(&self, x: &Tensor) -> Result<Tensor> {
        Ok(generic::transpose(x))
    }

    fn concat_rows(&self, parts: &[&Tensor]) -> Result<Tensor> {
        let cols = parts.first().map_or(0, |p| p.cols);
        parts.iter().try_for_each(|p| same_shape("concat_rows", "a part", p, (p.rows, cols)))?;
        Ok(generic::concat_rows(parts, cols))
    }

    fn slice(&self, x: &Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor> {
        for (range, len) in [(&rows, x.rows), (&cols, x.cols)] {
            if range.start > range.end || range.end > len {
                return Err(Error::Index { op: "slice", index: range.end.max(range.start), len: len + 1 });
            }
        }
        Ok(generic::slice(x, rows, cols))
    }

    fn unslice(&self, dy: &Tensor, shape: (usize, usize), at: (usize, usize)) -> Result<Tensor> {
        if at.0 + dy.rows > shape.0 || at.1 + dy.cols > shape.1 {
            return checks::shape("unslice", "dy", dy, format!("at {at:?} inside {shape:?}"));
        }
        Ok(generic::unslice(dy, shape, at))
    }
}
