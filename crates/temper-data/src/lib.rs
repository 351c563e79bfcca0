//! Conversations, chat templates, tokenizers, data formats, loss masks, packing and samplers.

mod conversation;
mod encode;
mod error;
mod template;
mod tokenizer;

pub use conversation::{Conversation, Example, Message, Payload};
pub use encode::{
    Cause, Dropped, Encoded, MaskPolicy, Overflow, Report, encode, encode_all, encode_example_prompt, encode_prompt,
};
pub use error::Error;
pub use template::{ChatTemplate, Date};
pub use tokenizer::{BpeOptions, CHATML, Tokenizer, train_bpe};
