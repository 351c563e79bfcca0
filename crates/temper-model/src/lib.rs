//! Transformer, KV cache, generation engine, load and save.
