//! The gated feed-forward block of Llama and its kin.

use burn::{module::Module, nn::Linear, tensor::Tensor};

use super::{Activation, DecoderSizes, Layers, adapted_linear};

/// `down(activation(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct GatedMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl GatedMlp {
    /// A block of a decoder of these sizes.
    pub fn new(layers: &Layers<'_>, sizes: &DecoderSizes, bias: bool, activation: Activation) -> Self {
        Self {
            gate_proj: layers.linear(sizes.hidden, sizes.inner, bias),
            up_proj: layers.linear(sizes.hidden, sizes.inner, bias),
            down_proj: layers.linear(sizes.inner, sizes.hidden, bias),
            activation,
        }
    }

    /// # Shapes
    /// - `x`, returned: `[batch, sequence, hidden]`
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = adapted_linear(&self.gate_proj, x.clone());
        adapted_linear(&self.down_proj, self.activation.gated(gate, adapted_linear(&self.up_proj, x)))
    }
}
