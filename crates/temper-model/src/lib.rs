//! Transformers of the Llama family: configuration, weights, forward pass, batches, scoring and generation.
//!
//! [`Model::load`] reads a Hugging Face directory or a GGUF file, [`Model::init`] makes random weights, [`Model::save`]
//! writes a directory that transformers loads. [`Model::hidden`] is the one forward pass, over a [`Batch`] in training
//! and over key/value caches in generation, with bitwise equal results. [`Engine`] samples [`Completion`]s with
//! continuous batching; [`Session`] is a sequence that can be continued, forked and scored.
//!
//! [`Model::attach`] puts a [`Lora`] beside frozen weights, [`Model::load_adapter`] reads one in PEFT's format, and
//! [`Model::merge_adapter`] adds it to the weights.
//!
//! This crate knows token ids only: text, losses, optimisers and recipes belong to others.

mod adapter;
mod batch;
mod config;
mod error;
mod generate;
mod init;
mod memory;
mod model;
mod score;
mod weights;

pub use adapter::{Lora, adapter_base, is_adapter, linear_layers, matches_target};
pub use batch::{Batch, Reply, ScoredSequence};
pub use config::{Architecture, Config, RopeScaling};
pub use error::{Error, Result};
pub use generate::{Author, Completion, Engine, Progress, Request, Sample, Sampling, Session, Stop, Turn, generate};
pub use model::{Attend, Model};
pub use score::Scored;
