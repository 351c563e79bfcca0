//! Terms of the given token's probability alone.

use super::{TokenTerm, expect};
use crate::Problem;

/// `(1 - eps) (-logp) + eps (-mean_logp)`.
pub(super) fn label_smoothing(eps: f64, logp: f64, mean_logp: f64) -> TokenTerm {
    let nll = TokenTerm::nll(1.0 - eps, logp);
    TokenTerm { x: nll.x - eps * mean_logp, d_mean_logp: -eps, ..nll }
}

/// `(1 - p^q) / q`, slope `-p^q`; its limit, NLL, at q = 0.
pub(super) fn family(q: f64, min_p: Option<f64>, max_p: Option<f64>, logp: f64) -> TokenTerm {
    let p = logp.exp();
    if min_p.is_some_and(|least| p < least) || max_p.is_some_and(|most| p > most) {
        return TokenTerm::default();
    }
    if q == 0.0 {
        return TokenTerm::nll(1.0, logp);
    }
    TokenTerm { x: -(q * logp).exp_m1() / q, d_logp: -(q * logp).exp(), ..TokenTerm::default() }
}

/// `-(1 - p)^gamma logp`. With `n = 1 - p` the slope is `n^gamma (gamma p logp / n - 1)`; `logp / n` is -1 in the limit n = 0.
pub(super) fn focal(gamma: f64, logp: f64) -> TokenTerm {
    let miss = -logp.exp_m1();
    let factor = miss.max(0.0).powf(gamma);
    let steepness = if miss > 0.0 { logp / miss } else { -1.0 };
    TokenTerm { x: -factor * logp, d_logp: factor * (gamma * logp.exp() * steepness - 1.0), ..TokenTerm::default() }
}

pub(super) fn check(q: f64, min_p: Option<f64>, max_p: Option<f64>) -> Vec<Problem> {
    let mut problems =
        expect(q >= 0.0 && q.is_finite(), "q", q, "a finite number of at least 0", "1 gives 1 - p, 0 NLL");
    for (name, bound) in [("min_p", min_p), ("max_p", max_p)] {
        let bound = bound.filter(|b| !(*b > 0.0 && *b < 1.0));
        problems.extend(
            bound.into_iter().flat_map(|b| expect(false, name, b, "between 0 and 1", "leave it out for no bound")),
        );
    }
    if let (Some(least), Some(most)) = (min_p, max_p)
        && least > most
    {
        let message = format!("min_p is {least} and max_p {most}: no token is between them");
        problems.push(Problem::new("min_p", message, "give one of the two, or swap them"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(term: TokenTerm, x: f64, d_logp: f64) {
        assert!((term.x - x).abs() < 1e-9 && (term.d_logp - d_logp).abs() < 1e-9, "{term:?}, expected {x} {d_logp}");
    }

    #[test]
    fn the_family_by_hand() {
        // p = 1/2, q = 10: (1 - 2^-10) / 10 = 0.09990234375; q = 1/2: 2 (1 - sqrt(1/2)) = 0.585786438
        close(family(10.0, None, None, 0.5f64.ln()), 0.099_902_343_75, -1.0 / 1024.0);
        close(family(0.5, None, None, 0.5f64.ln()), 0.585_786_437_627, -std::f64::consts::FRAC_1_SQRT_2);
    }

    #[test]
    fn tokens_outside_the_bounds_are_left_out() {
        let inside = |p: f64| family(1.0, Some(0.2), Some(0.6), p.ln()).x != 0.0;
        assert_eq!([0.1, 0.3, 0.7].map(inside), [false, true, false]);
    }

    #[test]
    fn focal_by_hand() {
        // p = 1/2, gamma 2: x = ln 2 / 4; slope = 1/4 (2 * 1/2 * (-2 ln 2) - 1) = -0.596573590
        close(focal(2.0, 0.5f64.ln()), 0.173_286_795_140, -0.596_573_590_280);
        close(focal(0.5, 0.0), 0.0, 0.0);
    }

    #[test]
    fn bounds_are_checked() {
        assert!(check(1.0, Some(0.1), Some(0.9)).is_empty());
        assert_eq!(check(f64::NAN, Some(0.0), Some(1.0)).len(), 3);
        assert_eq!(check(1.0, Some(0.9), Some(0.1)).len(), 1);
    }
}
