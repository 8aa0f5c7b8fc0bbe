//! The output layer over a vocabulary and the loss on it, a few rows at a time.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::cube::{
    launch,
    row::{UNITS, most_of_cube, sum_of_cube},
    soft_cap::{capped, slope_of_capped},
};

/// The gradients of the losses, in the place of the logits if nobody else holds them, and the losses; zeros where there is no
/// target.
pub(crate) fn rows(logits: CubeTensor, targets: CubeTensor, cap: f32) -> (CubeTensor, CubeTensor) {
    let logits = launch::own(logits);
    let width = launch::width(&logits);
    let count = logits.meta.num_elements() / width;
    let losses = launch::empty(&logits, [count], DType::F32);
    rows_kernel::launch(
        &losses.client,
        launch::cubes(count),
        CubeDim::new_1d(UNITS),
        logits.clone().into_buffer_arg(),
        launch::whole(targets).into_buffer_arg(),
        losses.clone().into_buffer_arg(),
        launch::small(width),
        cap,
        cap > 0.0,
        launch::element(&logits),
    );
    (logits, losses)
}

#[cube(launch)]
fn rows_kernel<F: Float>(
    logits: &mut [F],
    targets: &[i32],
    losses: &mut [f32],
    width: u32,
    cap: f32,
    #[comptime] caps: bool,
    #[define(F)] _dtype: ElemType,
) {
    let (row, width) = (CUBE_POS, width as usize);
    if row >= losses.len() {
        terminate!();
    }
    let start = row * width;
    // A row without a target goes through the motions of one with the first class: all units take one way.
    let is_counted = targets[row] >= 0;
    let target = max(targets[row], 0) as usize;
    let mut most = f32::new(-3.0e38_f32);
    let mut class = UNIT_POS_X as usize;
    while class < width {
        most = max(most, capped(f32::cast_from(logits[start + class]), cap, caps));
        class += UNITS as usize;
    }
    let most = most_of_cube(most);
    let own = capped(f32::cast_from(logits[start + target]), cap, caps);
    let mut sum = 0.0f32;
    let mut class = UNIT_POS_X as usize;
    while class < width {
        sum += (capped(f32::cast_from(logits[start + class]), cap, caps) - most).exp();
        class += UNITS as usize;
    }
    // All units have read the target's own before one of them writes over it.
    let sum = sum_of_cube(sum);
    if UNIT_POS_X == 0 {
        losses[row] = select(is_counted, most + sum.ln() - own, 0.0f32);
    }
    let scale = 1.0f32 / sum;
    let mut class = UNIT_POS_X as usize;
    while class < width {
        let value = capped(f32::cast_from(logits[start + class]), cap, caps);
        let slope = (value - most).exp() * scale - select(class == target, 1.0f32, 0.0f32);
        let slope = slope * slope_of_capped(value, cap, caps);
        logits[start + class] = F::cast_from(select(is_counted, slope, 0.0f32));
        class += UNITS as usize;
    }
}
