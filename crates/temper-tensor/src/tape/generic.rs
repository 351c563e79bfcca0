//! Generic operations of the tape, for odd losses, heads and diagnostics.

use std::ops::Range;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::ops::{Binary, Reduce, Unary};
use crate::tape::backward::{expanded_over, plain_add};
use crate::tape::{Op, Origin, Tape, Var};

impl Tape<'_> {
    /// Elementwise function.
    pub fn unary(&self, op: Unary, x: &Var) -> Result<Var> {
        self.own("unary", &[x])?;
        let y = Rc::new(self.ops.unary(op, x.tensor())?);
        let node = || Op::Unary { op, x: x.value(), y: Rc::clone(&y) };
        Ok(self.keep_shared(Rc::clone(&y), x.origin(), &[x], node))
    }

    /// Elementwise function of two values; `b` may be `[rows, cols]`, `[1, cols]`, `[rows, 1]` or `[1, 1]`.
    pub fn binary(&self, op: Binary, a: &Var, b: &Var) -> Result<Var> {
        self.own("binary", &[a, b])?;
        let y = self.ops.binary(op, a.tensor(), b.tensor())?;
        let plain = plain_add(op, a.tensor(), b.tensor());
        let node = || if plain { Op::Add } else { Op::Binary { op, a: a.value(), b: b.value() } };
        Ok(self.keep(y, a.origin(), &[a, b], node))
    }

    /// `a + b`.
    pub fn add(&self, a: &Var, b: &Var) -> Result<Var> {
        self.binary(Binary::Add, a, b)
    }

    /// `a - b`.
    pub fn sub(&self, a: &Var, b: &Var) -> Result<Var> {
        self.binary(Binary::Sub, a, b)
    }

    /// `a * b`.
    pub fn mul(&self, a: &Var, b: &Var) -> Result<Var> {
        self.binary(Binary::Mul, a, b)
    }

    /// `a / b`.
    pub fn div(&self, a: &Var, b: &Var) -> Result<Var> {
        self.binary(Binary::Div, a, b)
    }

    /// `min(a, b)`.
    pub fn minimum(&self, a: &Var, b: &Var) -> Result<Var> {
        self.binary(Binary::Minimum, a, b)
    }

    /// `x * factor`.
    pub fn scale(&self, x: &Var, factor: f32) -> Result<Var> {
        self.unary(Unary::Scale(factor), x)
    }

    /// `x + c`.
    pub fn add_scalar(&self, x: &Var, c: f32) -> Result<Var> {
        self.unary(Unary::AddScalar(c), x)
    }

    /// `-x`.
    pub fn neg(&self, x: &Var) -> Result<Var> {
        self.scale(x, -1.0)
    }

    /// `e^x`.
    pub fn exp(&self, x: &Var) -> Result<Var> {
        self.unary(Unary::Exp, x)
    }

    /// Natural logarithm.
    pub fn log(&self, x: &Var) -> Result<Var> {
        self.unary(Unary::Log, x)
    }

    /// Hyperbolic tangent.
    pub fn tanh(&self, x: &Var) -> Result<Var> {
        self.unary(Unary::Tanh, x)
    }

    /// `1 / (1 + e^-x)`.
    pub fn sigmoid(&self, x: &Var) -> Result<Var> {
        self.unary(Unary::Sigmoid, x)
    }

    /// `ln(sigmoid(x))`.
    pub fn log_sigmoid(&self, x: &Var) -> Result<Var> {
        self.unary(Unary::LogSigmoid, x)
    }

    /// `max(x, 0)`.
    pub fn relu(&self, x: &Var) -> Result<Var> {
        self.unary(Unary::Relu, x)
    }

    /// `x * x`.
    pub fn square(&self, x: &Var) -> Result<Var> {
        self.unary(Unary::Square, x)
    }

    /// Square root.
    pub fn sqrt(&self, x: &Var) -> Result<Var> {
        self.unary(Unary::Sqrt, x)
    }

    /// `min(max(x, low), high)`.
    pub fn clamp(&self, x: &Var, low: f32, high: f32) -> Result<Var> {
        self.unary(Unary::Clamp(low, high), x)
    }

    fn reduce(&self, over: Reduce, x: &Var) -> Result<Var> {
        self.own("sum", &[x])?;
        let y = self.ops.sum(over, x.tensor())?;
        let origin = if over == Reduce::Cols { x.origin() } else { Origin::Lost };
        let shape = x.tensor().shape();
        Ok(self.keep(y, origin, &[x], || Op::Sum { shape }))
    }

    /// Sum of each row, `[rows, 1]`.
    pub fn sum_cols(&self, x: &Var) -> Result<Var> {
        self.reduce(Reduce::Cols, x)
    }

    /// Sum of each column, `[1, cols]`.
    pub fn sum_rows(&self, x: &Var) -> Result<Var> {
        self.reduce(Reduce::Rows, x)
    }

    /// Sum of all values, `[1, 1]`.
    pub fn sum_all(&self, x: &Var) -> Result<Var> {
        self.reduce(Reduce::All, x)
    }

    /// Mean of each row, `[rows, 1]`.
    pub fn mean_cols(&self, x: &Var) -> Result<Var> {
        self.scale(&self.sum_cols(x)?, 1.0 / x.cols() as f32)
    }

    /// Mean of each column, `[1, cols]`.
    pub fn mean_rows(&self, x: &Var) -> Result<Var> {
        self.scale(&self.sum_rows(x)?, 1.0 / x.rows() as f32)
    }

    /// Mean of all values, `[1, 1]`.
    pub fn mean_all(&self, x: &Var) -> Result<Var> {
        self.scale(&self.sum_all(x)?, 1.0 / (x.rows() * x.cols()) as f32)
    }

    /// `x` (`[1, 1]`, `[1, cols]` or `[rows, 1]`) repeated to `[rows, cols]`.
    pub fn expand(&self, x: &Var, rows: usize, cols: usize) -> Result<Var> {
        self.own("expand", &[x])?;
        let Some(over) = expanded_over(x.tensor().shape(), (rows, cols)) else { return Ok(x.clone()) };
        let y = self.ops.expand(x.tensor(), rows, cols)?;
        let origin = if over == Reduce::Cols { x.origin() } else { Origin::Lost };
        Ok(self.keep(y, origin, &[x], || Op::Expand { over }))
    }

    /// `a b` with `a: [m, k]`, `b: [k, n]`.
    pub fn matmul(&self, a: &Var, b: &Var) -> Result<Var> {
        self.own("matmul", &[a, b])?;
        let y = self.ops.matmul(a.tensor(), b.tensor())?;
        Ok(self.keep(y, a.origin(), &[a, b], || Op::Matmul { a: a.value(), b: b.value(), nt: false }))
    }

    /// `a b^T` with `a: [m, k]`, `b: [n, k]`.
    pub fn matmul_nt(&self, a: &Var, b: &Var) -> Result<Var> {
        self.own("matmul_nt", &[a, b])?;
        let y = self.ops.matmul_nt(a.tensor(), b.tensor())?;
        Ok(self.keep(y, a.origin(), &[a, b], || Op::Matmul { a: a.value(), b: b.value(), nt: true }))
    }

    fn soft(&self, x: &Var, log: bool) -> Result<Var> {
        self.own("softmax", &[x])?;
        let y = Rc::new(self.ops.softmax(x.tensor(), log)?);
        Ok(self.keep_shared(Rc::clone(&y), x.origin(), &[x], || Op::Softmax { y: Rc::clone(&y), log }))
    }

    /// Softmax of each row.
    pub fn softmax(&self, x: &Var) -> Result<Var> {
        self.soft(x, false)
    }

    /// Logarithm of the softmax of each row.
    pub fn log_softmax(&self, x: &Var) -> Result<Var> {
        self.soft(x, true)
    }

    /// `x[r, cols[r]]` of every row, `[rows, 1]`.
    pub fn pick(&self, x: &Var, cols: &[u32]) -> Result<Var> {
        self.own("pick", &[x])?;
        let y = self.ops.pick(x.tensor(), cols)?;
        let width = x.cols();
        Ok(self.keep(y, x.origin(), &[x], || Op::Pick { cols: cols.into(), width }))
    }

    /// Rows of `x` in the given order (repeats allowed).
    pub fn gather_rows(&self, x: &Var, rows: &[u32]) -> Result<Var> {
        self.own("gather_rows", &[x])?;
        let y = self.ops.gather_rows(x.tensor(), rows)?;
        let from = x.rows();
        Ok(self.keep(y, x.origin().select(rows), &[x], || Op::GatherRows { rows: rows.into(), from }))
    }

    /// `base` with `x[i]` added to row `rows[i]`, in order of i.
    pub fn scatter_add_rows(&self, base: &Var, x: &Var, rows: &[u32]) -> Result<Var> {
        self.own("scatter_add_rows", &[base, x])?;
        let mut y = self.ops.copy(base.tensor())?;
        self.ops.scatter_add_rows(&mut y, x.tensor(), rows)?;
        Ok(self.keep(y, base.origin(), &[base, x], || Op::ScatterAddRows { rows: rows.into() }))
    }

    /// Transpose.
    pub fn transpose(&self, x: &Var) -> Result<Var> {
        self.own("transpose", &[x])?;
        let y = self.ops.transpose(x.tensor())?;
        Ok(self.keep(y, Origin::Lost, &[x], || Op::Transpose))
    }

    /// The values stacked, rows under rows (soft prompts above embedded ids, for instance).
    pub fn concat_rows(&self, parts: &[&Var]) -> Result<Var> {
        self.own("concat_rows", parts)?;
        let tensors: Vec<_> = parts.iter().map(|p| p.tensor()).collect();
        let y = self.ops.concat_rows(&tensors)?;
        let rows = || parts.iter().map(|p| p.rows()).collect();
        Ok(self.keep(y, Origin::Identity, parts, || Op::ConcatRows { rows: rows() }))
    }

    /// Rows `rows` of `x`.
    pub fn slice_rows(&self, x: &Var, rows: Range<usize>) -> Result<Var> {
        self.slice(x, rows, 0..x.cols())
    }

    /// Columns `cols` of `x`.
    pub fn slice_cols(&self, x: &Var, cols: Range<usize>) -> Result<Var> {
        self.slice(x, 0..x.rows(), cols)
    }

    fn slice(&self, x: &Var, rows: Range<usize>, cols: Range<usize>) -> Result<Var> {
        self.own("slice", &[x])?;
        let (shape, at) = (x.tensor().shape(), (rows.start, cols.start));
        let y = self.ops.slice(x.tensor(), rows.clone(), cols)?;
        let origin = if rows.len() == shape.0 {
            x.origin()
        } else {
            x.origin().select(&rows.map(|r| r as u32).collect::<Vec<_>>())
        };
        Ok(self.keep(y, origin, &[x], || Op::Slice { shape, at }))
    }

    /// The same values, row-major, as another shape.
    pub fn reshape(&self, x: &Var, rows: usize, cols: usize) -> Result<Var> {
        self.own("reshape", &[x])?;
        let shape = x.tensor().shape();
        if shape.0 * shape.1 != rows * cols {
            let expected = format!("{} values in all", rows * cols);
            return Err(Error::Shape { op: "reshape", what: "x", got: shape, expected });
        }
        let y = self.ops.copy(x.tensor())?.reshaped(rows, cols);
        let origin = if rows == shape.0 { x.origin() } else { Origin::Lost };
        Ok(self.keep(y, origin, &[x], || Op::Reshape { shape }))
    }
}
