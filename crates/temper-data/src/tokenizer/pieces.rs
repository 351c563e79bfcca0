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
            let clean = clean_start(tokenizer, text, cut..turn, &rest)?;
            if let Some(first) = clean {
                done.turns.push(done.ids.len() + first);
                continue;
            }
            done.push(encode(tokenizer, text, cut..turn)?);
            done.turns.push(done.ids.len());
            cut = turn;
            rest = encode(tokenizer, text, cut..text.len())?;
        }
        done.push(rest);
        Ok(done)
    }

    /// The tokens that start in bytes `..end`, from token `first` on.
    pub(crate) fn until(&self, first: usize, end: usize) -> std::ops::Range<usize> {
        let past = self.starts[first..].iter().position(|start| *start >= end);
        first..past.map_or(self.ids.len(), |past| first + past)
    }

    fn push(&mut self, (ids, starts): Tokens) {
        self.ids.extend(ids);
        self.starts.extend(starts);
    }
}

/// Ids and the byte in the whole text at which each token starts.
type Tokens = (Vec<u32>, Vec<usize>);

/// How many tokens of `rest` (the tokens from `prompt.start` on) are the prompt's, if they begin with exactly those.
///
/// What stands before a special token does not change with what follows it, so only the end of the prompt, from its
/// last special token on, is encoded to find out.
fn clean_start(
    tokenizer: &Tokenizer,
    text: &str,
    prompt: std::ops::Range<usize>,
    rest: &Tokens,
) -> Result<Option<usize>, Error> {
    let (ids, starts) = rest;
    let within = starts.partition_point(|start| *start < prompt.end);
    let anchor = (0..within).rev().find(|&i| {
        let length = tokenizer.anchor_length(ids[i]);
        length.is_some_and(|length| starts[i] + length <= prompt.end)
    });
    let (kept, end) = match anchor {
        Some(i) => (i, tokenizer.encode(&text[starts[i]..prompt.end])?),
        None => (0, encode(tokenizer, text, prompt)?.0),
    };
    Ok(ids[kept..].starts_with(&end).then_some(kept + end.len()))
}

/// The tokens of one part of the text.
fn encode(tokenizer: &Tokenizer, text: &str, part: std::ops::Range<usize>) -> Result<Tokens, Error> {
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
