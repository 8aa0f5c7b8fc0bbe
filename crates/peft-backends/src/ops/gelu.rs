//! The Gaussian error linear unit in one pass, by the error function or by the hyperbolic tangent.

use burn::tensor::{Tensor, activation};

#[cfg(feature = "gpu")]
use crate::{
    kernels::cube::{self, activation::Curve},
    nodes::{gpu::activation::Activation, node::apply},
};
use crate::{
    kernels::host::{
        self,
        gelu::{CUBIC, SLOPE},
    },
    nodes::{
        host::gelu::Gelu,
        node::{Input, run},
    },
};

/// `x Φ(x)`, with Φ the normal distribution's function (Hendrycks and Gimpel 2016, arXiv:1606.08415).
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "gpu")]
    if cube::takes(&x) {
        return apply(Activation(Curve::Gelu), [Input::new(x)]);
    }
    if !host::takes(&x) {
        return activation::gelu(x);
    }
    run(Gelu::Exact, [Input::new(x)])
}

/// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, which is close to [`gelu`] and what GPT-2 and Gemma were trained with.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "gpu")]
    if cube::takes(&x) {
        return apply(Activation(Curve::GeluTanh), [Input::new(x)]);
    }
    if !host::takes(&x) {
        return plain_gelu_tanh(x);
    }
    run(Gelu::Tanh, [Input::new(x)])
}

/// Burn's own takes `powf` for the cube, which costs more than the rest together.
fn plain_gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let slope = f64::from(SLOPE);
    let cubic = x.clone() * (x.clone() * x.clone() * (f64::from(CUBIC) * slope) + slope);
    x * (cubic.tanh() * 0.5 + 0.5)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tolerance};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn agrees_with_the_plain_operations(rows in 1..40_usize, columns in 1..700_usize, swapped: bool, tanh: bool) {
            let device = Device::flex();
            let shaped = |x: Tensor<2>| if swapped { x.swap_dims(0, 1) } else { x };
            let x = Tensor::<2>::random([rows, columns], Distribution::Normal(0.0, 3.0), &device);
            let weight = shaped(Tensor::random([rows, columns], Distribution::Default, &device));
            let run = |f: fn(Tensor<2>) -> Tensor<2>| {
                let leaf = x.clone().autodiff().require_grad();
                let y = f(shaped(leaf.clone()));
                let gradients = (y.clone() * weight.clone()).sum().backward();
                (y.without_autodiff().into_data(), leaf.grad(&gradients).map(|grad| grad.into_data()))
            };
            let fast = if tanh { gelu_tanh::<2> } else { gelu::<2> };
            let plain = if tanh { plain_gelu_tanh::<2> } else { activation::gelu::<2> };
            // The plain operations lose digits of 1 - tanh² where it is small.
            let tolerance = Tolerance::absolute(if tanh { 3e-5 } else { 4e-6 });
            let ((fast, fast_grad), (plain, plain_grad)) = (run(fast), run(plain));
            fast.assert_approx_eq::<f32>(&plain, tolerance);
            prop_assert!(fast_grad.is_some() && plain_grad.is_some());
            if let (Some(fast), Some(plain)) = (fast_grad, plain_grad) {
                fast.assert_approx_eq::<f32>(&plain, tolerance);
            }
        }
    }
}
