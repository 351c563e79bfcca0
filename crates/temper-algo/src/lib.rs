//! Objectives, advantages, KL estimators, weights, schedules and statistics: pure functions on small arrays.
//!
//! Every loss is `sum(weight * x)` over tokens. A method fills in slots, each a closed enum:
//!
//! | slot | enum | what it computes |
//! |---|---|---|
//! | advantage | [`Advantage`] | rewards of one group -> one advantage a rollout |
//! | ratio | [`Ratio`] | `logp - logp_old` -> log-ratio a token |
//! | correction | [`Correction`] | `logp_old - logp_gen` -> factor a token |
//! | surrogate | [`Surrogate`] | (log-ratio, adv, logp) -> x and its derivative |
//! | KL | [`KlEstimator`] | (logp, logp_ref) -> x and its derivative |
//! | token objective | [`TokenObjective`] | logp -> x and its derivative |
//! | weighting | [`Weighting`] | masks of the whole optimiser step -> `weight` |
//! | schedule | [`Schedule`] | optimiser step -> multiplier |
//! | controller | [`Controller`] | measurement -> next value of a coefficient |
//!
//! [`PolicyObjective`] puts the policy-gradient slots together. A part says which inputs it reads ([`Needs`]) and how far
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
mod coefficients;
mod controller;
mod correction;
mod coupling;
mod error;
mod kl;
mod metrics;
mod needs;
mod objective;
mod ratio;
mod rows;
mod schedule;
pub mod seed;
mod selection;
pub mod stats;
mod surrogate;
mod token_objective;
mod weighting;

pub use advantage::{Advantage, is_constant, sample_std};
pub use coefficients::{TriceCoefficients, feedback_advantages, trice_coefficients};
pub use controller::{Controller, Reading};
pub use correction::{Correction, Level};
pub use coupling::Coupling;
pub use error::{Error, Problem};
pub use kl::{KlEstimator, KlReward, KlTerm};
pub use metrics::{PolicyMetrics, Sum};
pub use needs::Needs;
pub use objective::{EntropyBonus, KlPenalty, PolicyObjective, PolicyTerms};
pub use ratio::{MAX_LOG_RATIO, Ratio};
pub use rows::Rows;
pub use schedule::{Schedule, Warmup};
pub use seed::split_seed;
pub use selection::{OffPolicyMask, TopEntropy};
pub use surrogate::{ClipSide, Surrogate, SurrogateInput, SurrogateTerm};
pub use token_objective::{TokenObjective, TokenTerms};
pub use weighting::{SequenceMask, Weighting};
