//! Named host arrays and their files: safetensors and GGUF codecs, atomic writes.
