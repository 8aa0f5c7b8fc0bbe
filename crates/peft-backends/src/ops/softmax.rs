//! Softmax over the last dimension in one visit of each row.

use burn::tensor::{Tensor, activation};

#[cfg(feature = "gpu")]
use crate::{
    kernels::cube,
    nodes::{gpu, node::apply},
};
use crate::{
    kernels::host,
    nodes::{
        host::softmax::Softmax,
        node::{Input, run},
    },
};

/// `exp(x) / Σ exp(x)` over the last dimension; its backward pass keeps the result only.
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "gpu")]
    if cube::takes(&x) {
        return apply(gpu::Softmax, [Input::new(x)]);
    }
    if !host::takes(&x) {
        return activation::softmax(x, D - 1);
    }
    run(Softmax, [Input::new(x)])
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tolerance};
    use proptest::prelude::*;

    use super::*;

    fn plain(x: Tensor<3>) -> Tensor<3> {
        activation::softmax(x, 2)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn agrees_with_the_plain_operations(rows in 1..60_usize, columns in 1..70_usize, swapped: bool, hidden: bool) {
            let device = Device::flex();
            let shaped = |x: Tensor<3>| if swapped { x.swap_dims(1, 2) } else { x };
            let mut x = Tensor::<3>::random([2, rows, columns], Distribution::Normal(0.0, 5.0), &device);
            if hidden {
                x = x.slice_fill([0..1, 0..rows, 0..columns.div_ceil(2)], f32::MIN);
            }
            let weight = shaped(Tensor::random([2, rows, columns], Distribution::Default, &device));
            let run = |f: fn(Tensor<3>) -> Tensor<3>| {
                let leaf = x.clone().autodiff().require_grad();
                let y = f(shaped(leaf.clone()));
                let gradients = (y.clone() * weight.clone()).sum().backward();
                (y.without_autodiff().into_data(), leaf.grad(&gradients).map(|grad| grad.into_data()))
            };
            let ((fast, fast_grad), (slow, slow_grad)) = (run(softmax::<3>), run(plain));
            fast.assert_approx_eq::<f32>(&slow, Tolerance::absolute(2e-6));
            prop_assert!(fast_grad.is_some() && slow_grad.is_some());
            if let (Some(fast), Some(slow)) = (fast_grad, slow_grad) {
                fast.assert_approx_eq::<f32>(&slow, Tolerance::absolute(2e-6));
            }
        }
    }
}
