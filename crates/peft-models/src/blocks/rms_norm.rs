//! Root-mean-square normalisation, with its weight as Llama or as Gemma stores it.

use burn::{
    module::{Module, Param},
    tensor::{DType, Tensor},
};

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
        let dtype = x.dtype();
        let x = x.cast(DType::F32);
        let normed = x.clone() / (x.square().mean_dim(D - 1) + self.epsilon).sqrt();
        let weight = self.weight.val();
        if self.offset == 0.0 {
            normed.cast(dtype) * weight.unsqueeze()
        } else {
            // The sum with the offset would lose the weight's last digits in half precision.
            (normed * (weight.cast(DType::F32) + self.offset).unsqueeze()).cast(dtype)
        }
    }
}
