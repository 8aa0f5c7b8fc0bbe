//! Attention that keeps no scores (Dao et al. 2022, arXiv:2205.14135).

pub(crate) mod along;
mod by_products;
pub(crate) mod scores;
mod tiles;

use burn_cubecl::tensor::CubeTensor;

use crate::kernels::cube::attention::scores::{Backward, Scores};

/// The result as `[batch, queries, heads, width]`, and its logarithms of sums, `[batch · heads · queries]`.
pub(crate) fn forward(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    marks: CubeTensor,
    scores: Scores,
) -> (CubeTensor, CubeTensor) {
    if by_products::are_many(&q) {
        return by_products::forward(q, k, v, marks, scores);
    }
    tiles::forward(q, k, v, marks, scores)
}

impl Backward {
    /// The gradients of `q`, `[batch, queries, heads, dim]`, and of `k` and `v`, `[batch, keys, key heads, ..]`.
    pub(crate) fn run(self) -> (CubeTensor, CubeTensor, CubeTensor) {
        if by_products::are_many(&self.q) { self.by_products() } else { self.by_tiles() }
    }
}
