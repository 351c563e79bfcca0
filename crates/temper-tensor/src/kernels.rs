//! Elementwise and row kernels over slices. Outer functions share rows or columns out among threads; inner ones are
//! compiled once per instruction-set level.

pub mod adamw;
pub mod elementwise;
pub mod embed;
pub mod glu;
pub mod math;
pub mod norm;
pub mod reduce;
pub mod rope;
