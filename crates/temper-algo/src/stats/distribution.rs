//! Normal and Student quantiles, from series, without tables.

use std::f64::consts::{PI, SQRT_2};

/// P(Z <= z) for a standard normal Z, from the all-positive series
/// `erf(x) = 2 / sqrt(pi) * e^(-x^2) * sum_n 2^n x^(2n+1) / (2n+1)!!`.
fn normal_cdf(z: f64) -> f64 {
    let x = z.abs() / SQRT_2;
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term > sum * 1e-17 && n < 2000.0 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    let erf = (2.0 / PI.sqrt() * (-x * x).exp() * sum).min(1.0);
    if z < 0.0 { 0.5 * (1.0 - erf) } else { 0.5 * (1.0 + erf) }
}

/// z with P(|Z| <= z) = confidence: 1.959964 at 0.95.
pub(super) fn two_sided_normal(confidence: f64) -> f64 {
    bisect(0.5 + confidence / 2.0, normal_cdf)
}

/// t with P(|T| <= t) = confidence for Student's t of `df` degrees of freedom.
pub(super) fn two_sided_student(confidence: f64, df: f64) -> f64 {
    bisect(0.5 + confidence / 2.0, |t| student_cdf(t, df))
}

/// The non-negative argument at which an increasing distribution function reaches `p` (at least 1/2).
fn bisect(p: f64, cdf: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while cdf(high) < p && high < 1e12 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if cdf(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// P(T <= t) for t >= 0: `1 - I_{df / (df + t^2)}(df / 2, 1 / 2) / 2`.
fn student_cdf(t: f64, df: f64) -> f64 {
    1.0 - 0.5 * regularised_beta(df / (df + t * t), df / 2.0, 0.5)
}

/// `I_x(a, b)` by Lentz's evaluation of its continued fraction (DLMF 8.17.22).
fn regularised_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return if x <= 0.0 { 0.0 } else { 1.0 };
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - regularised_beta(1.0 - x, b, a);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp() / a;
    front * beta_fraction(x, a, b)
}

fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    let guard = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / guard(1.0 - (a + b) * x / (a + 1.0));
    let mut value = d;
    for m in 1..500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for coefficient in [even, odd] {
            d = 1.0 / guard(1.0 + coefficient * d);
            c = guard(1.0 + coefficient / c);
            step = c * d;
            value *= step;
        }
        if (step - 1.0).abs() < 1e-16 {
            break;
        }
    }
    value
}

/// `ln Gamma(x)` for x > 0: shift up to 12, then Stirling's series.
pub(super) fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 12.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let inverse = 1.0 / x;
    let square = inverse * inverse;
    let series = inverse
        * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square * (1.0 / 1680.0 - square / 1188.0))));
    shift + (x - 0.5) * x.ln() - x + 0.5 * (2.0 * PI).ln() + series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_agree_with_published_tables() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * b, "{a} {b}");
        close(two_sided_normal(0.95), 1.959_963_984_540_054);
        close(two_sided_normal(0.99), 2.575_829_303_548_901);
        // t(0.975; df): 1 -> tan(0.475 pi) in closed form, 2 -> 4.30265.., 10 -> 2.22813..
        close(two_sided_student(0.95, 1.0), (0.475 * PI).tan());
        close(two_sided_student(0.95, 2.0), 4.302_652_729_749_462);
        close(two_sided_student(0.95, 10.0), 2.228_138_851_986_274);
        assert!((two_sided_student(0.95, 1e7) - two_sided_normal(0.95)).abs() < 1e-6);
    }

    #[test]
    fn gamma_agrees_with_factorials() {
        for (x, value) in [(1.0, 1.0), (2.0, 1.0), (5.0, 24.0), (13.0, 479_001_600.0), (0.5, PI.sqrt())] {
            assert!((ln_gamma(x) - f64::ln(value)).abs() < 1e-13, "{x}");
        }
    }
}
