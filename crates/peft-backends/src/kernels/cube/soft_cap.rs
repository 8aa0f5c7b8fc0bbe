//! The soft cap of scores and logits.

use cubecl::prelude::*;

/// `cap · tanh(x / cap)`, or `x` as it is.
#[cube]
pub(crate) fn capped(x: f32, cap: f32, #[comptime] caps: bool) -> f32 {
    let mut value = x;
    if comptime!(caps) {
        // Without the overflow that some APIs' own tangent has.
        let bounded = clamp(x / cap, -20.0f32, 20.0f32);
        value = cap * (1.0f32 - 2.0f32 / (1.0f32 + (2.0f32 * bounded).exp()));
    }
    value
}

/// The slope of that where it has this value.
#[cube]
pub(crate) fn slope_of_capped(value: f32, cap: f32, #[comptime] caps: bool) -> f32 {
    let mut slope = 1.0f32;
    if comptime!(caps) {
        let share = value / cap;
        slope = 1.0f32 - share * share;
    }
    slope
}
