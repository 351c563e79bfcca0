//! Tokens of a rendered conversation, cut where the model begins to write.

use super::Tokenizer;
use crate::Error;

/// The tokens of a text in which the model's turns start at known bytes.
///
/// What generation sees before a turn is the tokens of the text before it, and nothing else. So the tokens of a whole
/// conversation must begin with the tokens of each prompt in it. Usually one tokenisation of the whole text does; where
/// it would merge characters across the start of a turn, the text is cut there and both sides are encoded alone.
/// No token then straddles the start of a turn. The cut side is encoded as the middle of a document: tokenizers that
/// put a space before the start of a text see a line break first, whose tokens are removed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pieces {
    pub(crate) ids: Vec<u32>,
    /// Byte at which each token starts (of its first whole or broken character).
    pub(crate) starts: Vec<usize>,
    /// For each given start of a turn, the index of the turn's first token.
    pub(crate) turns: Vec<usize>,
}

impl Pieces {
    /// `turns` are ascending bytes of `text`, on character boundaries.
    pub(crate) fn new(tokenizer: &Tokenizer, text: &str, turns: &[usize]) -> Result<Self, Error> {
        let mut done = Self { ids: Vec::new(), starts: Vec::new(), turns: Vec::with_capacity(turns.len()) };
        let mut cut = 0;
        let mut rest = encode(tokenizer, text, cut..text.len())?;
        for &turn in turns {
            let prompt = encode(tokenizer, text, cut..turn)?;
            let first = done.ids.len() + prompt.0.len();
            if !rest.0.starts_with(&prompt.0) {
                done.push(prompt);
                cut = turn;
                rest = encode(tokenizer, text, cut..text.len())?;
            }
            done.turns.push(first);
        }
        done.push(rest);
        Ok(done)
    }

    /// The tokens that start in bytes `..end`, from token `first` on.
    pub(crate) fn until(&self, first: usize, end: usize) -> std::ops::Range<usize> {
        let past = self.starts[first..].iter().position(|start| *start >= end);
        first..past.map_or(self.ids.len(), |past| first + past)
    }

    fn push(&mut self, (ids, starts): (Vec<u32>, Vec<usize>)) {
        self.ids.extend(ids);
        self.starts.extend(starts);
    }
}

/// Ids and starts (in the whole text) of one part of it.
fn encode(tokenizer: &Tokenizer, text: &str, part: std::ops::Range<usize>) -> Result<(Vec<u32>, Vec<usize>), Error> {
    let base = part.start;
    let part = &text[part];
    if part.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    if base > 0
        && let Some(guard) = tokenizer.guard()
    {
        let (ids, starts) = tokenizer.encode_with_starts(&format!("\n{part}"))?;
        if let Some(ids) = ids.strip_prefix(guard) {
            let starts = starts[guard.len()..].iter().map(|start| base + start.saturating_sub(1)).collect();
            return Ok((ids.to_vec(), starts));
        }
    }
    let (ids, starts) = tokenizer.encode_with_starts(part)?;
    Ok((ids, starts.into_iter().map(|start| base + start).collect()))
}
