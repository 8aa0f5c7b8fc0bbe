//! Root-mean-square normalisation in one pass each way.

use burn::tensor::{DType, Tensor};

#[cfg(feature = "gpu")]
use crate::{
    kernels::cube::{self, norm::Kind},
    nodes::{gpu::norm::Norm, node::apply},
};
use crate::{
    kernels::host,
    nodes::{
        host::rms_norm::RmsNorm,
        node::{Input, run},
    },
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
