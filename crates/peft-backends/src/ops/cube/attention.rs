//! Attention that keeps no scores (Dao et al. 2022, arXiv:2205.14135).

mod kernels;

use burn::{
    backend::{ops::FloatTensorOps, tensor::IntTensor},
    tensor::Tensor,
};

pub(super) use kernels::{Backward, along, forward};

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
        if kernels::tile([dim, width]).is_none() || queries > keys {
            return None;
        }
        let scores = Scores {
            scale: weights.scale as f32,
            soft_cap: weights.soft_cap.map(|cap| cap as f32),
            keep: draw(),
            causal: sight.causal,
            window: sight.window,
            hides: sight.hidden.is_some(),
            examples: sight.examples.is_some(),
        };
        let marks = primitive(sight.marks_on(&q.device().inner(), [batch, queries, keys], HIDDEN));
        Some(apply(Self { scores, marks }, [q, k, v].map(|x| Input::new(x.clone()))))
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
        let all = (q.clone(), k.clone(), v.clone());
        let dq = needs_q.then(|| {
            let (q, k, v) = all.clone();
            let rest = (grad.clone(), log_sums.clone(), along.clone());
            heads_last(Gpu::attention_backward_queries(
                q,
                k,
                v,
                rest.0,
                rest.1,
                rest.2,
                self.marks.clone(),
                self.scores.clone(),
            ))
        });
        if !needs_k && !needs_v {
            return [dq, None, None];
        }
        let (dk, dv) = Gpu::attention_backward_keys(q, k, v, grad, log_sums, along, self.marks, self.scores);
        [dq, needs_k.then(|| heads_last(dk)), needs_v.then(|| heads_last(dv))]
    }
}
