//! Weights and low-rank adapters, as operations that have several inside take them.

use burn::tensor::{FloatDType, Tensor};

use crate::{
    kernels::{host, quantized::reader::HostPacked, quantized_matrix::PackedMatrix},
    nodes::{host::projection::Projection, node::Input},
    ops::{
        dropout::dropout,
        lora_linear::{LowRank, linear, lora_linear},
    },
};

/// The weight of a frozen linear layer.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for a call of a layer")]
pub enum Weight {
    /// `[d_in, d_out]`.
    Dense(Tensor<2>),
    /// The same packed.
    Packed(PackedMatrix),
}

/// A linear layer, with its adapter if it has one.
#[derive(Debug)]
pub struct Adapted {
    /// Its weight.
    pub weight: Weight,
    /// `[d_out]`.
    pub bias: Option<Tensor<1>>,
    /// What is added to it.
    pub low_rank: Option<LowRank>,
}

impl Adapted {
    /// Whether one of its tensors is part of a graph.
    pub(crate) fn is_autodiff(&self) -> bool {
        let weight = matches!(&self.weight, Weight::Dense(weight) if weight.is_autodiff());
        let factors = self.low_rank.iter().flat_map(|low_rank| [&low_rank.a, &low_rank.b]);
        weight || self.bias.as_ref().is_some_and(Tensor::is_autodiff) || factors.into_iter().any(Tensor::is_autodiff)
    }

    /// Whether all of its tensors are the processor's, in single or half precision, and the weight is not trained.
    pub(crate) fn is_frozen_on_host(&self) -> bool {
        let weight = match &self.weight {
            Weight::Dense(weight) => host::takes(weight) && !weight.is_tracked(),
            Weight::Packed(weight) => HostPacked::new(weight).is_some(),
        };
        let factors = self.low_rank.iter().flat_map(|low_rank| [&low_rank.a, &low_rank.b]);
        weight && self.bias.as_ref().is_none_or(host::takes) && factors.into_iter().all(host::takes)
    }

    /// The layer by itself.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_in]`
    /// - returned: `[tokens, d_out]`
    pub(crate) fn forward(self, x: Tensor<2>) -> Tensor<2> {
        let frozen = |x: Tensor<2>, bias: Option<Tensor<1>>| match &self.weight {
            Weight::Dense(weight) => linear(x, weight.clone(), bias),
            Weight::Packed(weight) => weight.linear(x, bias),
        };
        let Some(LowRank { a, b, scale, drop }) = self.low_rank else { return frozen(x, self.bias) };
        let lora = || LowRank { a: a.clone(), b: b.clone(), scale, drop };
        let fused = match &self.weight {
            Weight::Dense(weight) => lora_linear(&x, weight, self.bias.as_ref(), lora()),
            Weight::Packed(weight) => weight.lora_linear(&x, self.bias.as_ref(), lora()),
        };
        if let Some(y) = fused {
            return y;
        }
        let y = frozen(x.clone(), self.bias);
        let own = dropout(x.cast(FloatDType::from(a.dtype())), drop);
        let dtype = FloatDType::from(y.dtype());
        y + own.matmul(a.transpose()).mul_scalar(scale).matmul(b.transpose()).cast(dtype)
    }

    /// How it is computed, and its tensors: weight, bias and both factors. Draws what is dropped.
    pub(crate) fn into_parts(self) -> (Projection, [Input; 4]) {
        let (packed, weight) = match self.weight {
            Weight::Dense(weight) => (None, Input::new(weight)),
            Weight::Packed(weight) => (HostPacked::new(&weight), Input::Absent),
        };
        let [scale, drop] = self.low_rank.as_ref().map_or([0.0; 2], |lora| [lora.scale, lora.drop]);
        let projection = Projection::new(scale, drop, packed);
        let [a, b] = self.low_rank.map_or([None, None], |LowRank { a, b, .. }| [Some(a), Some(b)]);
        (projection, [weight, Input::optional(self.bias), Input::optional(a), Input::optional(b)])
    }
}
