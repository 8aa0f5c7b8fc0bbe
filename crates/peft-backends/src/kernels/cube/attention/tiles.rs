//! Attention by tiles of scores, for which nothing but its result needs memory.
//!
//! Each unit of a cube has one query and one key of a square tile of scores, and a share of the columns of its row's result.
//! Nothing is added up by more than one cube, so that results are the same bits each time.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::cube::{
    attention::scores::{Backward, Numbers, Plan, Scores, Sizes, is_blind, kept, score, sees, slope},
    launch,
};

/// The result as `[batch, queries, heads, width]`, and its logarithms of sums.
pub(crate) fn forward(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    marks: CubeTensor,
    scores: Scores,
) -> (CubeTensor, CubeTensor) {
    let sizes = Sizes::of(&q, &k, &v, &scores);
    let Sizes { batch, heads, queries, plan, .. } = sizes;
    let y = launch::empty(&q, [batch, queries, heads, plan.width], q.dtype);
    let log_sums = launch::empty(&q, [batch * heads * queries], DType::F32);
    forward_kernel::launch(
        &q.client.clone(),
        CubeCount::Static(launch::small(queries.div_ceil(plan.tile)), launch::small(heads), launch::small(batch)),
        units(sizes.plan),
        q.clone().into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        launch::whole(marks).into_buffer_arg(),
        y.clone().into_buffer_arg(),
        log_sums.clone().into_buffer_arg(),
        sizes.numbers(&scores),
        plan,
        launch::element(&q),
    );
    (y, log_sums)
}

/// A unit for each score of a tile.
fn units(plan: Plan) -> CubeDim {
    CubeDim::new_1d(launch::small(plan.tile * plan.tile))
}

impl Backward {
    /// The gradients as [`Backward::run`] returns them.
    pub(crate) fn by_tiles(self) -> (CubeTensor, CubeTensor, CubeTensor) {
        let dq = self.clone().queries_by_tiles();
        let (dk, dv) = self.keys_by_tiles();
        (dq, dk, dv)
    }

    /// The gradient of `q` as `[batch, queries, heads, dim]`.
    fn queries_by_tiles(self) -> CubeTensor {
        let Self { q, k, v, grad, log_sums, along, marks, scores } = self;
        let sizes = Sizes::of(&q, &k, &v, &scores);
        let Sizes { batch, heads, queries, plan, .. } = sizes;
        let dq = launch::empty(&q, [batch, queries, heads, plan.dim], q.dtype);
        backward_queries_kernel::launch(
            &q.client.clone(),
            CubeCount::Static(launch::small(queries.div_ceil(plan.tile)), launch::small(heads), launch::small(batch)),
            units(sizes.plan),
            q.clone().into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            grad.into_tensor_arg(),
            launch::whole(log_sums).into_buffer_arg(),
            launch::whole(along).into_buffer_arg(),
            launch::whole(marks).into_buffer_arg(),
            dq.clone().into_buffer_arg(),
            sizes.numbers(&scores),
            plan,
            launch::element(&q),
        );
        dq
    }

    /// The gradients of `k` and `v` as `[batch, keys, key heads, ..]`.
    fn keys_by_tiles(self) -> (CubeTensor, CubeTensor) {
        let Self { q, k, v, grad, log_sums, along, marks, scores } = self;
        let sizes = Sizes::of(&q, &k, &v, &scores);
        let Sizes { batch, key_heads, keys, plan, .. } = sizes;
        let dk = launch::empty(&k, [batch, keys, key_heads, plan.dim], k.dtype);
        let dv = launch::empty(&v, [batch, keys, key_heads, plan.width], v.dtype);
        backward_keys_kernel::launch(
            &q.client.clone(),
            CubeCount::Static(launch::small(keys.div_ceil(plan.tile)), launch::small(key_heads), launch::small(batch)),
            units(sizes.plan),
            q.clone().into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            grad.into_tensor_arg(),
            launch::whole(log_sums).into_buffer_arg(),
            launch::whole(along).into_buffer_arg(),
            launch::whole(marks).into_buffer_arg(),
            dk.clone().into_buffer_arg(),
            dv.clone().into_buffer_arg(),
            sizes.numbers(&scores),
            plan,
            launch::element(&q),
        );
        (dk, dv)
    }
}

/// The first of the keys that queries from this one on see, and where the last of them ends.
#[cube]
fn range(first: usize, numbers: &Numbers, #[comptime] plan: Plan) -> (usize, usize) {
    let (queries, keys) = (numbers.queries as usize, numbers.keys as usize);
    let mut from = 0usize.runtime();
    let mut to = keys;
    // A blind query looks at all keys.
    if comptime!(!plan.blind) {
        let place = first + keys - queries;
        if comptime!(plan.causal) {
            to = min(to, place + comptime!(plan.tile));
        }
        if comptime!(plan.window) {
            if place > numbers.before as usize {
                from = (place - numbers.before as usize) / comptime!(plan.tile) * comptime!(plan.tile);
            }
            to = min(to, place + comptime!(plan.tile) + numbers.after as usize);
        }
    }
    (from, to)
}

/// Reads a few vectors of a head into shared memory, zeros where there are none.
#[cube]
fn read_tile<F: Float>(
    x: &Tensor<F>,
    batch: usize,
    head: usize,
    first: usize,
    out: &mut [f32],
    #[comptime] tile: usize,
    #[comptime] dim: usize,
) {
    let base = batch * x.stride(0) + head * x.stride(1);
    let count = x.shape(2);
    let mut at = UNIT_POS_X as usize;
    while at < tile * dim {
        let row = first + at / dim;
        let mut value = 0.0f32;
        if row < count {
            value = f32::cast_from(x[base + row * x.stride(2) + at % dim * x.stride(3)]);
        }
        out[at] = value;
        at += tile * tile;
    }
}

/// The product of two vectors in shared memory.
#[cube]
fn dot(a: &[f32], a_row: usize, b: &[f32], b_row: usize, #[comptime] dim: usize) -> f32 {
    let mut sum = 0.0f32;
    for at in 0..dim {
        sum += a[a_row * dim + at] * b[b_row * dim + at];
    }
    sum
}

/// Adds to each of a unit's columns what a row of weights makes of the rows of a tile.
#[cube]
fn add_weighted(
    sums: &mut Array<f32>,
    weights: &[f32],
    row: usize,
    rows: &[f32],
    column: usize,
    #[comptime] tile: usize,
    #[comptime] width: usize,
) {
    for at in 0..comptime!(width.div_ceil(tile)) {
        let place = column + at * tile;
        if place < width {
            let mut sum = sums[at];
            for other in 0..tile {
                sum += weights[row * tile + other] * rows[other * width + place];
            }
            sums[at] = sum;
        }
    }
}

#[cube(launch)]
fn forward_kernel<F: Float>(
    q: &Tensor<F>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    marks: &[i32],
    y: &mut [F],
    log_sums: &mut [f32],
    numbers: Numbers,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let tile = comptime!(plan.tile);
    let (dim, width) = comptime!((plan.dim, plan.width));
    let (head, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let key_head = head / (numbers.heads / numbers.key_heads) as usize;
    let (row, column) = (UNIT_POS_X as usize / tile, UNIT_POS_X as usize % tile);
    let first = CUBE_POS_X as usize * tile;
    let query = first + row;
    let (queries, keys) = (numbers.queries as usize, numbers.keys as usize);

    let mut q_tile = Shared::<[f32]>::new_slice(comptime!(tile * dim));
    let mut kv_tile = Shared::<[f32]>::new_slice(comptime!(tile * dim.max(width)));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(tile * tile));
    let mut dropped = Shared::<[f32]>::new_slice(comptime!(tile * tile));
    read_tile::<F>(q, batch, head, first, &mut q_tile, tile, dim);

    let columns = comptime!(width.div_ceil(tile));
    let mut sums = Array::<f32>::new(columns);
    for at in 0..columns {
        sums[at] = 0.0f32;
    }
    let mut most = f32::new(-1.0e30_f32);
    let mut total = 0.0f32;
    let blind = is_blind(marks, batch, query, &numbers, plan);
    let (mut start, end) = range(first, &numbers, plan);
    while start < end {
        sync_cube();
        read_tile::<F>(k, batch, key_head, start, &mut kv_tile, tile, dim);
        sync_cube();
        let key = start + column;
        let seen = sees(marks, batch, query, key, &numbers, plan) || (blind && key < keys);
        let mut own = score(dot(&q_tile, row, &kv_tile, column, dim), &numbers, plan);
        if blind {
            own = 0.0f32;
        }
        weights[row * tile + column] = select(seen, own, -1.0e30f32);
        sync_cube();
        let before = most;
        for other in 0..tile {
            most = max(most, weights[row * tile + other]);
        }
        sync_cube();
        let power = select(seen, (own - most).exp(), 0.0f32);
        weights[row * tile + column] = power;
        if comptime!(plan.drops) {
            dropped[row * tile + column] = power * kept(batch, head, query, key, &numbers, plan);
        }
        read_tile::<F>(v, batch, key_head, start, &mut kv_tile, tile, width);
        sync_cube();
        let shrink = (before - most).exp();
        total *= shrink;
        for other in 0..tile {
            total += weights[row * tile + other];
        }
        for at in 0..columns {
            sums[at] *= shrink;
        }
        if comptime!(plan.drops) {
            add_weighted(&mut sums, &dropped, row, &kv_tile, column, tile, width);
        } else {
            add_weighted(&mut sums, &weights, row, &kv_tile, column, tile, width);
        }
        start += tile;
    }
    if query < queries {
        let heads = numbers.heads as usize;
        for at in 0..columns {
            let place = column + at * tile;
            if place < width {
                y[((batch * queries + query) * heads + head) * width + place] = F::cast_from(sums[at] / total);
            }
        }
        if column == 0 {
            log_sums[(batch * heads + head) * queries + query] = most + total.ln();
        }
    }
}

#[cube(launch)]
fn backward_queries_kernel<F: Float>(
    q: &Tensor<F>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    grad: &Tensor<F>,
    log_sums: &[f32],
    along: &[f32],
    marks: &[i32],
    dq: &mut [F],
    numbers: Numbers,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let tile = comptime!(plan.tile);
    let (dim, width) = comptime!((plan.dim, plan.width));
    let (head, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let key_head = head / (numbers.heads / numbers.key_heads) as usize;
    let (row, column) = (UNIT_POS_X as usize / tile, UNIT_POS_X as usize % tile);
    let first = CUBE_POS_X as usize * tile;
    let query = first + row;
    let (queries, keys, heads) = (numbers.queries as usize, numbers.keys as usize, numbers.heads as usize);

    let mut q_tile = Shared::<[f32]>::new_slice(comptime!(tile * dim));
    let mut grad_tile = Shared::<[f32]>::new_slice(comptime!(tile * width));
    let mut kv_tile = Shared::<[f32]>::new_slice(comptime!(tile * dim.max(width)));
    let mut slopes = Shared::<[f32]>::new_slice(comptime!(tile * tile));
    read_tile::<F>(q, batch, head, first, &mut q_tile, tile, dim);
    read_tile::<F>(grad, batch, head, first, &mut grad_tile, tile, width);

    let columns = comptime!(dim.div_ceil(tile));
    let mut sums = Array::<f32>::new(columns);
    for at in 0..columns {
        sums[at] = 0.0f32;
    }
    let place_of_row = (batch * heads + head) * queries + min(query, queries - 1);
    let (log_sum, row_along) = (log_sums[place_of_row], along[place_of_row]);
    let blind = is_blind(marks, batch, query, &numbers, plan);
    let (mut start, end) = range(first, &numbers, plan);
    while start < end {
        sync_cube();
        read_tile::<F>(k, batch, key_head, start, &mut kv_tile, tile, dim);
        sync_cube();
        let key = start + column;
        let seen = sees(marks, batch, query, key, &numbers, plan) || (blind && key < keys);
        let mut own = score(dot(&q_tile, row, &kv_tile, column, dim), &numbers, plan);
        if blind {
            own = 0.0f32;
        }
        sync_cube();
        read_tile::<F>(v, batch, key_head, start, &mut kv_tile, tile, width);
        sync_cube();
        let weight = select(seen, (own - log_sum).exp(), 0.0f32);
        let weight_grad = dot(&grad_tile, row, &kv_tile, column, width) * kept(batch, head, query, key, &numbers, plan);
        slopes[row * tile + column] = select(seen, slope(own, weight, weight_grad, row_along, &numbers, plan), 0.0f32);
        sync_cube();
        read_tile::<F>(k, batch, key_head, start, &mut kv_tile, tile, dim);
        sync_cube();
        add_weighted(&mut sums, &slopes, row, &kv_tile, column, tile, dim);
        start += tile;
    }
    if query < queries {
        for at in 0..columns {
            let place = column + at * tile;
            if place < dim {
                let value = sums[at] * numbers.scale;
                dq[((batch * queries + query) * heads + head) * dim + place] = F::cast_from(value);
            }
        }
    }
}

#[cube(launch)]
fn backward_keys_kernel<F: Float>(
    q: &Tensor<F>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    grad: &Tensor<F>,
    log_sums: &[f32],
    along: &[f32],
    marks: &[i32],
    dk: &mut [F],
    dv: &mut [F],
    numbers: Numbers,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let tile = comptime!(plan.tile);
    let (dim, width) = comptime!((plan.dim, plan.width));
    let (key_head, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let group = (numbers.heads / numbers.key_heads) as usize;
    let (row, column) = (UNIT_POS_X as usize / tile, UNIT_POS_X as usize % tile);
    let first = CUBE_POS_X as usize * tile;
    let key = first + row;
    let (queries, keys, heads) = (numbers.queries as usize, numbers.keys as usize, numbers.heads as usize);

    let mut k_tile = Shared::<[f32]>::new_slice(comptime!(tile * dim));
    let mut v_tile = Shared::<[f32]>::new_slice(comptime!(tile * width));
    let mut other_tile = Shared::<[f32]>::new_slice(comptime!(tile * dim.max(width)));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(tile * tile));
    let mut slopes = Shared::<[f32]>::new_slice(comptime!(tile * tile));
    read_tile::<F>(k, batch, key_head, first, &mut k_tile, tile, dim);
    read_tile::<F>(v, batch, key_head, first, &mut v_tile, tile, width);

    let (k_columns, v_columns) = comptime!((dim.div_ceil(tile), width.div_ceil(tile)));
    let mut k_sums = Array::<f32>::new(k_columns);
    let mut v_sums = Array::<f32>::new(v_columns);
    for at in 0..k_columns {
        k_sums[at] = 0.0f32;
    }
    for at in 0..v_columns {
        v_sums[at] = 0.0f32;
    }
    for head in key_head * group..(key_head + 1) * group {
        let mut start = 0usize.runtime();
        if comptime!(plan.causal && !plan.blind) {
            // No query before this one sees any of these keys.
            let behind = keys - queries;
            if first > behind {
                start = (first - behind) / tile * tile;
            }
        }
        while start < queries {
            sync_cube();
            read_tile::<F>(q, batch, head, start, &mut other_tile, tile, dim);
            sync_cube();
            let query = start + column;
            let blind = is_blind(marks, batch, query, &numbers, plan);
            let sees_key = sees(marks, batch, min(query, queries - 1), key, &numbers, plan) && query < queries;
            let seen = sees_key || (blind && query < queries && key < keys);
            let place = (batch * heads + head) * queries + min(query, queries - 1);
            let mut own = score(dot(&k_tile, row, &other_tile, column, dim), &numbers, plan);
            if blind {
                own = 0.0f32;
            }
            let weight = select(seen, (own - log_sums[place]).exp(), 0.0f32);
            let keep = kept(batch, head, query, key, &numbers, plan);
            weights[row * tile + column] = weight * keep;
            sync_cube();
            read_tile::<F>(grad, batch, head, start, &mut other_tile, tile, width);
            sync_cube();
            let weight_grad = dot(&v_tile, row, &other_tile, column, width) * keep;
            let own_slope = slope(own, weight, weight_grad, along[place], &numbers, plan);
            slopes[row * tile + column] = select(seen, own_slope, 0.0f32);
            add_weighted(&mut v_sums, &weights, row, &other_tile, column, tile, width);
            sync_cube();
            read_tile::<F>(q, batch, head, start, &mut other_tile, tile, dim);
            sync_cube();
            add_weighted(&mut k_sums, &slopes, row, &other_tile, column, tile, dim);
            start += tile;
        }
    }
    if key < keys {
        let row = (batch * keys + key) * numbers.key_heads as usize + key_head;
        for at in 0..k_columns {
            let place = column + at * tile;
            if place < dim {
                dk[row * dim + place] = F::cast_from(k_sums[at] * numbers.scale);
            }
        }
        for at in 0..v_columns {
            let place = column + at * tile;
            if place < width {
                dv[row * width + place] = F::cast_from(v_sums[at]);
            }
        }
    }
}
