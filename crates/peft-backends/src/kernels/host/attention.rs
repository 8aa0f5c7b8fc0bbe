//! Attention on slices: scores, weights and gradients of a tile of queries at a time.

use crate::kernels::{
    attention_mask::{KeysOfRow, Sight},
    attention_weights::Weights,
    dropout_mask::Keep,
    host::{
        self, Host, lanes,
        matrix::Matrix,
        product::{Before, Target, Threads, product},
        vector_math::{exp, tanh},
    },
};

/// Scores in memory at a time: two such tiles stay in a core's cache.
const SCORES: usize = 1 << 14;

/// Most queries at a time where a query does not see all keys.
pub(crate) const TILE: usize = 64;

#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) sight: Sight,
    pub(crate) scale: f32,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) keep: Option<Keep>,
}

/// A tensor of heads whose vectors lie in one piece each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) dims: [usize; 4],
    pub(crate) strides: [usize; 4],
}

impl<'a> Heads<'a> {
    /// Makes sure of that, with a copy only where it is not so.
    pub(crate) fn ready(tensor: Host) -> Host {
        let strides = tensor.layout().strides();
        if strides.last() == Some(&1) && strides.iter().all(|stride| *stride >= 0) {
            tensor
        } else {
            host::whole(tensor)
        }
    }

    pub(crate) fn of(tensor: &'a Host) -> Self {
        let layout = tensor.layout();
        let values = tensor.storage::<f32>().get(layout.start_offset()..).unwrap_or_default();
        let mut dims = [0; 4];
        dims.iter_mut().zip(layout.shape().as_slice()).for_each(|(to, from)| *to = *from);
        let mut strides = [0; 4];
        strides.iter_mut().zip(layout.strides()).for_each(|(to, from)| *to = from.unsigned_abs());
        Self { values, dims, strides }
    }

    /// The vectors of one head of one row.
    pub(crate) fn head(self, batch: usize, head: usize) -> Matrix<'a> {
        let start = batch * self.strides[0] + head * self.strides[1];
        let values = self.values.get(start..).unwrap_or_default();
        Matrix::strided(values, [self.dims[2], self.dims[3]], [self.strides[2], self.strides[3]])
    }
}

/// Memory of `[batch, positions, heads, dim]`, seen as `[batch, heads, positions, dim]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) heads: usize,
    pub(crate) positions: usize,
    pub(crate) dim: usize,
}

impl Places {
    pub(crate) fn of([_, heads, positions, dim]: [usize; 4]) -> Self {
        Self { heads, positions, dim }
    }

    pub(crate) fn stride(self) -> usize {
        self.heads * self.dim
    }

    pub(crate) fn at(self, batch: usize, head: usize, position: usize) -> usize {
        (batch * self.positions + position) * self.stride() + head * self.dim
    }

    pub(crate) fn tensor(self, values: Vec<f32>, batch: usize) -> Host {
        host::tensor(values, &[batch, self.positions, self.heads, self.dim]).permute(&[0, 2, 1, 3])
    }
}

impl Attention {
    pub(crate) fn new(sight: &Sight, weights: Weights, keep: Option<Keep>) -> Self {
        let soft_cap = weights.soft_cap.map(|cap| cap as f32);
        Self { sight: sight.clone(), scale: weights.scale as f32, soft_cap, keep }
    }

    /// The scores of a few queries of one head, as they go into the exponential; what they do not see is minus infinity.
    pub(crate) fn scores(&self, tile: &Tile<'_>, out: &mut [f32]) {
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
    pub(crate) fn hide(&self, tile: &Tile<'_>, out: &mut [f32]) {
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
    pub(crate) fn tile_rows(&self, keys: usize) -> usize {
        let most = if self.sight.causal || self.sight.window.is_some() { TILE } else { 4 * TILE };
        (SCORES / keys.max(1)).clamp(32, most)
    }

    /// The keys that any of these queries sees; all if one of them is blind.
    pub(crate) fn tile_range(&self, from: usize, to: usize, queries: usize, keys: usize, blind: &[bool]) -> [usize; 2] {
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
pub(crate) struct Tile<'a> {
    pub(crate) queries: Matrix<'a>,
    pub(crate) keys: Matrix<'a>,
    /// The keys that any of them sees.
    pub(crate) range: [usize; 2],
    /// The first of them.
    pub(crate) first: usize,
    /// How many queries there are in all.
    pub(crate) count: usize,
    pub(crate) row: KeysOfRow<'a>,
    pub(crate) blind: &'a [bool],
}

/// Scores to weights that sum to 1; returns the logarithm of the sum of the scores' powers.
#[inline(always)]
pub(crate) fn to_weights(scores: &mut [f32]) -> f32 {
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
pub(crate) struct RowBackward {
    pub(crate) log_sum: f32,
    /// The product of the query's output with the output's gradient: what all weights have in common.
    pub(crate) along: f32,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) keep: Option<Keep>,
    /// The place of the first weight among those of all queries.
    pub(crate) place: u32,
}

impl RowBackward {
    /// Turns scores into the weights that were used and the gradients of these weights into those of the scores.
    #[inline(always)]
    pub(crate) fn apply(self, scores: &mut [f32], grads: &mut [f32]) {
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
