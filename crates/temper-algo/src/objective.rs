//! The policy objective: advantage, ratio, correction, surrogate, KL, entropy and weighting as one value.

mod check;
mod evaluate;

use serde::{Deserialize, Serialize};

use crate::{
    Advantage, Correction, Coupling, Error, KlEstimator, KlReward, Needs, OffPolicyMask, PolicyMetrics, Ratio, Rows,
    Surrogate, TopEntropy, Weighting,
};

/// `x = factor * surrogate(ratio, adv) + beta * kl - coef * entropy`, summed with the weights of [`Weighting`]. The factor is the
/// product of correction and selections, 1 without.
///
/// The default is GRPO with DAPO's token weighting and no KL term (TRL's defaults). GRPO as published: weighting `Sequence`, KL
/// `k3` with `beta` 0.04. Dr. GRPO: advantage `GroupMean`, weighting `Constant`. GSPO: ratio `Sequence`, weighting `Sequence`.
/// LUSPO: ratio `Sequence`, weighting `Constant` of 1 token. GMPO: ratio `GeometricMean`, surrogate `Importance`, weighting
/// `Sequence`. VESPO: ratio `Product`, surrogate `Vespo`. TOPR: ratio `Product`, surrogate `Topr`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyObjective {
    /// Rewards of a group to advantages.
    pub advantage: Advantage,
    /// Unit of the importance ratio.
    pub ratio: Ratio,
    /// The policy-gradient term.
    pub surrogate: Surrogate,
    /// Correction for samples of another policy or engine; none unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correction: Option<Correction>,
    /// Policy gradient on the tokens of highest entropy alone; on all unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_entropy: Option<TopEntropy>,
    /// No policy gradient from drifted sequences of negative advantage; from all unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off_policy_mask: Option<OffPolicyMask>,
    /// KL penalty to the reference role in the loss; none unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<KlPenalty>,
    /// KL penalty to the reference role in the reward, before advantages are made; none unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_reward: Option<KlReward>,
    /// Entropy bonus; none unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyBonus>,
    /// Averaging over the optimiser step.
    pub weighting: Weighting,
}

/// `beta * kl` a token, weighted as the surrogate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KlPenalty {
    /// The estimator.
    #[serde(default)]
    pub estimator: KlEstimator,
    /// Its coefficient, above 0.
    pub beta: f64,
    /// `r * kl` in place of `kl`, with the ratio of the slot and the gradient through both: on tokens of the policy before the
    /// update, the gradient is that of the KL itself. Source: DeepSeek-V3.2, arXiv 2512.02556; TRL's
    /// `use_bias_correction_kl`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub importance: bool,
}

/// `-coef * entropy` a token, weighted as the surrogate (verl's convention; TRL takes the token mean whatever the loss type).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EntropyBonus {
    /// Its coefficient: above 0 for more entropy, below 0 for less (entropy minimisation, One-shot EM, arXiv 2505.20282, with the
    /// surrogate `none`).
    pub coef: f64,
}

/// Loss and derivatives of some scored tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyTerms {
    /// `sum(weight * x)`: this part's share of the step's loss.
    pub loss: f64,
    /// d(loss)/d(logp) `[M]`, weights included.
    pub d_logp: Vec<f64>,
    /// d(loss)/d(entropy) `[M]`, weights included; `None` without an entropy bonus.
    pub d_entropy: Option<Vec<f64>>,
    /// Sums for the metrics.
    pub metrics: PolicyMetrics,
}

impl PolicyObjective {
    /// The inputs that it reads beside `logp`.
    pub fn needs(&self) -> Needs {
        let advantage = if self.surrogate.uses_adv() { self.advantage.needs() } else { Needs::NONE };
        let reward = if self.kl_reward.is_some() { Needs::LOGP_REF } else { Needs::NONE };
        advantage | reward | self.part_needs().into_iter().map(|(_, needs)| needs).collect()
    }

    fn part_needs(&self) -> [(&'static str, Needs); 6] {
        let when = |given: bool, needs: Needs| if given { needs } else { Needs::NONE };
        let importance = self.kl.is_some_and(|kl| kl.importance);
        [
            ("surrogate", self.surrogate.needs()),
            ("kl", when(self.kl.is_some(), Needs::LOGP_REF) | when(importance, Needs::LOGP_OLD)),
            ("entropy", when(self.entropy.is_some(), Needs::ENTROPY)),
            ("correction", when(self.correction.is_some(), Needs::LOGP_OLD | Needs::LOGP_GEN)),
            ("top_entropy", when(self.top_entropy.is_some(), Needs::ENTROPY)),
            ("off_policy_mask", when(self.off_policy_mask.is_some(), Needs::LOGP_OLD)),
        ]
    }

    /// Whether the ratio of the slot enters the loss.
    fn uses_ratio(&self) -> bool {
        self.surrogate.uses_ratio() || self.kl.is_some_and(|kl| kl.importance)
    }

    /// The ratio that is computed; the token's own where none enters the loss (it is a metric then).
    fn used_ratio(&self) -> Ratio {
        if self.uses_ratio() { self.ratio } else { Ratio::Token {} }
    }

    /// How far its terms are coupled: the maximum of its parts.
    pub fn coupling(&self) -> Coupling {
        let selection = if self.top_entropy.is_some() { Coupling::Step } else { Coupling::Token };
        self.reads_sequences().max(self.surrogate.coupling()).max(selection)
    }

    /// Loss, derivatives and metric sums of some scored tokens: any of them when the coupling is `Token`, whole sequences
    /// or groups when it is that, the whole optimiser step when it is `Step`.
    ///
    /// # Errors
    /// Arrays of other lengths, an input that [`needs`](Self::needs) names but is absent (`logp_old` excepted), and numbers
    /// that are not finite on a token of weight other than 0.
    pub fn token_terms(&self, rows: &Rows) -> Result<PolicyTerms, Error> {
        let grouped = self.surrogate.coupling() == Coupling::Group;
        rows.validate(&self.part_needs(), self.reads_sequences(), grouped)?;
        Ok(self.evaluate(rows))
    }

    /// More than `Token` when a part reads where sequences end (a choice over the step does not).
    fn reads_sequences(&self) -> Coupling {
        let drift = if self.off_policy_mask.is_some() { Coupling::Sequence } else { Coupling::Token };
        let correction = self.correction.map_or(Coupling::Token, Correction::coupling);
        let surrogate = Some(self.surrogate.coupling()).filter(|c| *c < Coupling::Step).unwrap_or_default();
        surrogate.max(self.used_ratio().coupling()).max(drift).max(correction)
    }
}
