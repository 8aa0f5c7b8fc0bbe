//! Softmax over the last dimension, a cube for each row.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::cube::{
    launch,
    row::{UNITS, most_of_cube, sum_of_cube},
};

pub(crate) fn forward(x: CubeTensor) -> CubeTensor {
    let x = launch::whole(x);
    let (y, width, element) = (launch::empty_like(&x), launch::width(&x), launch::element(&x));
    let cubes = launch::cubes(x.meta.num_elements() / width);
    let (x, out, width) = (x.into_buffer_arg(), y.clone().into_buffer_arg(), launch::small(width));
    forward_kernel::launch(&y.client, cubes, CubeDim::new_1d(UNITS), x, out, width, element);
    y
}

pub(crate) fn backward(y: CubeTensor, grad: CubeTensor) -> CubeTensor {
    let (y, grad) = (launch::whole(y), launch::whole(grad));
    let (dx, width, element) = (launch::empty_like(&y), launch::width(&y), launch::element(&y));
    let cubes = launch::cubes(y.meta.num_elements() / width);
    let (y, grad) = (y.into_buffer_arg(), grad.into_buffer_arg());
    let (out, width) = (dx.clone().into_buffer_arg(), launch::small(width));
    backward_kernel::launch(&dx.client, cubes, CubeDim::new_1d(UNITS), y, grad, out, width, element);
    dx
}

#[cube(launch)]
fn forward_kernel<F: Float>(x: &[F], y: &mut [F], width: u32, #[define(F)] _dtype: ElemType) {
    let width = width as usize;
    let start = CUBE_POS * width;
    if start >= y.len() {
        terminate!();
    }
    let mut most = f32::new(-3.0e38_f32);
    let mut column = UNIT_POS_X as usize;
    while column < width {
        most = max(most, f32::cast_from(x[start + column]));
        column += UNITS as usize;
    }
    let most = most_of_cube(most);
    let mut sum = 0.0f32;
    let mut column = UNIT_POS_X as usize;
    while column < width {
        sum += (f32::cast_from(x[start + column]) - most).exp();
        column += UNITS as usize;
    }
    let scale = 1.0f32 / sum_of_cube(sum);
    let mut column = UNIT_POS_X as usize;
    while column < width {
        y[start + column] = F::cast_from((f32::cast_from(x[start + column]) - most).exp() * scale);
        column += UNITS as usize;
    }
}

#[cube(launch)]
fn backward_kernel<F: Float>(y: &[F], grad: &[F], dx: &mut [F], width: u32, #[define(F)] _dtype: ElemType) {
    let width = width as usize;
    let start = CUBE_POS * width;
    if start >= dx.len() {
        terminate!();
    }
    let mut sum = 0.0f32;
    let mut column = UNIT_POS_X as usize;
    while column < width {
        sum += f32::cast_from(y[start + column]) * f32::cast_from(grad[start + column]);
        column += UNITS as usize;
    }
    let sum = sum_of_cube(sum);
    let mut column = UNIT_POS_X as usize;
    while column < width {
        let own = f32::cast_from(y[start + column]);
        dx[start + column] = F::cast_from(own * (f32::cast_from(grad[start + column]) - sum));
        column += UNITS as usize;
    }
}
