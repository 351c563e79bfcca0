//! Objectives, advantages, KL estimators, weights, schedules and statistics: pure functions on small arrays.
//!
//! Every loss is `sum(weight * x)` over tokens. A method fills in slots, each a closed enum:
//!
//! | slot | enum | what it computes |
//! |---|---|---|
//! | reward shaping | [`RewardShaping`] | rewards of one group -> rewards of one group |
//! | group shaper | [`GroupShaper`] | rewards of one group -> which rollouts stay |
//! | advantage | [`Advantage`] | rewards of the round -> one advantage a rollout or token |
//! | ratio | [`Ratio`] | `logp - logp_old` -> log-ratio a token |
//! | surrogate | [`Surrogate`] | (log-ratio, adv, logp) -> x and its derivative |
//! | KL | [`KlEstimator`] | (logp, logp_ref) -> x and its derivative |
//! | token objective | [`TokenObjective`] | logp -> x and its derivative |
//! | weighting | [`Weighting`] | masks of the whole optimiser step -> `weight` |
//! | schedule | [`Schedule`] | optimiser step -> multiplier |
//! | knob | [`Knob`] | step, what was measured -> value of a setting |
//! | critic | [`Critic`] | (value, return) -> x and its derivative |
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
mod coupling;
mod error;
pub mod group_reuse;
mod group_shaper;
mod kl;
mod knob;
mod needs;
mod objective;
mod ratio;
pub mod reward_shaping;
mod schedule;
pub mod seed;
pub mod stats;
mod surrogate;
mod token_objective;
mod value;
mod weighting;

pub use advantage::{
    Advantage, AdvantageState, GpgCount, GroupRewards, Round, RoundAdvantages, StepReward, Whiten, gae, is_constant,
    returns_to_go, sample_std,
};
pub use coupling::Coupling;
pub use error::{Error, Problem};
pub use group_shaper::{DownSampleRule, Fate, GroupShaper, Rollouts, fates};
pub use kl::{KlEstimator, KlTerm};
pub use knob::{Curve, Knob, KnobState, Moving, Signal};
pub use needs::Needs;
pub use objective::{EntropyBonus, KlPenalty, PolicyMetrics, PolicyObjective, PolicyTerms, Rows, Sum};
pub use ratio::{MAX_LOG_RATIO, Ratio};
pub use reward_shaping::{RewardShaping, ShapingInput};
pub use schedule::{Schedule, Warmup};
pub use seed::split_seed;
pub use surrogate::{ClipSide, Surrogate, SurrogateTerm};
pub use token_objective::{TokenObjective, TokenTerms};
pub use value::{Critic, ValueTerm};
pub use weighting::{SequenceMask, Weighting};
