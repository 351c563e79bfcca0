//! BLiMP (Warstadt et al. 2020): minimal pairs of sentences.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rows::{self, Row};
use super::{Subset, stem};
use crate::{Error, Pair};

/// A jsonl file with `sentence_good` and `sentence_bad`. A model is right about a pair if it finds the good sentence likelier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlimpSource {
    /// The file, or `hf:datasets/owner/name/file`.
    pub path: String,
    /// How many pairs to use; without it all from `start` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Pairs to pass over first.
    #[serde(default)]
    pub start: usize,
    /// Shuffle the pairs by this seed before `start` and `n` apply; without it they keep the file's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shuffle_seed: Option<u64>,
}

impl BlimpSource {
    pub(super) fn load(&self) -> Result<Vec<Pair>, Error> {
        let pairs = rows::read(&self.path)?.iter().map(pair).collect::<Result<_, _>>()?;
        Subset { path: &self.path, n: self.n, start: self.start, shuffle_seed: self.shuffle_seed }.apply(pairs)
    }
}

/// A pair of equal texts is kept (BLiMP has one): nobody can be right about it, and `validate` names it.
fn pair(row: &Row) -> Result<Pair, Error> {
    let name = stem(row.path);
    let (good, bad) = (row.text("sentence_good")?.to_owned(), row.text("sentence_bad")?.to_owned());
    Ok(Pair { id: format!("{name}:{}", row.number), good, bad, tags: vec![format!("source={name}")] })
}
