//! Between a model's parameters and the tensors of files.

mod layout;
mod load;
mod save;

pub(crate) use load::read_text;

pub(crate) use layout::{EMBED, HEAD, NORM, TensorSpec, bias_name, block_name, tensors};
