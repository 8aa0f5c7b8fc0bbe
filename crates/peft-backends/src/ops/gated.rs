//! The product of a gated feed-forward block in one pass each way.

use burn::tensor::{Tensor, activation};

#[cfg(feature = "gpu")]
use crate::{
    kernels::cube::{self, activation::Curve},
    nodes::{gpu::activation::Gated, node::apply},
};
use crate::{
    kernels::host::{self, gate::Gate},
    nodes::node::{Input, run},
    ops::gelu::gelu_tanh,
};

/// `gate σ(gate) · up` (Shazeer 2020, arXiv:2002.05202).
pub fn silu_gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    Gate::Silu.gated(gate, up)
}

/// [`gelu_tanh`]`(gate) · up`, as in Gemma.
pub fn gelu_tanh_gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    Gate::GeluTanh.gated(gate, up)
}

impl Gate {
    /// The activation of `gate` times `up`.
    pub(crate) fn gated<const D: usize>(self, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
        let is_alike = gate.dims() == up.dims();
        #[cfg(feature = "gpu")]
        if is_alike && cube::takes(&gate) && cube::takes(&up) {
            return apply(Gated(self.curve()), [Input::new(gate), Input::new(up)]);
        }
        if is_alike && host::takes(&gate) && host::takes(&up) {
            return run(self, [Input::new(gate), Input::new(up)]);
        }
        let gate = match self {
            Self::Silu => activation::silu(gate),
            Self::GeluTanh => gelu_tanh(gate),
        };
        gate * up
    }

    #[cfg(feature = "gpu")]
    pub(crate) fn curve(self) -> Curve {
        match self {
            Self::Silu => Curve::Silu,
            Self::GeluTanh => Curve::GeluTanh,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tolerance};
    use proptest::prelude::*;

    use super::*;

    type Gated = fn(Tensor<2>, Tensor<2>) -> Tensor<2>;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn agrees_with_the_plain_operations(rows in 1..40_usize, columns in 1..700_usize, swapped: bool, gelu: bool) {
            let device = Device::flex();
            let random = |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Normal(0.0, 2.0), &device);
            let gate = random(if swapped { [columns, rows] } else { [rows, columns] });
            let (up, upstream) = (random([rows, columns]), random([rows, columns]));
            let run = |f: Gated| {
                let (gate, up) = (gate.clone().autodiff().require_grad(), up.clone().autodiff().require_grad());
                let y = f(if swapped { gate.clone().swap_dims(0, 1) } else { gate.clone() }, up.clone());
                let gradients = (y.clone() * upstream.clone()).sum().backward();
                let grads = [gate.grad(&gradients).map(|g| g.into_data()), up.grad(&gradients).map(|g| g.into_data())];
                (y.without_autodiff().into_data(), grads)
            };
            let (fast, slow): (Gated, Gated) = match gelu {
                true => (gelu_tanh_gated::<2>, |gate, up| gelu_tanh(gate) * up),
                false => (silu_gated::<2>, |gate, up| activation::silu(gate) * up),
            };
            let ((fast, fast_grads), (slow, slow_grads)) = (run(fast), run(slow));
            fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-4, 1e-5));
            for (fast, slow) in fast_grads.into_iter().zip(slow_grads) {
                prop_assert!(fast.is_some() && slow.is_some());
                if let (Some(fast), Some(slow)) = (fast, slow) {
                    fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-4, 2e-5));
                }
            }
        }
    }
}
