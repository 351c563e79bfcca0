//! Between a model's parameters and the tensors of files.

mod layout;
mod load;
mod save;

pub(crate) use layout::{EMBED, HEAD, NORM, TensorSpec, block_name, tensors};
