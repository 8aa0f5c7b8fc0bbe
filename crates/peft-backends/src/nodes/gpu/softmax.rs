//! The autodiff node of softmax on a GPU: the kernels of the forward and the backward pass.

use crate::{
    kernels::cube::{Gpu, OnGpu, backend::Kernels},
    nodes::{gpu::all, node::Node},
};

/// The operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Softmax;

impl Node<Gpu, 1> for Softmax {
    /// The result.
    type Saved = OnGpu;

    fn forward(&self, inputs: [Option<OnGpu>; 1], _: [bool; 1]) -> (OnGpu, OnGpu) {
        let [x] = all(inputs);
        let y = Gpu::row_softmax(x);
        (y.clone(), y)
    }

    fn backward(self, y: OnGpu, grad: OnGpu, _: [bool; 1]) -> [Option<OnGpu>; 1] {
        [Some(Gpu::row_softmax_backward(y, grad))]
    }
}
