//! Objectives over given tokens (supervised fine-tuning): what one token's log-prob, and what goes with it, is worth.

mod probability;
mod reference;
mod sequence;

use serde::{Deserialize, Serialize};

use crate::{Coupling, KlEstimator, Needs, Problem};
pub use reference::{Direction, Divergence};
pub(crate) use sequence::{Sequence, Tokens};

/// The supervised term of one token, to be minimised. `p = exp(logp)` is the given token's probability, `u = logp -
/// logp_ref` its log-ratio to the reference role, `H` the entropy of the next-token distribution, all in nats.
///
/// "Detached" marks a coefficient that is read off the model but carries no gradient; x then is coefficient times NLL, and
/// so is its slope.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenObjective {
    /// `x = -logp`: negative log-likelihood.
    Nll {},
    /// `x = (1 - eps) (-logp) + eps (-mean_logp)`, with `mean_logp` the mean of `logp` over the vocabulary: part of the target
    /// is spread evenly over all V tokens, the given one included. PyTorch's `cross_entropy(label_smoothing=eps)`;
    /// Szegedy et al., arXiv 1512.00567, section 7.
    LabelSmoothing {
        /// Share of the target that is spread, in (0, 1]. 0.1 is usual.
        eps: f64,
    },
    /// `x = -p logp` with p detached: dynamic fine-tuning, TRL's `dft`. Wu et al., arXiv 2508.05629, equations 7 to 9. Its slope
    /// is that of `probability` with q = 1.
    Dft {},
    /// `x = -p (1 - p) logp` with p (1 - p) detached: neither what is known already nor what is wildly unlikely counts for much. The
    /// weight phi of CHORD's expert tokens, Zhang et al., arXiv 2508.11408 (A068).
    Chord {},
    /// `x = (1 - p^q) / q`: NLL as q goes to 0, `1 - p` at q = 1, and the larger q, the more the likely tokens count. Tokens
    /// outside `min_p ..= max_p` have x = 0. Li et al., arXiv 2510.00526. Their code divides by the tokens inside
    /// the bounds, we by all trained tokens: weights are known before the forward pass.
    Probability {
        /// The power, 0 or more.
        q: f64,
        /// Only tokens at least this likely (the paper's "only top p").
        #[serde(default, skip_serializing_if = "Option::is_none")]
        min_p: Option<f64>,
        /// Only tokens at most this likely ("only bottom p").
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_p: Option<f64>,
    },
    /// `x = -(1 - p)^gamma logp`, gradient through both factors: tokens that are known already count less. Lin et al.,
    /// arXiv 1708.02002, equation 4 (without the class weight).
    Focal {
        /// The power, above 0 (default 2, the paper's).
        #[serde(default = "focal_gamma")]
        gamma: f64,
    },
    /// `x = -(H / scale)^alpha logp` with H detached: tokens where the model is sure of something else count little. Entropy-
    /// adaptive fine-tuning, Diao et al., arXiv 2601.02151. The released code takes the entropy of the 20 most
    /// likely tokens and divides by 3 (about ln 20); ours is that of the whole vocabulary.
    Eaft {
        /// The power, above 0 (default 1, as released).
        #[serde(default = "one")]
        alpha: f64,
        /// Entropy at which a token counts in full (default 3 nats, as released).
        #[serde(default = "eaft_scale")]
        scale: f64,
    },
    /// `x = kl(u)`: an estimate of the KL divergence between policy and reference at the given token alone. As data comes from
    /// neither, k1 is NLL up to a constant and no estimator is unbiased: k2 and k3 are penalties that vanish where policy and
    /// reference agree. Use it as a further term: a cheap anchor; `vocabulary_kl` is the exact one.
    ReferenceKl {
        /// The estimator (default k3).
        #[serde(default)]
        estimator: KlEstimator,
        /// Of which to which (default `reverse`).
        #[serde(default)]
        direction: Direction,
    },
    /// `x = -2 sigmoid(-beta sum(u)) logp`, the sum over the trained tokens of the sequence and the coefficient detached: a
    /// sequence that is far above the reference already stops pushing. MinorSFT, Xie et al., arXiv 2408.10642 (its gradient).
    /// At the reference the coefficient is 1. The paper averages within sequences (weighting `sequence`).
    ReferenceWeighted {
        /// How fast the push fades, above 0.
        beta: f64,
    },
    /// `x = -phi(beta u) / beta`, where `phi(r) = -f*(-r)` for the convex conjugate of the divergence: the implicit reward
    /// `r = beta u` is fitted under another f-divergence than the total variation that gives SFT (phi(r) = r). Wang et al.,
    /// arXiv 2507.00018. The paper's formulas could not be read; these follow from the variational form that it shares with
    /// IQ-Learn (arXiv 2106.12142), token by token. Slopes are `-phi'(beta u)`, exactly -1 at the reference
    /// whatever the divergence; where they would pass -4, x goes on linearly, so that far tokens stay finite.
    FDivergence {
        /// The divergence.
        divergence: Divergence,
        /// Scale of the implicit reward, above 0.
        beta: f64,
    },
    /// `x_t = m c_t / sum(c) * l_t` with `l = -logp`, `c_t = sum over s >= t of gamma^(s-t) l_s` and m the trained tokens of the
    /// sequence: a token is charged for what follows from it. Intuitive fine-tuning, Hua et al., arXiv 2405.11870, in the
    /// normalised form of the released code (`propagation_side: left`, `L1`), whose gradient runs through the
    /// coefficients as well. The paper's other half, blending the model's own guesses into the input, is the stage's.
    Ift {
        /// The discount, in (0, 1] (default 0.95, as released).
        #[serde(default = "ift_gamma")]
        gamma: f64,
        /// Detach the coefficients (default false, as released).
        #[serde(default)]
        detach: bool,
    },
    /// `x = KL(reference || policy)` over the whole vocabulary at the token's place: the anchor of ASFT, arXiv 2509.23753, as its paper and
    /// its released code have it (there `F.kl_div(log_softmax(policy), softmax(reference))`, weight 0.1 with `dft`). It reads the
    /// reference's hidden rows and head, and costs one more product with a head.
    VocabularyKl {},
    /// `x = -H`: a bonus for uncertainty, as a further term.
    EntropyBonus {},
}

fn one() -> f64 {
    1.0
}
fn focal_gamma() -> f64 {
    2.0
}
fn eaft_scale() -> f64 {
    3.0
}
fn ift_gamma() -> f64 {
    0.95
}

impl Default for TokenObjective {
    fn default() -> Self {
        Self::Nll {}
    }
}

/// What is known of one given token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenValues {
    /// Its log-prob.
    pub logp: f64,
    /// Its log-prob under the reference role.
    pub logp_ref: f64,
    /// Entropy of the next-token distribution.
    pub entropy: f64,
    /// Mean of the log-probs of all V tokens.
    pub mean_logp: f64,
    /// KL of the reference's distribution to this one.
    pub kl_ref: f64,
}

/// Value and derivatives of one token's term.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenTerm {
    /// The term, to be minimised.
    pub x: f64,
    /// dx/d(logp).
    pub d_logp: f64,
    /// dx/d(entropy).
    pub d_entropy: f64,
    /// dx/d(mean_logp).
    pub d_mean_logp: f64,
    /// dx/d(kl_ref).
    pub d_kl_ref: f64,
}

impl TokenTerm {
    /// `coefficient` times NLL.
    pub(crate) fn nll(coefficient: f64, logp: f64) -> Self {
        Self { x: -coefficient * logp, d_logp: -coefficient, ..Self::default() }
    }
}

impl TokenObjective {
    /// The term of one token alone. For an objective whose [`coupling`](Self::coupling) is a sequence, the term of a sequence
    /// of this one token.
    ///
    /// ```
    /// use temper_algo::{TokenObjective, TokenValues};
    /// let half = TokenValues { logp: 0.5f64.ln(), ..TokenValues::default() };
    /// let term = TokenObjective::Probability { q: 1.0, min_p: None, max_p: None }.term(&half);
    /// assert_eq!((term.x, term.d_logp), (0.5, -0.5));
    /// ```
    pub fn term(&self, at: &TokenValues) -> TokenTerm {
        let TokenValues { logp, logp_ref, entropy, mean_logp, kl_ref } = *at;
        match *self {
            Self::Nll {} | Self::Ift { .. } => TokenTerm::nll(1.0, logp),
            Self::LabelSmoothing { eps } => probability::label_smoothing(eps, logp, mean_logp),
            Self::Dft {} => TokenTerm::nll(logp.exp(), logp),
            Self::Chord {} => TokenTerm::nll(logp.exp() * -logp.exp_m1(), logp),
            Self::Probability { q, min_p, max_p } => probability::family(q, min_p, max_p, logp),
            Self::Focal { gamma } => probability::focal(gamma, logp),
            Self::Eaft { alpha, scale } => TokenTerm::nll((entropy.max(0.0) / scale).powf(alpha), logp),
            Self::ReferenceKl { estimator, direction } => reference::kl(estimator, direction, logp, logp_ref),
            Self::ReferenceWeighted { beta } => TokenTerm::nll(reference::minor(beta, logp - logp_ref), logp),
            Self::FDivergence { divergence, beta } => divergence.term(beta, logp - logp_ref),
            Self::VocabularyKl {} => TokenTerm { x: kl_ref, d_kl_ref: 1.0, ..TokenTerm::default() },
            Self::EntropyBonus {} => TokenTerm { x: -entropy, d_entropy: -1.0, ..TokenTerm::default() },
        }
    }

    /// How a whole sequence's terms come about, where they are not each token's own.
    pub(crate) fn sequence(&self) -> Option<Sequence> {
        match *self {
            Self::ReferenceWeighted { beta } => Some(Sequence::Reference { beta }),
            Self::Ift { gamma, detach } => Some(Sequence::Propagated { gamma, detach }),
            _ => None,
        }
    }

    /// The name of its kind, as recipes write it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nll {} => "nll",
            Self::LabelSmoothing { .. } => "label_smoothing",
            Self::Dft {} => "dft",
            Self::Chord {} => "chord",
            Self::Probability { .. } => "probability",
            Self::Focal { .. } => "focal",
            Self::Eaft { .. } => "eaft",
            Self::ReferenceKl { .. } => "reference_kl",
            Self::ReferenceWeighted { .. } => "reference_weighted",
            Self::FDivergence { .. } => "f_divergence",
            Self::Ift { .. } => "ift",
            Self::VocabularyKl {} => "vocabulary_kl",
            Self::EntropyBonus {} => "entropy_bonus",
        }
    }

    /// What it reads beside `logp`.
    pub fn needs(&self) -> Needs {
        match self {
            Self::Nll {}
            | Self::Dft {}
            | Self::Chord {}
            | Self::Probability { .. }
            | Self::Focal { .. }
            | Self::Ift { .. } => Needs::NONE,
            Self::LabelSmoothing { .. } => Needs::MEAN_LOGP,
            Self::Eaft { .. } | Self::EntropyBonus {} => Needs::ENTROPY,
            Self::ReferenceKl { .. } | Self::ReferenceWeighted { .. } | Self::FDivergence { .. } => Needs::LOGP_REF,
            // The reference role is there for its log-probs too.
            Self::VocabularyKl {} => Needs::LOGP_REF | Needs::KL_REF,
        }
    }

    /// How far its terms are coupled.
    pub fn coupling(&self) -> Coupling {
        self.sequence().map_or(Coupling::Token, |_| Coupling::Sequence)
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        match *self {
            Self::Nll {}
            | Self::Dft {}
            | Self::Chord {}
            | Self::ReferenceKl { .. }
            | Self::VocabularyKl {}
            | Self::EntropyBonus {} => vec![],
            Self::LabelSmoothing { eps } => {
                expect(eps > 0.0 && eps <= 1.0, "eps", eps, "above 0 and at most 1", "use `nll` for none")
            }
            Self::Probability { q, min_p, max_p } => probability::check(q, min_p, max_p),
            Self::Focal { gamma } => positive("gamma", gamma, "2 is the paper's; use `nll` for 0"),
            Self::Eaft { alpha, scale } => {
                let mut problems = positive("alpha", alpha, "1 is the released value; use `nll` for 0");
                problems.extend(positive("scale", scale, "3 is about the entropy of 20 equally likely tokens"));
                problems
            }
            Self::ReferenceWeighted { beta } => positive("beta", beta, "0.04 is mild"),
            Self::FDivergence { beta, .. } => {
                positive("beta", beta, "0.1 is usual; as it goes to 0 the term becomes NLL")
            }
            Self::Ift { gamma, .. } => {
                expect(gamma > 0.0 && gamma <= 1.0, "gamma", gamma, "above 0 and at most 1", "0.95 is usual")
            }
        }
    }
}

fn positive(field: &str, value: f64, hint: &str) -> Vec<Problem> {
    expect(value > 0.0 && value.is_finite(), field, value, "a finite number above 0", hint)
}

fn expect(ok: bool, field: &str, value: f64, expected: &str, hint: &str) -> Vec<Problem> {
    let problem = || Problem::new(field, format!("{field} is {value}, expected {expected}"), hint);
    if ok { vec![] } else { vec![problem()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(p: f64) -> TokenValues {
        TokenValues { logp: p.ln(), logp_ref: 0.25f64.ln(), entropy: 1.5, mean_logp: -4.0, kl_ref: 0.5 }
    }

    fn close(term: TokenTerm, x: f64, d_logp: f64) {
        assert!((term.x - x).abs() < 1e-9 && (term.d_logp - d_logp).abs() < 1e-9, "{term:?}, expected {x} {d_logp}");
    }

    /// At p = 1/2: ln 2 = 0.693147180560.
    #[test]
    fn by_hand() {
        let ln2 = std::f64::consts::LN_2;
        close(TokenObjective::Nll {}.term(&at(0.5)), ln2, -1.0);
        close(TokenObjective::Dft {}.term(&at(0.5)), 0.5 * ln2, -0.5);
        // 0.9 ln 2 + 0.1 * 4
        let smooth = TokenObjective::LabelSmoothing { eps: 0.1 }.term(&at(0.5));
        close(smooth, 1.023_832_462_504, -0.9);
        assert_eq!(smooth.d_mean_logp, -0.1);
        // (1.5 / 3)^2 = 1/4
        close(TokenObjective::Eaft { alpha: 2.0, scale: 3.0 }.term(&at(0.5)), 0.25 * ln2, -0.25);
        // u = ln 2: 2 sigmoid(-ln 2) = 2 / 3
        close(TokenObjective::ReferenceWeighted { beta: 1.0 }.term(&at(0.5)), 2.0 / 3.0 * ln2, -2.0 / 3.0);
        let bonus = TokenObjective::EntropyBonus {}.term(&at(0.5));
        assert_eq!((bonus.x, bonus.d_logp, bonus.d_entropy), (-1.5, 0.0, -1.0));
    }

    #[test]
    fn bad_settings_are_reported_with_a_way_out() {
        let bad = [
            TokenObjective::LabelSmoothing { eps: 0.0 },
            TokenObjective::Probability { q: -1.0, min_p: None, max_p: None },
            TokenObjective::Focal { gamma: 0.0 },
            TokenObjective::Eaft { alpha: f64::NAN, scale: 3.0 },
            TokenObjective::ReferenceWeighted { beta: 0.0 },
            TokenObjective::FDivergence { divergence: Divergence::Pearson, beta: f64::INFINITY },
            TokenObjective::Ift { gamma: 1.5, detach: false },
        ];
        for objective in bad {
            let problems = objective.check();
            assert!(problems.len() == 1 && !problems[0].hint.is_empty(), "{objective:?}: {problems:?}");
        }
    }
}
