//! What a cube finds out of a row together.

use cubecl::prelude::*;

/// Units that share a row.
pub(crate) const UNITS: u32 = 128;

/// The sum over all units of a cube, which all of them get.
#[cube]
pub(crate) fn sum_of_cube(value: f32) -> f32 {
    reduced(value, false)
}

/// The largest over all units of a cube, which all of them get.
#[cube]
pub(crate) fn most_of_cube(value: f32) -> f32 {
    reduced(value, true)
}

#[cube]
fn reduced(value: f32, #[comptime] largest: bool) -> f32 {
    let mut shared = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let unit = UNIT_POS_X as usize;
    shared[unit] = value;
    sync_cube();
    let mut half = comptime!(UNITS as usize / 2).runtime();
    while half > 0 {
        if unit < half {
            let (own, other) = (shared[unit], shared[unit + half]);
            if comptime!(largest) {
                shared[unit] = max(own, other);
            } else {
                shared[unit] = own + other;
            }
        }
        sync_cube();
        half /= 2;
    }
    shared[0]
}
