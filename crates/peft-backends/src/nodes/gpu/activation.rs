//! The autodiff node of activations and gated products on a GPU: the kernels of the forward and the backward pass.

use crate::{
    kernels::cube::{Gpu, OnGpu, activation::Curve, backend::Kernels},
    nodes::{gpu::all, node::Node},
};

/// The function of each element.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Activation(pub(crate) Curve);

impl Node<Gpu, 1> for Activation {
    type Saved = OnGpu;

    fn forward(&self, inputs: [Option<OnGpu>; 1], _: [bool; 1]) -> (OnGpu, OnGpu) {
        let [x] = all(inputs);
        (Gpu::activation(x.clone(), self.0), x)
    }

    fn backward(self, x: OnGpu, grad: OnGpu, _: [bool; 1]) -> [Option<OnGpu>; 1] {
        [Some(Gpu::activation_backward(x, grad, self.0))]
    }
}

/// The function of the first input times the second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gated(pub(crate) Curve);

impl Node<Gpu, 2> for Gated {
    type Saved = [OnGpu; 2];

    fn forward(&self, inputs: [Option<OnGpu>; 2], _: [bool; 2]) -> (OnGpu, [OnGpu; 2]) {
        let [gate, up] = all(inputs);
        (Gpu::gated(gate.clone(), up.clone(), self.0), [gate, up])
    }

    fn backward(self, [gate, up]: [OnGpu; 2], grad: OnGpu, _: [bool; 2]) -> [Option<OnGpu>; 2] {
        let (dgate, dup) = Gpu::gated_backward(gate, up, grad, self.0);
        [Some(dgate), Some(dup)]
    }
}
