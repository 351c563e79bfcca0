//! The tape: runs operations, and records what backward needs.
//!
//! Values are cheap handles. On a tape that does not record, a value's memory goes back to the pool as soon as its last
//! handle is dropped; on one that records, only what some backward reads stays.

mod backward;
mod generic;
mod hooks;
mod record;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

pub use backward::InputGrads;
pub use hooks::Hooks;
pub use record::Var;
pub(crate) use record::{Node, Op, Origin, Recipe, Saved};

use crate::error::{Error, Result};
use crate::kv::CacheSlot;
use crate::ops::{AttnShape, Gate, Ops, RopeTable, Tensor};
use crate::params::{ParamId, Params};
use crate::segments::Segments;

/// Runs and records operations over one set of parameters on one device.
pub struct Tape<'a> {
    ops: &'a dyn Ops,
    params: &'a Params,
    hooks: Option<&'a Hooks>,
    /// Captures at points are suppressed while a checkpoint recomputes.
    capture: bool,
    record: bool,
    /// Identity of the current record; replaced when backward uses the record up.
    mark: RefCell<Rc<()>>,
    nodes: RefCell<Vec<Node<'a>>>,
}

impl std::fmt::Debug for Tape<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tape {{ record: {}, nodes: {} }}", self.record, self.nodes.borrow().len())
    }
}

impl<'a> Tape<'a> {
    /// A tape over `params`. Without `record`, [`Tape::backward`] is not available and memory is freed early.
    pub fn new(ops: &'a dyn Ops, params: &'a Params, record: bool) -> Self {
        let mark = RefCell::new(Rc::new(()));
        Self { ops, params, hooks: None, capture: true, record, mark, nodes: RefCell::new(Vec::new()) }
    }

    /// The same tape with hooks at named points.
    #[must_use]
    pub fn with_hooks(mut self, hooks: &'a Hooks) -> Self {
        self.hooks = Some(hooks);
        self
    }

    /// A tape for a checkpointed block, sharing device, parameters and hooks.
    fn block(&self, record: bool, capture: bool) -> Self {
        let capture = capture && self.capture;
        Self { hooks: self.hooks, capture, ..Self::new(self.ops, self.params, record) }
    }

    /// The device.
    pub fn ops(&self) -> &'a dyn Ops {
        self.ops
    }

    /// The parameters.
    pub fn params(&self) -> &'a Params {
        self.params
    }

    /// Whether this tape records.
    pub fn records(&self) -> bool {
        self.record
    }

    /// A value from outside; with `requires_grad` its gradient is returned by [`Tape::backward`].
    pub fn input(&self, value: Tensor, requires_grad: bool) -> Var {
        self.input_shared(Rc::new(value), Origin::Identity, requires_grad)
    }

    fn input_shared(&self, value: Rc<Tensor>, origin: Origin, requires_grad: bool) -> Var {
        let node = (self.record && requires_grad).then(|| self.push(Node { op: Op::Input, inputs: Vec::new() }));
        Var::new(value, node, &self.mark.borrow(), origin)
    }

    /// Rows of the embedding matrix for the ids: `[ids, C]`.
    pub fn embedding(&self, w: ParamId, ids: &[u32]) -> Result<Var> {
        let value = self.ops.embedding(self.params.matrix("embedding", w)?, ids)?;
        let op = || Op::Embedding { w, ids: ids.into(), origin: Origin::Identity };
        Ok(self.keep_param(value, w, Origin::Identity, &[], op))
    }

    /// `x w^T`, `[N, n]`.
    pub fn linear(&self, x: &Var, w: ParamId) -> Result<Var> {
        self.own("linear", &[x])?;
        let value = self.ops.linear(x.tensor(), self.params.matrix("linear", w)?)?;
        let trainable = self.params.get(w).trainable;
        let op = || Op::Linear { w, x: trainable.then(|| x.saved()), origin: x.origin() };
        Ok(self.keep_param(value, w, x.origin(), &[x], op))
    }

    /// `base + x w^T`, `[N, n]`; the base's memory is taken over where nothing else holds it.
    pub fn linear_onto(&self, base: Var, x: &Var, w: ParamId) -> Result<Var> {
        self.own("linear_onto", &[&base, x])?;
        let trainable = self.params.get(w).trainable;
        let inputs = vec![base.node(), x.node()];
        let needed = self.record && (trainable || inputs.iter().any(Option::is_some));
        let op = || Op::LinearOnto { w, x: trainable.then(|| x.saved()), origin: x.origin() };
        let base = base.into_tensor(self.ops)?;
        let value = self.ops.linear_onto(base, x.tensor(), self.params.matrix("linear_onto", w)?)?;
        let node = needed.then(|| self.push(Node { op: op(), inputs }));
        Ok(Var::new(Rc::new(value), node, &self.mark.borrow(), x.origin()))
    }

    /// `x` with values left out by the hooks' rule ([`Hooks::drop_out`]); without one it is returned as it is. `stream`
    /// names the place, so that every place has masks of its own.
    pub fn dropout(&self, x: &Var, stream: u64) -> Result<Var> {
        self.own("dropout", &[x])?;
        let Some(rule) = self.hooks.and_then(Hooks::dropout) else { return Ok(x.clone()) };
        let value = self.ops.dropout(x.tensor(), rule, stream)?;
        let var = self.keep(value, x.origin(), &[x], || Op::Dropout { rule: rule.clone(), stream });
        Ok(var.with_recipe(self.record, || Recipe::Dropout { x: x.saved(), rule: rule.clone(), stream }))
    }

    /// `x + b` for a vector parameter `b: [1, C]`.
    pub fn bias(&self, x: &Var, b: ParamId) -> Result<Var> {
        self.own("bias", &[x])?;
        let b_value = self.params.vector("bias", b)?;
        let value = self.ops.binary(crate::ops::Binary::Add, x.tensor(), b_value)?;
        Ok(self.keep_param(value, b, x.origin(), &[x], || Op::Bias { b, origin: x.origin() }))
    }

    /// `x / sqrt(mean(x^2) + eps) * w` per row.
    pub fn rms_norm(&self, x: &Var, w: ParamId, eps: f32) -> Result<Var> {
        self.own("rms_norm", &[x])?;
        let value = self.ops.rms_norm(x.tensor(), self.params.vector("rms_norm", w)?, eps)?;
        let var =
            self.keep_param(value, w, x.origin(), &[x], || Op::RmsNorm { w, x: x.value(), eps, origin: x.origin() });
        Ok(var.with_recipe(self.record, || Recipe::RmsNorm { x: x.value(), w, eps }))
    }

    /// Rotary positions: `x: [N, heads * D]`, `positions: [N]`. `table` must outlive the tape.
    pub fn rope(&self, x: &Var, heads: usize, table: &'a RopeTable, positions: &Arc<[u32]>) -> Result<Var> {
        self.own("rope", &[x])?;
        let value = self.ops.rope(x.tensor(), heads, table, positions, false)?;
        let op = || Op::Rope { heads, table, positions: Arc::clone(positions) };
        Ok(self.keep(value, x.origin(), &[x], op))
    }

    /// Causal grouped-query attention over segments: `[N, H * D]`.
    pub fn attention(&self, q: &Var, k: &Var, v: &Var, s: &Arc<Segments>, shape: AttnShape) -> Result<Var> {
        self.own("attention", &[q, k, v])?;
        let (out, lse) = self.ops.attention(q.tensor(), k.tensor(), v.tensor(), s, &shape)?;
        let out = Rc::new(out);
        let op = || Op::Attention {
            q: q.value(),
            k: k.value(),
            v: v.value(),
            out: Rc::clone(&out),
            lse,
            segments: Arc::clone(s),
            shape,
        };
        Ok(self.keep_shared(Rc::clone(&out), q.origin(), &[q, k, v], op))
    }

    /// Appends k and v to the caches and attends over them: `[N, H * D]`. Not on a recording tape.
    pub fn cached_attention(
        &self,
        q: &Var,
        k: &Var,
        v: &Var,
        slots: &mut [CacheSlot],
        layer: usize,
        shape: AttnShape,
    ) -> Result<Var> {
        self.own("cached_attention", &[q, k, v])?;
        if self.record {
            return Err(Error::NotDifferentiable { op: "cached_attention" });
        }
        let out = self.ops.cached_attention(q.tensor(), k.tensor(), v.tensor(), slots, layer, &shape)?;
        Ok(self.keep(out, q.origin(), &[], || Op::Input))
    }

    /// `silu(gate) * up`.
    pub fn swiglu(&self, gate: &Var, up: &Var) -> Result<Var> {
        self.glu(Gate::SwiGlu, gate, up)
    }

    /// `gelu_tanh(gate) * up`.
    pub fn geglu(&self, gate: &Var, up: &Var) -> Result<Var> {
        self.glu(Gate::GeGlu, gate, up)
    }

    fn glu(&self, kind: Gate, gate: &Var, up: &Var) -> Result<Var> {
        self.own("glu", &[gate, up])?;
        let value = self.ops.glu(kind, gate.tensor(), up.tensor())?;
        let op = || Op::Glu { kind, gate: gate.value(), up: up.value() };
        let var = self.keep(value, gate.origin(), &[gate, up], op);
        Ok(var.with_recipe(self.record, || Recipe::Glu { kind, gate: gate.value(), up: up.value() }))
    }

    /// Runs `block` on the inputs and keeps only them; backward runs the block again. The gradients are bitwise those
    /// of the plain block as long as no input is also used elsewhere (if it is, they agree to rounding). The block
    /// must be a pure function of its inputs and may not use recorded values of the outer tape.
    pub fn checkpoint<F>(&self, inputs: &[&Var], block: F) -> Result<Var>
    where
        F: Fn(&Tape<'a>, &[Var]) -> Result<Var> + 'a,
    {
        self.own("checkpoint", inputs)?;
        let plain = self.block(false, true);
        let ins: Vec<Var> = inputs.iter().map(|x| plain.input_shared(x.value(), x.origin(), false)).collect();
        let out = block(&plain, &ins)?;
        let op = || Op::Checkpoint {
            inputs: inputs.iter().map(|x| (x.value(), x.origin())).collect(),
            block: Box::new(block),
        };
        // Whether the block holds trainable parameters is not known from outside, so it is recorded in any case.
        let node = self.record.then(|| self.push(Node { op: op(), inputs: inputs.iter().map(|x| x.node()).collect() }));
        Ok(Var::new(out.value(), node, &self.mark.borrow(), out.origin()))
    }

    /// A named point: hooks may capture, replace or add to the value here; without a hook it is returned as it is.
    pub fn point(&self, name: &str, x: &Var) -> Result<Var> {
        self.own("point", &[x])?;
        let Some(hooks) = self.hooks else { return Ok(x.clone()) };
        hooks.apply(self, name, x)
    }

    /// Every value that carries gradient must have been recorded here.
    fn own(&self, op: &'static str, inputs: &[&Var]) -> Result<()> {
        let foreign = |x: &&&Var| x.node().is_some() && !x.is_on(&self.mark.borrow());
        if inputs.iter().any(|x| foreign(&x)) { Err(Error::ForeignVar { op }) } else { Ok(()) }
    }

    fn push(&self, node: Node<'a>) -> usize {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(node);
        nodes.len() - 1
    }

    /// Records if an input carries gradient.
    fn keep(&self, value: Tensor, origin: Origin, inputs: &[&Var], op: impl FnOnce() -> Op<'a>) -> Var {
        self.keep_shared(Rc::new(value), origin, inputs, op)
    }

    fn keep_shared(&self, value: Rc<Tensor>, origin: Origin, inputs: &[&Var], op: impl FnOnce() -> Op<'a>) -> Var {
        let needed = self.record && inputs.iter().any(|x| x.node().is_some());
        let node = needed.then(|| self.push(Node { op: op(), inputs: inputs.iter().map(|x| x.node()).collect() }));
        Var::new(value, node, &self.mark.borrow(), origin)
    }

    /// Records if the parameter is trainable or an input carries gradient.
    fn keep_param(
        &self,
        value: Tensor,
        w: ParamId,
        origin: Origin,
        inputs: &[&Var],
        op: impl FnOnce() -> Op<'a>,
    ) -> Var {
        let needed = self.record && (self.params.get(w).trainable || inputs.iter().any(|x| x.node().is_some()));
        let node = needed.then(|| self.push(Node { op: op(), inputs: inputs.iter().map(|x| x.node()).collect() }));
        Var::new(Rc::new(value), node, &self.mark.borrow(), origin)
    }
}
