//! What a weight matrix may be stored as, and its three products.

use crate::bf16_panels::Bf16Panels;
use crate::error::{Error, Result};
use crate::gemm::bf16::{self, Rows};
use crate::gemm::{self, quant};
use crate::panels::Panels;
use crate::quant_panels::QuantPanels;

/// How a weight matrix `[n = outputs, k = inputs]` is stored. Closed, so that fake-quantised storage is a further variant.
#[derive(Debug, Clone)]
pub enum Weight {
    /// f32 in 16-row panels.
    F32(Panels),
    /// bf16, by way of f32 values that are updated.
    Bf16(Mixed),
    /// The blocks of a GGUF file, for reading alone: rows are looked up and forward products computed, nothing else.
    Quantised(QuantPanels),
}

/// A matrix in bf16, which everything reads, and the f32 values that it is the rounding of, which an optimiser updates; a frozen
/// matrix has none.
#[derive(Debug, Clone)]
pub struct Mixed {
    master: Option<Panels>,
    rounded: Bf16Panels,
}

impl Weight {
    /// In f32, from row-major `[n, k]` values.
    pub fn from_rows(rows: &[f32], n: usize, k: usize) -> Self {
        Self::F32(Panels::from_rows(rows, n, k))
    }

    /// The same matrix in bf16, over its present values as f32 ones; one in quantised blocks, which has no such values, stays as
    /// it is.
    #[must_use]
    pub fn in_bf16(self) -> Self {
        match self {
            Self::F32(master) => Self::Bf16(Mixed { rounded: Bf16Panels::round(&master), master: Some(master) }),
            Self::Bf16(_) | Self::Quantised(_) => self,
        }
    }

    /// A copy for reading alone: without f32 values beside the bf16 ones.
    #[must_use]
    pub fn frozen_copy(&self) -> Self {
        match self {
            Self::F32(_) | Self::Quantised(_) => self.clone(),
            Self::Bf16(w) => Self::Bf16(Mixed { master: None, rounded: w.rounded.clone() }),
        }
    }

    /// Outputs (rows of the matrix).
    pub fn n(&self) -> usize {
        match self {
            Self::F32(p) => p.n(),
            Self::Bf16(w) => w.rounded.n(),
            Self::Quantised(w) => w.n(),
        }
    }

    /// Inputs (columns of the matrix).
    pub fn k(&self) -> usize {
        match self {
            Self::F32(p) => p.k(),
            Self::Bf16(w) => w.rounded.k(),
            Self::Quantised(w) => w.k(),
        }
    }

    /// Whether it is in quantised blocks.
    pub fn is_quantised(&self) -> bool {
        matches!(self, Self::Quantised(_))
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        let words = match self {
            Self::F32(p) => p.data().len(),
            Self::Bf16(w) => w.rounded.words().len(),
            Self::Quantised(w) => w.words().len(),
        };
        words * size_of::<u32>()
    }

    /// Refuses what quantised blocks do not allow.
    pub(crate) fn not_quantised(&self, op: &'static str) -> Result<()> {
        if self.is_quantised() { Err(Error::Quantised { op }) } else { Ok(()) }
    }

    /// Row-major `[n, k]` values: the f32 ones where there are any.
    pub fn to_rows(&self) -> Vec<f32> {
        match self {
            Self::F32(p) | Self::Bf16(Mixed { master: Some(p), .. }) => p.to_rows(),
            Self::Bf16(w) => w.rounded.to_rows(),
            Self::Quantised(w) => w.to_rows(),
        }
    }

    /// Replaces the values by row-major ones of the same shape, keeping the storage.
    ///
    /// # Errors
    /// A matrix in quantised blocks.
    pub fn set_rows(&mut self, rows: &[f32]) -> Result<()> {
        let panels = Panels::from_rows(rows, self.n(), self.k());
        match self {
            Self::F32(p) => *p = panels,
            Self::Bf16(w) => {
                w.rounded.refresh(&panels);
                w.master = w.master.is_some().then_some(panels);
            }
            Self::Quantised(_) => return Err(Error::Quantised { op: "set_rows" }),
        }
        Ok(())
    }

    /// The f32 values in the order of [`Panels::data`], where there are any.
    pub(crate) fn values(&self) -> Option<&[f32]> {
        match self {
            Self::F32(p) | Self::Bf16(Mixed { master: Some(p), .. }) => Some(p.data()),
            Self::Bf16(_) | Self::Quantised(_) => None,
        }
    }

    /// Lets `f` change the f32 values in the order of [`Panels::data`], and brings what is derived from them up to date. False,
    /// and nothing done, where there are none.
    pub(crate) fn update(&mut self, f: impl FnOnce(&mut [f32])) -> bool {
        match self {
            Self::F32(p) => f(p.data_mut()),
            Self::Bf16(Mixed { master: Some(p), rounded }) => {
                f(p.data_mut());
                rounded.refresh(p);
            }
            Self::Bf16(_) | Self::Quantised(_) => return false,
        }
        true
    }

    /// Copies row `i` to `out`, as products see it.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        match self {
            Self::F32(p) => p.row(i, out),
            Self::Bf16(w) => w.rounded.row(i, out),
            Self::Quantised(w) => w.row(i, out),
        }
    }

    /// `y = x w^T` (`y +=` when `acc`): `x [m, k]`, `y [m, n]`, row-major.
    pub(crate) fn linear<'x>(&self, x: impl Into<Rows<'x>>, m: usize, y: &mut [f32], acc: bool) {
        let x = x.into();
        match self {
            Self::F32(p) => gemm::linear(x.values, m, p, y, acc),
            Self::Bf16(w) => bf16::linear(x, m, &w.rounded, y, acc),
            Self::Quantised(w) => quant::linear(x.values, m, w, y, acc),
        }
    }

    /// `dx = dy w` (`dx +=` when `acc`): `dy [m, n]`, `dx [m, k]`, row-major.
    ///
    /// # Errors
    /// A matrix in quantised blocks.
    pub(crate) fn linear_dx<'x>(&self, dy: impl Into<Rows<'x>>, m: usize, dx: &mut [f32], acc: bool) -> Result<()> {
        let dy = dy.into();
        match self {
            Self::F32(p) => gemm::linear_dx(dy.values, m, p, dx, acc),
            Self::Bf16(w) => bf16::linear_dx(dy, m, &w.rounded, dx, acc),
            Self::Quantised(_) => return Err(Error::Quantised { op: "linear_dx" }),
        }
        Ok(())
    }

    /// `dw += dy^T x` with operands of this storage's type: `dy [m, n]`, `x [m, k]`, row-major.
    ///
    /// # Errors
    /// A matrix in quantised blocks.
    pub(crate) fn linear_dw<'x>(&self, dy: &[f32], x: impl Into<Rows<'x>>, m: usize, dw: &mut Panels) -> Result<()> {
        let x = x.into();
        match self {
            Self::F32(_) => gemm::linear_dw(dy, x.values, m, dw),
            Self::Bf16(_) => bf16::linear_dw(dy, x, m, dw),
            Self::Quantised(_) => return Err(Error::Quantised { op: "linear_dw" }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::random;

    #[test]
    fn bf16_is_the_rounding_of_what_is_updated() {
        let (n, k) = (18, 40);
        let rows = random(n * k, 1);
        let mut w = Weight::from_rows(&rows, n, k).in_bf16();
        assert_eq!(w.to_rows(), rows);
        let read = |w: &Weight, i: usize| {
            let mut row = vec![0.0; k];
            w.row(i, &mut row);
            row
        };
        let rounded = |x: &f32| half::bf16::from_f32(*x).to_f32();
        assert_eq!(read(&w, 17), rows[17 * k..].iter().map(rounded).collect::<Vec<_>>());
        assert!(w.update(|values| values.iter_mut().for_each(|x| *x *= 1.01)));
        let moved: Vec<f32> = rows.iter().map(|x| x * 1.01).collect();
        assert_eq!(w.to_rows(), moved);
        assert_eq!(read(&w, 3), moved[3 * k..4 * k].iter().map(rounded).collect::<Vec<_>>());
        let mut frozen = w.frozen_copy();
        assert!(!frozen.update(|_| ()));
        assert_eq!(frozen.to_rows(), moved.iter().map(rounded).collect::<Vec<_>>());
        frozen.set_rows(&rows).expect("f32 values");
        assert_eq!(read(&frozen, 5), rows[5 * k..6 * k].iter().map(rounded).collect::<Vec<_>>());
    }
}
