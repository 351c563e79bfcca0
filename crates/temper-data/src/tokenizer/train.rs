//! Training a byte-level BPE tokenizer.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PreTokenizerWrapper, Tokenizer as Inner};

use super::{Parts, Tokenizer};
use crate::Error;

/// The chat template of tokenizers that are trained here: a header, the content and an end mark for each turn.
pub const CHATML: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// What [`train_bpe`] makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BpeOptions {
    /// Tokens in all: special tokens, 256 bytes, merges.
    pub vocab_size: usize,
    /// Special tokens, which get the first ids in this order.
    pub special_tokens: Vec<String>,
    /// Every digit is a token of its own.
    pub individual_digits: bool,
    /// The special token that starts texts, if any.
    pub bos_token: Option<String>,
    /// The special token that ends texts and turns.
    pub eos_token: String,
    /// The special token that fills up batches elsewhere; nothing here needs it.
    pub pad_token: Option<String>,
    /// The chat template.
    pub chat_template: String,
}

impl Default for BpeOptions {
    fn default() -> Self {
        Self {
            vocab_size: 1024,
            special_tokens: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned).into(),
            individual_digits: true,
            bos_token: None,
            eos_token: "<|im_end|>".into(),
            pad_token: Some("<|endoftext|>".into()),
            chat_template: CHATML.into(),
        }
    }
}

/// Trains a byte-level BPE tokenizer. The same texts in the same order give the same tokenizer.
///
/// Every text can be encoded: all 256 bytes are in the vocabulary. Pairs seen once are never merged; texts that do not
/// give `vocab_size` tokens are an error.
pub fn train_bpe<T: AsRef<str> + Send>(
    texts: impl Iterator<Item = T> + Send,
    options: &BpeOptions,
) -> Result<Tokenizer, Error> {
    check(options)?;
    let mut inner = Inner::new(BPE::default());
    inner.with_pre_tokenizer(Some(pre_tokenizer(options.individual_digits)));
    inner.with_decoder(Some(ByteLevel::new(false, false, true)));
    inner.with_post_processor(Some(ByteLevel::new(false, false, true)));
    let mut trainer = trainer(options);
    inner.train(&mut trainer, texts).map_err(|e| Error::Tokenizer(e.to_string()))?;
    let made = inner.get_vocab_size(true);
    if made < options.vocab_size {
        let asked = options.vocab_size;
        let why = format!("the texts give {made} tokens, not vocab_size = {asked}; lower it or train on more text");
        return Err(Error::Tokenizer(why));
    }
    Tokenizer::assemble(inner, parts(options))
}

fn pre_tokenizer(individual_digits: bool) -> PreTokenizerWrapper {
    let bytes = ByteLevel::new(false, false, true);
    if individual_digits { Sequence::new(vec![Digits::new(true).into(), bytes.into()]).into() } else { bytes.into() }
}

fn trainer(options: &BpeOptions) -> TrainerWrapper {
    // The set's order has no effect: the trainer sorts the alphabet by code point.
    let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
    let specials = options.special_tokens.iter().map(|text| AddedToken::from(text.clone(), true)).collect();
    let builder = BpeTrainer::builder().vocab_size(options.vocab_size).min_frequency(2).show_progress(false);
    builder.special_tokens(specials).initial_alphabet(alphabet).build().into()
}

fn check(options: &BpeOptions) -> Result<(), Error> {
    let least = 256 + options.special_tokens.len();
    if options.vocab_size < least {
        let why = format!(
            "vocab_size = {} cannot hold 256 bytes and {} special tokens; set at least {least}",
            options.vocab_size,
            options.special_tokens.len()
        );
        return Err(Error::Tokenizer(why));
    }
    let named = [options.bos_token.as_ref(), Some(&options.eos_token), options.pad_token.as_ref()];
    for token in named.into_iter().flatten() {
        if !options.special_tokens.contains(token) {
            return Err(Error::Tokenizer(format!("{token:?} is not in special_tokens {:?}", options.special_tokens)));
        }
    }
    Ok(())
}

fn parts(options: &BpeOptions) -> Parts {
    let named = [
        ("bos_token", options.bos_token.clone()),
        ("eos_token", Some(options.eos_token.clone())),
        ("pad_token", options.pad_token.clone()),
    ];
    let specials: BTreeMap<String, String> =
        named.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?))).collect();
    Parts { specials, chat: Some(options.chat_template.clone()), ..Parts::default() }
}
