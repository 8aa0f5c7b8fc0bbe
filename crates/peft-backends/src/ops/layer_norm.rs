//! Layer normalisation in one pass each way, with the dropout and the residual that stand before it.

use burn::tensor::{DType, Tensor};

#[cfg(feature = "gpu")]
use crate::{
    kernels::{
        cube::{self, norm::Kind},
        host::half_precision::of_type,
    },
    nodes::{gpu::norm::Norm, node::apply},
};
use crate::{
    kernels::{dropout_mask::Keep, host},
    nodes::{
        host::layer_norm::LayerNorm,
        node::{Input, run},
    },
    ops::dropout::dropout,
};

/// `(z - mean) / √(variance + ε) · γ + β` over the last dimension of `z = dropout(x) + residual` (Ba et al. 2016,
/// arXiv:1607.06450).
///
/// # Shapes
/// - `x`, `residual`, returned: `[..., dimensions]`
/// - `gamma`, `beta`: `[dimensions]`
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    residual: Option<Tensor<D>>,
    drop: f64,
    gamma: Tensor<1>,
    beta: Option<Tensor<1>>,
    epsilon: f64,
) -> Tensor<D> {
    #[cfg(feature = "gpu")]
    if cube::takes(&x)
        && residual.as_ref().is_none_or(|r| cube::takes(r) && r.dims() == x.dims())
        && cube::takes(&gamma)
        && beta.as_ref().is_none_or(cube::takes)
    {
        let keep = (drop > 0.0).then(|| Keep::draw(drop));
        let norm = Norm { kind: Kind::Layer, epsilon: epsilon as f32, keep };
        let beta = Input::optional(beta.map(|beta| of_type(beta, gamma.dtype())));
        return apply(norm, [Input::new(x), Input::optional(residual), Input::new(gamma), beta]);
    }
    let fits = host::takes(&x)
        && residual.as_ref().is_none_or(|r| host::takes(r) && r.dims() == x.dims())
        && host::takes(&gamma)
        && beta.as_ref().is_none_or(host::takes)
        && x.dims().iter().product::<usize>() > 0;
    if !fits {
        let x = dropout(x, drop);
        let z = match residual {
            Some(residual) => x + residual,
            None => x,
        };
        return plain(z, gamma, beta, epsilon);
    }
    let keep = (drop > 0.0).then(|| Keep::draw(drop));
    fused(x, residual, keep, gamma, beta, epsilon)
}

fn fused<const D: usize>(
    x: Tensor<D>,
    residual: Option<Tensor<D>>,
    keep: Option<Keep>,
    gamma: Tensor<1>,
    beta: Option<Tensor<1>>,
    epsilon: f64,
) -> Tensor<D> {
    let inputs = [Input::new(x), Input::optional(residual), Input::new(gamma), Input::optional(beta)];
    run(LayerNorm { keep, epsilon: epsilon as f32 }, inputs)
}

/// The same in plain operations, in single precision or better inside.
fn plain<const D: usize>(z: Tensor<D>, gamma: Tensor<1>, beta: Option<Tensor<1>>, epsilon: f64) -> Tensor<D> {
    let dtype = z.dtype();
    let z = match dtype {
        DType::F16 | DType::BF16 => z.cast(DType::F32),
        _ => z,
    };
    let wide = |x: Tensor<1>| x.cast(z.dtype()).unsqueeze();
    let (gamma, beta) = (wide(gamma), beta.map(wide));
    let mean = z.clone().mean_dim(D - 1);
    let centred = z - mean;
    let deviation = (centred.clone().square().mean_dim(D - 1) + epsilon).sqrt();
    let y = centred / deviation * gamma;
    let y = match beta {
        Some(beta) => y + beta,
        None => y,
    };
    if y.dtype() == dtype { y } else { y.cast(dtype) }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, TensorData, Tolerance};
    use proptest::prelude::*;

    use super::*;
    use crate::nodes::host::dropout::kept;

    type Norm = fn(Tensor<2>, Option<Tensor<2>>, Option<Keep>, Tensor<1>, Option<Tensor<1>>, f64) -> Tensor<2>;

    fn reference(
        x: Tensor<2>,
        residual: Option<Tensor<2>>,
        keep: Option<Keep>,
        gamma: Tensor<1>,
        beta: Option<Tensor<1>>,
        epsilon: f64,
    ) -> Tensor<2> {
        let x = keep.map_or_else(|| x.clone(), |keep| kept(x.clone(), keep));
        plain(residual.map_or_else(|| x.clone(), |residual| x.clone() + residual), gamma, beta, epsilon)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn agrees_with_the_plain_operations(
            rows in 1..70_usize,
            columns in 2..300_usize,
            swapped: bool,
            has_residual: bool,
            has_beta: bool,
            drops: bool,
        ) {
            let device = Device::flex();
            let random = |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Normal(1.0, 3.0), &device);
            let vector = || random([1, columns]).reshape([columns]);
            let dims = if swapped { [columns, rows] } else { [rows, columns] };
            let shaped = |x: Tensor<2>| if swapped { x.swap_dims(0, 1) } else { x };
            let (x, residual, weight) = (random(dims), random([rows, columns]), random([rows, columns]));
            let (gamma, beta) = (vector(), vector());
            let keep = drops.then(|| Keep::new(99, 0.3));
            let run = |f: Norm| -> (TensorData, Vec<Option<TensorData>>) {
                let leaf = |x: &Tensor<2>| x.clone().autodiff().require_grad();
                let (x, residual) = (leaf(&x), leaf(&residual));
                let leaf = |x: &Tensor<1>| x.clone().autodiff().require_grad();
                let (gamma, beta) = (leaf(&gamma), leaf(&beta));
                let residual_in = has_residual.then(|| residual.clone());
                let beta_in = has_beta.then(|| beta.clone());
                let y = f(shaped(x.clone()), residual_in, keep, gamma.clone(), beta_in, 1e-5);
                let gradients = (y.clone() * weight.clone()).sum().backward();
                let of = |x: &Tensor<2>| x.grad(&gradients).map(|grad| grad.into_data());
                let of1 = |x: &Tensor<1>| x.grad(&gradients).map(|grad| grad.into_data());
                (y.without_autodiff().into_data(), vec![of(&x), of(&residual), of1(&gamma), of1(&beta)])
            };
            let ((fast, fast_grads), (slow, slow_grads)) = (run(fused::<2>), run(reference));
            fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-4, 1e-4));
            for (fast, slow) in fast_grads.into_iter().zip(slow_grads) {
                prop_assert_eq!(fast.is_some(), slow.is_some());
                if let (Some(fast), Some(slow)) = (fast, slow) {
                    fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-3, 1e-3));
                }
            }
        }
    }

    #[test]
    fn what_others_hold_is_not_changed() {
        let device = Device::flex();
        let x = Tensor::<2>::random([33, 17], Distribution::Default, &device);
        let before = x.clone().into_data();
        let ones = Tensor::<1>::ones([17], &device);
        let _ = layer_norm(x.clone(), Some(x.clone()), 0.5, ones, None, 1e-5);
        x.into_data().assert_eq(&before, true);
    }
}
