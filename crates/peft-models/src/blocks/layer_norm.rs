//! Layer normalisation, alone or after the dropout and the residual that stand before it.

use burn::{
    module::{Module, Param},
    nn::Dropout,
    tensor::Tensor,
};
use peft_backends::ops;

/// `(x - mean) / √(variance + ε) · gamma + beta`, computed in f32.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[dimensions]`.
    pub gamma: Param<Tensor<1>>,
    /// `[dimensions]`.
    pub beta: Option<Param<Tensor<1>>>,
    /// Keeps the division finite.
    pub epsilon: f64,
}

impl LayerNorm {
    /// Normalises the last dimension.
    ///
    /// # Shapes
    /// - `x`, returned: `[..., dimensions]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.norm(x, None, 0.0)
    }

    /// Normalises `dropout(x) + residual`: the end of a block in a model with its norms after the residuals.
    ///
    /// # Shapes
    /// - `x`, `residual`, returned: `[..., dimensions]`
    pub fn add<const D: usize>(&self, drop: &Dropout, x: Tensor<D>, residual: Tensor<D>) -> Tensor<D> {
        self.norm(x, Some(residual), if drop.training.is_enabled() { drop.prob } else { 0.0 })
    }

    /// Normalises `x + residual`.
    ///
    /// # Shapes
    /// - `x`, `residual`, returned: `[..., dimensions]`
    pub fn add_undropped<const D: usize>(&self, x: Tensor<D>, residual: Tensor<D>) -> Tensor<D> {
        self.norm(x, Some(residual), 0.0)
    }

    fn norm<const D: usize>(&self, x: Tensor<D>, residual: Option<Tensor<D>>, drop: f64) -> Tensor<D> {
        ops::layer_norm(x, residual, drop, self.gamma.val(), self.beta.as_ref().map(Param::val), self.epsilon)
    }
}
