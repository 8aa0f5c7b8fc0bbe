//! Root-mean-square normalisation in one pass each way.

use burn::tensor::{DType, Tensor};

#[cfg(feature = "gpu")]
use super::{
    cube::{self, Kind, Norm},
    node::apply,
};
use super::{
    host::{self, lanes2, part, width},
    node::{Fused, Host, Input, Kept, run},
};

/// `x / √(mean(x²) + ε) · (offset + weight)` over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).
///
/// In half precision the families differ in where they round: without an offset the quotient is rounded before it is
/// multiplied with the weight, as Llama does, with one the product is, as Gemma does.
///
/// # Shapes
/// - `x`, returned: `[..., dimensions]`
/// - `weight`: `[dimensions]`
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, offset: f64, epsilon: f64) -> Tensor<D> {
    #[cfg(feature = "gpu")]
    if cube::takes(&x) && cube::takes(&weight) {
        let norm = Norm { kind: Kind::Rms { offset: offset as f32 }, epsilon: epsilon as f32, keep: None };
        return apply(norm, [Input::new(x), Input::Absent, Input::new(weight), Input::Absent]);
    }
    if !host::takes(&x) || !host::takes(&weight) || x.dims().contains(&0) {
        return plain(x, weight, offset, epsilon);
    }
    run(RmsNorm::new(offset, epsilon), [Input::new(x), Input::new(weight)])
}

fn plain<const D: usize>(x: Tensor<D>, weight: Tensor<1>, offset: f64, epsilon: f64) -> Tensor<D> {
    let dtype = x.dtype();
    let wide = if dtype == DType::F64 { dtype } else { DType::F32 };
    let x = x.cast(wide);
    let normed = x.clone() / (x.square().mean_dim(D - 1) + epsilon).sqrt();
    if offset == 0.0 {
        normed.cast(dtype) * weight.unsqueeze()
    } else {
        // The sum with the offset would lose the weight's last digits in half precision.
        (normed * (weight.cast(wide) + offset).unsqueeze()).cast(dtype)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct RmsNorm {
    offset: f32,
    epsilon: f32,
}

impl RmsNorm {
    pub(super) fn new(offset: f64, epsilon: f64) -> Self {
        Self { offset: offset as f32, epsilon: epsilon as f32 }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Saved {
    x: Host,
    /// `1 / √(mean(x²) + ε)`, one a row.
    inverse: Vec<f32>,
    /// `offset + weight`.
    scale: Vec<f32>,
}

impl Kept for Saved {
    fn tensors(&mut self) -> Vec<&mut Host> {
        vec![&mut self.x]
    }
}

impl Fused<2> for RmsNorm {
    type Saved = Option<Saved>;

    fn forward(&self, inputs: [Option<Host>; 2], needs: [bool; 2]) -> (Host, Option<Saved>) {
        let [x, weight] = inputs.map(|x| host::whole(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0]))));
        let (width, source, epsilon) = (width(&x), host::values(&x), self.epsilon);
        let scale: Vec<f32> = host::values(&weight).iter().map(|weight| self.offset + weight).collect();
        let mut inverse = vec![0.0; source.len() / width];
        let y = host::written(source.len(), |y| {
            host::new_pieces_and_rows(
                y,
                width,
                &mut inverse,
                #[inline(always)]
                |start, y, rows| {
                    let x = part(source, start, y.len());
                    for ((y, x), row) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(rows) {
                        let inverse = 1.0 / (lanes2(x, x, |a, b| a * b) / width as f32 + epsilon).sqrt();
                        *row = inverse;
                        for ((y, x), scale) in y.iter_mut().zip(x).zip(&scale) {
                            *y = x * inverse * scale;
                        }
                    }
                },
            )
        });
        let y = host::tensor(y, x.layout().shape().as_slice());
        let saved = needs.contains(&true).then_some(Saved { x, inverse, scale });
        (y, saved)
    }

    fn backward(self, saved: Option<Saved>, grad: Host, [needs_x, needs_weight]: [bool; 2]) -> [Option<Host>; 2] {
        let Some(Saved { x, inverse, scale }) = saved else { return [None, None] };
        let (width, source, grad) = (width(&x), host::values(&x), host::whole(grad));
        let dweight = needs_weight.then(|| {
            let grad = host::values(&grad);
            let sums = host::row_sums(
                inverse.len(),
                width,
                #[inline(always)]
                |from, to, sums| {
                    for (row, inverse) in (from..to).zip(part(&inverse, from, to - from)) {
                        let (grad, x) = (part(grad, row * width, width), part(source, row * width, width));
                        for ((sum, grad), x) in sums.iter_mut().zip(grad).zip(x) {
                            *sum += grad * x * inverse;
                        }
                    }
                },
            );
            host::tensor(sums, &[width])
        });
        let dx = needs_x.then(|| {
            host::update(
                grad,
                width,
                #[inline(always)]
                |start, grad| {
                    let x = part(source, start, grad.len());
                    let rows = inverse.get(start / width..).unwrap_or_default();
                    for ((grad, x), inverse) in grad.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(rows) {
                        for (grad, scale) in grad.iter_mut().zip(&scale) {
                            *grad *= scale;
                        }
                        let along = lanes2(grad, x, |grad, x| grad * x) * inverse * inverse / width as f32;
                        for (grad, x) in grad.iter_mut().zip(x) {
                            *grad = (*grad - x * along) * inverse;
                        }
                    }
                },
            )
        });
        [dx, dweight]
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
        fn agrees_with_the_plain_operations(rows in 1..70_usize, columns in 1..300_usize, swapped: bool, gemma: bool) {
            let device = Device::flex();
            let random = |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Normal(0.5, 2.0), &device);
            let x = random(if swapped { [columns, rows] } else { [rows, columns] });
            let (weight, upstream) = (random([1, columns]).reshape([columns]), random([rows, columns]));
            let run = |f: fn(Tensor<2>, Tensor<1>, f64, f64) -> Tensor<2>| {
                let (leaf, weight) = (x.clone().autodiff().require_grad(), weight.clone().autodiff().require_grad());
                let x = if swapped { leaf.clone().swap_dims(0, 1) } else { leaf.clone() };
                let y = f(x, weight.clone(), if gemma { 1.0 } else { 0.0 }, 1e-6);
                let gradients = (y.clone() * upstream.clone()).sum().backward();
                let grads = [leaf.grad(&gradients).map(|g| g.into_data()), weight.grad(&gradients).map(|g| g.into_data())];
                (y.without_autodiff().into_data(), grads)
            };
            let ((fast, fast_grads), (slow, slow_grads)) = (run(rms_norm::<2>), run(plain::<2>));
            fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-4, 1e-5));
            for (fast, slow) in fast_grads.into_iter().zip(slow_grads) {
                prop_assert!(fast.is_some() && slow.is_some());
                if let (Some(fast), Some(slow)) = (fast, slow) {
                    fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-3, 1e-4));
                }
            }
        }
    }
}
