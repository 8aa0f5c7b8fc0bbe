//! Root-mean-square and layer normalisation, a cube for each row.

use burn::{backend::cubecl::dtype_to_storage_type, tensor::DType};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::{
    cube::{
        dropout::{Seed, factor},
        launch, product,
        row::{UNITS, sum_of_cube},
    },
    dropout_mask::Keep,
};

/// Rows whose sums over columns go to one unit.
const ROWS: usize = 64;

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// `x ρ (offset + weight)`, `ρ = 1 / √(mean(x²) + ε)`; the quotient is rounded first if there is no offset.
    Rms {
        /// Added to the weight.
        offset: f32,
    },
    /// `(x - mean) ρ · weight + bias`, `ρ = 1 / √(variance + ε)`.
    Layer,
}

/// What kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Plan {
    centred: bool,
    rounds: bool,
    shifts: bool,
}

fn plan(kind: Kind, shifts: bool) -> Plan {
    match kind {
        Kind::Rms { offset } => Plan { centred: false, rounds: offset == 0.0, shifts },
        Kind::Layer => Plan { centred: true, rounds: false, shifts },
    }
}

fn offset(kind: Kind) -> f32 {
    match kind {
        Kind::Rms { offset } => offset,
        Kind::Layer => 0.0,
    }
}

pub(crate) fn forward(
    z: CubeTensor,
    weight: CubeTensor,
    bias: CubeTensor,
    biased: bool,
    kind: Kind,
    epsilon: f32,
) -> (CubeTensor, CubeTensor) {
    let [z, weight, bias] = [z, weight, bias].map(launch::whole);
    let count = z.meta.num_elements() / launch::width(&z);
    let (y, rows) = (launch::empty_like(&z), launch::empty(&z, [2, count], DType::F32));
    let dtypes = [z.dtype, weight.dtype].map(dtype_to_storage_type);
    forward_kernel::launch(
        &y.client,
        launch::cubes(count),
        CubeDim::new_1d(UNITS),
        z.into_buffer_arg(),
        weight.into_buffer_arg(),
        bias.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        rows.clone().into_buffer_arg(),
        offset(kind),
        epsilon,
        plan(kind, biased),
        dtypes,
    );
    (y, rows)
}

pub(crate) fn backward(
    z: CubeTensor,
    weight: CubeTensor,
    rows: CubeTensor,
    grad: CubeTensor,
    kind: Kind,
) -> CubeTensor {
    let [z, weight, rows, grad] = [z, weight, rows, grad].map(launch::whole);
    let count = z.meta.num_elements() / launch::width(&z);
    let dz = launch::empty_like(&z);
    let dtypes = [z.dtype, weight.dtype].map(dtype_to_storage_type);
    backward_kernel::launch(
        &dz.client,
        launch::cubes(count),
        CubeDim::new_1d(UNITS),
        z.into_buffer_arg(),
        weight.into_buffer_arg(),
        rows.into_buffer_arg(),
        grad.into_buffer_arg(),
        dz.clone().into_buffer_arg(),
        offset(kind),
        plan(kind, false),
        dtypes,
    );
    dz
}

pub(crate) fn backward_weights(
    z: CubeTensor,
    weight: CubeTensor,
    rows: CubeTensor,
    grad: CubeTensor,
    kind: Kind,
) -> (CubeTensor, CubeTensor) {
    let [z, rows, grad] = [z, rows, grad].map(launch::whole);
    let width = launch::width(&z);
    let parts = (z.meta.num_elements() / width).div_ceil(ROWS);
    let part = |like| launch::empty(like, [parts, width], DType::F32);
    let (dweight, dbias) = (part(&z), part(&z));
    let client = z.client.clone();
    let (count, dim) = launch::units(&client, parts * width);
    weights_kernel::launch(
        &client,
        count,
        dim,
        z.clone().into_buffer_arg(),
        rows.into_buffer_arg(),
        grad.into_buffer_arg(),
        dweight.clone().into_buffer_arg(),
        dbias.clone().into_buffer_arg(),
        launch::small(width),
        plan(kind, false),
        launch::element(&z),
    );
    let dtype = weight.dtype;
    (product::sum_of_parts(dweight, [width], dtype), product::sum_of_parts(dbias, [width], dtype))
}

/// `dropout(x) + residual`.
pub(crate) fn dropout_add(x: CubeTensor, residual: CubeTensor, keep: Keep) -> CubeTensor {
    let (x, residual) = (launch::whole(x), launch::whole(residual));
    let (z, client, element) = (launch::empty_like(&x), x.client.clone(), launch::element(&x));
    let (count, dim) = launch::units(&client, x.meta.num_elements());
    let (x, residual, out) = (x.into_buffer_arg(), residual.into_buffer_arg(), z.clone().into_buffer_arg());
    dropout_add_kernel::launch(&client, count, dim, x, residual, out, Seed::launch(Some(keep)), element);
    z
}

#[cube(launch)]
fn dropout_add_kernel<F: Float>(x: &[F], residual: &[F], z: &mut [F], seed: Seed, #[define(F)] _dtype: ElemType) {
    if ABSOLUTE_POS >= z.len() {
        terminate!();
    }
    let kept = f32::cast_from(x[ABSOLUTE_POS]) * factor(ABSOLUTE_POS as u32, &seed);
    z[ABSOLUTE_POS] = F::cast_from(kept + f32::cast_from(residual[ABSOLUTE_POS]));
}

#[cube(launch)]
fn forward_kernel<F: Float, W: Float>(
    z: &[F],
    weight: &[W],
    bias: &[W],
    y: &mut [F],
    rows: &mut [f32],
    offset: f32,
    epsilon: f32,
    #[comptime] plan: Plan,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let (row, count, width) = (CUBE_POS, rows.len() / 2, weight.len());
    if row >= count {
        terminate!();
    }
    let start = row * width;
    let mut mean = 0.0f32;
    if comptime!(plan.centred) {
        let mut sum = 0.0f32;
        let mut column = UNIT_POS_X as usize;
        while column < width {
            sum += f32::cast_from(z[start + column]);
            column += UNITS as usize;
        }
        mean = sum_of_cube(sum) / f32::cast_from(width as u32);
    }
    let mut squares = 0.0f32;
    let mut column = UNIT_POS_X as usize;
    while column < width {
        let value = f32::cast_from(z[start + column]) - mean;
        squares += value * value;
        column += UNITS as usize;
    }
    let rho = 1.0f32 / (sum_of_cube(squares) / f32::cast_from(width as u32) + epsilon).sqrt();
    if UNIT_POS_X == 0 {
        rows[row] = mean;
        rows[count + row] = rho;
    }
    let mut column = UNIT_POS_X as usize;
    while column < width {
        let mut value = (f32::cast_from(z[start + column]) - mean) * rho;
        if comptime!(plan.rounds) {
            value = f32::cast_from(F::cast_from(value));
        }
        value *= offset + f32::cast_from(weight[column]);
        if comptime!(plan.shifts) {
            value += f32::cast_from(bias[column]);
        }
        y[start + column] = F::cast_from(value);
        column += UNITS as usize;
    }
}

#[cube(launch)]
fn backward_kernel<F: Float, W: Float>(
    z: &[F],
    weight: &[W],
    rows: &[f32],
    grad: &[F],
    dz: &mut [F],
    offset: f32,
    #[comptime] plan: Plan,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let (row, count, width) = (CUBE_POS, rows.len() / 2, weight.len());
    if row >= count {
        terminate!();
    }
    let start = row * width;
    let (mean, rho) = (rows[row], rows[count + row]);
    let mut sum = 0.0f32;
    let mut along = 0.0f32;
    let mut column = UNIT_POS_X as usize;
    while column < width {
        let scaled = f32::cast_from(grad[start + column]) * (offset + f32::cast_from(weight[column]));
        sum += scaled;
        along += scaled * (f32::cast_from(z[start + column]) - mean);
        column += UNITS as usize;
    }
    let size = f32::cast_from(width as u32);
    let along = sum_of_cube(along) * rho * rho / size;
    let mut level = 0.0f32;
    if comptime!(plan.centred) {
        level = sum_of_cube(sum) / size;
    }
    let mut column = UNIT_POS_X as usize;
    while column < width {
        let scaled = f32::cast_from(grad[start + column]) * (offset + f32::cast_from(weight[column]));
        let value = f32::cast_from(z[start + column]) - mean;
        dz[start + column] = F::cast_from((scaled - level - value * along) * rho);
        column += UNITS as usize;
    }
}

/// The parts of the gradients of weight and bias that a few rows give, a unit for each part and column.
#[cube(launch)]
fn weights_kernel<F: Float>(
    z: &[F],
    rows: &[f32],
    grad: &[F],
    dweight: &mut [f32],
    dbias: &mut [f32],
    width: u32,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let (at, count, width) = (ABSOLUTE_POS, rows.len() / 2, width as usize);
    if at >= dweight.len() {
        terminate!();
    }
    let (part, column) = (at / width, at % width);
    let mut along = 0.0f32;
    let mut sum = 0.0f32;
    for row in part * ROWS..min((part + 1) * ROWS, count) {
        let own = f32::cast_from(grad[row * width + column]);
        let mut value = (f32::cast_from(z[row * width + column]) - rows[row]) * rows[count + row];
        if comptime!(plan.rounds) {
            value = f32::cast_from(F::cast_from(value));
        }
        along += own * value;
        sum += own;
    }
    dweight[at] = along;
    dbias[at] = sum;
}
