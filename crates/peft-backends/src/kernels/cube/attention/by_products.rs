//! Attention by Burn's own products, which have a GPU's matrix units: the scores of a stretch of queries at a time.
//!
//! Queries of the heads that share keys stand one under the other, so that each stretch is one product for all of them.

use std::ops::Range;

use burn::tensor::{DType, Shape};
use burn_cubecl::{
    kernel::{
        cast,
        matmul::{MatmulStrategy, matmul},
        slice,
    },
    ops::{numeric::zeros_client, permute, reshape},
    tensor::CubeTensor,
};
use cubecl::prelude::*;

use crate::kernels::cube::{
    attention::scores::{Backward, Numbers, Plan, Scores, Sizes, is_blind, kept, score, sees, slope},
    launch,
    row::{UNITS, most_of_cube, sum_of_cube},
};

/// Queries from which on products are worth their launches.
const MANY: usize = 64;

/// Scores in memory at a time: 128 MiB in single precision.
const MOST_SCORES: usize = 1 << 25;

/// Queries of a stretch where later keys are hidden from earlier ones: half of the scores would be for nothing. Tests have several
/// stretches in short rows.
const STRETCH: usize = if cfg!(test) { 64 } else { 512 };

/// Whether these sizes are computed here.
pub(crate) fn are_many(q: &CubeTensor) -> bool {
    let [_, _, queries, _] = launch::dims(q);
    queries >= MANY
}

/// Queries that are looked at together, and the keys that they may see.
#[derive(Debug, Clone)]
struct Stretch {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Stretch {
    /// All of them, in order, of at least [`MANY`] queries.
    fn all(sizes: &Sizes, scores: &Scores) -> impl Iterator<Item = Self> {
        let Sizes { batch, heads, queries, keys, .. } = *sizes;
        // A query that sees nothing looks at all keys.
        let (causal, window) = (scores.causal && !scores.blind, scores.window.filter(|_| !scores.blind));
        let most = if causal || window.is_some() { STRETCH } else { queries };
        let fitting = (MOST_SCORES / (batch * heads * keys)).clamp(MANY, most);
        (0..queries).step_by(fitting).map(move |first| {
            let end = queries.min(first + fitting);
            let behind = keys - queries;
            let mut seen = 0..keys;
            if causal {
                seen.end = end + behind;
            }
            if let Some([before, after]) = window {
                seen.start = (first + behind).saturating_sub(before);
                seen.end = seen.end.min((end + behind).saturating_add(after));
            }
            Self { queries: first..end, keys: seen }
        })
    }

    /// Their vectors of a tensor of queries, `[batch, key heads, group · queries, dim]`.
    fn of_queries(&self, x: &CubeTensor, sizes: &Sizes) -> CubeTensor {
        let [batch, heads, _, dim] = launch::dims(x);
        let part = launch::whole(slice(x.clone(), &[0..batch, 0..heads, self.queries.clone(), 0..dim]));
        let rows = heads / sizes.key_heads * self.queries.len();
        reshape(part, Shape::new([batch, sizes.key_heads, rows, dim]))
    }

    /// Their vectors of a tensor of keys, `[batch, key heads, keys, dim]`.
    fn of_keys(&self, x: &CubeTensor) -> CubeTensor {
        let [batch, heads, _, dim] = launch::dims(x);
        launch::whole(slice(x.clone(), &[0..batch, 0..heads, self.keys.clone(), 0..dim]))
    }

    fn launch(&self) -> PlaceLaunch {
        let [first, count] = [self.queries.start, self.queries.len()].map(launch::small);
        PlaceLaunch::new(first, count, launch::small(self.keys.start), launch::small(self.keys.len()))
    }
}

/// The result and its logarithms of sums, as [`super::forward`] returns them.
pub(crate) fn forward(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    marks: CubeTensor,
    scores: Scores,
) -> (CubeTensor, CubeTensor) {
    let sizes = Sizes::of(&q, &k, &v, &scores);
    let Sizes { batch, heads, queries, plan, .. } = sizes;
    let marks = launch::whole(marks);
    let y = launch::empty(&q, [batch, queries, heads, plan.width], q.dtype);
    let log_sums = launch::empty(&q, [batch * heads * queries], DType::F32);
    for stretch in Stretch::all(&sizes, &scores) {
        let products = product(stretch.of_queries(&q, &sizes), turned(stretch.of_keys(&k)), DType::F32);
        let weights = launch::empty(&products, products.meta.shape().clone(), q.dtype);
        weights_kernel::launch(
            &q.client,
            launch::cubes(batch * heads * stretch.queries.len()),
            CubeDim::new_1d(UNITS),
            products.into_buffer_arg(),
            marks.clone().into_buffer_arg(),
            weights.clone().into_buffer_arg(),
            log_sums.clone().into_buffer_arg(),
            sizes.numbers(&scores),
            stretch.launch(),
            plan,
            launch::element(&q),
        );
        lay(product(weights, stretch.of_keys(&v), q.dtype), &y, stretch.queries, false);
    }
    (y, log_sums)
}

impl Backward {
    /// The gradients as [`Backward::run`] returns them.
    pub(crate) fn by_products(self) -> (CubeTensor, CubeTensor, CubeTensor) {
        let Self { q, k, v, grad, log_sums, along, marks, scores } = self;
        let sizes = Sizes::of(&q, &k, &v, &scores);
        let Sizes { batch, heads, key_heads, queries, keys, plan } = sizes;
        let marks = launch::whole(marks);
        let dq = launch::empty(&q, [batch, queries, heads, plan.dim], q.dtype);
        let zeros = |dim| {
            let shape = Shape::new([batch, keys, key_heads, dim]);
            zeros_client(q.client.clone(), q.device.clone(), shape, DType::F32)
        };
        let (dk, dv) = (zeros(plan.dim), zeros(plan.width));
        for stretch in Stretch::all(&sizes, &scores) {
            let (own_q, own_grad) = (stretch.of_queries(&q, &sizes), stretch.of_queries(&grad, &sizes));
            let own_k = stretch.of_keys(&k);
            let products = product(own_q.clone(), turned(own_k.clone()), DType::F32);
            let weight_grads = product(own_grad.clone(), turned(stretch.of_keys(&v)), DType::F32);
            let [weights, slopes] = [(); 2].map(|()| launch::empty(&products, products.meta.shape().clone(), q.dtype));
            slopes_kernel::launch(
                &q.client,
                launch::cubes(batch * heads * stretch.queries.len()),
                CubeDim::new_1d(UNITS),
                products.into_buffer_arg(),
                weight_grads.into_buffer_arg(),
                log_sums.clone().into_buffer_arg(),
                along.clone().into_buffer_arg(),
                marks.clone().into_buffer_arg(),
                weights.clone().into_buffer_arg(),
                slopes.clone().into_buffer_arg(),
                sizes.numbers(&scores),
                stretch.launch(),
                plan,
                launch::element(&q),
            );
            lay(product(turned(weights), own_grad, DType::F32), &dv, stretch.keys.clone(), true);
            lay(product(turned(slopes.clone()), own_q, DType::F32), &dk, stretch.keys, true);
            lay(product(slopes, own_k, q.dtype), &dq, stretch.queries, false);
        }
        (dq, cast(dk, k.dtype), cast(dv, v.dtype))
    }
}

/// `a b` for each batch and head, in one piece.
fn product(a: CubeTensor, b: CubeTensor, dtype: DType) -> CubeTensor {
    let ([batch, heads, rows, _], [.., columns]) = (launch::dims(&a), launch::dims::<4>(&b));
    let out = launch::empty(&a, [batch, heads, rows, columns], dtype);
    match matmul(a, b, Some(out), MatmulStrategy::default(), dtype) {
        Ok(product) => product,
        Err(error) => unreachable!("one of Burn's kernels takes any sizes: {error:?}"),
    }
}

/// Rows and columns swapped.
fn turned(x: CubeTensor) -> CubeTensor {
    permute(x, &[0, 1, 3, 2])
}

/// Writes vectors by heads, `[batch, heads, vectors, width]`, to this range of `[batch, all vectors, heads, width]` or adds them.
fn lay(part: CubeTensor, onto: &CubeTensor, range: Range<usize>, adds: bool) {
    let [_, all, heads, width] = launch::dims(onto).map(launch::small);
    let (cubes, dim) = launch::units(&part.client, part.meta.num_elements());
    let [first, count] = [range.start, range.len()].map(launch::small);
    let types = [launch::element(&part), launch::element(onto)];
    lay_kernel::launch(
        &onto.client,
        cubes,
        dim,
        launch::whole(part).into_buffer_arg(),
        onto.clone().into_buffer_arg(),
        VectorsLaunch::new(first, count, all, heads, width),
        adds,
        types,
    );
}

/// Where a stretch lies, as kernels take it.
#[derive(CubeLaunch, CubeType)]
struct Place {
    first: u32,
    queries: u32,
    first_key: u32,
    keys: u32,
}

/// Batch, head and query of a row of a stretch's scores.
#[cube]
fn row_of(row: usize, numbers: &Numbers, place: &Place) -> (usize, usize, usize) {
    let (queries, heads) = (place.queries as usize, numbers.heads as usize);
    (row / (queries * heads), row / queries % heads, place.first as usize + row % queries)
}

#[cube(launch)]
fn weights_kernel<F: Float>(
    products: &[f32],
    marks: &[i32],
    weights: &mut [F],
    log_sums: &mut [f32],
    numbers: Numbers,
    place: Place,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let width = place.keys as usize;
    let start = CUBE_POS * width;
    if start >= weights.len() {
        terminate!();
    }
    let (batch, head, query) = row_of(CUBE_POS, &numbers, &place);
    let blind = is_blind(marks, batch, query, &numbers, plan);

    let mut most = f32::new(-1.0e30_f32);
    let mut column = UNIT_POS_X as usize;
    while column < width {
        let key = place.first_key as usize + column;
        if !blind && sees(marks, batch, query, key, &numbers, plan) {
            most = max(most, score(products[start + column], &numbers, plan));
        }
        column += UNITS as usize;
    }
    let most = select(blind, 0.0f32, most_of_cube(most));

    let mut sum = 0.0f32;
    let mut column = UNIT_POS_X as usize;
    while column < width {
        let key = place.first_key as usize + column;
        let seen = blind || sees(marks, batch, query, key, &numbers, plan);
        let own = select(blind, 0.0f32, score(products[start + column], &numbers, plan));
        sum += select(seen, (own - most).exp(), 0.0f32);
        column += UNITS as usize;
    }
    let log_sum = most + sum_of_cube(sum).ln();
    if UNIT_POS_X == 0 {
        log_sums[(batch * numbers.heads as usize + head) * numbers.queries as usize + query] = log_sum;
    }

    let mut column = UNIT_POS_X as usize;
    while column < width {
        let key = place.first_key as usize + column;
        let seen = blind || sees(marks, batch, query, key, &numbers, plan);
        let own = select(blind, 0.0f32, score(products[start + column], &numbers, plan));
        let weight = select(seen, (own - log_sum).exp(), 0.0f32);
        weights[start + column] = F::cast_from(weight * kept(batch, head, query, key, &numbers, plan));
        column += UNITS as usize;
    }
}

#[cube(launch)]
fn slopes_kernel<F: Float>(
    products: &[f32],
    weight_grads: &[f32],
    log_sums: &[f32],
    along: &[f32],
    marks: &[i32],
    weights: &mut [F],
    slopes: &mut [F],
    numbers: Numbers,
    place: Place,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let width = place.keys as usize;
    let start = CUBE_POS * width;
    if start >= weights.len() {
        terminate!();
    }
    let (batch, head, query) = row_of(CUBE_POS, &numbers, &place);
    let blind = is_blind(marks, batch, query, &numbers, plan);
    let at = (batch * numbers.heads as usize + head) * numbers.queries as usize + query;
    let (log_sum, row_along) = (log_sums[at], along[at]);
    let mut column = UNIT_POS_X as usize;
    while column < width {
        let key = place.first_key as usize + column;
        let seen = blind || sees(marks, batch, query, key, &numbers, plan);
        let own = select(blind, 0.0f32, score(products[start + column], &numbers, plan));
        let weight = select(seen, (own - log_sum).exp(), 0.0f32);
        let keep = kept(batch, head, query, key, &numbers, plan);
        let grad = weight_grads[start + column] * keep;
        weights[start + column] = F::cast_from(weight * keep);
        slopes[start + column] = F::cast_from(slope(own, weight, grad, row_along, &numbers, plan) * numbers.scale);
        column += UNITS as usize;
    }
}

/// Which vectors of a tensor are written.
#[derive(CubeLaunch, CubeType)]
struct Vectors {
    first: u32,
    count: u32,
    all: u32,
    heads: u32,
    width: u32,
}

#[cube(launch)]
fn lay_kernel<P: Float, O: Float>(
    part: &[P],
    onto: &mut [O],
    vectors: Vectors,
    #[comptime] adds: bool,
    #[define(P, O)] _dtypes: [ElemType; 2],
) {
    let at = ABSOLUTE_POS;
    if at >= part.len() {
        terminate!();
    }
    let Vectors { first, count, all, heads, width } = vectors;
    let (vector, column) = (at / width as usize, at % width as usize);
    let (place, head, batch) =
        (vector % count as usize, vector / count as usize % heads as usize, vector / (count * heads) as usize);
    let to = ((batch * all as usize + first as usize + place) * heads as usize + head) * width as usize + column;
    let mut value = f32::cast_from(part[at]);
    if comptime!(adds) {
        value += f32::cast_from(onto[to]);
    }
    onto[to] = O::cast_from(value);
}
