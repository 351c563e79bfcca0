//! The engine: buffers, fused operations with hand-written backward, tape, GEMM, attention, head terms, optimiser step.
//!
//! How it is used:
//!
//! ```no_run
//! # fn main() -> temper_tensor::Result<()> {
//! use std::sync::Arc;
//! use temper_tensor::{AttnShape, Cpu, GradSink, Grads, Ops, Params, Segments, Tape};
//!
//! let ops = Cpu::new();
//! let mut params = Params::new();
//! let embed = params.add_matrix("embed", 100, 32, &vec![0.1; 3200])?; // [V, C], row-major
//! let norm = params.add_vector(&ops, "norm", &[1.0; 32])?;
//! let mut grads = Grads::zeros(&ops, &params)?;
//!
//! let tape = Tape::new(&ops, &params, true);
//! let x = tape.embedding(embed, &[1, 2, 3])?; // [N, C]
//! let x = tape.rms_norm(&x, norm, 1e-5)?;
//! let d = ops.upload(3, 32, &[1.0; 96])?; // gradient of the loss with respect to x
//! tape.backward(&x, d, &mut GradSink::Accumulate(&mut grads))?;
//! # Ok(()) }
//! ```
//!
//! | what | where |
//! |---|---|
//! | batch layout: packed sequences, shared prompts, trees | [`Segments`], [`Segment`] |
//! | parameters and what they may be stored as | [`Params`], [`Weight`] (closed enum), [`Panels`], [`Bf16Panels`], [`QuantPanels`] |
//! | running and recording operations | [`Tape`], [`Var`]; [`Tape::checkpoint`] recomputes a block in backward |
//! | activations at named points: capture, replace, inject | [`Tape::point`], [`Hooks`] |
//! | parameter gradients: summed, or reduced per example | [`GradSink`], [`Grads`], [`Examples`] |
//! | gradients of inputs (soft prompts) | [`Tape::input`], [`InputGrads`] |
//! | head: log-probabilities without `[N, V]` logits | [`Ops::head_terms`], [`Ops::head_backward`], [`row_terms`] |
//! | sampling | [`KvCache`], [`CacheSlot`], [`Tape::cached_attention`], [`Ops::head_logits`]; threads that do not sleep: [`awake`] |
//! | optimiser step | [`adamw_step`], [`AdamState`], [`grad_norm`], [`clip_scale`] |
//! | what the machine can do at most | [`probe::ceilings`] |
//! | the device | [`Ops`] (one object-safe trait), [`Cpu`], [`Tensor`], [`Storage`] (closed enum) |
//!
//! Promises: one output element's order of additions depends on its own reduction length alone (never on the number of
//! rows, their place, their neighbours or the number of threads), so that sampling and training agree bitwise. Tensor
//! contents are reached through [`Ops`] alone, so that a second device is a second implementation of that trait.

mod attention;
mod awake;
mod bf16_panels;
pub mod buf;
mod cpu;
mod error;
pub mod gemm;
pub mod head;
pub mod isa;
pub mod kernels;
mod kv;
mod ops;
mod optim;
mod panels;
mod params;
pub mod probe;
mod quant_panels;
mod segments;
mod sink;
mod tape;
mod weight;

pub use attention::attention_weights;
pub use awake::awake;
pub use bf16_panels::Bf16Panels;
pub use buf::Buf;
pub use cpu::Cpu;
pub use error::{Error, Result};
pub use head::{HeadCoef, HeadSpec, HeadTerms, RowTerms, row_terms};
pub use isa::{Dot, Isa, dot, f32_products, isa};
pub use kernels::dropout::Dropout;
pub use kv::{CacheSlot, KvCache, KvPage, PAGE, page_bytes};
pub use ops::{AttnGrads, AttnSaved, AttnShape, Binary, Gate, Ops, Reduce, RopeTable, Storage, Tensor, Unary};
pub use optim::{AdamState, AdamStep, AdamW, adamw_step, clip_scale, grad_norm};
pub use panels::{LANES, Panels};
pub use params::{Grad, Grads, Param, ParamId, ParamValue, Params};
pub use quant_panels::{Blocks, QuantPanels};
pub use segments::{Segment, Segments};
pub use sink::{Examples, GradSink, Held};
pub use tape::{Hooks, InputGrads, Tape, Var};
pub use weight::{Mixed, Weight};
