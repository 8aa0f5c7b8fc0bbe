//! Arithmetic without a graph: loops over slices on the processor, CubeCL kernels on a GPU, and the values that both read.

pub(crate) mod attention_mask;
pub(crate) mod attention_weights;
#[cfg(feature = "gpu")]
pub(crate) mod cube;
pub(crate) mod dropout_mask;
pub(crate) mod host;
pub(crate) mod low_rank_rows;
pub(crate) mod quantized;
pub(crate) mod quantized_matrix;
