//! What a norm's result was computed from: nodes that need it in the backward pass keep that in its place, and compute it again.

use std::sync::{Arc, OnceLock};

use burn::{
    backend::{Autodiff, Flex},
    tensor::Tensor,
};

use crate::{
    kernels::host::{self, Host, half_precision::widened},
    nodes::{host::rms_norm::RmsNorm, node::forward},
};

/// What a norm's result is made anew from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) inputs: [Host; 2],
    pub(crate) norm: RmsNorm,
    /// Made by the first operation that asks; gone with the last that might.
    pub(crate) made: Arc<OnceLock<Host>>,
}

impl Origin {
    pub(crate) fn new<const D: usize>(x: &Tensor<D>, weight: &Tensor<1>, norm: RmsNorm) -> Option<Self> {
        Some(Self { inputs: [plain(x)?, plain(weight)?], norm, made: Arc::default() })
    }

    /// The norm's result, bit for bit, in single precision.
    pub(crate) fn made(&self) -> &Host {
        self.made.get_or_init(|| host::whole(widened(&forward(&self.norm, self.inputs.clone().map(Some)))))
    }
}

/// The values outside of any graph.
fn plain<const D: usize>(x: &Tensor<D>) -> Option<Host> {
    match x.is_autodiff() {
        true => x.clone().try_into_primitive::<Autodiff<Flex>>().ok().map(|x| x.into_parts().0),
        false => x.clone().try_into_primitive::<Flex>().ok(),
    }
}
