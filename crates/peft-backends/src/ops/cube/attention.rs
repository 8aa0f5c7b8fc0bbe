//! Attention that keeps no scores (Dao et al. 2022, arXiv:2205.14135).

mod along;
mod by_products;
mod scores;
mod tiles;

use burn::{
    backend::{ops::FloatTensorOps, tensor::IntTensor},
    tensor::Tensor,
};
use burn_cubecl::tensor::CubeTensor;

pub(super) use along::along;

use super::{Gpu, Kernels, OnGpu, all, primitive};
use crate::ops::{
    Weights,
    dropout::Keep,
    node::{Input, Node, apply},
    sight::Sight,
};

/// Stands for a key that is hidden from all.
const HIDDEN: i32 = i32::MIN;

/// How scores become weights, as kernels take it.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::ops) struct Scores {
    pub(in crate::ops) scale: f32,
    pub(in crate::ops) soft_cap: Option<f32>,
    pub(in crate::ops) keep: Option<Keep>,
    pub(super) causal: bool,
    pub(super) window: Option<[usize; 2]>,
    pub(super) hides: bool,
    /// Whether a query sees nothing, and so looks at all keys.
    pub(super) blind: bool,
    pub(super) examples: bool,
}

/// The operation.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Attention {
    scores: Scores,
    marks: IntTensor<Gpu>,
}

impl Attention {
    /// The operation on these tensors; none if their heads are too wide for the memory of a cube, or queries more than keys.
    pub(in crate::ops) fn run(
        sight: &Sight,
        weights: Weights,
        draw: impl FnOnce() -> Option<Keep>,
        [q, k, v]: [&Tensor<4>; 3],
    ) -> Option<Tensor<4>> {
        let ([batch, _, queries, dim], [_, _, keys, _], [.., width]) = (q.dims(), k.dims(), v.dims());
        if tiles::tile([dim, width]).is_none() || queries > keys {
            return None;
        }
        let (marks, blind) = sight.marks_on(&q.device().inner(), [batch, queries, keys], HIDDEN);
        let scores = Scores {
            scale: weights.scale as f32,
            soft_cap: weights.soft_cap.map(|cap| cap as f32),
            keep: draw(),
            causal: sight.causal,
            window: sight.window,
            hides: sight.hidden.is_some(),
            blind,
            examples: sight.examples.is_some(),
        };
        Some(apply(Self { scores, marks: primitive(marks) }, [q, k, v].map(|x| Input::new(x.clone()))))
    }
}

impl Node<Gpu, 3> for Attention {
    /// The inputs, the result and the logarithms of the sums of the scores' powers.
    type Saved = [OnGpu; 5];

    fn forward(&self, inputs: [Option<OnGpu>; 3], _: [bool; 3]) -> (OnGpu, [OnGpu; 5]) {
        let [q, k, v] = all(inputs);
        let (y, log_sums) = Gpu::attention(q.clone(), k.clone(), v.clone(), self.marks.clone(), self.scores.clone());
        let y = Gpu::float_swap_dims(y, 1, 2);
        (y.clone(), [q, k, v, y, log_sums])
    }

    fn backward(self, saved: [OnGpu; 5], grad: OnGpu, [needs_q, needs_k, needs_v]: [bool; 3]) -> [Option<OnGpu>; 3] {
        let [q, k, v, y, log_sums] = saved;
        let heads_last = |x: OnGpu| Gpu::float_swap_dims(x, 1, 2);
        let along = Gpu::attention_along(y, grad.clone());
        let (dq, dk, dv) = Gpu::attention_backward(q, k, v, grad, log_sums, along, self.marks, self.scores);
        [needs_q.then(|| heads_last(dq)), needs_k.then(|| heads_last(dk)), needs_v.then(|| heads_last(dv))]
    }
}

/// The result as `[batch, queries, heads, width]`, and its logarithms of sums, `[batch · heads · queries]`.
pub(super) fn forward(
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

/// What the pass back is given.
#[derive(Debug, Clone)]
pub(super) struct Backward {
    pub(super) q: CubeTensor,
    pub(super) k: CubeTensor,
    pub(super) v: CubeTensor,
    pub(super) grad: CubeTensor,
    pub(super) log_sums: CubeTensor,
    pub(super) along: CubeTensor,
    pub(super) marks: CubeTensor,
    pub(super) scores: Scores,
}

impl Backward {
    /// The gradients of `q`, `[batch, queries, heads, dim]`, and of `k` and `v`, `[batch, keys, key heads, ..]`.
    pub(super) fn run(self) -> (CubeTensor, CubeTensor, CubeTensor) {
        if by_products::are_many(&self.q) { self.by_products() } else { self.by_tiles() }
    }
}
