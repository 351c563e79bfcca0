//! Vectorised exp, log, sigmoid and tanh: inline scalar bodies that the compiler turns into vector code.

use crate::isa::multiversion;

/// `e^x` (placeholder accuracy of the standard library).
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    x.exp()
}

#[inline(always)]
fn exp_body<const FMA: bool>(x: &mut [f32]) {
    for v in x {
        *v = exp::<FMA>(*v);
    }
}

#[inline(always)]
fn exp_shift_body<const FMA: bool>(x: &mut [f32], shift: f32) -> f32 {
    for v in x.iter_mut() {
        *v = exp::<FMA>(*v - shift);
    }
    super::reduce::lane_sum(x)
}

multiversion! {
    /// `x = e^x`.
    pub fn exp_slice(x: &mut [f32]) = exp_body, exp_slice_at;
    /// `x = e^(x - shift)`; returns the sum of the results in the order of [`super::reduce::row_sum`].
    pub fn exp_shift_sum(x: &mut [f32], shift: f32) -> f32 = exp_shift_body, exp_shift_sum_at;
}
