//! Root-mean-square normalisation, with its weight as Llama or as Gemma stores it.

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use peft_backends::ops::{self, Normed};

/// `x / √(mean(x²) + ε) · (offset + weight)`, computed in f32.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[dimensions]`.
    pub weight: Param<Tensor<1>>,
    /// Keeps the division finite.
    pub epsilon: f64,
    /// What stored weights are measured from: 0, or 1 in Gemma.
    pub offset: f64,
}

impl RmsNorm {
    /// Normalises the last dimension.
    ///
    /// # Shapes
    /// - `x`, returned: `[..., dimensions]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::rms_norm(x, self.weight.val(), self.offset, self.epsilon)
    }

    /// The same of a hidden state that is kept anyway, so that layers need not keep what is made of it.
    ///
    /// # Shapes
    /// - `x`, of the result: `[batch, sequence, dimensions]`
    pub fn of_kept(&self, x: Tensor<3>) -> Normed<3> {
        Normed::rms(x, self.weight.val(), self.offset, self.epsilon)
    }
}
