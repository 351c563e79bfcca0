//! Transformer, KV cache, generation engine, load and save.
mod config;
mod error;
mod init;
mod memory;
mod model;
mod weights;
pub use config::{Architecture, Config, RopeScaling};
pub use error::{Error, Result};
pub use model::{Attend, Model};
