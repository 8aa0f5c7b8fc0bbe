//! Softmax over the last dimension in one visit of each row.

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex, TensorMetadata,
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

use super::{host, vector_math::exp};

/// `exp(x) / Σ exp(x)` over the last dimension; its backward pass keeps the result only.
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !host::takes(&x) {
        return activation::softmax(x, D - 1);
    }
    Tensor::from_dispatch(<Dispatch as SoftmaxOps>::fused_softmax(x.into_dispatch()))
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait SoftmaxOps: Backend {
    fn fused_softmax(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn fused_softmax_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl SoftmaxOps for Flex {
    fn fused_softmax(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let width = width(&x);
        host::update(
            x,
            width,
            #[inline(always)]
            |_, piece| {
                for row in piece.chunks_exact_mut(width) {
                    let most = lanes(
                        row,
                        f32::NEG_INFINITY,
                        #[inline(always)]
                        |a, x| if x > a { x } else { a },
                    );
                    row.iter_mut().for_each(|x| *x = exp(*x - most));
                    let scale = 1.0
                        / lanes(
                            row,
                            0.0,
                            #[inline(always)]
                            |a, x| a + x,
                        );
                    row.iter_mut().for_each(|x| *x *= scale);
                }
            },
        )
    }

    fn fused_softmax_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let width = width(&y);
        host::combine(
            grad,
            y,
            width,
            #[inline(always)]
            |grad, y| {
                for (grad, y) in grad.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
                    grad.iter_mut().zip(y).for_each(|(grad, y)| *grad *= y);
                    let sum = lanes(
                        grad,
                        0.0,
                        #[inline(always)]
                        |a, x| a + x,
                    );
                    grad.iter_mut().zip(y).for_each(|(grad, y)| *grad -= sum * y);
                }
            },
        )
    }
}

fn width<T: TensorMetadata>(tensor: &T) -> usize {
    tensor.shape().as_slice().last().copied().unwrap_or(1).max(1)
}

/// A reduction in sixteen lanes, which the compiler may keep in one vector: one lane would have to go one by one.
#[inline(always)]
fn lanes(row: &[f32], start: f32, f: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    let mut all = [start; 16];
    let chunks = row.chunks_exact(16);
    let rest = chunks.remainder().iter().fold(start, |a, x| f(a, *x));
    for chunk in chunks {
        all.iter_mut().zip(chunk).for_each(|(a, x)| *a = f(*a, *x));
    }
    all.into_iter().fold(rest, f)
}

impl<B: Backend + SoftmaxOps, C: CheckpointStrategy> SoftmaxOps for Autodiff<B, C> {
    fn fused_softmax(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Softmax;
        impl<B: Backend + SoftmaxOps> Backward<B, 1> for Softmax {
            type State = FloatTensor<B>;
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                unary::<B, _>(ops.parents, ops.node, grads, |grad| B::fused_softmax_backward(ops.state, grad));
            }
        }
        match Softmax.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::fused_softmax(x.into_primitive());
                prep.finish(y.clone(), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::fused_softmax(x.into_primitive())),
        }
    }

    fn fused_softmax_backward(_: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        // A backward pass runs on the plain backend; gradients of gradients are not taken anywhere.
        grad
    }
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
