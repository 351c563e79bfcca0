//! Backward: walks the record in reverse and sends each gradient on.

use std::rc::Rc;

use crate::error::{Error, Result};
use crate::ops::{AttnSaved, Binary, Ops, Reduce, Tensor};
use crate::params::ParamId;
use crate::sink::{AddPart, GradSink};
use crate::tape::{Node, Op, Origin, Recipe, Saved, Tape, Var};

/// Gradients of the inputs that asked for one.
#[derive(Debug)]
pub struct InputGrads {
    mark: Rc<()>,
    list: Vec<(usize, Tensor)>,
}

impl InputGrads {
    /// The gradient of `input`; none if nothing that backward came from depends on it.
    pub fn get(&self, input: &Var) -> Option<&Tensor> {
        self.list.iter().find(|(n, _)| self.is(input, *n)).map(|(_, t)| t)
    }

    /// Takes the gradient of `input` out.
    pub fn take(&mut self, input: &Var) -> Option<Tensor> {
        let at = self.list.iter().position(|(n, _)| self.is(input, *n))?;
        Some(self.list.swap_remove(at).1)
    }

    fn is(&self, input: &Var, node: usize) -> bool {
        input.node() == Some(node) && input.is_on(&self.mark)
    }
}

impl<'a> Tape<'a> {
    /// Backward from `root` with the gradient `d` (of its shape). Parameter gradients go to `sink`. The record is used
    /// up, and its memory freed on the way.
    pub fn backward(&self, root: &Var, d: Tensor, sink: &mut GradSink) -> Result<InputGrads> {
        self.backward_all(vec![(root.clone(), d)], sink)
    }

    /// Backward from several values at once.
    pub fn backward_all(&self, roots: Vec<(Var, Tensor)>, sink: &mut GradSink) -> Result<InputGrads> {
        for (root, d) in &roots {
            if root.tensor().shape() != d.shape() {
                let expected = format!("{:?}", root.tensor().shape());
                return Err(Error::Shape { op: "backward", what: "the gradient", got: d.shape(), expected });
            }
            if root.node().is_none() || !root.is_on(&self.mark.borrow()) {
                return Err(Error::NotRecorded);
            }
        }
        let mut nodes = self.nodes.take();
        let mark = self.mark.replace(Rc::new(()));
        let mut pending = Pending { ops: self.ops, grads: (0..nodes.len()).map(|_| None).collect() };
        for (root, d) in roots {
            pending.send(root.node(), d)?;
        }
        let mut remade = Remade::default();
        let mut inputs = InputGrads { mark, list: Vec::new() };
        while let Some(node) = nodes.pop() {
            let Some(dy) = pending.grads.pop().flatten() else { continue };
            if matches!(node.op, Op::Input) {
                inputs.list.push((nodes.len(), dy));
            } else {
                self.step(node, dy, &mut pending, &mut remade, sink)?;
            }
        }
        Ok(inputs)
    }

    /// Backward of one recorded operation.
    fn step(
        &self,
        node: Node<'a>,
        dy: Tensor,
        to: &mut Pending,
        remade: &mut Remade,
        sink: &mut GradSink,
    ) -> Result<()> {
        let (ops, ins) = (self.ops, node.inputs);
        let first = ins.first().copied().flatten();
        let second = ins.get(1).copied().flatten();
        match node.op {
            Op::Input => Ok(()),
            Op::Embedding { w, ids, origin } => {
                self.give(sink, w, &origin, dy.rows(), &mut |rows, dw| ops.embedding_dw(&dy, &ids, rows, dw))
            }
            Op::Linear { w, x, origin } => {
                if let Some(x) = x {
                    let x = remade.value(self, x)?;
                    self.give(sink, w, &origin, dy.rows(), &mut |rows, dw| ops.linear_dw(&dy, &x, rows, dw))?;
                }
                self.send_dx(to, first, &dy, w)
            }
            Op::LinearOnto { w, x, origin } => {
                if let Some(x) = x {
                    let x = remade.value(self, x)?;
                    self.give(sink, w, &origin, dy.rows(), &mut |rows, dw| ops.linear_dw(&dy, &x, rows, dw))?;
                }
                self.send_dx(to, second, &dy, w)?;
                to.send(first, dy)
            }
            Op::Dropout { rule, stream } => match first {
                Some(_) => to.send(first, ops.dropout(&dy, &rule, stream)?),
                None => Ok(()),
            },
            Op::Bias { b, origin } => {
                self.give(sink, b, &origin, dy.rows(), &mut |rows, db| ops.bias_db(&dy, rows, db))?;
                to.send(first, dy)
            }
            Op::RmsNorm { w, x, eps, origin } => {
                self.give(sink, w, &origin, dy.rows(), &mut |rows, dw| ops.rms_norm_dw(&dy, &x, eps, rows, dw))?;
                match first {
                    Some(_) => to.send(first, ops.rms_norm_dx(&dy, &x, self.params.vector("rms_norm", w)?, eps)?),
                    None => Ok(()),
                }
            }
            Op::Rope { heads, table, positions } => to.send(first, ops.rope(&dy, heads, table, &positions, true)?),
            Op::Attention { q, k, v, out, lse, segments, shape } => {
                let saved = AttnSaved { q: &q, k: &k, v: &v, out: &out, lse: &lse };
                let grads = ops.attention_backward(&dy, &saved, &segments, &shape)?;
                to.send(ins[2], grads.v)?;
                to.send(second, grads.k)?;
                to.send(first, grads.q)
            }
            Op::Glu { kind, gate, up } => {
                let (d_gate, d_up) = ops.glu_backward(kind, &dy, &gate, &up)?;
                to.send(second, d_up)?;
                to.send(first, d_gate)
            }
            Op::Checkpoint { inputs, block } => {
                let tape = self.block(true, false);
                let grad = |i: usize| ins[i].is_some();
                let vars: Vec<Var> = inputs
                    .into_iter()
                    .enumerate()
                    .map(|(i, (x, origin))| tape.input_shared(x, origin, grad(i)))
                    .collect();
                let out = block(&tape, &vars)?;
                if !out.carries_grad() {
                    return Ok(());
                }
                let mut grads = tape.backward(&out, dy, sink)?;
                for (var, target) in vars.iter().zip(ins) {
                    if let Some(d) = grads.take(var) {
                        to.send(target, d)?;
                    }
                }
                Ok(())
            }
            op => self.generic_step(op, dy, &ins, to),
        }
    }

    /// Backward of the generic operations.
    fn generic_step(&self, op: Op, dy: Tensor, ins: &[Option<usize>], to: &mut Pending) -> Result<()> {
        let ops = self.ops;
        let first = ins.first().copied().flatten();
        let second = ins.get(1).copied().flatten();
        match op {
            Op::Add => {
                to.send_copy(second, &dy)?;
                to.send(first, dy)
            }
            Op::Unary { op, x, y } => to.send(first, ops.unary_backward(op, &dy, &x, &y)?),
            Op::Binary { op, a, b } => {
                let (da, db) = ops.binary_backward(op, &dy, &a, &b)?;
                to.send(second, db)?;
                to.send(first, da)
            }
            Op::Sum { shape } => to.send(first, ops.expand(&dy, shape.0, shape.1)?),
            Op::Expand { over } => to.send(first, ops.sum(over, &dy)?),
            Op::Matmul { a, b, nt } => {
                if second.is_some() {
                    let dy_t = ops.transpose(&dy)?;
                    let d = if nt { ops.matmul(&dy_t, &a)? } else { ops.matmul(&ops.transpose(&a)?, &dy)? };
                    to.send(second, d)?;
                }
                match first {
                    Some(_) if nt => to.send(first, ops.matmul(&dy, &b)?),
                    Some(_) => to.send(first, ops.matmul_nt(&dy, &b)?),
                    None => Ok(()),
                }
            }
            Op::Softmax { y, log } => to.send(first, ops.softmax_backward(&dy, &y, log)?),
            Op::Pick { cols, width } => to.send(first, ops.pick_backward(&dy, &cols, width)?),
            Op::GatherRows { rows, from } => {
                let mut d = ops.zeros(from, dy.cols())?;
                ops.scatter_add_rows(&mut d, &dy, &rows)?;
                to.send(first, d)
            }
            Op::ScatterAddRows { rows } => {
                to.send(second, ops.gather_rows(&dy, &rows)?)?;
                to.send(first, dy)
            }
            Op::Transpose => to.send(first, ops.transpose(&dy)?),
            Op::ConcatRows { rows } => {
                let mut at = 0;
                for (target, n) in ins.iter().zip(rows) {
                    if target.is_some() {
                        to.send(*target, ops.slice(&dy, at..at + n, 0..dy.cols())?)?;
                    }
                    at += n;
                }
                Ok(())
            }
            Op::Slice { shape, at } => to.send(first, ops.unslice(&dy, shape, at)?),
            Op::Reshape { shape } => to.send(first, dy.reshaped(shape.0, shape.1)),
            _ => Ok(()),
        }
    }

    /// Sends `dy w` on, added to what is there.
    fn send_dx(&self, to: &mut Pending, target: Option<usize>, dy: &Tensor, w: ParamId) -> Result<()> {
        if let Some(target) = target {
            let acc = to.grads[target].take();
            to.grads[target] = Some(self.ops.linear_dx(dy, self.params.matrix("linear", w)?, acc)?);
        }
        Ok(())
    }

    /// Hands a parameter's gradient to the sink unless the parameter is frozen.
    fn give(&self, sink: &mut GradSink, w: ParamId, origin: &Origin, rows: usize, add: AddPart) -> Result<()> {
        if self.params.get(w).trainable { sink.take(self.ops, self.params, w, origin, rows, add) } else { Ok(()) }
    }
}

/// Gradients on their way to recorded values.
struct Pending<'a> {
    ops: &'a dyn Ops,
    grads: Vec<Option<Tensor>>,
}

impl Pending<'_> {
    fn send(&mut self, target: Option<usize>, d: Tensor) -> Result<()> {
        let Some(slot) = target.map(|t| &mut self.grads[t]) else { return Ok(()) };
        if let Some(sum) = slot {
            return self.ops.add_scaled(sum, &d, 1.0);
        }
        *slot = Some(d);
        Ok(())
    }

    fn send_copy(&mut self, target: Option<usize>, d: &Tensor) -> Result<()> {
        let Some(slot) = target.map(|t| &mut self.grads[t]) else { return Ok(()) };
        if let Some(sum) = slot {
            return self.ops.add_scaled(sum, d, 1.0);
        }
        *slot = Some(self.ops.copy(d)?);
        Ok(())
    }
}

/// The value that was last made again; consecutive readers (q, k and v; gate and up) share it.
#[derive(Default)]
struct Remade {
    last: Option<(Rc<Recipe>, Rc<Tensor>)>,
}

impl Remade {
    fn value(&mut self, tape: &Tape, saved: Saved) -> Result<Rc<Tensor>> {
        let recipe = match saved {
            Saved::Value(value) => return Ok(value),
            Saved::Recipe(recipe) => recipe,
        };
        if let Some((made, value)) = &self.last
            && Rc::ptr_eq(made, &recipe)
        {
            return Ok(Rc::clone(value));
        }
        self.last = None;
        let value = Rc::new(recipe.make(tape.ops, tape.params)?);
        self.last = Some((recipe, Rc::clone(&value)));
        Ok(value)
    }
}

/// Sum over what `expand` repeated.
pub(crate) fn expanded_over(from: (usize, usize), to: (usize, usize)) -> Option<Reduce> {
    match from {
        _ if from == to => None,
        (1, 1) => Some(Reduce::All),
        (1, _) => Some(Reduce::Rows),
        _ => Some(Reduce::Cols),
    }
}

/// Whether both shapes are equal, so that a sum needs nothing saved.
pub(crate) fn plain_add(op: Binary, a: &Tensor, b: &Tensor) -> bool {
    op == Binary::Add && a.shape() == b.shape()
}
