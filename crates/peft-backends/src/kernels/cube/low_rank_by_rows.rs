//! The products of factors that differ by row.
//!
//! As of other thin products a tile of the result belongs to one cube, and long sums are added up in fixed order.

pub(crate) mod batch;

use burn::{backend::cubecl::dtype_to_storage_type, tensor::DType};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::cube::{
    dropout::{Seed, factor, seed_of},
    launch,
    low_rank_by_rows::batch::{Batch, Side, TILE_WORDS, WORDS},
    product::{DEPTH, UNITS, add_products, parts_of, room, sum_of_parts, zeros},
};

/// Columns of a tile, and of one that has few.
const COLUMNS: [usize; 2] = [32, 16];

/// Ranks and columns of a tile of a factor's gradient.
const GRADIENT: [usize; 2] = [16, 64];

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Plan {
    /// Of a tile.
    rows: usize,
    columns: usize,
    /// Whether the result's columns are ranks; if not, the sum is over them.
    into_ranks: bool,
    adds: bool,
    drops: bool,
}

/// What a gradient's kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct GradientPlan {
    /// Whether ranks are the result's columns.
    turned: bool,
    drops: bool,
}

/// Numbers that kernels are given.
#[derive(CubeLaunch, CubeType)]
struct Numbers {
    /// Terms of a part of the sum.
    part: u32,
    /// Where the table has the tiles, and the rows.
    tiles: u32,
    order: u32,
    /// Rows and columns of a product with the first factors.
    adapted: u32,
    rank: u32,
    pool: u32,
}

impl Batch {
    fn numbers(&self, part: usize) -> NumbersLaunch {
        let tiles = WORDS * (self.adapters + 1);
        let order = tiles + TILE_WORDS * self.all_tiles;
        let all: [usize; 6] = [part, tiles, order, self.adapted, self.rank, self.pool];
        let [part, tiles, order, adapted, rank, pool] = all.map(launch::small);
        NumbersLaunch::new(part, tiles, order, adapted, rank, pool)
    }
}

/// `scale · x F`, where the columns of `factors` are ranks, in the order of the table; of the input if the factors are first ones.
pub(crate) fn into_ranks(
    x: CubeTensor,
    factors: CubeTensor,
    table: CubeTensor,
    batch: Batch,
    side: Side,
) -> CubeTensor {
    let [wide, narrow] = COLUMNS;
    let columns = if batch.rank <= narrow { narrow } else { wide };
    let [_, terms] = launch::dims(&x);
    let (part, parts) = parts_of(terms, batch.tiles * batch.rank.div_ceil(columns));
    let [adapted, rank] = batch.inner();
    let out = room(&x, parts, [adapted, rank], DType::F32);
    let drops = batch.drops && side == Side::A;
    let plan = Plan { rows: batch.tile, columns, into_ranks: true, adds: false, drops };
    let cubes = [rank.div_ceil(columns), batch.tiles, parts];
    start(x, factors, table, &out, cubes, batch.numbers(part), plan);
    if parts == 1 { out } else { sum_of_parts(out, [adapted, rank], DType::F32) }
}

/// What the factors, whose rows are ranks, make of a product in the order of the table; zeros in the rows of no adapter.
pub(crate) fn out_of_ranks(
    inner: CubeTensor,
    factors: CubeTensor,
    table: CubeTensor,
    batch: Batch,
    dtype: DType,
) -> CubeTensor {
    let [_, columns] = launch::dims(&factors);
    let out = launch::empty(&inner, [batch.rows, columns], dtype);
    leave(inner, factors, table, &out, batch, batch.all_tiles, false);
    out
}

/// The same added to `y`, in its place if nobody else holds it, of what dropout has taken from before.
pub(crate) fn add_out_of_ranks(
    y: CubeTensor,
    inner: CubeTensor,
    factors: CubeTensor,
    table: CubeTensor,
    batch: Batch,
) -> CubeTensor {
    let y = launch::own(y);
    leave(inner, factors, table, &y, batch, batch.tiles, true);
    y
}

fn leave(
    inner: CubeTensor,
    factors: CubeTensor,
    table: CubeTensor,
    out: &CubeTensor,
    batch: Batch,
    tiles: usize,
    adds: bool,
) {
    let [columns, _] = COLUMNS;
    let plan = Plan { rows: batch.tile, columns, into_ranks: false, adds, drops: batch.drops && !adds };
    let cubes = [launch::width(out).div_ceil(columns), tiles, 1];
    start(inner, factors, table, out, cubes, batch.numbers(batch.rank), plan);
}

fn start(
    left: CubeTensor,
    right: CubeTensor,
    table: CubeTensor,
    out: &CubeTensor,
    cubes: [usize; 3],
    numbers: NumbersLaunch,
    plan: Plan,
) {
    let dtypes = [left.dtype, right.dtype, out.dtype].map(dtype_to_storage_type);
    let [x, y, z] = cubes.map(launch::small);
    rows_kernel::launch(
        &out.client.clone(),
        CubeCount::Static(x, y, z),
        CubeDim::new_1d(launch::small(UNITS)),
        left.into_tensor_arg(),
        right.into_tensor_arg(),
        launch::whole(table).into_buffer_arg(),
        out.clone().into_buffer_arg(),
        numbers,
        plan,
        dtypes,
    );
}

/// The sums over each adapter's rows of a product in the order of the table times the same row of `x`: a gradient of factors.
pub(crate) fn sum_by_rank(
    inner: CubeTensor,
    x: CubeTensor,
    table: CubeTensor,
    batch: Batch,
    side: Side,
    dtype: DType,
) -> CubeTensor {
    let [ranks, columns] = GRADIENT;
    let [_, width] = launch::dims(&x);
    let plan = GradientPlan { turned: side == Side::B, drops: batch.drops && side == Side::A };
    let shape = batch.gradient(side, width);
    let (across, down) = (width.div_ceil(columns), batch.adapters * batch.rank.div_ceil(ranks));
    let (part, parts) = parts_of(batch.most_rows, across * down);
    let out = room(&x, parts, shape, dtype);
    let dtypes = [inner.dtype, x.dtype, out.dtype].map(dtype_to_storage_type);
    gradient_kernel::launch(
        &out.client.clone(),
        CubeCount::Static(launch::small(across), launch::small(down), launch::small(parts)),
        CubeDim::new_1d(launch::small(UNITS)),
        launch::whole(inner).into_buffer_arg(),
        x.into_tensor_arg(),
        launch::whole(table).into_buffer_arg(),
        out.clone().into_buffer_arg(),
        batch.numbers(part),
        plan,
        dtypes,
    );
    if parts == 1 { out } else { sum_of_parts(out, shape, dtype) }
}

/// What the table has on an adapter.
#[derive(CubeType)]
struct Owner {
    /// Where its ranks lie in the pool, and how many.
    from: usize,
    rank: usize,
    /// Its rows' places in the order.
    first: usize,
    end: usize,
    scale: f32,
    seed: Seed,
}

#[cube]
fn owner_of(table: &[u32], which: usize) -> Owner {
    let at = which * WORDS;
    Owner {
        from: table[at] as usize,
        rank: table[at + 1] as usize,
        first: table[at + 2] as usize,
        end: table[at + 3] as usize,
        scale: f32::from_bits(table[at + 4]),
        seed: seed_of(table, at + 5),
    }
}

#[cube(launch)]
fn rows_kernel<A: Float, B: Float, O: Float>(
    left: &Tensor<A>,
    right: &Tensor<B>,
    table: &[u32],
    out: &mut [O],
    numbers: Numbers,
    #[comptime] plan: Plan,
    #[define(A, B, O)] _dtypes: [ElemType; 3],
) {
    let (rows, columns) = comptime!((plan.rows, plan.columns));
    let each = comptime!(rows * columns / UNITS);
    let order = numbers.order as usize;
    let unit = UNIT_POS_X as usize;
    let tile = numbers.tiles as usize + CUBE_POS_Y as usize * TILE_WORDS;
    let owner = owner_of(table, table[tile] as usize);
    let first_row = table[tile + 1] as usize;
    let first_column = CUBE_POS_X as usize * columns;
    let (own_row, own_column) = (unit / columns, unit % columns);
    let n = if comptime!(plan.into_ranks) { owner.rank } else { right.shape(1) };
    let k = if comptime!(plan.into_ranks) { left.shape(1) } else { owner.rank };
    // Where the adapter's part of the pool begins.
    let ranks = owner.from * if comptime!(plan.into_ranks) { right.stride(1) } else { right.stride(0) };
    let from = CUBE_POS_Z as usize * numbers.part as usize;
    let to = min(from + numbers.part as usize, k);

    let mut left_tile = Shared::<[f32]>::new_slice(comptime!(rows * DEPTH));
    let mut right_tile = Shared::<[f32]>::new_slice(comptime!(DEPTH * columns));
    let mut sums = zeros(each);
    let mut start = from;
    while start < to {
        let mut at = unit;
        while at < comptime!(rows * DEPTH) {
            let (place, column) = (first_row + at / DEPTH, start + at % DEPTH);
            let mut value = 0.0f32;
            if place < owner.end && column < to {
                let mut row = place;
                if comptime!(plan.into_ranks) {
                    row = table[order + place] as usize;
                }
                value = f32::cast_from(left[row * left.stride(0) + column * left.stride(1)]);
                if comptime!(plan.into_ranks && plan.drops) {
                    value *= factor((row * k + column) as u32, &owner.seed);
                }
            }
            left_tile[at] = value;
            at += UNITS;
        }
        let mut at = unit;
        while at < comptime!(DEPTH * columns) {
            let (row, column) = (start + at / columns, first_column + at % columns);
            let mut value = 0.0f32;
            if row < to && column < n {
                let place = ranks + row * right.stride(0) + column * right.stride(1);
                value = f32::cast_from(right[place]);
            }
            right_tile[at] = value;
            at += UNITS;
        }
        add_products(&mut sums, &left_tile, &right_tile, own_row, own_column, each, columns, [DEPTH, 1]);
        start += DEPTH;
    }
    let column = first_column + own_column;
    for at in 0..each {
        let place = first_row + own_row + at * comptime!(UNITS / columns);
        if place < owner.end && column < n {
            if comptime!(plan.into_ranks) {
                let row = CUBE_POS_Z as usize * numbers.adapted as usize + place;
                out[row * numbers.rank as usize + column] = O::cast_from(sums[at] * owner.scale);
            } else {
                let target = table[order + place] as usize * n + column;
                let mut value = sums[at];
                if comptime!(plan.drops) {
                    value *= factor(target as u32, &owner.seed);
                }
                if comptime!(plan.adds) {
                    value += f32::cast_from(out[target]);
                }
                out[target] = O::cast_from(value);
            }
        }
    }
}

#[cube(launch)]
fn gradient_kernel<A: Float, B: Float, O: Float>(
    inner: &[A],
    x: &Tensor<B>,
    table: &[u32],
    out: &mut [O],
    numbers: Numbers,
    #[comptime] plan: GradientPlan,
    #[define(A, B, O)] _dtypes: [ElemType; 3],
) {
    let (ranks, columns) = comptime!((GRADIENT[0], GRADIENT[1]));
    let each = comptime!(ranks * columns / UNITS);
    let unit = UNIT_POS_X as usize;
    let (order, width, most) = (numbers.order as usize, x.shape(1), numbers.rank as usize);
    let tiles = (most + comptime!(ranks - 1)) / ranks;
    let owner = owner_of(table, CUBE_POS_Y as usize / tiles);
    let first_rank = CUBE_POS_Y as usize % tiles * ranks;
    let first_column = CUBE_POS_X as usize * columns;
    let (own_rank, own_column) = (unit / columns, unit % columns);
    let from = owner.first + CUBE_POS_Z as usize * numbers.part as usize;
    let to = min(from + numbers.part as usize, owner.end);

    let mut inner_tile = Shared::<[f32]>::new_slice(comptime!(DEPTH * ranks));
    let mut x_tile = Shared::<[f32]>::new_slice(comptime!(DEPTH * columns));
    let mut sums = zeros(each);
    let mut start = from;
    while start < to {
        let mut at = unit;
        while at < comptime!(DEPTH * ranks) {
            let (place, rank) = (start + at / ranks, first_rank + at % ranks);
            let mut value = 0.0f32;
            if place < to && rank < owner.rank {
                value = f32::cast_from(inner[place * most + rank]);
            }
            inner_tile[at] = value;
            at += UNITS;
        }
        let mut at = unit;
        while at < comptime!(DEPTH * columns) {
            let (place, column) = (start + at / columns, first_column + at % columns);
            let mut value = 0.0f32;
            if place < to && column < width {
                let row = table[order + place] as usize;
                value = f32::cast_from(x[row * x.stride(0) + column * x.stride(1)]);
                if comptime!(plan.drops) {
                    value *= factor((row * width + column) as u32, &owner.seed);
                }
            }
            x_tile[at] = value;
            at += UNITS;
        }
        add_products(&mut sums, &inner_tile, &x_tile, own_rank, own_column, each, columns, [1, ranks]);
        start += DEPTH;
    }
    let (pool, column) = (numbers.pool as usize, first_column + own_column);
    let base = CUBE_POS_Z as usize * pool * width;
    for at in 0..each {
        let rank = first_rank + own_rank + at * comptime!(UNITS / columns);
        if rank < owner.rank && column < width {
            let rank = owner.from + rank;
            if comptime!(plan.turned) {
                out[base + column * pool + rank] = O::cast_from(sums[at]);
            } else {
                out[base + rank * width + column] = O::cast_from(sums[at]);
            }
        }
    }
}
