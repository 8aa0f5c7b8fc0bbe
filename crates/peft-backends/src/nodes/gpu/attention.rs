//! The autodiff node of attention on a GPU: the kernels of the forward and the backward pass.

use burn::{
    backend::{ops::FloatTensorOps, tensor::IntTensor},
    tensor::Tensor,
};

use crate::{
    kernels::{
        attention_mask::Sight,
        attention_weights::Weights,
        cube::{
            Gpu, OnGpu,
            attention::scores::{HIDDEN, Scores, tile},
            backend::Kernels,
            primitive,
        },
        dropout_mask::Keep,
    },
    nodes::{
        gpu::all,
        node::{Input, Node, apply},
    },
};

/// The operation.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    scores: Scores,
    marks: IntTensor<Gpu>,
}

impl Attention {
    /// The operation on these tensors; none if their heads are too wide for the memory of a cube, or queries more than keys.
    pub(crate) fn run(
        sight: &Sight,
        weights: Weights,
        draw: impl FnOnce() -> Option<Keep>,
        [q, k, v]: [&Tensor<4>; 3],
    ) -> Option<Tensor<4>> {
        let ([batch, _, queries, dim], [_, _, keys, _], [.., width]) = (q.dims(), k.dims(), v.dims());
        if tile([dim, width]).is_none() || queries > keys {
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
