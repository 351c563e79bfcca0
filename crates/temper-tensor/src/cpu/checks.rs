//! Argument checks of the CPU device.

use crate::error::{Error, Result};
use crate::kv::CacheSlot;
use crate::ops::{AttnShape, Tensor};
use crate::panels::Panels;
use crate::params::Grad;

pub(super) fn shape<T>(op: &'static str, what: &'static str, t: &Tensor, expected: String) -> Result<T> {
    Err(Error::Shape { op, what, got: t.shape(), expected })
}

pub(super) fn same_shape(op: &'static str, what: &'static str, t: &Tensor, expected: (usize, usize)) -> Result<()> {
    if t.shape() == expected { Ok(()) } else { shape(op, what, t, format!("[{}, {}]", expected.0, expected.1)) }
}

pub(super) fn count(op: &'static str, what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::Count { op, what, got, expected }) }
}

pub(super) fn ids_below(op: &'static str, ids: &[u32], len: usize) -> Result<()> {
    match ids.iter().find(|&&i| i as usize >= len) {
        Some(&i) => Err(Error::Index { op, index: i as usize, len }),
        None => Ok(()),
    }
}

pub(super) fn broadcast(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    if (b.rows == 1 || b.rows == a.rows) && (b.cols == 1 || b.cols == a.cols) {
        return Ok(());
    }
    shape(op, "b", b, format!("one row or {}, one column or {}", a.rows, a.cols))
}

pub(super) fn attention(op: &'static str, q: &Tensor, k: &Tensor, v: &Tensor, s: &AttnShape) -> Result<()> {
    s.check()?;
    same_shape(op, "q", q, (q.rows, s.heads * s.head_dim))?;
    same_shape(op, "k", k, (q.rows, s.kv_heads * s.head_dim))?;
    same_shape(op, "v", v, (q.rows, s.kv_heads * s.head_dim))
}

/// The slots must lie inside the rows without overlap, and their caches fit the shape.
pub(super) fn slots(slots: &[CacheSlot], rows: usize, layer: usize, s: &AttnShape) -> Result<()> {
    let bits = |bf16| if bf16 { 16 } else { 32 };
    let mut next = 0;
    for slot in slots {
        let cache = &slot.cache;
        let fits = [
            ("kv_heads", cache.kv_heads(), s.kv_heads),
            ("head_dim", cache.head_dim(), s.head_dim),
            ("bits of a value", bits(cache.bf16()), bits(s.bf16)),
            ("first row of a slot", slot.rows.start, next),
        ];
        for (what, got, expected) in fits {
            if got != expected {
                return Err(Error::Cache { what, got, expected });
            }
        }
        if layer >= cache.layers() {
            return Err(Error::Index { op: "cached_attention", index: layer, len: cache.layers() });
        }
        next = slot.rows.end.max(next);
    }
    if next == rows { Ok(()) } else { Err(Error::Cache { what: "rows in slots", got: next, expected: rows }) }
}

/// The panels of a matrix gradient of the expected shape.
pub(super) fn matrix<'g>(op: &'static str, g: &'g mut Grad, expected: (usize, usize)) -> Result<&'g mut Panels> {
    let got = grad_shape(g);
    match g {
        Grad::Matrix(p) if got == expected => Ok(p),
        _ => wrong_grad(op, got, format!("a matrix [{}, {}]", expected.0, expected.1)),
    }
}

/// The values of a vector gradient of the expected length.
pub(super) fn vector<'g>(op: &'static str, g: &'g mut Grad, cols: usize) -> Result<&'g mut [f32]> {
    let got = grad_shape(g);
    match g {
        Grad::Vector(t) if got == (1, cols) => Ok(t.host_mut()),
        _ => wrong_grad(op, got, format!("a vector [1, {cols}]")),
    }
}

pub(super) fn grad_shape(g: &Grad) -> (usize, usize) {
    match g {
        Grad::Matrix(p) => (p.n(), p.k()),
        Grad::Vector(t) => t.shape(),
    }
}

fn wrong_grad<T>(op: &'static str, got: (usize, usize), expected: String) -> Result<T> {
    Err(Error::Shape { op, what: "the gradient buffer", got, expected })
}
