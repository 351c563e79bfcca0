//! Objectives, advantages, KL estimators, weights, schedules and statistics: pure functions on small arrays.
//!
//! Every loss is `sum(weight * x)` over tokens. A method fills in slots, each a closed enum:
//!
//! | slot | enum | what it computes |
//! |---|---|---|
//! | advantage | [`Advantage`] | rewards of one group -> one advantage a rollout |
//! | ratio | [`Ratio`] | `logp - logp_old` -> log-ratio a token |
//! | surrogate | [`Surrogate`] | (log-ratio, adv, logp) -> x and its derivative |
//! | KL | [`KlEstimator`] | (logp, logp_ref) -> x and its derivative |
//! | token objective | [`TokenObjective`] | logp (logp_ref, entropy, mean_logp) -> x and its derivatives |
//! | weighting | [`Weighting`] | masks of the whole optimiser step -> `weight` |
//! | schedule | [`Schedule`] | optimiser step -> multiplier |
//!
//! [`PolicyObjective`] puts the policy-gradient slots together, [`SupervisedObjective`] token objectives as a weighted list. A part says which inputs it reads ([`Needs`]) and how far
//! its terms are coupled ([`Coupling`]).
//!
//! Averaging lives in the weights and nowhere else: they are computed once for the whole optimiser step, so the loss
//! cannot depend on how the step is cut into micro-batches.
//!
//! **Invariant.** Nothing here does IO, reads a clock, draws from a global generator or knows a model. All arithmetic is
//! f64, sums run in index order, and the same inputs give the same bits.
//!
//! **Serde.** Slots are internally tagged (`kind = "..."`). Variants without options are written `Name {}` in Rust: serde
//! ignores unknown keys of *unit* variants even under `deny_unknown_fields`, and an option without effect has to be an
//! error.

mod advantage;
mod constraint;
mod coupling;
mod error;
pub mod input;
mod kl;
mod needs;
mod objective;
mod ratio;
mod schedule;
pub mod seed;
mod sensitivity;
pub mod stats;
mod supervised;
mod surrogate;
mod token_objective;
mod weighting;

pub use advantage::{Advantage, is_constant, sample_std};
pub use constraint::SampleConstraint;
pub use coupling::Coupling;
pub use error::{Error, Problem};
pub use kl::{KlEstimator, KlTerm};
pub use needs::Needs;
pub use objective::{EntropyBonus, KlPenalty, PolicyMetrics, PolicyObjective, PolicyTerms, Rows, Sum};
pub use ratio::{MAX_LOG_RATIO, Ratio};
pub use schedule::{Schedule, Warmup};
pub use seed::split_seed;
pub use sensitivity::sensitive;
pub use supervised::{SupervisedObjective, SupervisedRows, SupervisedTerms, WeightedTerm};
pub use surrogate::{ClipSide, Surrogate, SurrogateTerm};
pub use token_objective::{Direction, Divergence, TokenObjective, TokenTerm, TokenValues};
pub use weighting::{SequenceMask, Weighting};
