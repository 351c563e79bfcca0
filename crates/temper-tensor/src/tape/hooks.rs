//! Named points of a model: capture, replace, scale, inject.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::kernels::dropout::Dropout;
use crate::ops::Tensor;
use crate::tape::{Origin, Tape, Var};

/// What to do at named points while a tape runs. A tensor may have the value's shape or one row, which then stands for
/// every row. Replacement stops the gradient; scaling and injection pass it on.
#[derive(Debug, Default)]
pub struct Hooks {
    capture: BTreeSet<String>,
    replace: BTreeMap<String, Rc<Tensor>>,
    scale: BTreeMap<String, Rc<Tensor>>,
    inject: BTreeMap<String, Rc<Tensor>>,
    captured: RefCell<BTreeMap<String, Rc<Tensor>>>,
    dropout: Option<Dropout>,
}

impl Hooks {
    /// No hooks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the value at point `name` (after any replacement, scaling and injection).
    pub fn capture(&mut self, name: &str) {
        self.capture.insert(name.into());
    }

    /// Puts `value` in place of the value at point `name`.
    pub fn replace(&mut self, name: &str, value: Tensor) {
        self.replace.insert(name.into(), Rc::new(value));
    }

    /// Multiplies the value at point `name` by `value`; a 0 leaves a unit out.
    pub fn scale(&mut self, name: &str, value: Tensor) {
        self.scale.insert(name.into(), Rc::new(value));
    }

    /// Adds `value` to the value at point `name`.
    pub fn inject(&mut self, name: &str, value: Tensor) {
        self.inject.insert(name.into(), Rc::new(value));
    }

    /// Leaves values out where the model asks for it ([`Tape::dropout`]).
    pub fn drop_out(&mut self, rule: Dropout) {
        self.dropout = Some(rule);
    }

    pub(crate) fn dropout(&self) -> Option<&Dropout> {
        self.dropout.as_ref()
    }

    /// The value captured at point `name`, if the tape came by.
    pub fn captured(&self, name: &str) -> Option<Rc<Tensor>> {
        self.captured.borrow().get(name).cloned()
    }

    pub(crate) fn apply(&self, tape: &Tape, name: &str, x: &Var) -> Result<Var> {
        let mut x = x.clone();
        if let Some(value) = self.replace.get(name) {
            check(name, value, &x)?;
            let full = tape.ops.expand(value, x.rows(), x.cols())?;
            x = Var::new(Rc::new(full), None, &tape.mark.borrow(), x.origin());
        }
        let constant = |value| Var::new(Rc::clone(value), None, &tape.mark.borrow(), Origin::Lost);
        if let Some(value) = self.scale.get(name) {
            check(name, value, &x)?;
            x = tape.mul(&x, &constant(value))?;
        }
        if let Some(value) = self.inject.get(name) {
            check(name, value, &x)?;
            x = tape.add(&x, &constant(value))?;
        }
        if tape.capture && self.capture.contains(name) {
            self.captured.borrow_mut().insert(name.into(), x.value());
        }
        Ok(x)
    }
}

fn check(point: &str, value: &Tensor, x: &Var) -> Result<()> {
    let fits = value.cols() == x.cols() && (value.rows() == x.rows() || value.rows() == 1);
    let (got, shape) = (value.shape(), x.tensor().shape());
    if fits { Ok(()) } else { Err(Error::Hook { point: point.into(), got, value: shape }) }
}
