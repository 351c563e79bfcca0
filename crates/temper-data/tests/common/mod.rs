//! What the integration tests share.
#![allow(dead_code, reason = "each test uses its part")]

use std::path::PathBuf;

use temper_data::{Example, Message, Payload, Tokenizer};

pub(crate) fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat").join(name)
}

pub(crate) fn golden_tokenizer(kind: &str) -> Tokenizer {
    Tokenizer::from_dir(golden(kind)).unwrap()
}

/// A golden tokenizer with the template of that name.
pub(crate) fn with_template(kind: &str, template: &str) -> Tokenizer {
    let source = std::fs::read_to_string(golden("templates").join(format!("{template}.jinja"))).unwrap();
    golden_tokenizer(kind).with_chat_template(Some(&source)).unwrap()
}

pub(crate) fn chat(messages: Vec<Message>) -> Example {
    example(Payload::Chat(messages.into()))
}

pub(crate) fn example(payload: Payload) -> Example {
    Example { id: "x:1".into(), payload, tags: Vec::new() }
}
