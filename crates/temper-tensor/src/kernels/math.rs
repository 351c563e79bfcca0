//! exp, ln, sigmoid and tanh as branch-free scalar bodies that the compiler turns into vector code. They are our own,
//! so that results do not depend on the system's mathematical library.
#![allow(clippy::inline_always)] // bodies are compiled into each instruction-set level's function

use super::reduce::lane_sum;
use crate::isa::{mul_add, multiversion};

/// `1.5 * 2^23`: adding it rounds a small number to an integer that then lies in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// ln 2 in two parts; a product of the first with an integer below 2^14 is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Horner's rule, highest coefficient first.
#[inline(always)]
fn polynomial<const FMA: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut y = coefficients[0];
    for c in &coefficients[1..] {
        y = mul_add::<FMA>(y, x, *c);
    }
    y
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

/// `e^x` to about 1 unit in the last place; exactly 1 at 0, 0 at -inf, inf past 88.73; NaN stays NaN.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    // Comparisons in this direction keep NaN.
    let x = if x < -105.0 { -105.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = mul_add::<FMA>(n, -LN2_LOW, mul_add::<FMA>(n, -LN2_HIGH, x));
    // (e^r - 1 - r) / r^2, interpolated at Chebyshev nodes of |r| <= 0.3475.
    let tail = polynomial::<FMA, 5>(r, [1.392_637_6e-3, 8.363_333e-3, 4.166_655_3e-2, 0.166_665_76, 0.5]);
    let p = mul_add::<FMA>(r * r, tail, r) + 1.0;
    // Two factors, because 2^n itself may lie outside the range of f32.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n - half)
}

/// Natural logarithm to about 1 unit in the last place; -inf at 0, NaN below.
#[inline(always)]
pub fn ln<const FMA: bool>(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 16_777_216.0 } else { x };
    // Mantissa in [sqrt(1/2), sqrt(2)) and exponent.
    let bits = scaled.to_bits().wrapping_sub(0x3f35_04f3);
    let exponent = (bits as i32 >> 23) as f32 - if tiny { 24.0 } else { 0.0 };
    let f = f32::from_bits((bits & 0x007f_ffff) + 0x3f35_04f3) - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    // ln(1 + f) = 2 atanh(s), with 2 s = f - s f and 2 s^3 / 3 + ... interpolated at Chebyshev nodes.
    let series = z * polynomial::<FMA, 4>(z, [0.233_309_64, 0.285_508_03, 0.400_001_2, 0.666_666_7]);
    let half_square = 0.5 * f * f;
    let low = mul_add::<FMA>(exponent, LN2_LOW, s * (half_square + series));
    let y = mul_add::<FMA>(exponent, LN2_HIGH, f - (half_square - low));
    let y = if x < f32::INFINITY { y } else { x };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 { f32::NAN } else { y }
}

/// Natural logarithm of a positive, normal, finite f64.
pub(crate) fn ln_f64(x: f64) -> f64 {
    const SQRT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
    let bits = x.to_bits().wrapping_sub(SQRT_HALF);
    let exponent = (bits as i64 >> 52) as f64;
    let m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) + SQRT_HALF);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let series = (0..11).rev().fold(0.0, |y, i| y * z + 2.0 / f64::from(2 * i + 1));
    exponent * std::f64::consts::LN_2 + s * series
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// Hyperbolic tangent.
#[inline(always)]
pub fn tanh<const FMA: bool>(x: f32) -> f32 {
    let a = x.abs();
    let far = 1.0 - 2.0 / (exp::<FMA>(2.0 * a) + 1.0);
    let z = x * x;
    // (tanh(x) - x) / x^3, interpolated at Chebyshev nodes of |x| <= 0.628.
    let tail = [-6.072_587_5e-3, 2.098_050_6e-2, -5.384_737_6e-2, 0.133_327_46, -0.333_333_3];
    let near = mul_add::<FMA>(a * z, polynomial::<FMA, 5>(z, tail), a);
    let y = if a < 0.625 { near } else { far };
    y.copysign(x)
}

#[inline(always)]
fn exp_body<const FMA: bool>(x: &mut [f32]) {
    for v in x {
        *v = exp::<FMA>(*v);
    }
}

#[inline(always)]
fn ln_body<const FMA: bool>(x: &mut [f32]) {
    for v in x {
        *v = ln::<FMA>(*v);
    }
}

#[inline(always)]
fn sigmoid_body<const FMA: bool>(x: &mut [f32]) {
    for v in x {
        *v = sigmoid::<FMA>(*v);
    }
}

#[inline(always)]
fn tanh_body<const FMA: bool>(x: &mut [f32]) {
    for v in x {
        *v = tanh::<FMA>(*v);
    }
}

#[inline(always)]
fn exp_shift_body<const FMA: bool>(x: &mut [f32], shift: f32) -> f32 {
    for v in x.iter_mut() {
        *v = exp::<FMA>(*v - shift);
    }
    lane_sum(x)
}

multiversion! {
    /// `x = e^x`.
    pub fn exp_slice(x: &mut [f32]) = exp_body, exp_slice_at;
    /// `x = ln(x)`.
    pub fn ln_slice(x: &mut [f32]) = ln_body, ln_slice_at;
    /// `x = 1 / (1 + e^-x)`.
    pub fn sigmoid_slice(x: &mut [f32]) = sigmoid_body, sigmoid_slice_at;
    /// `x = tanh(x)`.
    pub fn tanh_slice(x: &mut [f32]) = tanh_body, tanh_slice_at;
    /// `x = e^(x - shift)`; returns the sum of the results in the order of [`super::reduce::row_sum`].
    pub fn exp_shift_sum(x: &mut [f32], shift: f32) -> f32 = exp_shift_body, exp_shift_sum_at;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, levels};

    /// Largest error over a grid, in units of the result's last place.
    fn worst(xs: &[f32], kernel: impl Fn(Isa, &mut [f32]), exact: impl Fn(f64) -> f64) -> f64 {
        let mut worst = 0.0_f64;
        for isa in levels() {
            let mut ys = xs.to_vec();
            kernel(isa, &mut ys);
            for (x, y) in xs.iter().zip(ys) {
                let want = exact(f64::from(*x));
                let ulp = f64::from((want as f32).abs().next_up()) - f64::from((want as f32).abs());
                worst = worst.max((f64::from(y) - want).abs() / ulp);
            }
        }
        worst
    }

    fn grid(low: f32, high: f32) -> Vec<f32> {
        let n = 200_003;
        (0..n).map(|i| low + (high - low) * (i as f32 / (n - 1) as f32)).collect()
    }

    #[test]
    fn exp_is_accurate_over_its_range() {
        let error =
            worst(&grid(-103.0, 88.7), exp_slice_at, f64::exp).max(worst(&grid(-1.0, 1.0), exp_slice_at, f64::exp));
        assert!(error < 1.5, "{error} units in the last place");
    }

    #[test]
    fn exp_at_the_edges() {
        let inputs = [0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY, -1e30, 1e30, -200.0, 89.5, f32::NAN];
        for isa in levels() {
            let mut y = inputs;
            exp_slice_at(isa, &mut y);
            assert_eq!(y[..8], [1.0, 1.0, 0.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0, f32::INFINITY]);
            assert!(y[8].is_nan());
        }
    }

    #[test]
    fn ln_is_accurate_over_its_range() {
        let tiny: Vec<f32> = grid(1.0, 4.0).iter().map(|x| x * 1e-40).collect();
        for xs in [grid(0.5, 2.0), grid(1e-3, 1e4), grid(0.99, 1.01), tiny] {
            let error = worst(&xs, ln_slice_at, f64::ln);
            assert!(error < 1.5, "{error} units in the last place");
        }
        for isa in levels() {
            let mut y = [0.0, 1.0, f32::INFINITY, -1.0, f32::NAN, f32::MAX];
            ln_slice_at(isa, &mut y);
            assert_eq!(y[..3], [f32::NEG_INFINITY, 0.0, f32::INFINITY]);
            assert!(y[3].is_nan() && y[4].is_nan() && (y[5] - 88.722_84).abs() < 1e-4);
        }
    }

    #[test]
    fn ln_in_double_precision() {
        for x in [1.0, 0.5, 1e-300, 3.7e12, 49152.0, 1.000_000_1, 1.414, 0.7072, 0.707] {
            assert!((ln_f64(x) - f64::ln(x)).abs() <= 2e-15 * f64::ln(x).abs().max(0.5), "{x}");
        }
    }

    #[test]
    fn sigmoid_and_tanh_are_accurate() {
        let error = worst(&grid(-80.0, 80.0), sigmoid_slice_at, |x| 1.0 / (1.0 + (-x).exp()));
        assert!(error < 3.0, "sigmoid: {error} units in the last place");
        let error =
            worst(&grid(-12.0, 12.0), tanh_slice_at, f64::tanh).max(worst(&grid(-0.7, 0.7), tanh_slice_at, f64::tanh));
        assert!(error < 3.0, "tanh: {error} units in the last place");
        for isa in levels() {
            let mut y = [f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::NAN];
            tanh_slice_at(isa, &mut y);
            assert_eq!(y[..4], [1.0, -1.0, 0.0, 0.0]);
            assert!(y[3].is_sign_negative() && y[4].is_nan());
        }
    }

    #[test]
    fn lanes_and_tails_agree() {
        // A value's result must not depend on its place in the slice.
        for isa in levels() {
            let mut whole = grid(-5.0, 5.0)[..77].to_vec();
            let singles: Vec<f32> = whole
                .iter()
                .map(|x| {
                    let mut one = [*x];
                    exp_slice_at(isa, &mut one);
                    one[0]
                })
                .collect();
            exp_slice_at(isa, &mut whole);
            assert_eq!(whole, singles);
        }
    }
}
