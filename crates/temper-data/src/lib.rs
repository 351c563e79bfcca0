//! Conversations, chat templates, tokenizers, data formats, loss masks, packing and samplers.

mod conversation;

pub use conversation::{Conversation, Example, Message, Payload};
