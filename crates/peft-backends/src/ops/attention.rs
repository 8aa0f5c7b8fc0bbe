//! Attention for training: no more of the scores is ever in memory than those of a few queries.
//!
//! Kept for the pass back are the inputs, the result and one number a query, the logarithm of the sum of its powers (Dao et al.
//! 2022, arXiv:2205.14135); scores and what dropout took of them are worked out again.

use burn::tensor::Tensor;
use rayon::prelude::*;

#[cfg(feature = "gpu")]
use super::cube;
use super::{
    dropout::Keep,
    host::{self, lanes, lanes2},
    node::{Fused, Host, Input, Kept, run},
    product::{Before, Matrix, Shared, Target, Threads, product},
    sight::{KeysOfRow, Sight},
    vector_math::{exp, tanh},
};

/// Scores in memory at a time: two such tiles stay in a core's cache.
const SCORES: usize = 1 << 14;
/// Most queries at a time where a query does not see all keys.
const TILE: usize = 64;

/// How scores become weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// What scores are multiplied with.
    pub scale: f64,
    /// Scores become `cap · tanh(score / cap)`.
    pub soft_cap: Option<f64>,
    /// Probability of dropping a weight.
    pub drop: f64,
}

/// `dropout(softmax(scale · q kᵀ)) v` where `sight` says; none if these tensors are not the processor's in single or half precision.
///
/// A query that sees no key looks at all alike, as in PyTorch.
///
/// # Shapes
/// - `q`: `[batch, heads, queries, dim]`
/// - `k`: `[batch, key heads, keys, dim]`; `heads` is a multiple of `key heads`
/// - `v`: `[batch, key heads, keys, value dim]`
/// - returned: `[batch, heads, queries, value dim]`, in memory with the heads of a position side by side
pub fn attention(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, sight: &Sight, weights: Weights) -> Option<Tensor<4>> {
    let all = [q, k, v];
    let [batch, _, keys, _] = k.dims();
    let fits = |length: usize| length == batch * keys;
    if !sight.hidden.as_ref().is_none_or(|hidden| fits(hidden.len()))
        || !sight.examples.as_ref().is_none_or(|examples| fits(examples.len()))
    {
        return None;
    }
    let draw = || (weights.drop > 0.0).then(|| Keep::draw(weights.drop));
    #[cfg(feature = "gpu")]
    if all.into_iter().all(cube::takes) {
        return cube::Attention::run(sight, weights, draw, all);
    }
    if !all.into_iter().all(host::takes) || all.iter().any(|x| x.dims().contains(&0)) {
        return None;
    }
    let keep = draw();
    Some(run(Attention::new(sight, weights, keep), all.map(|x| Input::new(x.clone()))))
}

#[derive(Debug, Clone)]
struct Attention {
    sight: Sight,
    scale: f32,
    soft_cap: Option<f32>,
    keep: Option<Keep>,
}

/// What the pass back needs.
#[derive(Debug, Clone)]
struct Saved {
    q: Host,
    k: Host,
    v: Host,
    output: Host,
    /// `[batch · heads · queries]`.
    log_sums: Vec<f32>,
}

impl Kept for Saved {
    fn tensors(&mut self) -> Vec<&mut Host> {
        vec![&mut self.q, &mut self.k, &mut self.v, &mut self.output]
    }
}

/// A tensor of heads whose vectors lie in one piece each.
#[derive(Debug, Clone, Copy)]
struct Heads<'a> {
    values: &'a [f32],
    dims: [usize; 4],
    strides: [usize; 4],
}

impl<'a> Heads<'a> {
    /// Makes sure of that, with a copy only where it is not so.
    fn ready(tensor: Host) -> Host {
        let strides = tensor.layout().strides();
        if strides.last() == Some(&1) && strides.iter().all(|stride| *stride >= 0) {
            tensor
        } else {
            host::whole(tensor)
        }
    }

    fn of(tensor: &'a Host) -> Self {
        let layout = tensor.layout();
        let values = tensor.storage::<f32>().get(layout.start_offset()..).unwrap_or_default();
        let mut dims = [0; 4];
        dims.iter_mut().zip(layout.shape().as_slice()).for_each(|(to, from)| *to = *from);
        let mut strides = [0; 4];
        strides.iter_mut().zip(layout.strides()).for_each(|(to, from)| *to = from.unsigned_abs());
        Self { values, dims, strides }
    }

    /// The vectors of one head of one row.
    fn head(self, batch: usize, head: usize) -> Matrix<'a> {
        let start = batch * self.strides[0] + head * self.strides[1];
        let values = self.values.get(start..).unwrap_or_default();
        Matrix::strided(values, [self.dims[2], self.dims[3]], [self.strides[2], self.strides[3]])
    }
}

/// Memory of `[batch, positions, heads, dim]`, seen as `[batch, heads, positions, dim]`.
#[derive(Debug, Clone, Copy)]
struct Places {
    heads: usize,
    positions: usize,
    dim: usize,
}

impl Places {
    fn of([_, heads, positions, dim]: [usize; 4]) -> Self {
        Self { heads, positions, dim }
    }

    fn stride(self) -> usize {
        self.heads * self.dim
    }

    fn at(self, batch: usize, head: usize, position: usize) -> usize {
        (batch * self.positions + position) * self.stride() + head * self.dim
    }

    fn tensor(self, values: Vec<f32>, batch: usize) -> Host {
        host::tensor(values, &[batch, self.positions, self.heads, self.dim]).permute(&[0, 2, 1, 3])
    }
}

impl Attention {
    fn new(sight: &Sight, weights: Weights, keep: Option<Keep>) -> Self {
        let soft_cap = weights.soft_cap.map(|cap| cap as f32);
        Self { sight: sight.clone(), scale: weights.scale as f32, soft_cap, keep }
    }

    /// The scores of a few queries of one head, as they go into the exponential; what they do not see is minus infinity.
    fn scores(&self, tile: &Tile<'_>, out: &mut [f32]) {
        let [from, to] = tile.range;
        let width = to - from;
        let dims = [tile.queries.dims()[0], width];
        product(
            Target::new(out, dims),
            Before::Lost,
            self.scale,
            tile.queries,
            tile.keys.rows(from, to).t(),
            Threads::One,
        );
        host::vectorised(
            #[inline(always)]
            || self.hide(tile, out),
        );
    }

    /// Caps scores, and makes those of hidden keys minus infinity.
    #[inline(always)]
    fn hide(&self, tile: &Tile<'_>, out: &mut [f32]) {
        let [from, to] = tile.range;
        let (width, count) = (to - from, tile.queries.dims()[0]);
        for (index, row) in out.chunks_exact_mut(width).take(count).enumerate() {
            if let Some(cap) = self.soft_cap {
                for x in row.iter_mut() {
                    *x = cap * tanh(*x / cap);
                }
            }
            let [first, end] = self.sight.range(tile.first + index, tile.count, tile.keys.dims()[0]);
            let (first, end) = (first.clamp(from, to) - from, end.clamp(from, to) - from);
            row.iter_mut().take(first).for_each(|x| *x = f32::NEG_INFINITY);
            row.iter_mut().skip(end).for_each(|x| *x = f32::NEG_INFINITY);
            if let Some(hidden) = tile.row.hidden.and_then(|hidden| hidden.get(from..to)) {
                for (x, hidden) in row.iter_mut().zip(hidden) {
                    *x = if *hidden { f32::NEG_INFINITY } else { *x };
                }
            }
            if let Some(examples) = tile.row.examples {
                let own = examples.get(tile.first + index).copied().unwrap_or_default();
                for (x, example) in row.iter_mut().zip(examples.get(from..to).unwrap_or_default()) {
                    *x = if *example == own { *x } else { f32::NEG_INFINITY };
                }
            }
            if tile.blind.get(tile.first + index) == Some(&true) {
                row.fill(0.0);
            }
        }
    }

    /// Queries whose scores are in memory at a time. Where a query does not see all keys, fewer queries leave out more of them.
    fn tile_rows(&self, keys: usize) -> usize {
        let most = if self.sight.causal || self.sight.window.is_some() { TILE } else { 4 * TILE };
        (SCORES / keys.max(1)).clamp(32, most)
    }

    /// The keys that any of these queries sees; all if one of them is blind.
    fn tile_range(&self, from: usize, to: usize, queries: usize, keys: usize, blind: &[bool]) -> [usize; 2] {
        if blind.get(from..to).unwrap_or_default().contains(&true) {
            return [0, keys];
        }
        let ([first, _], [_, end]) = (self.sight.range(from, queries, keys), self.sight.range(to - 1, queries, keys));
        // An empty range would be no matrix.
        if first < end { [first, end] } else { [0, keys] }
    }
}

/// A few queries of one head and the keys they see.
#[derive(Debug)]
struct Tile<'a> {
    queries: Matrix<'a>,
    keys: Matrix<'a>,
    /// The keys that any of them sees.
    range: [usize; 2],
    /// The first of them.
    first: usize,
    /// How many queries there are in all.
    count: usize,
    row: KeysOfRow<'a>,
    blind: &'a [bool],
}

impl Fused<3> for Attention {
    type Saved = Option<Saved>;

    fn forward(&self, inputs: [Option<Host>; 3], needs: [bool; 3]) -> (Host, Option<Saved>) {
        let [q, k, v] = inputs.map(|x| Heads::ready(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0, 0, 0, 0]))));
        let (queries, keys, values) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
        let [batch, heads, count, _] = queries.dims;
        let [_, key_heads, key_count, _] = keys.dims;
        let places = Places::of([batch, heads, count, values.dims[3]]);
        let group = heads / key_heads;
        let blind: Vec<Vec<bool>> = (0..batch).map(|row| self.sight.blind(row, count, key_count)).collect();
        let tile_rows = self.tile_rows(key_count);
        let mut log_sums = vec![0.0; batch * heads * count];
        let output = host::written(batch * count * places.stride(), |output| {
            // Zero, for a tile without any key writes nothing.
            let memory = host::new_pieces(output, 1, |_, _| ());
            let output = Shared::new(memory);
            let work = log_sums.par_chunks_mut(count).enumerate();
            work.for_each_init(Vec::new, |scratch, (index, log_sums)| {
                let (row, head) = (index / heads, index % heads);
                let (queries, keys) = (queries.head(row, head), keys.head(row, head / group));
                let values = values.head(row, head / group);
                let blind = blind.get(row).map(Vec::as_slice).unwrap_or_default();
                for (from, log_sums) in (0..count).step_by(tile_rows).zip(log_sums.chunks_mut(tile_rows)) {
                    let to = from + log_sums.len();
                    let range = self.tile_range(from, to, count, key_count, blind);
                    let width = range[1] - range[0];
                    scratch.resize(tile_rows * width, 0.0);
                    let row_keys = self.sight.keys_of_row(row, key_count);
                    let queries = queries.rows(from, to);
                    let tile = Tile { queries, keys, range, first: from, count, row: row_keys, blind };
                    self.scores(&tile, scratch);
                    host::vectorised(
                        #[inline(always)]
                        || {
                            for (at, (scores, log_sum)) in
                                scratch.chunks_exact_mut(width).zip(log_sums.iter_mut()).enumerate()
                            {
                                *log_sum = to_weights(scores);
                                if let Some(keep) = self.keep {
                                    keep.apply((index * count + from + at) * key_count + range[0], scores);
                                }
                            }
                        },
                    );
                    // SAFETY: no other head and no other tile writes these positions.
                    #[expect(unsafe_code, reason = "the argument stands above")]
                    let target =
                        unsafe { output.part(places.at(row, head, from), [to - from, places.dim], places.stride()) };
                    let weights = Matrix::new(scratch, [to - from, width]);
                    product(target, Before::Lost, 1.0, weights, values.rows(range[0], range[1]), Threads::One);
                }
            });
            memory
        });
        let output = places.tensor(output, batch);
        let saved = needs.contains(&true).then(|| Saved { q, k, v, output: output.clone(), log_sums });
        (output, saved)
    }

    fn backward(self, saved: Option<Saved>, grad: Host, needs: [bool; 3]) -> [Option<Host>; 3] {
        let Some(Saved { q, k, v, output, log_sums }) = saved else { return [const { None }; 3] };
        let grad = Heads::ready(grad);
        let (queries, keys, values) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
        let (outputs, grads) = (Heads::of(&output), Heads::of(&grad));
        let [batch, heads, count, _] = queries.dims;
        let [_, key_heads, key_count, _] = keys.dims;
        let group = heads / key_heads;
        let (q_places, k_places, v_places) = (Places::of(queries.dims), Places::of(keys.dims), Places::of(values.dims));
        let zeros = |needed: bool, places: Places| {
            vec![0.0_f32; if needed { batch * places.positions * places.stride() } else { 0 }]
        };
        let [needs_q, needs_k, needs_v] = needs;
        let mut dq = zeros(needs_q, q_places);
        let mut dk = zeros(needs_k, k_places);
        let mut dv = zeros(needs_v, v_places);
        let (to_q, to_k, to_v) = (Shared::new(&mut dq), Shared::new(&mut dk), Shared::new(&mut dv));
        let blind: Vec<Vec<bool>> = (0..batch).map(|row| self.sight.blind(row, count, key_count)).collect();
        let tile_rows = self.tile_rows(key_count);
        (0..batch * key_heads).into_par_iter().for_each_init(
            || (Vec::new(), Vec::new()),
            |(scratch, dscratch), index| {
                let (row, key_head) = (index / key_heads, index % key_heads);
                let (keys, values) = (keys.head(row, key_head), values.head(row, key_head));
                let blind = blind.get(row).map(Vec::as_slice).unwrap_or_default();
                for head in key_head * group..(key_head + 1) * group {
                    let (queries, outputs, grads) =
                        (queries.head(row, head), outputs.head(row, head), grads.head(row, head));
                    for from in (0..count).step_by(tile_rows) {
                        let to = count.min(from + tile_rows);
                        let range @ [first, end] = self.tile_range(from, to, count, key_count, blind);
                        let width = end - first;
                        scratch.resize(tile_rows * width, 0.0);
                        dscratch.resize(tile_rows * width, 0.0);
                        let row_keys = self.sight.keys_of_row(row, key_count);
                        let tile_queries = queries.rows(from, to);
                        let tile =
                            Tile { queries: tile_queries, keys, range, first: from, count, row: row_keys, blind };
                        self.scores(&tile, scratch);
                        let tile_grads = grads.rows(from, to);
                        let dims = [to - from, width];
                        let seen = values.rows(first, end);
                        let target = Target::new(dscratch, dims);
                        product(target, Before::Lost, 1.0, tile_grads, seen.t(), Threads::One);
                        host::vectorised(
                            #[inline(always)]
                            || {
                                let rows = scratch.chunks_exact_mut(width).zip(dscratch.chunks_exact_mut(width));
                                for (query, (scores, grads_of_weights)) in (from..to).zip(rows) {
                                    let place = (row * heads + head) * count + query;
                                    let backward = RowBackward {
                                        log_sum: log_sums.get(place).copied().unwrap_or_default(),
                                        along: lanes2(outputs.row(query), grads.row(query), |o, g| o * g),
                                        soft_cap: self.soft_cap,
                                        keep: self.keep,
                                        place: (place * key_count + first) as u32,
                                    };
                                    backward.apply(scores, grads_of_weights);
                                }
                            },
                        );
                        let weights = Matrix::new(scratch, dims);
                        let dscores = Matrix::new(dscratch, dims);
                        let dim = q_places.dim;
                        // SAFETY: no other task has this row and key head, nor the query heads that share it.
                        #[expect(unsafe_code, reason = "the argument stands above")]
                        unsafe {
                            if needs_v {
                                let at = v_places.at(row, key_head, first);
                                let target = to_v.part(at, [width, v_places.dim], v_places.stride());
                                product(target, Before::Kept, 1.0, weights.t(), tile_grads, Threads::One);
                            }
                            if needs_q {
                                let target =
                                    to_q.part(q_places.at(row, head, from), [to - from, dim], q_places.stride());
                                product(target, Before::Lost, self.scale, dscores, keys.rows(first, end), Threads::One);
                            }
                            if needs_k {
                                let at = k_places.at(row, key_head, first);
                                let target = to_k.part(at, [width, dim], k_places.stride());
                                product(target, Before::Kept, self.scale, dscores.t(), tile_queries, Threads::One);
                            }
                        }
                    }
                }
            },
        );
        [
            needs_q.then(|| q_places.tensor(dq, batch)),
            needs_k.then(|| k_places.tensor(dk, batch)),
            needs_v.then(|| v_places.tensor(dv, batch)),
        ]
    }
}

/// Scores to weights that sum to 1; returns the logarithm of the sum of the scores' powers.
#[inline(always)]
fn to_weights(scores: &mut [f32]) -> f32 {
    let most = lanes(scores, f32::NEG_INFINITY, |a, x| if x > a { x } else { a });
    for x in scores.iter_mut() {
        *x = exp(*x - most);
    }
    let sum = lanes(scores, 0.0, |a, x| a + x);
    let scale = 1.0 / sum;
    for x in scores.iter_mut() {
        *x *= scale;
    }
    most + sum.ln()
}

/// How the gradient of one query's weights becomes that of its scores.
#[derive(Debug, Clone, Copy)]
struct RowBackward {
    log_sum: f32,
    /// The product of the query's output with the output's gradient: what all weights have in common.
    along: f32,
    soft_cap: Option<f32>,
    keep: Option<Keep>,
    /// The place of the first weight among those of all queries.
    place: u32,
}

impl RowBackward {
    /// Turns scores into the weights that were used and the gradients of these weights into those of the scores.
    #[inline(always)]
    fn apply(self, scores: &mut [f32], grads: &mut [f32]) {
        let Self { log_sum, along, soft_cap, keep, place } = self;
        match (soft_cap, keep) {
            (None, None) => {
                for (score, grad) in scores.iter_mut().zip(grads) {
                    *score = exp(*score - log_sum);
                    *grad = *score * (*grad - along);
                }
            }
            (None, Some(keep)) => {
                for (index, (score, grad)) in scores.iter_mut().zip(grads).enumerate() {
                    let factor = keep.factor(place.wrapping_add(index as u32));
                    let weight = exp(*score - log_sum);
                    *score = weight * factor;
                    *grad = weight * (*grad * factor - along);
                }
            }
            (Some(cap), keep) => {
                for (index, (score, grad)) in scores.iter_mut().zip(grads).enumerate() {
                    let factor = keep.map_or(1.0, |keep| keep.factor(place.wrapping_add(index as u32)));
                    let slope = *score / cap;
                    let slope = if slope.is_finite() { 1.0 - slope * slope } else { 0.0 };
                    let weight = exp(*score - log_sum);
                    *score = weight * factor;
                    *grad = weight * (*grad * factor - along) * slope;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use burn::tensor::{Device, Distribution, TensorData, Tolerance};
    use proptest::prelude::*;

    use super::run as run_node;
    use super::*;
    use crate::ops::{dropout::kept, softmax};

    /// Sizes and choices of a case.
    #[derive(Debug, Clone, Copy)]
    struct Case {
        batch: usize,
        key_heads: usize,
        group: usize,
        queries: usize,
        keys: usize,
        dims: [usize; 2],
    }

    /// 0 where a query sees a key and the least finite number where not.
    fn additive(case: Case, sight: &Sight) -> Tensor<4> {
        let Case { batch, queries, keys, .. } = case;
        let mut values = Vec::with_capacity(batch * queries * keys);
        for row in 0..batch {
            for query in 0..queries {
                for key in 0..keys {
                    let place = query + keys - queries;
                    let mut seen = !sight.causal || key <= place;
                    if let Some([before, after]) = sight.window {
                        seen &= key + before >= place && key <= place + after;
                    }
                    if let Some(hidden) = &sight.hidden {
                        seen &= !hidden[row * keys + key];
                    }
                    if let Some(examples) = &sight.examples {
                        seen &= examples[row * keys + key] == examples[row * keys + query];
                    }
                    values.push(if seen { 0.0 } else { f32::MIN });
                }
            }
        }
        Tensor::from_data(TensorData::new(values, [batch, 1, queries, keys]), &Device::flex())
    }

    fn reference([q, k, v]: [Tensor<4>; 3], mask: Tensor<4>, weights: Weights, keep: Option<Keep>) -> Tensor<4> {
        let group = q.dims()[1] / k.dims()[1];
        let [batch, heads, keys, _] = k.dims();
        let repeated = |x: Tensor<4>| {
            let width = x.dims()[3];
            let all = [batch, heads, group, keys, width];
            x.reshape([batch, heads, 1, keys, width]).expand(all).reshape([batch, heads * group, keys, width])
        };
        let mut scores = q.matmul(repeated(k).swap_dims(2, 3)) * weights.scale;
        if let Some(cap) = weights.soft_cap {
            scores = (scores / cap).tanh() * cap;
        }
        let used = softmax(scores + mask);
        keep.map_or_else(|| used.clone(), |keep| kept(used.clone(), keep)).matmul(repeated(v))
    }

    fn check(case: Case, sight: &Sight, weights: Weights) {
        let device = Device::flex();
        let Case { batch, key_heads, group, queries, keys, dims: [dim, width] } = case;
        let heads = key_heads * group;
        // As projections leave them: the heads of a position side by side.
        let random = |positions, heads, dim| {
            Tensor::<4>::random([batch, positions, heads, dim], Distribution::Normal(0.0, 1.0), &device)
        };
        let (q, k, v) = (random(queries, heads, dim), random(keys, key_heads, dim), random(keys, key_heads, width));
        let weight = random(heads, queries, width);
        let mask = additive(case, sight);
        let run = |fast: bool| -> (TensorData, Vec<TensorData>) {
            let keep = (weights.drop > 0.0).then(|| Keep::new(0x1234_5678_9abc, weights.drop));
            let leaves = [&q, &k, &v].map(|x| x.clone().autodiff().require_grad());
            let all = leaves.each_ref().map(|x| x.clone().swap_dims(1, 2));
            let y: Tensor<4> = match fast {
                true => run_node(Attention::new(sight, weights, keep), all.map(Input::new)),
                false => reference(all, mask.clone(), weights, keep),
            };
            let gradients = (y.clone() * weight.clone()).sum().backward();
            let grads = leaves.iter().map(|leaf| leaf.grad(&gradients).unwrap().into_data());
            (y.without_autodiff().into_data(), grads.collect())
        };
        let ((fast, fast_grads), (slow, slow_grads)) = (run(true), run(false));
        fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-4, 1e-5));
        for (fast, slow) in fast_grads.iter().zip(&slow_grads) {
            fast.assert_approx_eq::<f32>(slow, Tolerance::rel_abs(1e-3, 1e-4));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn agrees_with_the_plain_operations(
            (batch, key_heads, group) in (1..3_usize, 1..3_usize, 1..4_usize),
            (queries, more) in (1..150_usize, 0..20_usize),
            dims in [1..20_usize, 1..20_usize],
            causal: bool,
            window in proptest::option::of([0..9_usize, 0..9_usize]),
            hides in proptest::option::of(1..4_usize),
            caps: bool,
            drops: bool,
        ) {
            let keys = queries + more;
            let hidden = hides.map(|from| (0..batch * keys).map(|at| at % keys % 4 >= from || at % keys < from).collect());
            let sight = Sight { causal, window, hidden, ..Sight::default() };
            let weights = Weights {
                scale: 0.4,
                // What comes back through the cap of a query that sees nothing is not the same, and counts nowhere.
                soft_cap: (caps && hides.is_none()).then_some(1.5),
                drop: if drops { 0.25 } else { 0.0 },
            };
            check(Case { batch, key_heads, group, queries, keys, dims }, &sight, weights);
        }

        #[test]
        fn packed_examples_do_not_see_each_other(lengths in [1..50_usize, 1..50_usize, 1..50_usize], windowed: bool) {
            let rows = [lengths, [lengths[2], lengths[0], lengths[1]]];
            let queries = lengths.iter().sum::<usize>() + 2;
            let examples: Vec<i64> = rows
                .iter()
                .flat_map(|row| {
                    let own = row.iter().zip(1..).flat_map(|(length, id)| std::iter::repeat_n(id, *length));
                    own.chain([0, 0])
                })
                .collect();
            let hidden = examples.iter().map(|id| *id == 0).collect();
            let window = windowed.then_some([3, 0]);
            let sight = Sight { causal: true, window, hidden: Some(hidden), examples: Some(examples.into()), ..Sight::default() };
            let case = Case { batch: 2, key_heads: 1, group: 2, queries, keys: queries, dims: [5, 6] };
            check(case, &sight, Weights { scale: 0.4, soft_cap: None, drop: 0.0 });
        }
    }

    #[test]
    fn a_tile_never_sees_what_lies_behind_it() {
        // Values that no query may see are no numbers; what comes out is some.
        let device = Device::flex();
        let (queries, dim) = (3 * TILE + 5, 4);
        let x = Tensor::<4>::random([1, 1, queries, dim], Distribution::Default, &device);
        let sight = Sight { causal: true, ..Sight::default() };
        let weights = Weights { scale: 1.0, soft_cap: None, drop: 0.0 };
        let poisoned = x.clone().slice_fill([0..1, 0..1, 2 * TILE..queries, 0..dim], f32::NAN);
        let clean = attention(&x, &x, &x, &sight, weights).unwrap();
        let y = attention(&x, &x, &poisoned, &sight, weights).unwrap();
        let first = |y: Tensor<4>| y.slice([0..1, 0..1, 0..2 * TILE, 0..dim]).into_data();
        first(y).assert_eq(&first(clean), true);
    }
}
