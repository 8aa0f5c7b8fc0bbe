//! Products with one thin side: those of an adapter's factors.
//!
//! A tile of the result belongs to one cube; where the sum is long and the result small, parts of the sum go to different cubes
//! and are added up in a second pass, in fixed order.

use burn::{
    backend::cubecl::dtype_to_storage_type,
    tensor::{DType, Shape},
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::{
    cube::{
        dropout::{Seed, factor},
        launch,
    },
    dropout_mask::Keep,
};

/// Units of a cube.
pub(crate) const UNITS: usize = 256;

/// Terms of the sum that are in shared memory at a time.
pub(crate) const DEPTH: usize = 16;

/// Terms of the sum for which a cube of its own is worth it.
const PART: usize = 256;

/// Cubes that keep a device busy.
const CUBES: usize = 128;

/// Which numbers dropout takes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Drops {
    /// The first factor, `[m, k]`.
    Left,
    /// The second, `[k, n]`.
    Right,
    /// The product, `[m, n]`.
    Product,
}

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Plan {
    /// Of a tile.
    rows: usize,
    columns: usize,
    drops: Option<Drops>,
    adds: bool,
}

/// Numbers that kernels are given.
#[derive(CubeLaunch, CubeType)]
struct Numbers {
    /// Terms of a part of the sum.
    part: u32,
    scale: f32,
    seed: Seed,
}

/// Where a product goes.
#[expect(clippy::large_enum_variant, reason = "it lives as long as a call")]
pub(crate) enum Onto {
    /// To a tensor of its own.
    New(DType),
    /// To this one, to which it is added.
    Sum(CubeTensor),
}

/// `scale · a b`. What dropout takes must lie in memory row by row.
pub(crate) fn product(
    a: CubeTensor,
    b: CubeTensor,
    scale: f32,
    drops: Option<(Drops, Keep)>,
    onto: Onto,
) -> CubeTensor {
    let ([m, k], [_, n]) = (launch::dims(&a), launch::dims(&b));
    let adds = matches!(onto, Onto::Sum(_));
    let [rows, columns] = if n <= 16 {
        [64, 16]
    } else if m <= 16 {
        [16, 64]
    } else {
        [32, 32]
    };
    let tiles = m.div_ceil(rows) * n.div_ceil(columns);
    let (part, parts) = if adds { (k.next_multiple_of(DEPTH), 1) } else { parts_of(k, tiles) };
    let (out, dtype) = match onto {
        Onto::Sum(onto) => {
            let dtype = onto.dtype;
            (launch::own(onto), dtype)
        }
        Onto::New(dtype) => (room(&a, parts, [m, n], dtype), dtype),
    };
    let plan = Plan { rows, columns, drops: drops.map(|(drops, _)| drops), adds };
    let seed = Seed::launch(drops.map(|(_, keep)| keep));
    let dtypes = [a.dtype, b.dtype, out.dtype].map(dtype_to_storage_type);
    product_kernel::launch(
        &out.client.clone(),
        CubeCount::Static(launch::small(n.div_ceil(columns)), launch::small(m.div_ceil(rows)), launch::small(parts)),
        CubeDim::new_1d(launch::small(UNITS)),
        a.into_tensor_arg(),
        b.into_tensor_arg(),
        out.clone().into_buffer_arg(),
        NumbersLaunch::new(launch::small(part), scale, seed),
        plan,
        dtypes,
    );
    if parts == 1 { out } else { sum_of_parts(out, [m, n], dtype) }
}

/// Memory for the parts of a sum; for the sum itself if it is one part.
pub(crate) fn room(like: &CubeTensor, parts: usize, [m, n]: [usize; 2], dtype: DType) -> CubeTensor {
    match parts {
        1 => launch::empty(like, [m, n], dtype),
        _ => launch::empty(like, [parts, m, n], DType::F32),
    }
}

/// How many of a sum's terms make a part, and how many parts there are, where the result has so many tiles.
pub(crate) fn parts_of(terms: usize, tiles: usize) -> (usize, usize) {
    let tiles = tiles.max(1);
    let wanted = if tiles >= CUBES { 1 } else { (CUBES / tiles).min(terms.div_ceil(PART)).max(1) };
    let part = terms.div_ceil(wanted).next_multiple_of(DEPTH).max(DEPTH);
    (part, terms.div_ceil(part).max(1))
}

/// The sum over the first dimension.
pub(crate) fn sum_of_parts(parts: CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let out = launch::empty(&parts, shape, dtype);
    let client = out.client.clone();
    let (count, dim) = launch::units(&client, out.meta.num_elements());
    let element = launch::element(&out);
    sum_kernel::launch(&client, count, dim, parts.into_buffer_arg(), out.clone().into_buffer_arg(), element);
    out
}

#[cube(launch)]
fn product_kernel<A: Float, B: Float, O: Float>(
    a: &Tensor<A>,
    b: &Tensor<B>,
    out: &mut [O],
    numbers: Numbers,
    #[comptime] plan: Plan,
    #[define(A, B, O)] _dtypes: [ElemType; 3],
) {
    let (rows, columns) = comptime!((plan.rows, plan.columns));
    let each = comptime!(rows * columns / UNITS);
    let (m, n, k) = (a.shape(0), b.shape(1), a.shape(1));
    let unit = UNIT_POS_X as usize;
    let (first_row, first_column) = (CUBE_POS_Y as usize * rows, CUBE_POS_X as usize * columns);
    let (own_row, own_column) = (unit / columns, unit % columns);
    let from = CUBE_POS_Z as usize * numbers.part as usize;
    let to = min(from + numbers.part as usize, k);

    let mut a_tile = Shared::<[f32]>::new_slice(comptime!(rows * DEPTH));
    let mut b_tile = Shared::<[f32]>::new_slice(comptime!(DEPTH * columns));
    let mut sums = zeros(each);
    let mut start = from;
    while start < to {
        let mut at = unit;
        while at < comptime!(rows * DEPTH) {
            let (row, column) = (first_row + at / DEPTH, start + at % DEPTH);
            let mut value = 0.0f32;
            if row < m && column < to {
                value = f32::cast_from(a[row * a.stride(0) + column * a.stride(1)]);
                if comptime!(plan.drops == Some(Drops::Left)) {
                    value *= factor((row * k + column) as u32, &numbers.seed);
                }
            }
            a_tile[at] = value;
            at += UNITS;
        }
        let mut at = unit;
        while at < comptime!(DEPTH * columns) {
            let (row, column) = (start + at / columns, first_column + at % columns);
            let mut value = 0.0f32;
            if row < to && column < n {
                value = f32::cast_from(b[row * b.stride(0) + column * b.stride(1)]);
                if comptime!(plan.drops == Some(Drops::Right)) {
                    value *= factor((row * n + column) as u32, &numbers.seed);
                }
            }
            b_tile[at] = value;
            at += UNITS;
        }
        add_products(&mut sums, &a_tile, &b_tile, own_row, own_column, each, columns, [DEPTH, 1]);
        start += DEPTH;
    }
    for at in 0..each {
        let row = first_row + own_row + at * comptime!(UNITS / columns);
        let column = first_column + own_column;
        if row < m && column < n {
            let mut value = sums[at] * numbers.scale;
            if comptime!(plan.drops == Some(Drops::Product)) {
                value *= factor((row * n + column) as u32, &numbers.seed);
            }
            let place = (CUBE_POS_Z as usize * m + row) * n + column;
            if comptime!(plan.adds) {
                value += f32::cast_from(out[place]);
            }
            out[place] = O::cast_from(value);
        }
    }
}

#[cube(launch)]
fn sum_kernel<O: Float>(parts: &[f32], out: &mut [O], #[define(O)] _dtype: ElemType) {
    let (at, count) = (ABSOLUTE_POS, out.len());
    if at >= count {
        terminate!();
    }
    let mut sum = 0.0f32;
    for part in 0..parts.len() / count {
        sum += parts[part * count + at];
    }
    out[at] = O::cast_from(sum);
}

/// A unit's sums before the first terms.
#[cube]
pub(crate) fn zeros(#[comptime] count: usize) -> Array<f32> {
    let mut sums = Array::<f32>::new(count);
    for at in 0..count {
        sums[at] = 0.0f32;
    }
    sums
}

/// Adds to a unit's sums, which stand in one column of the result, what [`DEPTH`] terms come to. The tiles in shared memory may be
/// written anew afterwards.
///
/// Steps lead from row to row and from term to term of the left tile; the right one has its terms row by row.
#[cube]
pub(crate) fn add_products(
    sums: &mut Array<f32>,
    left: &[f32],
    right: &[f32],
    own_row: usize,
    own_column: usize,
    #[comptime] count: usize,
    #[comptime] columns: usize,
    #[comptime] steps: [usize; 2],
) {
    sync_cube();
    for depth in 0..DEPTH {
        let other = right[depth * columns + own_column];
        for at in 0..count {
            let row = own_row + at * comptime!(UNITS / columns);
            sums[at] += left[row * comptime!(steps[0]) + depth * comptime!(steps[1])] * other;
        }
    }
    sync_cube();
}
