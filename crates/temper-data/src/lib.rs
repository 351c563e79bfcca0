//! From data files to token ids with loss weights: conversations, chat templates, tokenizers, data formats, masks,
//! packing, samplers and the history of each example.
//!
//! ```text
//! load -> Example -> encode (ChatTemplate, Tokenizer) -> Encoded { ids, weights } -> pack
//! ```
//!
//! This crate knows nothing about tensors, models or rewards.

mod conversation;
mod encode;
mod error;
mod history;
mod load;
mod pack;
mod sampler;
mod template;
mod tokenizer;

pub use conversation::{Conversation, Example, Message, Payload};
pub use encode::{
    Cause, Dropped, Encoded, MaskPolicy, Overflow, Report, encode, encode_all, encode_answer, encode_example_prompt,
    encode_followup, encode_prompt,
};
pub use error::Error;
pub use history::{History, Record};
pub use load::{Format, Kind, LoadReport, RawRow, SampleBy, load, raw_rows};
pub use pack::pack;
pub use sampler::{EpochSampler, MixtureSampler};
pub use template::{ChatTemplate, Date};
pub use tokenizer::{BpeOptions, CHATML, Tokenizer, train_bpe};
