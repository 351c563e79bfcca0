//! Between a recipe's sampling rules and the engine's, which knows token ids only.

use temper_data::Tokenizer;
use temper_model::Sampling;

use crate::recipe::Generation;

impl Generation {
    /// Whether a rule cuts the sampling distribution.
    pub fn truncates(&self) -> bool {
        self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some()
    }
}

/// The engine's sampling rules. Every end-of-sequence and end-of-turn token of the tokenizer stops, unless they are to be
/// ignored; stop strings are [`decode_stops`]' part.
pub fn sampling(rules: &Generation, tokenizer: &Tokenizer) -> Sampling {
    Sampling {
        temperature: rules.temperature,
        top_k: rules.top_k,
        top_p: rules.top_p,
        min_p: rules.min_p,
        max_tokens: rules.max_tokens,
        stop_ids: if rules.ignore_eos { vec![] } else { tokenizer.eos_ids().to_vec() },
    }
}

/// A predicate over a completion's tokens: whether its text holds a stop string, or its last token is one (a special
/// token never shows in the text).
pub fn decode_stops<'a>(tokenizer: &'a Tokenizer, stop: &'a [String]) -> impl Fn(&[u32]) -> bool + Sync + 'a {
    // A stop string of b bytes spans at most b tokens, and a character cut at the window's start spoils at most 4 more.
    let window = stop.iter().map(String::len).max().unwrap_or(0) + 4;
    let ids: Vec<u32> = stop.iter().filter_map(|s| tokenizer.token_to_id(s)).collect();
    move |tokens: &[u32]| {
        if stop.is_empty() {
            return false;
        }
        if tokens.last().is_some_and(|last| ids.contains(last)) {
            return true;
        }
        let tail = &tokens[tokens.len().saturating_sub(window)..];
        let text = tokenizer.decode(tail, true);
        stop.iter().any(|s| text.contains(s.as_str()))
    }
}

/// The text of a completion: without special tokens, and cut before the first stop string.
pub fn text(tokenizer: &Tokenizer, tokens: &[u32], stop: &[String]) -> String {
    let mut text = tokenizer.decode(tokens, true);
    if let Some(at) = stop.iter().filter_map(|s| text.find(s.as_str())).min() {
        text.truncate(at);
    }
    text
}

#[cfg(test)]
mod tests {
    use temper_data::{BpeOptions, train_bpe};

    use super::*;

    #[test]
    fn a_stop_string_that_is_a_token_stops_as_a_stop_string() {
        let options = BpeOptions { vocab_size: 259, ..BpeOptions::default() };
        let tokenizer = train_bpe(["aa"].into_iter(), &options).unwrap();
        let stop = ["<|im_start|>".to_owned(), "b".to_owned()];
        let rules = Generation { stop: stop.to_vec(), ..serde_json::from_str(r#"{"max_tokens": 8}"#).unwrap() };
        assert_eq!(sampling(&rules, &tokenizer).stop_ids, tokenizer.eos_ids());
        assert!(sampling(&Generation { ignore_eos: true, ..rules }, &tokenizer).stop_ids.is_empty());
        let stops = decode_stops(&tokenizer, &stop);
        let ids = |text: &str| tokenizer.encode(text).unwrap();
        assert!(stops(&ids("a<|im_start|>")) && stops(&ids("ab")));
        assert!(!stops(&ids("a")) && !stops(&ids("a<|im_end|>")) && !stops(&[]));
        assert!(!decode_stops(&tokenizer, &[])(&ids("ab")));
    }
}
