//! Softmax over the last dimension in one visit of each row.

use burn::tensor::{Tensor, activation};

#[cfg(feature = "gpu")]
use super::{cube, node::apply};
use super::{
    host::{self, lanes, lanes2, width},
    node::{Fused, Host, Input, run},
    vector_math::exp,
};

/// `exp(x) / Σ exp(x)` over the last dimension; its backward pass keeps the result only.
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "gpu")]
    if cube::takes(&x) {
        return apply(cube::Softmax, [Input::new(x)]);
    }
    if !host::takes(&x) {
        return activation::softmax(x, D - 1);
    }
    run(Softmax, [Input::new(x)])
}

#[derive(Debug, Clone, Copy)]
struct Softmax;

impl Fused<1> for Softmax {
    type Saved = Host;

    fn forward(&self, [x]: [Option<Host>; 1], _: [bool; 1]) -> (Host, Host) {
        let x = x.unwrap_or_else(|| host::tensor(Vec::new(), &[0]));
        let width = width(&x);
        let y = host::update(
            x,
            width,
            #[inline(always)]
            |_, piece| {
                for row in piece.chunks_exact_mut(width) {
                    in_place(row);
                }
            },
        );
        (y.clone(), y)
    }

    fn backward(self, y: Host, grad: Host, _: [bool; 1]) -> [Option<Host>; 1] {
        let width = width(&y);
        let grad = host::combine(
            grad,
            &y,
            width,
            #[inline(always)]
            |grad, y| {
                for (grad, y) in grad.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
                    let sum = lanes2(
                        grad,
                        y,
                        #[inline(always)]
                        |grad, y| grad * y,
                    );
                    for (grad, y) in grad.iter_mut().zip(y) {
                        *grad = (*grad - sum) * y;
                    }
                }
            },
        );
        [Some(grad)]
    }
}

#[inline(always)]
fn in_place(row: &mut [f32]) {
    let most = lanes(
        row,
        f32::NEG_INFINITY,
        #[inline(always)]
        |a, x| if x > a { x } else { a },
    );
    for x in row.iter_mut() {
        *x = exp(*x - most);
    }
    let scale = 1.0
        / lanes(
            row,
            0.0,
            #[inline(always)]
            |a, x| a + x,
        );
    for x in row.iter_mut() {
        *x *= scale;
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
