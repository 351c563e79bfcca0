//! The one error type of this crate.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a file of arrays. Messages name the path, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: not found, no permission, no space left, and so on; `source` says which.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The path leads to something of the wrong kind.
    #[error("`{path}` is {found}; expected {expected}")]
    BadPath {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What should be there.
        expected: &'static str,
    },
    /// The file breaks its format: truncated, overlapping, overflowing, or not this format at all.
    #[error("`{path}` is damaged or of another format: {what} is {found}; expected {expected}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which field or array.
        what: String,
        /// What the file says.
        found: String,
        /// What would be valid.
        expected: String,
    },
    /// The file is valid, but this type or version is not one that Temper reads or writes.
    #[error("{what} in `{path}` is {found}, which is not supported; expected {expected}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Which array or field.
        what: String,
        /// The type or version found.
        found: String,
        /// What is supported, or the way out.
        expected: String,
    },
    /// No array of this name.
    #[error("`{path}` has no array named `{name}` (it holds {count} arrays)")]
    NoSuchArray {
        /// The file or directory.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// How many arrays there are.
        count: usize,
    },
    /// The directory holds no weights that can be read.
    #[error("`{path}` holds neither `model.safetensors` nor `model.safetensors.index.json`{hint}")]
    NoWeights {
        /// The directory.
        path: PathBuf,
        /// What is there instead, as a continuation of the sentence; may be empty.
        hint: String,
    },
    /// An array handed to a writer does not fit its description.
    #[error("cannot write `{name}` to `{path}`: {found}; expected {expected}")]
    BadArray {
        /// The file being written.
        path: PathBuf,
        /// The array.
        name: String,
        /// What was given.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// The memory for one array could not be had.
    #[error("`{name}` in `{path}` needs {bytes} bytes of memory, which could not be allocated")]
    OutOfMemory {
        /// The file.
        path: PathBuf,
        /// The array.
        name: String,
        /// How much was asked for.
        bytes: u64,
    },
    /// Another writer is at work on the same target.
    #[error("`{path}` is being written by another process or writer; wait for it or choose another name")]
    Busy {
        /// The target.
        path: PathBuf,
    },
}

impl Error {
    /// The file or directory that the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::BadPath { path, .. }
            | Self::Malformed { path, .. }
            | Self::Unsupported { path, .. }
            | Self::NoSuchArray { path, .. }
            | Self::NoWeights { path, .. }
            | Self::BadArray { path, .. }
            | Self::OutOfMemory { path, .. }
            | Self::Busy { path } => path,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn bad_path(path: &Path, found: &'static str, expected: &'static str) -> Self {
        Self::BadPath { path: path.to_path_buf(), found, expected }
    }

    pub(crate) fn malformed(
        path: &Path,
        what: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Malformed { path: path.to_path_buf(), what: what.into(), found: found.into(), expected: expected.into() }
    }

    pub(crate) fn bad_array(path: &Path, name: &str, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::BadArray { path: path.to_path_buf(), name: shown(name), found: found.into(), expected: expected.into() }
    }
}

/// A name from a file, made fit for a message: control characters escaped, long ones cut.
pub(crate) fn shown(name: &str) -> String {
    const MOST: usize = 96;
    let mut out: String = name.chars().take(MOST).flat_map(char::escape_debug).collect();
    if name.chars().nth(MOST).is_some() {
        out.push_str("...");
    }
    out
}
