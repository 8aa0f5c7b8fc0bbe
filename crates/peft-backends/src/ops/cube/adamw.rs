//! AdamW: two launches for each tensor, and nothing read back.
//!
//! The first adds up the squares of its gradient, the second clips by the norm of all, moves the moments and the values.

use burn::{
    backend::ops::FloatTensorOps,
    tensor::{DType, Tensor},
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{
    Gpu, Kernels, OnGpu, launch, primitive,
    row::{UNITS, sum_of_cube},
};

/// Elements whose squares one cube adds up.
const PART: usize = 4096;

/// Numbers of the formula.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::ops) struct Formula {
    /// `1 - lr · decay`.
    pub(in crate::ops) keep: f32,
    pub(in crate::ops) betas: [f32; 2],
    /// `lr / (1 - β₁ᵗ)`.
    pub(in crate::ops) size: f32,
    /// `1 / √(1 - β₂ᵗ)`.
    pub(in crate::ops) scale: f32,
    pub(in crate::ops) epsilon: f32,
    /// All gradients together are scaled to at most this norm; zero leaves them as they are.
    pub(in crate::ops) max_norm: f32,
}

/// A tensor on a GPU and what belongs to it.
#[derive(Debug, Clone)]
pub(in crate::ops) struct OnDevice {
    pub(in crate::ops) value: Tensor<1>,
    pub(in crate::ops) gradient: Tensor<1>,
    pub(in crate::ops) moments: [Tensor<1>; 2],
    pub(in crate::ops) formula: Formula,
}

/// New values and moments in this order, and the norm of all gradients, `[1]`.
pub(in crate::ops) fn adamw(tensors: Vec<OnDevice>) -> (Vec<(Tensor<1>, [Tensor<1>; 2])>, Tensor<1>) {
    let squares: Vec<OnGpu> =
        tensors.iter().map(|tensor| Gpu::parts_of_squares(primitive(tensor.gradient.clone()))).collect();
    let norm = Gpu::float_sqrt(Gpu::float_sum(Gpu::float_cat(squares, 0)));
    let back = Tensor::from_primitive::<Gpu>;
    let updated = tensors.into_iter().map(|OnDevice { value, gradient, moments: [first, second], formula }| {
        let all = (primitive(value), primitive(gradient), primitive(first), primitive(second));
        let (value, first, second) = Gpu::adamw_step(all.0, all.1, all.2, all.3, norm.clone(), formula);
        (back(value), [back(first), back(second)])
    });
    (updated.collect(), back(norm))
}

/// The sums of the squares of a few elements each.
pub(super) fn parts_of_squares(x: CubeTensor) -> CubeTensor {
    let x = launch::whole(x);
    let parts = parts(x.meta.num_elements());
    let out = launch::empty(&x, [parts], DType::F32);
    let element = launch::element(&x);
    let (cubes, dim) = (launch::cubes(parts), CubeDim::new_1d(UNITS));
    squares_kernel::launch(&out.client, cubes, dim, x.into_buffer_arg(), out.clone().into_buffer_arg(), element);
    out
}

/// How many there are of so many elements.
pub(super) fn parts(elements: usize) -> usize {
    elements.div_ceil(PART)
}

/// The value and both moments after a step, where they were before if nobody else holds them.
pub(super) fn step(
    tensors: [CubeTensor; 4],
    norm: CubeTensor,
    formula: Formula,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [value, gradient, first, second] = tensors;
    let (gradient, [value, first, second]) = (launch::whole(gradient), [value, first, second].map(launch::own));
    let client = value.client.clone();
    let (count, dim) = launch::units(&client, value.meta.num_elements());
    let Formula { keep, betas: [stay1, stay2], size, scale, epsilon, max_norm } = formula;
    step_kernel::launch(
        &client,
        count,
        dim,
        value.clone().into_buffer_arg(),
        gradient.into_buffer_arg(),
        first.clone().into_buffer_arg(),
        second.clone().into_buffer_arg(),
        launch::whole(norm).into_buffer_arg(),
        NumbersLaunch::new(keep, stay1, stay2, size, scale, epsilon, max_norm),
    );
    (value, first, second)
}

/// [`Formula`] as kernels take it.
#[derive(CubeLaunch, CubeType)]
struct Numbers {
    keep: f32,
    stay1: f32,
    stay2: f32,
    size: f32,
    scale: f32,
    epsilon: f32,
    max_norm: f32,
}

#[cube(launch)]
fn squares_kernel<F: Float>(x: &[F], out: &mut [f32], #[define(F)] _dtype: ElemType) {
    let part = CUBE_POS;
    if part >= out.len() {
        terminate!();
    }
    let end = min((part + 1) * PART, x.len());
    let mut sum = 0.0f32;
    let mut at = part * PART + UNIT_POS_X as usize;
    while at < end {
        let value = f32::cast_from(x[at]);
        sum += value * value;
        at += UNITS as usize;
    }
    let sum = sum_of_cube(sum);
    if UNIT_POS_X == 0 {
        out[part] = sum;
    }
}

#[cube(launch)]
fn step_kernel(
    value: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    norm: &[f32],
    numbers: Numbers,
) {
    let at = ABSOLUTE_POS;
    if at >= value.len() {
        terminate!();
    }
    let mut factor = 1.0f32;
    if numbers.max_norm > 0.0f32 {
        let share = numbers.max_norm / (norm[0] + 1.0e-6f32);
        // Not `min`, which would make a one of what is no number.
        factor = select(share > 1.0f32, 1.0f32, share);
    }
    let gradient = gradient[at] * factor;
    let moved = first[at] * numbers.stay1 + gradient * (1.0f32 - numbers.stay1);
    let squared = second[at] * numbers.stay2 + gradient * gradient * (1.0f32 - numbers.stay2);
    first[at] = moved;
    second[at] = squared;
    let deviation = squared.sqrt() * numbers.scale + numbers.epsilon;
    value[at] = value[at] * numbers.keep - moved / deviation * numbers.size;
}
