//! The weight of a frozen layer, dense or quantized.

use std::sync::Arc;

use burn::tensor::{DType, FloatDType, Int, Tensor, module};

use super::quantized::QuantizedWeight;

/// How a layer without adapters is computed, from its input `[tokens, d_in]`, weight `[d_in, d_out]` and bias.
pub type Product = fn(Tensor<2>, Tensor<2>, Option<Tensor<1>>) -> Tensor<2>;

/// The weight of a frozen linear layer.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one for a call of a layer")]
pub enum FrozenWeight {
    /// `[d_in, d_out]`.
    Dense(Tensor<2>),
    /// `[d_in, d_out]`, quantized.
    Quantized(Arc<dyn QuantizedWeight>),
}

impl FrozenWeight {
    /// The values, `[d_in, d_out]`: dequantizing allocates a copy as large as the layer.
    pub fn dense(&self) -> Tensor<2> {
        match self {
            Self::Dense(weight) => weight.clone(),
            Self::Quantized(weight) => weight.dense(),
        }
    }

    /// `[d_in, d_out]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Quantized(weight) => weight.dims(),
        }
    }

    /// Looks up token embeddings, in the data type that the model computes in.
    ///
    /// # Shapes
    /// - `ids`: `[batch, sequence]`
    /// - returned: `[batch, sequence, dimensions]`
    pub fn embed(&self, ids: Tensor<2, Int>, dtype: DType) -> Tensor<3> {
        let embeddings = match self {
            Self::Dense(table) => module::embedding(table.clone(), ids),
            Self::Quantized(table) => table.embed(ids),
        };
        if embeddings.dtype() == dtype { embeddings } else { embeddings.cast(FloatDType::from(dtype)) }
    }

    /// `x W + b`, a dense weight's by `product`.
    pub fn linear(&self, product: Product, input: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        match self {
            Self::Dense(weight) => product(input, weight.clone(), bias),
            Self::Quantized(weight) => weight.linear(input, bias),
        }
    }
}
