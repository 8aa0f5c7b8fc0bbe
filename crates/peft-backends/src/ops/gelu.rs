//! The Gaussian error linear unit in one pass, by the error function or by the hyperbolic tangent.

use burn::tensor::{Tensor, activation};

#[cfg(feature = "gpu")]
use super::{
    cube::{self, Activation, Curve},
    node::apply,
};
use super::{
    host,
    node::{Fused, Host, Input, run},
    vector_math::{erf, exp, tanh},
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

/// `√(2/π)`, the slope of the tangent form.
const SLOPE: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

#[derive(Debug, Clone, Copy)]
enum Gelu {
    Exact,
    Tanh,
}

impl Fused<1> for Gelu {
    type Saved = Option<Host>;

    fn forward(&self, [x]: [Option<Host>; 1], needs: [bool; 1]) -> (Host, Option<Host>) {
        let x = host::whole(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0])));
        let saved = needs[0].then(|| x.clone());
        let y = match self {
            Self::Exact => host::update(
                x,
                1,
                #[inline(always)]
                |_, piece| {
                    for x in piece {
                        *x *= normal(*x);
                    }
                },
            ),
            Self::Tanh => host::update(
                x,
                1,
                #[inline(always)]
                |_, piece| {
                    for x in piece {
                        *x = tanh_gelu_and_slope(*x)[0];
                    }
                },
            ),
        };
        (y, saved)
    }

    fn backward(self, saved: Option<Host>, grad: Host, _: [bool; 1]) -> [Option<Host>; 1] {
        /// `1 / √(2π)`, the density's height.
        const HEIGHT: f32 = 0.398_942_3;
        let combine = |x: Host| match self {
            Self::Exact => host::combine(
                grad,
                &x,
                1,
                #[inline(always)]
                |grad, x| {
                    for (grad, x) in grad.iter_mut().zip(x) {
                        *grad *= normal(*x) + x * HEIGHT * exp(-0.5 * x * x);
                    }
                },
            ),
            Self::Tanh => host::combine(
                grad,
                &x,
                1,
                #[inline(always)]
                |grad, x| {
                    for (grad, x) in grad.iter_mut().zip(x) {
                        *grad *= tanh_gelu_and_slope(*x)[1];
                    }
                },
            ),
        };
        [saved.map(combine)]
    }
}

/// The function by the hyperbolic tangent, and its derivative.
#[inline(always)]
pub(super) fn tanh_gelu_and_slope(x: f32) -> [f32; 2] {
    let t = tanh(SLOPE * x * (1.0 + CUBIC * x * x));
    let inner = SLOPE * (1.0 + 3.0 * CUBIC * x * x);
    [x * (0.5 + 0.5 * t), 0.5 + 0.5 * t + 0.5 * x * (1.0 - t * t) * inner]
}

/// The share of a normal distribution below `x`.
#[inline(always)]
fn normal(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
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
