//! Conversations, chat templates, tokenizers, data formats, loss masks, packing and samplers.
