//! Tasks, verifiers, rewards and procedural task families.
//!
//! A [`Task`] is a prompt with a gold answer and a [`Verifier`]. Tasks come from a [`TaskSource`]: the procedural
//! [`TinyWorld`], or files. A [`Scorer`] turns completions into [`Verdict`]s by weighted [`RewardPart`]s, among them a
//! program of the user's own. [`validate`] proves that verifiers accept every gold answer and reject mutated ones.
//!
//! What a model wrote never causes an error here, and a fault of the data or of a reward command is never scored as 0.

mod draw;
mod environment;
mod error;
mod reward;
mod source;
mod step;
mod task;
mod validate;
mod verify;
mod world;

pub use environment::Environment;
pub use error::{CommandFault, Error};
pub use reward::{LengthUnit, RewardKind, RewardPart, Scorer, Transcript, kill_children};
pub use source::{
    BbhSource, BlimpSource, Families, FileSource, Gsm8kSource, MultipleChoiceSource, TaskSet, TaskSource,
    TinyWorldSource,
};
pub use step::{right_steps, steps};
pub use task::{Pair, Task, Verdict};
pub use validate::{Cell, Failure, Validation, validate, validate_tiny_world};
pub use verify::{Form, Pattern, Verifier};
pub use world::{Axis, Family, FamilyInfo, LEVELS, Split, TinyWorld};
