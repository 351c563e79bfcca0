//! Parameters and their gradients.

use crate::error::{Error, Result};
use crate::ops::{Ops, Tensor};
use crate::panels::Panels;
use crate::weight::Weight;

/// Names one parameter of a [`Params`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub(crate) usize);

impl ParamId {
    /// The parameter's place in its [`Params`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// A parameter's value.
#[derive(Debug, Clone)]
pub enum ParamValue {
    /// A weight matrix.
    Matrix(Weight),
    /// A vector (norm weight, bias), a tensor `[1, C]`.
    Vector(Tensor),
}

/// A named parameter.
#[derive(Debug, Clone)]
pub struct Param {
    /// Unique name (the Hugging Face spelling, by convention).
    pub name: String,
    /// The value.
    pub value: ParamValue,
    /// Whether it receives gradients and updates.
    pub trainable: bool,
}

impl Param {
    /// `[rows, columns]`; a vector is `[1, C]`.
    pub fn shape(&self) -> (usize, usize) {
        match &self.value {
            ParamValue::Matrix(w) => (w.n(), w.k()),
            ParamValue::Vector(t) => (t.rows(), t.cols()),
        }
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        let (n, k) = self.shape();
        n * k
    }
}

/// All parameters of a model, in the order of their creation.
#[derive(Debug, Clone, Default)]
pub struct Params {
    list: Vec<Param>,
}

impl Params {
    /// No parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a trainable parameter.
    pub fn add(&mut self, name: &str, value: ParamValue) -> Result<ParamId> {
        if self.by_name(name).is_some() {
            return Err(Error::DuplicateParam { name: name.into() });
        }
        self.list.push(Param { name: name.into(), value, trainable: true });
        Ok(ParamId(self.list.len() - 1))
    }

    /// Adds a weight matrix `[n, k]` from row-major values.
    pub fn add_matrix(&mut self, name: &str, n: usize, k: usize, rows: &[f32]) -> Result<ParamId> {
        if rows.len() != n * k {
            return Err(Error::Count { op: "add_matrix", what: "values", got: rows.len(), expected: n * k });
        }
        self.add(name, ParamValue::Matrix(Weight::from_rows(rows, n, k)))
    }

    /// Adds a vector `[1, C]`.
    pub fn add_vector(&mut self, ops: &dyn Ops, name: &str, values: &[f32]) -> Result<ParamId> {
        let value = ops.upload(1, values.len(), values)?;
        self.add(name, ParamValue::Vector(value))
    }

    /// Whether any weight matrix is in quantised blocks.
    pub fn any_quantised(&self) -> bool {
        self.list.iter().any(|p| matches!(&p.value, ParamValue::Matrix(w) if w.is_quantised()))
    }

    /// Stores every weight matrix in bf16, over its present values as f32 ones; vectors stay f32, quantised blocks as they are.
    pub fn store_in_bf16(&mut self) {
        for param in &mut self.list {
            if let ParamValue::Matrix(w) = &mut param.value {
                let whole = std::mem::replace(w, Weight::from_rows(&[], 0, 0));
                *w = whole.in_bf16();
            }
        }
    }

    /// The parameters as they are now, for reading alone.
    #[must_use]
    pub fn frozen_copy(&self) -> Self {
        let value = |p: &Param| match &p.value {
            ParamValue::Matrix(w) => ParamValue::Matrix(w.frozen_copy()),
            vector @ ParamValue::Vector(_) => vector.clone(),
        };
        let copy = |p: &Param| Param { name: p.name.clone(), value: value(p), trainable: false };
        Self { list: self.list.iter().map(copy).collect() }
    }

    /// Removes every parameter after the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.list.truncate(len);
    }

    /// Makes every parameter trainable, or none.
    pub fn set_trainable(&mut self, trainable: bool) {
        self.list.iter_mut().for_each(|p| p.trainable = trainable);
    }

    /// Number of parameters (not of values).
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The parameter `id`, which must come from this collection.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.list[id.0]
    }

    /// Mutable access to the parameter `id`.
    pub fn get_mut(&mut self, id: ParamId) -> &mut Param {
        &mut self.list[id.0]
    }

    /// The parameter with this name.
    pub fn by_name(&self, name: &str) -> Option<ParamId> {
        self.list.iter().position(|p| p.name == name).map(ParamId)
    }

    /// All parameters with their ids, in order of creation.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Param)> {
        self.list.iter().enumerate().map(|(i, p)| (ParamId(i), p))
    }

    /// Number of values over all parameters, or over the trainable ones alone.
    pub fn count(&self, trainable_only: bool) -> usize {
        self.list.iter().filter(|p| p.trainable || !trainable_only).map(Param::count).sum()
    }

    /// The weight matrix `id`.
    pub fn matrix(&self, op: &'static str, id: ParamId) -> Result<&Weight> {
        match &self.list[id.0].value {
            ParamValue::Matrix(w) => Ok(w),
            ParamValue::Vector(_) => {
                Err(Error::ParamKind { op, name: self.list[id.0].name.clone(), expected: "matrix" })
            }
        }
    }

    /// The vector `id`.
    pub fn vector(&self, op: &'static str, id: ParamId) -> Result<&Tensor> {
        match &self.list[id.0].value {
            ParamValue::Vector(t) => Ok(t),
            ParamValue::Matrix(_) => {
                Err(Error::ParamKind { op, name: self.list[id.0].name.clone(), expected: "vector" })
            }
        }
    }

    /// Values of parameter `id` on the host, row-major.
    pub fn values(&self, ops: &dyn Ops, id: ParamId) -> Result<Vec<f32>> {
        match &self.list[id.0].value {
            ParamValue::Matrix(w) => Ok(w.to_rows()),
            ParamValue::Vector(t) => ops.to_host(t),
        }
    }

    /// Replaces the values of parameter `id` by row-major ones of the same shape.
    pub fn set_values(&mut self, ops: &dyn Ops, id: ParamId, values: &[f32]) -> Result<()> {
        let (n, k) = self.list[id.0].shape();
        if values.len() != n * k {
            return Err(Error::Count { op: "set_values", what: "values", got: values.len(), expected: n * k });
        }
        match &mut self.list[id.0].value {
            ParamValue::Matrix(w) => w.set_rows(values)?,
            ParamValue::Vector(t) => *t = ops.upload(n, k, values)?,
        }
        Ok(())
    }
}

/// The gradient (or optimiser moment) of one parameter, in the parameter's own layout, always f32.
#[derive(Debug, Clone)]
pub enum Grad {
    /// Of a weight matrix.
    Matrix(Panels),
    /// Of a vector.
    Vector(Tensor),
}

impl Grad {
    /// Zeros in the shape of `param`.
    pub fn zeros_like(ops: &dyn Ops, param: &Param) -> Result<Self> {
        match &param.value {
            ParamValue::Matrix(w) => Ok(Self::Matrix(Panels::zeros(w.n(), w.k()))),
            ParamValue::Vector(t) => Ok(Self::Vector(ops.zeros(t.rows(), t.cols())?)),
        }
    }

    /// Values on the host, row-major.
    pub fn values(&self, ops: &dyn Ops) -> Result<Vec<f32>> {
        match self {
            Self::Matrix(p) => Ok(p.to_rows()),
            Self::Vector(t) => ops.to_host(t),
        }
    }

    /// Replaces the values by row-major ones.
    pub fn set_values(&mut self, ops: &dyn Ops, values: &[f32]) -> Result<()> {
        match self {
            Self::Matrix(p) => {
                let (n, k) = (p.n(), p.k());
                check_count("set_values", values.len(), n * k)?;
                *p = Panels::from_rows(values, n, k);
            }
            Self::Vector(t) => {
                check_count("set_values", values.len(), t.rows() * t.cols())?;
                *t = ops.upload(t.rows(), t.cols(), values)?;
            }
        }
        Ok(())
    }
}

fn check_count(op: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::Count { op, what: "values", got, expected }) }
}

/// One gradient buffer per trainable parameter.
#[derive(Debug, Clone)]
pub struct Grads {
    list: Vec<Option<Grad>>,
}

impl Grads {
    /// Zeros for every trainable parameter.
    pub fn zeros(ops: &dyn Ops, params: &Params) -> Result<Self> {
        let one = |p: &Param| p.trainable.then(|| Grad::zeros_like(ops, p)).transpose();
        Ok(Self { list: params.list.iter().map(one).collect::<Result<_>>()? })
    }

    /// A copy of the trainable parameters' values as they are now.
    pub fn copy(ops: &dyn Ops, params: &Params) -> Result<Self> {
        let mut copy = Self::zeros(ops, params)?;
        for (id, value) in copy.iter_mut() {
            // From zeros, a share of 1 is the value.
            ops.grad_mix(value, &params.get(id).value, 1.0)?;
        }
        Ok(copy)
    }

    /// Sets every buffer to zero, keeping the memory.
    pub fn zero(&mut self, ops: &dyn Ops) -> Result<()> {
        self.list.iter_mut().flatten().try_for_each(|g| ops.grad_fill(g, 0.0))
    }

    /// `self += factor * other`.
    pub fn add_scaled(&mut self, ops: &dyn Ops, other: &Self, factor: f32) -> Result<()> {
        for (mine, theirs) in self.list.iter_mut().zip(&other.list) {
            if let (Some(mine), Some(theirs)) = (mine, theirs) {
                ops.grad_add_scaled(mine, theirs, factor)?;
            }
        }
        Ok(())
    }

    /// The gradient of parameter `id`; none when it is frozen.
    pub fn get(&self, id: ParamId) -> Option<&Grad> {
        self.list.get(id.0).and_then(Option::as_ref)
    }

    /// Mutable access to the gradient of parameter `id`.
    pub fn get_mut(&mut self, id: ParamId) -> Option<&mut Grad> {
        self.list.get_mut(id.0).and_then(Option::as_mut)
    }

    /// The buffers with their parameters' ids, in order.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Grad)> {
        self.list.iter().enumerate().filter_map(|(i, g)| g.as_ref().map(|g| (ParamId(i), g)))
    }

    /// Mutable counterpart of [`Grads::iter`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ParamId, &mut Grad)> {
        self.list.iter_mut().enumerate().filter_map(|(i, g)| g.as_mut().map(|g| (ParamId(i), g)))
    }
}
