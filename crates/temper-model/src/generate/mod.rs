//! Generation: sessions, sampling rules and the engine that runs many sequences at a time.

mod engine;
mod sampling;
mod session;

pub use engine::{Completion, Engine, Progress, Request, Sample, Stop, Turn, generate};
pub use sampling::Sampling;
pub use session::{Author, Session};
