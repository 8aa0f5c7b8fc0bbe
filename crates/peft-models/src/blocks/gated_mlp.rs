//! The gated feed-forward block of Llama and its kin.

use burn::{module::Module, nn::Linear, tensor::Tensor};
use peft_backends::ops::{self, Normed};

use super::{Activation, DecoderSizes, Layers, adapted_linear, linear::adapted_parts};

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

    /// One operation where all adapters are low-rank products, else layer by layer.
    ///
    /// # Shapes
    /// - `x`, returned: `[batch, sequence, hidden]`
    pub fn forward(&self, x: Normed<3>) -> Tensor<3> {
        let parts = || {
            let gate = self.activation.gate()?;
            Some((
                gate,
                [adapted_parts(&self.gate_proj)?, adapted_parts(&self.up_proj)?, adapted_parts(&self.down_proj)?],
            ))
        };
        if let Some((gate, layers)) = parts() {
            let dims = x.value.dims();
            return ops::gated_mlp(x.rows(), gate, layers).reshape(dims);
        }
        let x = x.value;
        let gate = adapted_linear(&self.gate_proj, x.clone());
        adapted_linear(&self.down_proj, self.activation.gated(gate, adapted_linear(&self.up_proj, x)))
    }
}
