//! The autodiff node of rotary position embeddings on a GPU: the kernels of the forward and the backward pass.

use crate::{
    kernels::cube::{Gpu, OnGpu, backend::Kernels},
    nodes::{gpu::all, node::Node},
};

/// Turns the first `half` dimensions of each head against the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotate {
    pub(crate) half: usize,
}

impl Node<Gpu, 3> for Rotate {
    /// The tables of cosines and sines.
    type Saved = [OnGpu; 2];

    fn forward(&self, inputs: [Option<OnGpu>; 3], _: [bool; 3]) -> (OnGpu, [OnGpu; 2]) {
        let [x, cos, sin] = all(inputs);
        (Gpu::rotate(x, cos.clone(), sin.clone(), self.half, false), [cos, sin])
    }

    fn backward(self, [cos, sin]: [OnGpu; 2], grad: OnGpu, _: [bool; 3]) -> [Option<OnGpu>; 3] {
        [Some(Gpu::rotate(grad, cos, sin, self.half, true)), None, None]
    }
}
