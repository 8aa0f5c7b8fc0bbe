//! Linear layers, with adapters or without, by the fused operations where there are any.

use burn::{nn::Linear, tensor::Tensor};
use peft_backends::ops;
use peft_core::{Conv1D, adapted_linear_by};

/// A linear layer and the active adapters on its weight: [`peft_core::adapted_linear`], computed by [`ops::linear`].
///
/// # Shapes
/// - `input`: `[..., d_in]`
/// - returned: `[..., d_out]`
pub fn adapted_linear<const D: usize>(linear: &Linear, input: Tensor<D>) -> Tensor<D> {
    adapted_linear_by(ops::linear, linear, input)
}

/// The same of GPT-2's projection.
///
/// # Shapes
/// - `input`: `[..., d_in]`
/// - returned: `[..., d_out]`
pub fn adapted_conv1d<const D: usize>(conv: &Conv1D, input: Tensor<D>) -> Tensor<D> {
    conv.forward_by(ops::linear, input)
}
