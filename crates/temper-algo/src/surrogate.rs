//! Surrogates: from log-ratio, advantage and log-prob to the per-token term that is minimised.
//!
//! Three kinds, by how far they look: functions of one token ([`Surrogate::term`]), functions of a group's sequences
//! ([`group`]), and functions of one token plus a choice over the step ([`covariance`]).

mod check;
pub(crate) mod covariance;
pub(crate) mod group;
mod token;

use serde::{Deserialize, Serialize};

use crate::{Coupling, Needs};

/// The policy-gradient term of one token. `r` is the importance ratio of the slot [`Ratio`](crate::Ratio), `sg` stops the gradient.
///
/// Methods that are combinations of other slots have no variant here: LUSPO (arXiv 2602.05261) is `clip` on the `sequence` ratio
/// with constant-length weighting of 1 token; the language-model form of advantage-weighted matching (B060), best-of-n and
/// human feedback (COACH, B274) are `reinforce` on other advantages; one-shot entropy minimisation (B016) is `none` with an
/// entropy coefficient below 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Surrogate {
    /// `x = -adv * logp`: no ratio, hence for on-policy samples only. Source: Williams 1992.
    Reinforce {},
    /// `x = -r * adv`: importance-weighted policy gradient, nothing clipped. With the ratio `geometric_mean` this is GMPO.
    Importance {},
    /// `x = -min(r * adv, clip(r, 1 - clip_low, 1 + clip_high) * adv)`. Source: PPO, arXiv 1707.06347, equation 7; separate
    /// bounds from DAPO, arXiv 2503.14476, equation 8.
    Clip {
        /// How far the ratio may fall below 1 before a negative advantage stops pushing.
        #[serde(default = "default_clip")]
        clip_low: f64,
        /// How far the ratio may rise above 1 before a positive advantage stops pushing.
        #[serde(default = "default_clip")]
        clip_high: f64,
        /// Largest ratio at which a negative advantage still pushes; none unless given. TRL's `delta` (two-sided clipping,
        /// INTELLECT-2, arXiv 2505.07291) and verl's `clip_ratio_c` (dual clip, arXiv 1912.09729) are
        /// the same function above `1 + clip_high`, and [`check`](Surrogate::check) asks for that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        delta: Option<f64>,
    },
    /// `x = -sg(clip(r, 1 - clip_low, 1 + clip_high)) * adv * logp`: clips the weight, so that every token keeps its gradient.
    /// Source: CISPO, MiniMax-M1, arXiv 2506.13585. TRL's `epsilon_high` is `1 + clip_high` here.
    Cispo {
        /// How far the weight may fall below 1; 1 (the default, as published) is no lower bound.
        #[serde(default = "default_cispo_low")]
        clip_low: f64,
        /// How far the weight may rise above 1. 4 (the default) is a largest weight of 5, ScaleRL's (arXiv 2510.13786).
        #[serde(default = "default_cispo_high")]
        clip_high: f64,
    },
    /// `x = -adv * 4 / tau * sigmoid(tau * (r - 1))`: a soft gate in place of the clip, with slope 1 at `r = 1`. Source: SAPO,
    /// arXiv 2511.20347.
    Sapo {
        /// `tau` of positive advantages.
        #[serde(default = "default_sapo_pos")]
        temperature_pos: f64,
        /// `tau` of the others; larger = their pull fades sooner.
        #[serde(default = "default_sapo_neg")]
        temperature_neg: f64,
    },
    /// `x = -sg(phi(w)) * adv * logp` with `phi(w) = w^k e^(lambda (1 - w))` of the sequence's ratio `w` (the `product` ratio,
    /// and the correction, if any, inside `w`): a Gamma-shaped weight with `phi(1) = 1`. `w` is held in `[1e-8, e^20]`.
    /// Source: VESPO, arXiv 2602.10693; TRL's `vespo`.
    Vespo {
        /// `k` where the advantage is at least 0.
        #[serde(default = "two")]
        k_pos: f64,
        /// `lambda` where the advantage is at least 0.
        #[serde(default = "three")]
        lambda_pos: f64,
        /// `k` of negative advantages.
        #[serde(default = "three")]
        k_neg: f64,
        /// `lambda` of negative advantages.
        #[serde(default = "two")]
        lambda_neg: f64,
    },
    /// `x = -sg(min(r, cap)) * adv * logp` while the token's probability has not moved too far the way its advantage pushes:
    /// `pi - pi_old <= clip_high` for positive advantages, `>= -clip_low` for the others (total variation of "this token or
    /// another"). Source: DPPO, arXiv 2602.04879; verl's `dppo_tv`.
    DppoTv {
        /// Largest fall of the probability.
        #[serde(default = "default_tv")]
        clip_low: f64,
        /// Largest rise of the probability.
        #[serde(default = "default_tv")]
        clip_high: f64,
        /// Largest ratio.
        #[serde(default = "twenty")]
        cap: f64,
    },
    /// The same with the divergence `KL(pi_old || pi)` of "this token or another" against the bounds, in nats. verl's `dppo_kl`.
    DppoKl {
        /// Largest divergence of a probability that fell.
        #[serde(default = "default_binary_kl")]
        clip_low: f64,
        /// Largest divergence of a probability that rose.
        #[serde(default = "default_binary_kl")]
        clip_high: f64,
        /// Largest ratio.
        #[serde(default = "twenty")]
        cap: f64,
    },
    /// `clip` (equal bounds allowed to differ), with `x = 0` on a share of the tokens whose covariance
    /// `(adv - mean adv) (logp - mean logp)` over the step lies between the bounds and that the clip left alone. Which of them is
    /// drawn by a hash of their values, as a pure function has no random numbers. Source: Clip-Cov, arXiv 2505.22617.
    ClipCov {
        /// As in `clip`.
        #[serde(default = "default_clip")]
        clip_low: f64,
        /// As in `clip`.
        #[serde(default = "default_clip")]
        clip_high: f64,
        /// Share of the step's tokens to cut (at least one token).
        #[serde(default = "default_share")]
        share: f64,
        /// Smallest covariance to cut.
        #[serde(default = "one")]
        cov_low: f64,
        /// Largest covariance to cut.
        #[serde(default = "five")]
        cov_high: f64,
    },
    /// `x = -r * adv + [chosen] coef * |logp - logp_old|`, where the chosen tokens are the share of the step's tokens with the
    /// largest covariances. Source: KL-Cov, arXiv 2505.22617, with the released code's `|.|` for the KL.
    KlCov {
        /// Share of the step's tokens that pay (at least one token).
        #[serde(default = "default_share")]
        share: f64,
        /// What they pay.
        #[serde(default = "one")]
        coef: f64,
    },
    /// With `q` the group's share of right answers: right ones (`adv > 0`) `x = -adv * log r`; wrong ones
    /// `x = adv (1 - q) / q * log max(z, eps)` with `z = (1 - q r) / (1 - q)`, the likelihood ratio of the implicit
    /// negative policy; the gradient goes through `z` also where `eps` holds its value. On policy the gradient is the
    /// advantage's, whichever it is: `group_z_score` gives the paper's `sqrt((1 - q) / q)` prompt weight, `group_mean` its
    /// `1 - q`. Source: NFT, arXiv 2505.18116, equation 10.
    Nft {
        /// Smallest value of `z`; 1 (the default, the released run) never amplifies.
        #[serde(default = "one")]
        eps: f64,
    },
    /// `x = -sg(rho) * adv * logp` with `rho = 1` where the advantage is at least 0 and `min(r, cap)` below: likelihood for
    /// what was good, truncated importance sampling for what was not. With the ratio `product`, as published. Source: TOPR,
    /// arXiv 2503.14286.
    Topr {
        /// Largest weight of a negative advantage.
        #[serde(default = "one")]
        cap: f64,
    },
    /// `x = -logp` where the advantage is above 0, else 0: likelihood of the better samples (reward-ranked and rejection-sampling
    /// fine-tuning). With group advantages: those above the group's mean. Source: RAFT, arXiv 2304.06767; arXiv 2504.11343.
    Raft {},
    /// `x = -min(e^(adv / temperature), cap) * logp`: with the advantage `group_mean`, the weights `e^((r - mean) / tau)` of RISE
    /// (A022). Source: reward-weighted regression, Peters and Schaal 2007; the cap from AWR, arXiv 1910.00177.
    RewardWeighted {
        /// `tau`, in units of the reward.
        #[serde(default = "one")]
        temperature: f64,
        /// Largest weight.
        #[serde(default = "twenty")]
        cap: f64,
    },
    /// `x = -logp`: likelihood of the model's own samples, no reward. With a sampling temperature below 1, this is OSFT (B162);
    /// at equal temperatures its mean gradient is zero.
    Nll {},
    /// `x_i = ((beta L_i - mean beta L) - (adv_i - mean adv))^2 / 2` a sequence of the group, `L = sum_t(logp - logp_ref)`; the
    /// advantage should be `group_mean`, i.e. the centred reward. Its minimum is the optimum of KL-regularised RL. Source: GVPO,
    /// arXiv 2504.19599. The squared differences over all pairs of a group are `2 G` times the sum of squared
    /// deviations, so this is also CoPG (arXiv 2406.19185) over all pairs, and, for groups of two, IPO.
    Gvpo {
        /// Strength of the regularisation, above 0.
        #[serde(default = "default_beta")]
        beta: f64,
    },
    /// `x = 0`: only the penalties are trained on.
    None {},
}

fn default_clip() -> f64 {
    0.2
}

fn default_cispo_low() -> f64 {
    1.0
}

fn default_cispo_high() -> f64 {
    4.0
}

fn default_sapo_pos() -> f64 {
    1.0
}

fn default_sapo_neg() -> f64 {
    1.05
}

fn default_tv() -> f64 {
    0.15
}

fn default_binary_kl() -> f64 {
    0.05
}

fn default_share() -> f64 {
    2e-4
}

fn default_beta() -> f64 {
    0.1
}

fn one() -> f64 {
    1.0
}

fn two() -> f64 {
    2.0
}

fn three() -> f64 {
    3.0
}

fn five() -> f64 {
    5.0
}

fn twenty() -> f64 {
    20.0
}

impl Default for Surrogate {
    fn default() -> Self {
        Self::Clip { clip_low: default_clip(), clip_high: default_clip(), delta: None }
    }
}

/// Which bound acted on a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClipSide {
    /// None: the token pushes as its ratio says.
    #[default]
    Inside,
    /// The ratio (DPPO: the probability) fell below the lower bound; for `clip` and its kin the gradient is cut then.
    Low,
    /// It rose above the upper bound.
    High,
    /// Another rule: `delta`, a choice by covariance, the cap of TOPR, an NFT floor.
    Other,
}

/// What a surrogate reads of one token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SurrogateInput {
    /// Log-ratio from the slot [`Ratio`](crate::Ratio).
    pub log_ratio: f64,
    /// Log-prob now.
    pub logp: f64,
    /// Advantage.
    pub adv: f64,
    /// Share of right answers in the group (NFT).
    pub success: f64,
    /// Whether the choice over the step fell on this token (Clip-Cov, KL-Cov).
    pub chosen: bool,
}

/// Value and derivatives of one token's term.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SurrogateTerm {
    /// The term, to be minimised.
    pub x: f64,
    /// dx/d(log-ratio).
    pub d_log_ratio: f64,
    /// dx/d(logp) where `logp` enters other than through the ratio.
    pub d_logp: f64,
    /// Which bound acted on it.
    pub clip: ClipSide,
}

impl Surrogate {
    /// Whether the ratio enters the term at all.
    pub fn uses_ratio(&self) -> bool {
        self.ratios() != check::Ratios::None
    }

    /// Whether the advantage enters the term.
    pub fn uses_adv(&self) -> bool {
        !matches!(self, Self::Nll {} | Self::None {})
    }

    /// Whether it takes the correction for stale samples into its own weight instead of being multiplied by it.
    pub(crate) fn absorbs_correction(&self) -> bool {
        matches!(self, Self::Vespo { .. })
    }

    /// Whether [`ClipSide::Other`] can occur, i.e. the metric has a meaning.
    pub(crate) fn has_other_bound(&self) -> bool {
        match self {
            Self::Clip { delta, .. } => delta.is_some(),
            Self::ClipCov { .. } | Self::KlCov { .. } | Self::Nft { .. } | Self::Topr { .. } => true,
            _ => false,
        }
    }

    /// What it reads beside `logp`.
    pub fn needs(&self) -> Needs {
        let ratio = if self.uses_ratio() { Needs::LOGP_OLD } else { Needs::NONE };
        match self {
            Self::Nft { .. } => ratio | Needs::SUCCESS | Needs::GROUP,
            Self::Gvpo { .. } => Needs::LOGP_REF | Needs::GROUP,
            _ => ratio,
        }
    }

    /// How far its terms are coupled, the ratio aside.
    pub fn coupling(&self) -> Coupling {
        match self {
            Self::Gvpo { .. } => Coupling::Group,
            Self::ClipCov { .. } | Self::KlCov { .. } => Coupling::Step,
            _ => Coupling::Token,
        }
    }

    /// Its name in a recipe.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reinforce {} => "reinforce",
            Self::Importance {} => "importance",
            Self::Clip { .. } => "clip",
            Self::Cispo { .. } => "cispo",
            Self::Sapo { .. } => "sapo",
            Self::Vespo { .. } => "vespo",
            Self::DppoTv { .. } => "dppo_tv",
            Self::DppoKl { .. } => "dppo_kl",
            Self::ClipCov { .. } => "clip_cov",
            Self::KlCov { .. } => "kl_cov",
            Self::Nft { .. } => "nft",
            Self::Topr { .. } => "topr",
            Self::Raft {} => "raft",
            Self::RewardWeighted { .. } => "reward_weighted",
            Self::Nll {} => "nll",
            Self::Gvpo { .. } => "gvpo",
            Self::None {} => "none",
        }
    }
}
