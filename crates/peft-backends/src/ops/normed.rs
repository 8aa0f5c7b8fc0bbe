//! A norm's result that knows what it came from: an operation that will need it in the pass back keeps that instead.

use burn::tensor::Tensor;

use crate::{
    kernels::host,
    nodes::host::{origin::Origin, rms_norm::RmsNorm},
    ops::rms_norm::rms_norm,
};

/// The result of a norm, and how to make it anew.
#[derive(Debug, Clone)]
pub struct Normed<const D: usize> {
    /// `[..., dimensions]`.
    pub value: Tensor<D>,
    pub(crate) origin: Option<Origin>,
}

impl<const D: usize> Normed<D> {
    /// [`rms_norm`] of a hidden state that is kept anyway, as that before a layer is: what layers keep of the norm beside it costs
    /// memory, and making it anew next to no time.
    ///
    /// # Shapes
    /// - `x`: `[..., dimensions]`
    /// - `weight`: `[dimensions]`
    pub fn rms(x: Tensor<D>, weight: Tensor<1>, offset: f64, epsilon: f64) -> Self {
        let is_kept = x.is_autodiff() && host::takes(&x) && host::takes(&weight) && !x.dims().contains(&0);
        let origin = is_kept.then(|| Origin::new(&x, &weight, RmsNorm::new(offset, epsilon))).flatten();
        Self { value: rms_norm(x, weight, offset, epsilon), origin }
    }

    /// One row a token.
    pub fn rows(self) -> Normed<2> {
        let dims = self.value.dims();
        let width = dims.last().copied().unwrap_or(1);
        let tokens = dims.iter().take(D - 1).product::<usize>();
        Normed { value: self.value.reshape([tokens, width]), origin: self.origin }
    }

    /// The value, and what it is made anew from where a graph would keep it.
    pub(crate) fn into_parts(self) -> (Tensor<D>, Option<Origin>) {
        (self.value, self.origin)
    }
}

impl<const D: usize> From<Tensor<D>> for Normed<D> {
    fn from(value: Tensor<D>) -> Self {
        Self { value, origin: None }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use burn::tensor::{Device, Distribution, FloatDType, TensorData};

    use super::*;
    use crate::{
        kernels::host::gate::Gate,
        ops::{
            adapted::{Adapted, Weight},
            gated_mlp,
            lora_linear::{LowRank, adapted},
        },
    };

    /// Three layers and a gated block on one norm's result: the sum of all, and the gradients of input and first factors.
    fn run(values: &[Tensor<2>; 4], dtype: FloatDType, forgets: bool) -> Vec<TensorData> {
        let leaf = |x: &Tensor<2>| x.clone().autodiff().require_grad();
        let frozen = |x: &Tensor<2>| Weight::Dense(x.clone().cast(dtype));
        let [x, weight, a, b] = values;
        let (x, a, b) = (leaf(&x.clone().cast(dtype)), leaf(a), leaf(b));
        let scale = weight.clone().cast(dtype).slice([0..1, 0..12]).squeeze_dim(0);
        let hidden = x.clone() * 2.0;
        let normed = Normed::rms(hidden.clone(), scale, 0.0, 1e-6);
        assert!(normed.origin.is_some());
        let normed = if forgets { normed } else { Normed::from(normed.value) };
        let layer = || {
            let low_rank = Some(LowRank { a: a.clone(), b: b.clone(), scale: 0.5, drop: 0.0 });
            Adapted { weight: frozen(weight), bias: None, low_rank }
        };
        let mut sum = gated_mlp(normed.clone(), Gate::Silu, [layer(), layer(), layer()]);
        for _ in 0..3 {
            sum = sum + adapted(normed.clone(), layer());
        }
        let gradients = (sum.clone().cast(FloatDType::F32) + hidden.cast(FloatDType::F32)).sin().sum().backward();
        let mut found = vec![sum.without_autodiff().into_data()];
        found.extend([&x, &a, &b].map(|leaf| leaf.grad(&gradients).unwrap().into_data()));
        found
    }

    #[test]
    fn what_is_made_anew_gives_the_same_bits() {
        let device = Device::flex();
        let random = |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Normal(0.0, 1.0), &device);
        let values = [random([70, 12]), random([12, 12]), random([2, 12]), random([12, 2])];
        for dtype in [FloatDType::F32, FloatDType::BF16, FloatDType::F16] {
            assert_eq!(run(&values, dtype, true), run(&values, dtype, false), "{dtype:?}");
        }
    }

    #[test]
    fn without_a_graph_nothing_is_held() {
        let x = Tensor::<2>::ones([3, 4], &Device::flex());
        assert!(Normed::rms(x, Tensor::ones([4], &Device::flex()), 0.0, 1e-6).origin.is_none());
    }
}
