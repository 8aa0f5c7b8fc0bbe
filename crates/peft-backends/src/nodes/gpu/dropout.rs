//! The autodiff node of dropout on a GPU: the kernels of the forward and the backward pass.

use crate::{
    kernels::{
        cube::{Gpu, OnGpu, backend::Kernels},
        dropout_mask::Keep,
    },
    nodes::{gpu::all, node::Node},
};

/// The operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dropout(pub(crate) Keep);

impl Node<Gpu, 1> for Dropout {
    type Saved = ();

    fn forward(&self, inputs: [Option<OnGpu>; 1], _: [bool; 1]) -> (OnGpu, ()) {
        let [x] = all(inputs);
        (Gpu::dropout(x, self.0), ())
    }

    fn backward(self, (): (), grad: OnGpu, _: [bool; 1]) -> [Option<OnGpu>; 1] {
        [Some(Gpu::dropout(grad, self.0))]
    }
}
