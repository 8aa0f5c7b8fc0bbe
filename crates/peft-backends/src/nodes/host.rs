//! Nodes of the processor, on tensors of [`Flex`](burn::backend::Flex) in single precision.

pub(crate) mod attention;
pub(crate) mod dropout;
pub(crate) mod gated;
pub(crate) mod gated_mlp;
pub(crate) mod gelu;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod linear_cross_entropies;
pub(crate) mod low_rank_by_rows;
pub(crate) mod origin;
pub(crate) mod projection;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod softmax;
