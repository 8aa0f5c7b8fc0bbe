//! Rotary positions, a unit for each pair of dimensions.

use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::cube::launch;

pub(crate) fn rotate(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, half: usize, back: bool) -> CubeTensor {
    let [x, cos, sin] = [x, cos, sin].map(launch::whole);
    let [batch, length, heads, dim] = launch::dims(&x);
    let [tables, ..] = launch::dims::<4>(&cos);
    let (y, client) = (launch::empty_like(&x), x.client.clone());
    let (count, units) = launch::units(&client, batch * length * heads * (dim - half));
    let numbers = NumbersLaunch::new(
        launch::small(if tables == 1 { length } else { batch * length }),
        launch::small(heads),
        launch::small(dim),
        launch::small(half),
    );
    let dtypes = [x.dtype, cos.dtype].map(dtype_to_storage_type);
    rotate_kernel::launch(
        &client,
        count,
        units,
        x.into_buffer_arg(),
        cos.into_buffer_arg(),
        sin.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        numbers,
        back,
        dtypes,
    );
    y
}

/// Sizes.
#[derive(CubeLaunch, CubeType)]
struct Numbers {
    /// Rows of the tables.
    positions: u32,
    heads: u32,
    dim: u32,
    half: u32,
}

#[cube(launch)]
fn rotate_kernel<F: Float, T: Float>(
    x: &[F],
    cos: &[T],
    sin: &[T],
    y: &mut [F],
    numbers: Numbers,
    #[comptime] back: bool,
    #[define(F, T)] _dtypes: [ElemType; 2],
) {
    let (dim, half) = (numbers.dim as usize, numbers.half as usize);
    // A pair, or one of those that are in none.
    let slots = dim - half;
    let (head, slot) = (ABSOLUTE_POS / slots, ABSOLUTE_POS % slots);
    let start = head * dim;
    if start >= y.len() {
        terminate!();
    }
    let table = head / numbers.heads as usize % numbers.positions as usize * dim;
    if slot < half {
        let (a, b) = (f32::cast_from(x[start + slot]), f32::cast_from(x[start + half + slot]));
        let (cos_a, cos_b) = (f32::cast_from(cos[table + slot]), f32::cast_from(cos[table + half + slot]));
        let (sin_a, sin_b) = (f32::cast_from(sin[table + slot]), f32::cast_from(sin[table + half + slot]));
        if comptime!(back) {
            y[start + slot] = F::cast_from(a * cos_a + b * sin_b);
            y[start + half + slot] = F::cast_from(b * cos_b - a * sin_a);
        } else {
            y[start + slot] = F::cast_from(a * cos_a - b * sin_a);
            y[start + half + slot] = F::cast_from(b * cos_b + a * sin_b);
        }
    } else {
        let place = slot + half;
        y[start + place] = F::cast_from(f32::cast_from(x[start + place]) * f32::cast_from(cos[table + place]));
    }
}
