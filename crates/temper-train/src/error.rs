//! The crate's error: a message that names the value and what was expected, and the way out.

use std::path::{Path, PathBuf};

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can end a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that the user can mend.
    #[error("{message}")]
    User {
        /// What is wrong: the value and what was expected.
        message: String,
        /// The way out.
        hint: String,
    },
    /// A file could not be read or written.
    #[error("`{path}`: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] crate::recipe::RecipeError),
    /// Array files.
    #[error(transparent)]
    Format(#[from] temper_format::Error),
    /// Data, tokenizer or template.
    #[error(transparent)]
    Data(#[from] temper_data::Error),
    /// Tasks, verifiers and rewards.
    #[error(transparent)]
    Env(#[from] temper_env::Error),
    /// An objective or a statistic.
    #[error(transparent)]
    Algo(#[from] temper_algo::Error),
    /// The model.
    #[error(transparent)]
    Model(#[from] temper_model::Error),
    /// The engine.
    #[error(transparent)]
    Tensor(#[from] temper_tensor::Error),
    /// A number that is not one.
    #[error("{what} is {value} in step {step} of stage `{stage}`: {batch}")]
    NotFinite {
        /// Loss or gradient norm.
        what: &'static str,
        /// NaN or an infinity.
        value: f64,
        /// Stage.
        stage: String,
        /// Step, from 1.
        step: usize,
        /// The examples or tasks of the batch.
        batch: String,
    },
}

impl Error {
    /// A mistake that the user can mend, with the way out.
    pub fn user(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::User { message: message.into(), hint: hint.into() }
    }

    /// A failed file operation.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// The way out, where there is one to name.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::User { hint, .. } => Some(hint),
            Self::NotFinite { .. } => Some(
                "lower the learning rate, or look at the named batch, and start again with another --out; the last good \
                 checkpoint and the models of the stages before are kept",
            ),
            _ => None,
        }
    }
}
