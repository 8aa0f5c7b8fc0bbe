//! The autodiff node of dropout on the processor: the forward pass, what it keeps, and the backward pass.

use burn::tensor::Tensor;

use crate::{
    kernels::{
        dropout_mask::Keep,
        host::{self, Host},
    },
    nodes::node::{Fused, Input, run},
};

/// What `keep` leaves of a tensor that [`takes`](host::takes) has said yes to.
pub(crate) fn kept<const D: usize>(x: Tensor<D>, keep: Keep) -> Tensor<D> {
    run(Dropout(keep), [Input::new(x)])
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Dropout(pub(crate) Keep);

impl Dropout {
    pub(crate) fn apply(self, x: Host) -> Host {
        host::update(
            x,
            1,
            #[inline(always)]
            |start, piece| self.0.apply(start, piece),
        )
    }
}

impl Fused<1> for Dropout {
    type Saved = ();

    fn forward(&self, [x]: [Option<Host>; 1], _: [bool; 1]) -> (Host, ()) {
        (self.apply(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0]))), ())
    }

    fn backward(self, (): (), grad: Host, _: [bool; 1]) -> [Option<Host>; 1] {
        [Some(self.apply(grad))]
    }
}
