//! Where parameter gradients go: summed, or reduced per example without ever being kept whole.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::params::{Grad, Grads, ParamId, Params};
use crate::tape::Origin;

/// Which example each row of the batch belongs to ([`crate::Segments::owners`], or any other grouping).
#[derive(Debug, Clone)]
pub struct Examples {
    owners: Arc<[u32]>,
    count: usize,
}

impl Examples {
    /// `owners[row]` is the row's example.
    pub fn new(owners: Arc<[u32]>) -> Self {
        let count = owners.iter().max().map_or(0, |&m| m as usize + 1);
        Self { owners, count }
    }

    /// Number of examples.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Runs of a value's rows, per example.
    fn runs(&self, map: Option<&[u32]>, rows: usize) -> Option<Vec<Vec<Range<usize>>>> {
        if map.map_or(self.owners.len(), <[u32]>::len) != rows {
            return None;
        }
        let mut runs: Vec<Vec<Range<usize>>> = vec![Vec::new(); self.count];
        for row in 0..rows {
            let base = map.map_or(row, |m| m[row] as usize);
            let own = &mut runs[*self.owners.get(base)? as usize];
            match own.last_mut() {
                Some(last) if last.end == row => last.end += 1,
                _ => own.push(row..row + 1),
            }
        }
        Some(runs)
    }
}

/// Gradients held back until all contributions are in, because their squares do not add up.
#[derive(Debug, Default)]
pub struct Held {
    several: Vec<ParamId>,
    grads: BTreeMap<(ParamId, usize), Grad>,
}

impl Held {
    /// `several` are the parameters that more than one operation uses (a tied embedding, for instance).
    pub fn new(several: &[ParamId]) -> Self {
        Self { several: several.to_vec(), grads: BTreeMap::new() }
    }
}

/// Adds the part of an operation's parameter gradient that the given rows cause to a buffer.
pub(crate) type AddPart<'f> = &'f mut dyn FnMut(&[Range<usize>], &mut Grad) -> Result<()>;

/// What backward does with the gradient of each parameter.
#[derive(Debug)]
pub enum GradSink<'s> {
    /// Adds it up.
    Accumulate(&'s mut Grads),
    /// Per example: projections on `out[example].len()` random sign vectors, derived from the seed.
    Project {
        /// Rows to examples.
        examples: Examples,
        /// Seed of the sign vectors.
        seed: u64,
        /// One vector of sums an example.
        out: &'s mut [Vec<f64>],
    },
    /// Per example: dot product with saved gradients.
    Dot {
        /// Rows to examples.
        examples: Examples,
        /// What to multiply by.
        saved: &'s Grads,
        /// One sum an example.
        out: &'s mut [f64],
    },
    /// Per example: sum of squares. Call [`GradSink::finish`] after the last backward.
    SumSq {
        /// Rows to examples.
        examples: Examples,
        /// Parameters used several times.
        held: Held,
        /// One sum an example.
        out: &'s mut [f64],
    },
}

impl GradSink<'_> {
    /// Takes one operation's gradient of parameter `w`: `add(rows, buffer)` adds the part that the rows cause.
    pub(crate) fn take(
        &mut self,
        ops: &dyn Ops,
        params: &Params,
        w: ParamId,
        origin: &Origin,
        rows: usize,
        add: AddPart,
    ) -> Result<()> {
        let name = || params.get(w).name.clone();
        let examples = match self {
            Self::Accumulate(grads) => {
                let grad = grads.get_mut(w).ok_or_else(|| Error::NoGrad { name: name() })?;
                return add(std::slice::from_ref(&(0..rows)), grad);
            }
            Self::Project { examples, .. } | Self::Dot { examples, .. } | Self::SumSq { examples, .. } => examples,
        };
        let map = match origin {
            Origin::Identity => None,
            Origin::Mapped(map) => Some(&map[..]),
            Origin::Lost => return Err(Error::Unattributed { name: name() }),
        };
        let runs = examples.runs(map, rows).ok_or_else(|| Error::Unattributed { name: name() })?;
        let mut scratch = Grad::zeros_like(ops, params.get(w))?;
        for (example, runs) in runs.iter().enumerate().filter(|(_, r)| !r.is_empty()) {
            ops.grad_fill(&mut scratch, 0.0)?;
            add(runs, &mut scratch)?;
            self.add_example(ops, params, w, example, &scratch)?;
        }
        Ok(())
    }

    /// Adds one example's gradient of parameter `w`, computed outside a tape (the head's). With
    /// [`GradSink::Accumulate`] the example does not matter.
    pub fn add_example(
        &mut self,
        ops: &dyn Ops,
        params: &Params,
        w: ParamId,
        example: usize,
        grad: &Grad,
    ) -> Result<()> {
        let name = || params.get(w).name.clone();
        match self {
            Self::Accumulate(grads) => {
                let sum = grads.get_mut(w).ok_or_else(|| Error::NoGrad { name: name() })?;
                ops.grad_add_scaled(sum, grad, 1.0)
            }
            Self::Project { seed, out, .. } => {
                let len = out.len();
                let out = out.get_mut(example).ok_or(Error::Index { op: "project", index: example, len })?;
                ops.grad_project(grad, mix(*seed, w.index() as u64), out)
            }
            Self::Dot { saved, out, .. } => {
                let saved = saved.get(w).ok_or_else(|| Error::NoGrad { name: name() })?;
                add_to(out, "dot", example, ops.grad_dot(grad, saved)?)
            }
            Self::SumSq { held, out, .. } => {
                if !held.several.contains(&w) {
                    return add_to(out, "sum_sq", example, ops.grad_sum_sq(grad)?);
                }
                if let Some(sum) = held.grads.get_mut(&(w, example)) {
                    return ops.grad_add_scaled(sum, grad, 1.0);
                }
                held.grads.insert((w, example), grad.clone());
                Ok(())
            }
        }
    }

    /// Adds what was held back. Without effect on the other sinks.
    pub fn finish(&mut self, ops: &dyn Ops) -> Result<()> {
        if let Self::SumSq { held, out, .. } = self {
            for ((_, example), grad) in std::mem::take(&mut held.grads) {
                add_to(out, "sum_sq", example, ops.grad_sum_sq(&grad)?)?;
            }
        }
        Ok(())
    }
}

fn add_to(out: &mut [f64], op: &'static str, example: usize, value: f64) -> Result<()> {
    let len = out.len();
    *out.get_mut(example).ok_or(Error::Index { op, index: example, len })? += value;
    Ok(())
}

/// SplitMix64 of a seed and an index.
pub(crate) fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
