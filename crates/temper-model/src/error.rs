//! The crate's one error type.

use std::path::{Path, PathBuf};

/// What can go wrong with a model. Messages name the value, what was expected and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model could not be read or written, or is damaged.
    #[error(transparent)]
    File(#[from] temper_format::Error),
    /// The caller asked for an end.
    #[error("stopped on request")]
    Aborted,
    /// The engine refused.
    #[error(transparent)]
    Tensor(#[from] temper_tensor::Error),
    /// A file that belongs to the model is not there or not readable.
    #[error("cannot read `{path}`: {source}; expected a Hugging Face model directory or a .gguf file")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file of settings is not what it should be.
    #[error("`{path}`: {why}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Something is wrong with the settings in a file.
    #[error("`{path}`: {source}")]
    In {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<Error>,
    },
    /// A value of the configuration is out of range or contradicts another.
    #[error("model config: `{field}` is {found}; expected {expected}")]
    Config {
        /// The field, in Hugging Face spelling.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// The configuration asks for something that Temper does not compute.
    #[error("model config: {what} is not supported; {way_out}")]
    Unsupported {
        /// The feature, with its value.
        what: String,
        /// What can be done.
        way_out: String,
    },
    /// Something is wrong with an adapter or its settings.
    #[error("adapter: {what}; {way_out}")]
    Adapter {
        /// The value and what is wrong with it.
        what: String,
        /// What can be done.
        way_out: String,
    },
    /// Another kind of model.
    #[error("model architecture `{found}` is not supported; supported: {supported}")]
    Architecture {
        /// The architecture that the model names.
        found: String,
        /// Those that Temper has.
        supported: String,
    },
    /// The weights do not fit in this machine's memory.
    #[error("the model has {parameters} parameters, {needed} bytes, but this machine has {available} bytes of memory")]
    TooLarge {
        /// Number of parameters by the configuration.
        parameters: u64,
        /// Bytes of the weights alone.
        needed: u64,
        /// Physical memory.
        available: u64,
    },
    /// A tensor's shape contradicts the configuration.
    #[error("`{path}`: tensor `{name}` has shape {found:?}, the config asks for {expected:?}")]
    TensorShape {
        /// The file or directory of weights.
        path: PathBuf,
        /// The tensor, as the file spells it.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape by the configuration.
        expected: Vec<usize>,
    },
    /// The file's tensors are not those of the configured model.
    #[error("`{path}` does not hold the model that its config describes: {}", listed(missing, unexpected))]
    TensorNames {
        /// The file or directory of weights.
        path: PathBuf,
        /// Tensors that the model needs and the file lacks.
        missing: Vec<String>,
        /// Tensors that the model has no place for.
        unexpected: Vec<String>,
    },
    /// `tie_word_embeddings` is set, but the file's two matrices differ.
    #[error(
        "`{path}`: `lm_head.weight` differs from `model.embed_tokens.weight` although the config ties them; \
         set \"tie_word_embeddings\" to false in config.json, or remove `lm_head.weight`"
    )]
    TiedHeadDiffers {
        /// The file or directory of weights.
        path: PathBuf,
    },
    /// A weight is not a finite number.
    #[error("`{path}`: tensor `{name}` holds {value}; the file is damaged or its training diverged")]
    NotFinite {
        /// The file or directory of weights.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The first such value.
        value: f32,
    },
    /// A model to be computed in quantised blocks has none.
    #[error(
        "`{path}` holds no quantised blocks; give a .gguf file with matrices of type Q4_0, Q4_1 or Q8_0, or compute in f32"
    )]
    NotQuantised {
        /// The file or directory of weights.
        path: PathBuf,
    },
    /// A sequence does not fit in the model's context.
    #[error("{what} has {len} tokens, but the model's context holds {context} (max_position_embeddings); shorten it")]
    TooLong {
        /// Which sequence, "the prompt" for one.
        what: String,
        /// Its length in tokens.
        len: usize,
        /// The longest that would fit.
        context: usize,
    },
    /// A token id is not in the vocabulary.
    #[error(
        "token id {id} is outside the model's vocabulary of {vocab_size}; does the tokenizer belong to this model?"
    )]
    TokenId {
        /// The id.
        id: u32,
        /// Number of ids.
        vocab_size: usize,
    },
    /// Something to be scored or sampled from has no token before it.
    #[error("{what}: no token comes before it, and a model predicts from at least one; begin with the bos token")]
    NothingBefore {
        /// What was asked for.
        what: &'static str,
    },
    /// A setting of the sampler is out of range.
    #[error("sampling: `{field}` is {found}; expected {expected}")]
    Sampling {
        /// The setting.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The model produced numbers that are no probabilities.
    #[error(
        "the model's logits hold {value} at token {position} of a sequence; its weights are damaged or training diverged"
    )]
    BadLogits {
        /// The value found.
        value: f32,
        /// Position of the token that was to be drawn.
        position: usize,
    },
    /// A session belongs to a model of another shape.
    #[error("the session was made for another model: its cache has {found}, this model needs {expected}")]
    OtherModel {
        /// Layers, kv heads and head size of the session's cache.
        found: String,
        /// Those of the model.
        expected: String,
    },
}

impl Error {
    #[expect(clippy::needless_pass_by_value, reason = "numbers and literals read better without `&`")]
    pub(crate) fn config(field: &'static str, found: impl ToString, expected: impl Into<String>) -> Self {
        Self::Config { field, found: found.to_string(), expected: expected.into() }
    }

    pub(crate) fn unsupported(what: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), way_out: way_out.into() }
    }

    pub(crate) fn adapter(what: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self::Adapter { what: what.into(), way_out: way_out.into() }
    }

    /// The same error with the file that it is about.
    pub(crate) fn within(path: &Path) -> impl FnOnce(Self) -> Self {
        let path = path.to_path_buf();
        move |source| Self::In { path, source: Box::new(source) }
    }

    pub(crate) fn json(path: &Path, why: &impl ToString) -> Self {
        Self::Json { path: path.to_path_buf(), why: why.to_string() }
    }
}

/// The crate's result type.
pub type Result<T> = std::result::Result<T, Error>;

fn listed(missing: &[String], unexpected: &[String]) -> String {
    let part = |what: &str, names: &[String]| {
        (!names.is_empty()).then(|| format!("{} {what}: {}", names.len(), first_few(names)))
    };
    let parts: Vec<String> = [part("missing", missing), part("unexpected", unexpected)].into_iter().flatten().collect();
    parts.join("; ")
}

fn first_few(names: &[String]) -> String {
    const MOST: usize = 8;
    let mut list: Vec<String> = names.iter().take(MOST).map(|n| format!("`{}`", n.escape_debug())).collect();
    if names.len() > MOST {
        list.push(format!("and {} more", names.len() - MOST));
    }
    list.join(", ")
}
