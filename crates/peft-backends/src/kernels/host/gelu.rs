//! GELU by the error function or by the hyperbolic tangent, and its derivative.

use crate::kernels::host::vector_math::{erf, tanh};

/// `√(2/π)`, the slope of the tangent form.
pub(crate) const SLOPE: f32 = 0.797_884_6;

pub(crate) const CUBIC: f32 = 0.044_715;

/// The function by the hyperbolic tangent, and its derivative.
#[inline(always)]
pub(crate) fn tanh_gelu_and_slope(x: f32) -> [f32; 2] {
    let t = tanh(SLOPE * x * (1.0 + CUBIC * x * x));
    let inner = SLOPE * (1.0 + 3.0 * CUBIC * x * x);
    [x * (0.5 + 0.5 * t), 0.5 + 0.5 * t + 0.5 * x * (1.0 - t * t) * inner]
}

/// The share of a normal distribution below `x`.
#[inline(always)]
pub(crate) fn normal(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
}
