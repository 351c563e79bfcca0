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
//! | correction | [`Correction`] | `logp_old - logp_gen` -> factor a token |
//! | surrogate | [`Surrogate`] | (log-ratio, adv, logp) -> x and its derivative |
//! | KL | [`KlEstimator`] | (logp, logp_ref) -> x and its derivative |
//! | token objective | [`TokenObjective`] | logp (logp_ref, entropy, mean_logp) -> x and its derivatives |
//! | weighting | [`Weighting`] | masks of the whole optimiser step -> `weight` |
//! | schedule | [`Schedule`] | optimiser step -> multiplier |
//! | knob | [`Knob`] | step, what was measured -> value of a setting |
//! | critic | [`Critic`] | (value, return) -> x and its derivative |
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
mod correction;
mod coupling;
mod episodic;
mod error;
pub mod group_reuse;
mod group_shaper;
pub mod input;
mod kl;
mod knob;
mod metrics;
mod needs;
mod objective;
mod ratio;
pub mod reward_shaping;
mod rows;
mod schedule;
pub mod seed;
mod selection;
mod sensitivity;
pub mod stats;
mod supervised;
mod surrogate;
mod token_objective;
mod value;
mod weighting;

pub use advantage::{
    Advantage, AdvantageState, GpgCount, GroupRewards, Round, RoundAdvantages, StepReward, Whiten, gae, is_constant,
    returns_to_go, sample_std, token_rewards,
};
pub use constraint::SampleConstraint;
pub use correction::{Correction, Level};
pub use coupling::Coupling;
pub use episodic::Memory;
pub use error::{Error, Problem};
pub use group_shaper::{DownSampleRule, Fate, GroupShaper, Rollouts, fates};
pub use kl::{KlEstimator, KlReward, KlTerm};
pub use knob::{Curve, Knob, KnobState, Signal};
pub use metrics::{PolicyMetrics, Sum};
pub use needs::Needs;
pub use objective::{EntropyBonus, KlPenalty, PolicyObjective, PolicyTerms};
pub use ratio::{MAX_LOG_RATIO, Ratio};
pub use reward_shaping::{FlipUnit, RewardShaping, Same, Shaped, ShapingInput};
pub use rows::Rows;
pub use schedule::{Schedule, Warmup};
pub use seed::split_seed;
pub use selection::{OffPolicyMask, TopEntropy};
pub use sensitivity::sensitive;
pub use supervised::{SupervisedObjective, SupervisedRows, SupervisedTerms, WeightedTerm};
pub use surrogate::{ClipSide, Surrogate, SurrogateInput, SurrogateTerm};
pub use token_objective::{Direction, Divergence, TokenObjective, TokenTerm, TokenValues};
pub use value::{Critic, ValueTerm};
pub use weighting::{SequenceMask, Weighting};
