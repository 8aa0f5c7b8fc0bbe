//! Autodiff nodes: the forward and the backward pass of one operation each, from kernels.

pub(crate) mod draws;
#[cfg(feature = "gpu")]
pub(crate) mod gpu;
pub(crate) mod host;
pub(crate) mod node;
pub(crate) mod recompute;
