//! The Gaussian error linear unit in one pass.

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind, unary},
        },
        backend_extension,
        tensor::FloatTensor,
    },
    tensor::{Tensor, activation},
};

use super::{
    host,
    vector_math::{erf, exp},
};

/// `x Φ(x)`, with Φ the normal distribution's function (Hendrycks and Gimpel 2016, arXiv:1606.08415).
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !host::takes(&x) {
        return activation::gelu(x);
    }
    Tensor::from_dispatch(<Dispatch as GeluOps>::fused_gelu(x.into_dispatch()))
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait GeluOps: Backend {
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn fused_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl GeluOps for Flex {
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        host::update(
            x,
            1,
            #[inline(always)]
            |_, piece| piece.iter_mut().for_each(|x| *x *= normal(*x)),
        )
    }

    fn fused_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        /// `1 / √(2π)`, the density's height.
        const HEIGHT: f32 = 0.398_942_3;
        host::combine(
            grad,
            x,
            1,
            #[inline(always)]
            |grad, x| {
                for (grad, x) in grad.iter_mut().zip(x) {
                    *grad *= normal(*x) + x * HEIGHT * exp(-0.5 * x * x);
                }
            },
        )
    }
}

/// The share of a normal distribution below `x`.
#[inline(always)]
fn normal(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
}

impl<B: Backend + GeluOps, C: CheckpointStrategy> GeluOps for Autodiff<B, C> {
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Gelu;
        impl<B: Backend + GeluOps> Backward<B, 1> for Gelu {
            type State = FloatTensor<B>;
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                unary::<B, _>(ops.parents, ops.node, grads, |grad| B::fused_gelu_backward(ops.state, grad));
            }
        }
        match Gelu.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let x = x.into_primitive();
                prep.finish(x.clone(), B::fused_gelu(x))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::fused_gelu(x.into_primitive())),
        }
    }

    fn fused_gelu_backward(_: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        // A backward pass runs on the plain backend; gradients of gradients are not taken anywhere.
        grad
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tolerance};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn agrees_with_the_plain_operations(rows in 1..40_usize, columns in 1..700_usize, swapped: bool) {
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
            let ((fast, fast_grad), (plain, plain_grad)) = (run(gelu::<2>), run(activation::gelu::<2>));
            fast.assert_approx_eq::<f32>(&plain, Tolerance::absolute(4e-6));
            prop_assert!(fast_grad.is_some() && plain_grad.is_some());
            if let (Some(fast), Some(plain)) = (fast_grad, plain_grad) {
                fast.assert_approx_eq::<f32>(&plain, Tolerance::absolute(4e-6));
            }
        }
    }
}
