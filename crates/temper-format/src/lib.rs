//! Named host arrays and their files: safetensors and GGUF codecs, atomic writes.
//!
//! A file of weights is an [`ArraySource`]: names, a [`DType`] and a row-major shape for each, and
//! [`ArraySource::read_f32`], which reads one array at a time by `pread` and converts it while reading.
//! [`SafetensorsDir`] and [`SafetensorsFile`] read Hugging Face checkpoints, [`Gguf`] reads llama.cpp's format;
//! [`write_safetensors`] and [`write_gguf`] write them. Everything that is written goes aside first and is renamed
//! into place ([`atomic`]), so that a reader sees the old file or the new one and never half of one.
//!
//! Headers are treated as hostile: every size is compared with the file before it is used, so a broken or malicious
//! file gives an [`Error`] that names the path, what was found and what was expected.
//!
//! This crate knows nothing about models, text or tensors. GGUF arrays keep their GGUF names.

pub mod atomic;
mod blocks;
mod convert;
mod dtype;
mod error;
mod gguf;
mod safetensors;
mod source;
mod write;

pub use dtype::{DType, Foreign};
pub use error::Error;
pub use gguf::{Gguf, GgufValue, write_gguf};
pub use safetensors::{SafetensorsDir, SafetensorsFile, SafetensorsWriter, write_safetensors};
pub use source::{ArrayInfo, ArraySource};
pub use write::{ArrayData, ArrayRef};
