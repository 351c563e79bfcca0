//! Parameter gradients over chosen rows, and arithmetic on whole gradients.

use std::ops::Range;

use crate::buf::Buf;
use crate::cpu::checks::{count, grad_shape, ids_below, matrix, same_shape, vector};
use crate::cpu::part;
use crate::error::{Error, Result};
use crate::kernels::{elementwise, embed, norm};
use crate::ops::Tensor;
use crate::params::{Grad, ParamValue};
use crate::sink::mix;
use crate::weight::Weight;

pub(super) fn flat(g: &Grad) -> &[f32] {
    match g {
        Grad::Matrix(p) => p.data(),
        Grad::Vector(t) => t.host(),
    }
}

pub(super) fn flat_mut(g: &mut Grad) -> &mut [f32] {
    match g {
        Grad::Matrix(p) => p.data_mut(),
        Grad::Vector(t) => t.host_mut(),
    }
}

/// The f32 values of a parameter, in the layout of its gradient.
fn values<'p>(op: &'static str, p: &'p ParamValue) -> Result<&'p [f32]> {
    match p {
        ParamValue::Matrix(w) => w.values().ok_or(Error::Frozen { op }),
        ParamValue::Vector(t) => Ok(t.host()),
    }
}

pub(super) fn pull(g: &mut Grad, p: &ParamValue, to: &Grad, weight: f32) -> Result<f64> {
    let (g, p, to) = (flat_mut(g), values("grad_pull", p)?, flat(to));
    count("grad_pull", "values of the parameter", p.len(), g.len())?;
    count("grad_pull", "values to pull to", to.len(), g.len())?;
    let mut squares = 0.0;
    for ((g, p), to) in g.iter_mut().zip(p).zip(to) {
        let away = p - to;
        *g += weight * away;
        squares += f64::from(away) * f64::from(away);
    }
    Ok(squares)
}

pub(super) fn mix_in(average: &mut Grad, p: &ParamValue, share: f32) -> Result<()> {
    let (average, p) = (flat_mut(average), values("grad_mix", p)?);
    count("grad_mix", "values of the parameter", p.len(), average.len())?;
    average.iter_mut().zip(p).for_each(|(a, p)| *a += share * (p - *a));
    Ok(())
}

pub(super) fn mix_param(p: &mut ParamValue, x: &Grad, share: f32) -> Result<()> {
    let x = flat(x);
    let mut outcome = Ok(());
    let mut mix = |values: &mut [f32]| match count("param_mix", "values", x.len(), values.len()) {
        Ok(()) if share == 1.0 => values.copy_from_slice(x),
        Ok(()) => values.iter_mut().zip(x).for_each(|(p, x)| *p += share * (x - *p)),
        Err(wrong) => outcome = Err(wrong),
    };
    match p {
        ParamValue::Matrix(w) => {
            if !w.update(mix) {
                return Err(Error::Frozen { op: "param_mix" });
            }
        }
        ParamValue::Vector(t) => mix(t.host_mut()),
    }
    outcome
}

fn inside(op: &'static str, rows: &[Range<usize>], len: usize) -> Result<()> {
    match rows.iter().find(|r| r.end > len || r.start > r.end) {
        Some(r) => Err(Error::Index { op, index: r.end, len: len + 1 }),
        None => Ok(()),
    }
}

pub(super) fn embedding(dy: &Tensor, ids: &[u32], rows: &[Range<usize>], dw: &mut Grad) -> Result<()> {
    let vocab = match dw {
        Grad::Matrix(p) => p.n(),
        Grad::Vector(_) => 0,
    };
    let dw = matrix("embedding_dw", dw, (vocab, dy.cols))?;
    count("embedding_dw", "ids", ids.len(), dy.rows)?;
    ids_below("embedding_dw", ids, vocab)?;
    inside("embedding_dw", rows, dy.rows)?;
    for r in rows {
        embed::embedding_dw(part(dy, r), &ids[r.clone()], dw);
    }
    Ok(())
}

pub(super) fn linear(dy: &Tensor, x: &Tensor, w: &Weight, rows: &[Range<usize>], dw: &mut Grad) -> Result<()> {
    let dw = matrix("linear_dw", dw, (w.n(), w.k()))?;
    same_shape("linear_dw", "dy", dy, (dy.rows, w.n()))?;
    same_shape("linear_dw", "x", x, (dy.rows, w.k()))?;
    inside("linear_dw", rows, dy.rows)?;
    for r in rows {
        let of_x = if r.len() == x.rows { x.operand() } else { part(x, r).into() };
        w.linear_dw(part(dy, r), of_x, r.len(), dw)?;
    }
    Ok(())
}

pub(super) fn rms_norm(dy: &Tensor, x: &Tensor, eps: f32, rows: &[Range<usize>], dw: &mut Grad) -> Result<()> {
    let dw = vector("rms_norm_dw", dw, x.cols)?;
    same_shape("rms_norm_dw", "dy", dy, x.shape())?;
    inside("rms_norm_dw", rows, dy.rows)?;
    for r in rows {
        let mut inv = Buf::dirty(r.len());
        norm::rms_inv(part(x, r), x.cols, eps, &mut inv);
        norm::rms_norm_dw(part(dy, r), part(x, r), &inv, dw);
    }
    Ok(())
}

pub(super) fn bias(dy: &Tensor, rows: &[Range<usize>], db: &mut Grad) -> Result<()> {
    let db = vector("bias_db", db, dy.cols)?;
    inside("bias_db", rows, dy.rows)?;
    for r in rows {
        elementwise::bias_db(part(dy, r), db);
    }
    Ok(())
}

/// `out[d] += sum over i, j of sign(seed, i, j, d) * g[i, j]`; 64 signs come from one hash.
pub(super) fn project(g: &Grad, seed: u64, out: &mut [f64]) {
    let (n, k) = grad_shape(g);
    let mut row = vec![0.0; k];
    for i in 0..n {
        match g {
            Grad::Matrix(p) => p.row(i, &mut row),
            Grad::Vector(t) => row.copy_from_slice(&t.host()[i * k..(i + 1) * k]),
        }
        for (j, &x) in row.iter().enumerate().filter(|(_, x)| **x != 0.0) {
            let entry = mix(seed, (i * k + j) as u64);
            for (word, out) in out.chunks_mut(64).enumerate() {
                let signs = mix(entry, word as u64);
                for (bit, out) in out.iter_mut().enumerate() {
                    *out += if signs >> bit & 1 == 0 { f64::from(x) } else { -f64::from(x) };
                }
            }
        }
    }
}
