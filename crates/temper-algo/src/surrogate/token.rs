//! Surrogates that are functions of one token.

use super::{ClipSide, Surrogate, SurrogateInput, SurrogateTerm};
use crate::ratio::bounded_exp;

/// Bounds of VESPO's log-ratio of a sequence: `ln 1e-8` and 20, the released code's.
const VESPO_LOG: (f64, f64) = (-18.420_680_743_952_367, 20.0);

impl Surrogate {
    /// The term of one token.
    ///
    /// At a log-ratio of exactly 0 the ratio is exactly 1 and the derivative, by either path, exactly `-adv` (for the surrogates
    /// that are policy gradients there).
    ///
    /// ```
    /// use temper_algo::{Surrogate, SurrogateInput};
    /// let clip = Surrogate::Clip { clip_low: 0.2, clip_high: 0.2, delta: None };
    /// let term = clip.term(&SurrogateInput { log_ratio: 0.0, logp: -1.3, adv: 2.0, ..SurrogateInput::default() });
    /// assert_eq!((term.x, term.d_log_ratio), (-2.0, -2.0));
    /// ```
    pub fn term(&self, at: &SurrogateInput) -> SurrogateTerm {
        match *self {
            Self::Reinforce {} => weighted(at.adv, at.logp, ClipSide::Inside),
            Self::Importance {} => clip(at, f64::NEG_INFINITY, f64::INFINITY, None),
            Self::Clip { clip_low, clip_high, delta } => clip(at, 1.0 - clip_low, 1.0 + clip_high, delta),
            Self::Cispo { clip_low, clip_high } => cispo(at, 1.0 - clip_low, 1.0 + clip_high),
            Self::Sapo { temperature_pos, temperature_neg } => {
                sapo(at, if at.adv > 0.0 { temperature_pos } else { temperature_neg })
            }
            Self::Vespo { k_pos, lambda_pos, .. } if at.adv >= 0.0 => vespo(at, k_pos, lambda_pos),
            Self::Vespo { k_neg, lambda_neg, .. } => vespo(at, k_neg, lambda_neg),
            Self::DppoTv { clip_low, clip_high, cap } => {
                let (now, old) = probabilities(at);
                dppo(at, (now - old).abs(), clip_low, clip_high, cap)
            }
            Self::DppoKl { clip_low, clip_high, cap } => dppo(at, binary_kl(at), clip_low, clip_high, cap),
            Self::ClipCov { clip_low, clip_high, .. } => clip_cov(at, 1.0 - clip_low, 1.0 + clip_high),
            Self::KlCov { coef, .. } => kl_cov(at, coef),
            Self::Nft { eps } => nft(at, eps),
            Self::Topr { cap } => topr(at, cap),
            Self::Raft {} => weighted(if at.adv > 0.0 { 1.0 } else { 0.0 }, at.logp, ClipSide::Inside),
            Self::RewardWeighted { temperature, cap } => {
                weighted(bounded_exp(at.adv / temperature).0.min(cap), at.logp, ClipSide::Inside)
            }
            Self::Nll {} => weighted(1.0, at.logp, ClipSide::Inside),
            // GVPO is a function of a group; see the module `group`.
            Self::Gvpo { .. } | Self::None {} => SurrogateTerm::default(),
        }
    }
}

/// `-coef * logp` with a coefficient that carries no gradient.
fn weighted(coef: f64, logp: f64, clip: ClipSide) -> SurrogateTerm {
    SurrogateTerm { x: -coef * logp, d_logp: -coef, d_log_ratio: 0.0, clip }
}

fn clip(at: &SurrogateInput, low: f64, high: f64, delta: Option<f64>) -> SurrogateTerm {
    let (ratio, slope) = bounded_exp(at.log_ratio);
    let side = match () {
        () if at.adv > 0.0 && ratio > high => ClipSide::High,
        () if at.adv < 0.0 && ratio < low => ClipSide::Low,
        () if at.adv < 0.0 && delta.is_some_and(|delta| ratio > delta) => ClipSide::Other,
        () => ClipSide::Inside,
    };
    let (used, used_slope) = match side {
        ClipSide::Inside => (ratio, slope),
        ClipSide::Low => (low, 0.0),
        ClipSide::High => (high, 0.0),
        ClipSide::Other => (delta.unwrap_or(ratio), 0.0),
    };
    SurrogateTerm { x: -used * at.adv, d_log_ratio: -used_slope * at.adv, d_logp: 0.0, clip: side }
}

fn cispo(at: &SurrogateInput, low: f64, high: f64) -> SurrogateTerm {
    let (ratio, _) = bounded_exp(at.log_ratio);
    let side = match () {
        () if ratio > high => ClipSide::High,
        () if ratio < low => ClipSide::Low,
        () => ClipSide::Inside,
    };
    weighted(ratio.clamp(low, high) * at.adv, at.logp, side)
}

fn sapo(at: &SurrogateInput, tau: f64) -> SurrogateTerm {
    let (ratio, slope) = bounded_exp(at.log_ratio);
    let gate = 1.0 / (1.0 + (-tau * (ratio - 1.0)).exp());
    let d = 4.0 * gate * (1.0 - gate) * slope;
    SurrogateTerm { x: -at.adv * gate * 4.0 / tau, d_log_ratio: -at.adv * d, ..SurrogateTerm::default() }
}

fn vespo(at: &SurrogateInput, k: f64, lambda: f64) -> SurrogateTerm {
    let log_w = at.log_ratio.clamp(VESPO_LOG.0, VESPO_LOG.1);
    let phi = (k * log_w + lambda * (1.0 - log_w.exp())).exp();
    weighted(phi * at.adv, at.logp, ClipSide::Inside)
}

/// The token's probability now and before the update.
fn probabilities(at: &SurrogateInput) -> (f64, f64) {
    (at.logp.exp(), (at.logp - at.log_ratio).exp())
}

/// `KL(Bernoulli(pi_old) || Bernoulli(pi))`, with verl's 1e-8 beside probabilities of 1.
fn binary_kl(at: &SurrogateInput) -> f64 {
    let (now, old) = probabilities(at);
    let other = |p: f64| (1.0 - p).max(0.0);
    -old * at.log_ratio + other(old) * ((other(old) + 1e-8) / (other(now) + 1e-8)).ln()
}

fn dppo(at: &SurrogateInput, divergence: f64, low: f64, high: f64, cap: f64) -> SurrogateTerm {
    let (now, old) = probabilities(at);
    let side = match () {
        () if at.adv > 0.0 && now > old && divergence > high => ClipSide::High,
        () if at.adv <= 0.0 && now < old && divergence > low => ClipSide::Low,
        () => ClipSide::Inside,
    };
    let ratio = if side == ClipSide::Inside { bounded_exp(at.log_ratio).0.min(cap) } else { 0.0 };
    weighted(ratio * at.adv, at.logp, side)
}

fn clip_cov(at: &SurrogateInput, low: f64, high: f64) -> SurrogateTerm {
    if at.chosen {
        return SurrogateTerm { clip: ClipSide::Other, ..SurrogateTerm::default() };
    }
    clip(at, low, high, None)
}

fn kl_cov(at: &SurrogateInput, coef: f64) -> SurrogateTerm {
    let mut term = clip(at, f64::NEG_INFINITY, f64::INFINITY, None);
    if at.chosen {
        // The derivative of |l| at 0 is taken as 0, as torch does.
        let sign = if at.log_ratio == 0.0 { 0.0 } else { at.log_ratio.signum() };
        term.x += coef * at.log_ratio.abs();
        term.d_log_ratio += coef * sign;
        term.clip = ClipSide::Other;
    }
    term
}

fn nft(at: &SurrogateInput, eps: f64) -> SurrogateTerm {
    let q = at.success;
    if at.adv == 0.0 || !(q > 0.0 && q < 1.0) {
        return SurrogateTerm::default(); // all right or all wrong: the paper drops the prompt
    }
    if at.adv > 0.0 {
        return SurrogateTerm { x: -at.adv * at.log_ratio, d_log_ratio: -at.adv, ..SurrogateTerm::default() };
    }
    let (ratio, slope) = bounded_exp(at.log_ratio);
    let z = (1.0 - q * ratio) / (1.0 - q);
    let side = if z < eps { ClipSide::Other } else { ClipSide::Inside };
    let held = z.max(eps);
    let weight = -at.adv * (1.0 - q) / q;
    SurrogateTerm { x: -weight * held.ln(), d_log_ratio: -at.adv * slope / held, d_logp: 0.0, clip: side }
}

fn topr(at: &SurrogateInput, cap: f64) -> SurrogateTerm {
    let (ratio, _) = bounded_exp(at.log_ratio);
    match () {
        () if at.adv >= 0.0 => weighted(at.adv, at.logp, ClipSide::Inside),
        () if ratio > cap => weighted(cap * at.adv, at.logp, ClipSide::Other),
        () => weighted(ratio * at.adv, at.logp, ClipSide::Inside),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token with this ratio, log-prob -1 and success rate 1/4.
    fn at(ratio: f64, adv: f64) -> SurrogateInput {
        SurrogateInput { log_ratio: ratio.ln(), logp: -1.0, adv, success: 0.25, chosen: false }
    }

    fn close(surrogate: Surrogate, at: SurrogateInput, x: f64, slope: f64, side: ClipSide) {
        let term = surrogate.term(&at);
        let d = term.d_log_ratio + term.d_logp;
        assert!((term.x - x).abs() < 1e-9 && (d - slope).abs() < 1e-9, "{surrogate:?} {at:?}: {term:?}");
        assert_eq!(term.clip, side, "{surrogate:?} {at:?}");
    }

    #[test]
    fn clip_by_hand() {
        // (ratio, adv) -> (x, derivative, side); bounds 0.8, 1.3 and 3.
        let clip = Surrogate::Clip { clip_low: 0.2, clip_high: 0.3, delta: Some(3.0) };
        close(clip, at(1.5, 2.0), -2.6, 0.0, ClipSide::High);
        close(clip, at(1.5, -2.0), 3.0, 3.0, ClipSide::Inside);
        close(clip, at(0.5, 2.0), -1.0, -1.0, ClipSide::Inside);
        close(clip, at(0.5, -2.0), 1.6, 0.0, ClipSide::Low);
        close(clip, at(1.1, 1.0), -1.1, -1.1, ClipSide::Inside);
        close(clip, at(1.5, 0.0), 0.0, 0.0, ClipSide::Inside);
        close(clip, at(4.0, -2.0), 6.0, 0.0, ClipSide::Other);
        close(
            Surrogate::Clip { clip_low: 0.2, clip_high: 0.3, delta: None },
            at(4.0, -2.0),
            8.0,
            8.0,
            ClipSide::Inside,
        );
        close(Surrogate::Importance {}, at(4.0, 2.0), -8.0, -8.0, ClipSide::Inside);
    }

    #[test]
    fn weights_on_logp_by_hand() {
        close(Surrogate::Reinforce {}, at(9.0, 1.5), 1.5, -1.5, ClipSide::Inside);
        let cispo = Surrogate::Cispo { clip_low: 0.5, clip_high: 1.0 };
        close(cispo, at(3.0, 1.5), 3.0, -3.0, ClipSide::High);
        close(cispo, at(0.1, -1.0), -0.5, 0.5, ClipSide::Low);
        // phi(2) = 2^2 e^(3 (1 - 2)) = 4 e^-3 and, for negative advantages, 2^3 e^(2 (1 - 2)) = 8 e^-2.
        let vespo = Surrogate::Vespo { k_pos: 2.0, lambda_pos: 3.0, k_neg: 3.0, lambda_neg: 2.0 };
        close(vespo, at(2.0, 1.0), 0.199_148_273_5, -0.199_148_273_5, ClipSide::Inside);
        close(vespo, at(2.0, -1.0), -1.082_682_265_9, 1.082_682_265_9, ClipSide::Inside);
        let topr = Surrogate::Topr { cap: 1.0 };
        close(topr, at(3.0, 2.0), 2.0, -2.0, ClipSide::Inside);
        close(topr, at(3.0, -2.0), -2.0, 2.0, ClipSide::Other);
        close(topr, at(0.5, -2.0), -1.0, 1.0, ClipSide::Inside);
        close(Surrogate::Raft {}, at(3.0, 2.0), 1.0, -1.0, ClipSide::Inside);
        close(Surrogate::Raft {}, at(3.0, -2.0), 0.0, 0.0, ClipSide::Inside);
        close(Surrogate::Nll {}, at(3.0, -2.0), 1.0, -1.0, ClipSide::Inside);
        let regression = Surrogate::RewardWeighted { temperature: 0.5, cap: 20.0 };
        close(regression, at(1.0, 2f64.ln()), 4.0, -4.0, ClipSide::Inside);
        close(regression, at(1.0, 9.0), 20.0, -20.0, ClipSide::Inside);
    }

    #[test]
    fn sapo_by_hand() {
        // r = 2, tau = 1: sigmoid(1) = 0.731058579, slope 4 * 0.196611933 * 2 = 1.572895465.
        let sapo = Surrogate::Sapo { temperature_pos: 1.0, temperature_neg: 2.0 };
        close(sapo, at(2.0, 1.0), -2.924_234_314_5, -1.572_895_465_5, ClipSide::Inside);
        // tau = 2: sigmoid(2) = 0.880797078, times 4 / 2; slope 4 * 0.104993585 * 2.
        close(sapo, at(2.0, -1.0), 1.761_594_155_9, 0.839_948_683_3, ClipSide::Inside);
    }

    #[test]
    fn dppo_by_hand() {
        let point = |now: f64, old: f64, adv| SurrogateInput {
            log_ratio: (now / old).ln(),
            logp: now.ln(),
            adv,
            ..SurrogateInput::default()
        };
        let tv = Surrogate::DppoTv { clip_low: 0.2, clip_high: 0.28, cap: 20.0 };
        // From 0.10 to 0.35 is within 0.28; from 0.4 to 0.1 falls by more than 0.2; from 0.5 to 0.9 rises by more than 0.28.
        close(tv, point(0.35, 0.10, 1.0), -3.5 * 0.35f64.ln(), -3.5, ClipSide::Inside);
        close(tv, point(0.1, 0.4, -1.0), 0.0, 0.0, ClipSide::Low);
        close(tv, point(0.9, 0.5, 1.0), 0.0, 0.0, ClipSide::High);
        close(tv, point(0.9, 0.5, -1.0), 1.8 * 0.9f64.ln(), 1.8, ClipSide::Inside);
        // KL(0.2 || 0.3) = 0.2 ln(2/3) + 0.8 ln(8/7) = 0.025732; capped at 1.2.
        let kl = |bound| Surrogate::DppoKl { clip_low: bound, clip_high: bound, cap: 1.2 };
        close(kl(0.0257), point(0.3, 0.2, 1.0), 0.0, 0.0, ClipSide::High);
        close(kl(0.0258), point(0.3, 0.2, 1.0), -1.2 * 0.3f64.ln(), -1.2, ClipSide::Inside);
    }

    #[test]
    fn covariance_rules_by_hand() {
        let chosen = |ratio, adv| SurrogateInput { chosen: true, ..at(ratio, adv) };
        let cut = Surrogate::ClipCov { clip_low: 0.2, clip_high: 0.2, share: 0.1, cov_low: 1.0, cov_high: 5.0 };
        close(cut, chosen(1.1, 1.0), 0.0, 0.0, ClipSide::Other);
        close(cut, at(1.1, 1.0), -1.1, -1.1, ClipSide::Inside);
        let pay = Surrogate::KlCov { share: 0.1, coef: 0.5 };
        close(pay, chosen(2.0, 1.0), -2.0 + 0.5 * 2f64.ln(), -1.5, ClipSide::Other);
        close(pay, chosen(0.5, 1.0), -0.5 + 0.5 * 2f64.ln(), -1.0, ClipSide::Other);
        close(pay, at(0.5, 1.0), -0.5, -0.5, ClipSide::Inside);
        assert_eq!(pay.term(&chosen(1.0, 1.0)).d_log_ratio, -1.0);
    }

    #[test]
    fn nft_by_hand() {
        let nft = |eps| Surrogate::Nft { eps };
        close(nft(1.0), at(2.0, 1.5), -1.5 * 2f64.ln(), -1.5, ClipSide::Inside);
        // q = 1/4, r = 2: z = (1 - 1/2) / (3/4) = 2/3, weight 3 * 3: x = -9 ln(2/3), slope 3 * 2 / (2/3) = 9.
        close(nft(0.1), at(2.0, -3.0), 9.0 * 1.5f64.ln(), 9.0, ClipSide::Inside);
        // Held at 1: x = 0, slope 3 * 2.
        close(nft(1.0), at(2.0, -3.0), 0.0, 6.0, ClipSide::Other);
        let known = SurrogateInput { success: 1.0, ..at(2.0, -3.0) };
        assert_eq!(nft(1.0).term(&known), SurrogateTerm::default());
    }
}
