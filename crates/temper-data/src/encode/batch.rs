//! Encoding a whole data set, with an account of what was left out and why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Cause, Encoded, MaskPolicy, Overflow, encode};
use crate::{Error, Example, Tokenizer};

/// How many examples a report names for each cause.
const NAMED: usize = 5;

/// What became of a data set. `rows == kept + dropped`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Examples given.
    pub rows: usize,
    /// Examples that are trained on.
    pub kept: usize,
    /// Examples left out, by [`Cause::name`].
    pub dropped: BTreeMap<String, Dropped>,
    /// Kept examples whose end was cut off.
    pub truncated: usize,
    /// Tokens with a weight above 0 in kept examples.
    pub supervised_tokens: usize,
    /// Tokens of kept examples.
    pub tokens: usize,
    /// Turns left out of kept examples because the chat template rewrites them ([`Encoded::rewritten_turns`]).
    pub rewritten_turns: usize,
    /// Trained turns whose opening differs from the prompt of generation ([`Encoded::unlike_prompt`]).
    pub unlike_prompt: usize,
    /// Trained turns without an end marker ([`Encoded::endless_turns`]).
    pub endless_turns: usize,
}

/// Examples left out for one cause.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// How many.
    pub count: usize,
    /// The first few, by id.
    pub first: Vec<String>,
    /// What was said about the first.
    pub why: String,
}

impl Report {
    /// Supervised tokens over all tokens of kept examples, 0 to 1.
    pub fn supervised_share(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.supervised_tokens as f64 / self.tokens as f64 }
    }

    /// Examples left out.
    pub fn dropped_rows(&self) -> usize {
        self.dropped.values().map(|dropped| dropped.count).sum()
    }

    fn keep(&mut self, encoded: &Encoded) {
        self.kept += 1;
        self.truncated += usize::from(encoded.truncated);
        self.supervised_tokens += encoded.supervised();
        self.tokens += encoded.ids.len();
        self.rewritten_turns += encoded.rewritten_turns;
        self.unlike_prompt += encoded.unlike_prompt;
        self.endless_turns += encoded.endless_turns;
    }

    fn drop_row(&mut self, id: &str, cause: &Cause) {
        let dropped = self.dropped.entry(cause.name().to_owned()).or_default();
        dropped.count += 1;
        if dropped.count == 1 {
            dropped.why = cause.to_string();
        }
        if dropped.first.len() < NAMED {
            dropped.first.push(id.to_owned());
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rows, kept, tokens, supervised_tokens, .. } = self;
        let share = 100.0 * self.supervised_share();
        write!(f, "{rows} rows, {kept} kept, {tokens} tokens, {supervised_tokens} supervised ({share:.1} %)")?;
        for (what, count) in [
            ("rows truncated", self.truncated),
            ("turns not trained because the template rewrites them", self.rewritten_turns),
            ("trained turns that generation would open differently", self.unlike_prompt),
            ("trained turns without an end marker", self.endless_turns),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        self.dropped.iter().try_for_each(|(name, Dropped { count, first, why })| {
            write!(f, "\n{count} dropped, {name}: {why} (first: {})", first.join(", "))
        })
    }
}

/// Encodes every example, in order. What cannot be trained on is left out and reported by cause.
///
/// An error if [`Overflow::Error`] meets a long example, if the chat template does not end, or if no token at all would
/// be trained on.
pub fn encode_all(
    tokenizer: &Tokenizer,
    examples: &[Example],
    mask: MaskPolicy,
    max_tokens: usize,
    overflow: Overflow,
) -> Result<(Vec<(String, Encoded)>, Report), Error> {
    let mut report = Report { rows: examples.len(), ..Report::default() };
    let mut kept = Vec::with_capacity(examples.len());
    for example in examples {
        match encode(tokenizer, example, mask, max_tokens, overflow) {
            Ok(encoded) => {
                report.keep(&encoded);
                kept.push((example.id.clone(), encoded));
            }
            Err(cause @ Cause::TooLong { .. }) if overflow == Overflow::Error => {
                return Err(Error::Overflow { id: example.id.clone(), cause: cause.to_string() });
            }
            // Every other row would take as long to find that out.
            Err(Cause::EndlessTemplate { steps }) => return Err(Error::EndlessTemplate { steps }),
            Err(cause) => report.drop_row(&example.id, &cause),
        }
    }
    if report.supervised_tokens == 0 {
        return Err(nothing(&report));
    }
    Ok((kept, report))
}

fn nothing(report: &Report) -> Error {
    let causes = report.dropped.iter();
    let listed: Vec<String> =
        causes.map(|(name, Dropped { count, why, .. })| format!("{count} dropped, {name}: {why}")).collect();
    let detail = if listed.is_empty() { "there are none".to_owned() } else { listed.join("; ") };
    let commonest = report.dropped.iter().max_by_key(|(_, dropped)| dropped.count);
    let cause = commonest.map(|(name, _)| name.clone()).unwrap_or_default();
    Error::NothingSupervised { rows: report.rows, detail, cause }
}
