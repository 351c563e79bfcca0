//! Elementwise and row kernels over slices. Outer functions share rows out among threads; inner ones are compiled once
//! per instruction-set level. No result depends on how the work was shared out.

pub mod adamw;
pub(crate) mod dropout;
pub mod elementwise;
pub mod embed;
pub mod glu;
pub mod math;
pub mod norm;
pub(crate) mod par;
pub mod reduce;
pub mod rope;
