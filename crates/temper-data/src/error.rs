//! The crate's errors: each names the value, what was expected and the way out.

use std::path::PathBuf;

/// What can go wrong with text, tokenizers and data files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {why}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's or decoder's message.
        why: String,
    },
    /// A file has another shape than expected.
    #[error("{path}: {why}", path = .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, what was expected, the way out.
        why: String,
    },
    /// Lines of a data file that cannot be read as examples; none is skipped silently.
    #[error("{path}: {count} bad {rows} of {read}{listing}", path = .path.display(),
            rows = if *.count == 1 { "row" } else { "rows" }, listing = listing(.first, *.count))]
    BadRows {
        /// The file.
        path: PathBuf,
        /// How many rows are bad.
        count: usize,
        /// How many rows were read.
        read: usize,
        /// The first ten: line (or element) number and problem.
        first: Vec<(usize, String)>,
    },
    /// A data format whose settings contradict each other.
    #[error("data format: {0}")]
    Format(String),
    /// A chat template that does not parse.
    #[error("chat template: {0}")]
    TemplateSyntax(String),
    /// A chat template that cannot render a conversation.
    #[error("the chat template cannot render the conversation: {0}")]
    Render(String),
    /// A chat template that was stopped because its rendering does not end.
    #[error(
        "the chat template was stopped after {steps} steps: it does not end, or not within reason; look for loops over \
         large ranges in it"
    )]
    EndlessTemplate {
        /// How many steps of the template engine it was given.
        steps: u64,
    },
    /// A tokenizer definition that is not usable.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A text that the tokenizer cannot encode.
    #[error("the tokenizer cannot encode the text: {0}")]
    Encode(String),
    /// An example that exceeds the limit under `overflow = "error"`.
    #[error("example {id}: {cause}; shorten it, raise max_tokens, or set overflow to drop or truncate")]
    Overflow {
        /// The example.
        id: String,
        /// The numbers.
        cause: String,
    },
    /// No token of the whole data set would be trained on.
    #[error("no token would be trained on: of {rows} rows {detail}")]
    NothingSupervised {
        /// Rows read.
        rows: usize,
        /// Dropped rows by cause, with what was said about the first of each.
        detail: String,
        /// [`Cause::name`](crate::Cause::name) of the commonest cause; empty if no row was dropped.
        cause: String,
    },
    /// A sampler's settings make no sense.
    #[error("sampler: {0}")]
    Sampler(String),
    /// A problem in a file format below (GGUF, atomic writes).
    #[error(transparent)]
    Storage(#[from] temper_format::Error),
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>, why: impl std::fmt::Display) -> Self {
        Self::File { path: path.into(), why: why.to_string() }
    }

    pub(crate) fn content(path: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        Self::Content { path: path.into(), why: why.into() }
    }
}

fn listing(first: &[(usize, String)], count: usize) -> String {
    let mut lines: Vec<String> = first.iter().map(|(line, why)| format!("\n  row {line}: {why}")).collect();
    if count > first.len() {
        lines.push(format!("\n  ... and {} more", count - first.len()));
    }
    lines.concat()
}
