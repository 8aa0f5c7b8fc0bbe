//! Layer normalisation in one pass each way, with the dropout and the residual that stand before it.

use burn::tensor::{DType, Tensor};

#[cfg(feature = "gpu")]
use super::{
    cube::{self, Kind, Norm},
    half_precision::of_type,
    node::apply,
};
use super::{
    dropout::{Keep, dropout},
    host::{self, lanes, lanes2, part, width},
    node::{Fused, Host, Input, Kept, run},
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

#[derive(Debug, Clone, Copy)]
struct LayerNorm {
    keep: Option<Keep>,
    epsilon: f32,
}

/// What comes after the statistics.
#[derive(Debug, Clone, Copy)]
struct Affine<'a> {
    scale: &'a [f32],
    shift: Option<&'a [f32]>,
    epsilon: f32,
}

impl Affine<'_> {
    /// Normalises each row of `z` into `y` and notes its mean and inverse deviation.
    #[inline(always)]
    fn apply(self, z: &[f32], y: &mut [f32], rows: &mut [[f32; 2]]) {
        let width = self.scale.len();
        for ((y, z), row) in y.chunks_exact_mut(width).zip(z.chunks_exact(width)).zip(rows) {
            let mean = lanes(z, 0.0, |a, x| a + x) / width as f32;
            let variance = lanes2(z, z, |x, _| (x - mean) * (x - mean)) / width as f32;
            let inverse = 1.0 / (variance + self.epsilon).sqrt();
            *row = [mean, inverse];
            match self.shift {
                Some(shift) => {
                    for (((y, z), scale), shift) in y.iter_mut().zip(z).zip(self.scale).zip(shift) {
                        *y = (z - mean) * inverse * scale + shift;
                    }
                }
                None => {
                    for ((y, z), scale) in y.iter_mut().zip(z).zip(self.scale) {
                        *y = (z - mean) * inverse * scale;
                    }
                }
            }
        }
    }
}

/// What the pass back needs: `z` and, a row each, the mean and the inverse deviation.
#[derive(Debug, Clone)]
struct Saved {
    z: Host,
    rows: Vec<[f32; 2]>,
    gamma: Host,
}

impl Kept for Saved {
    fn tensors(&mut self) -> Vec<&mut Host> {
        vec![&mut self.z, &mut self.gamma]
    }
}

impl Fused<4> for LayerNorm {
    type Saved = Option<Saved>;

    fn forward(&self, [x, residual, gamma, beta]: [Option<Host>; 4], needs: [bool; 4]) -> (Host, Option<Saved>) {
        let nothing = || host::tensor(Vec::new(), &[0]);
        let (x, gamma) = (x.unwrap_or_else(nothing), host::whole(gamma.unwrap_or_else(nothing)));
        let width = width(&x);
        let (residual, beta) = (residual.map(host::whole), beta.map(host::whole));
        let residual = residual.as_ref().map(host::values);
        let (scale, shift) = (host::values(&gamma), beta.as_ref().map(host::values));
        let (keep, norm) = (self.keep, Affine { scale, shift, epsilon: self.epsilon });
        let mut z = host::whole(x);
        let elements = host::values(&z).len();
        let mut rows = vec![[0.0; 2]; elements / width];
        let y = host::written(elements, |y| {
            if keep.is_none() && residual.is_none() {
                let source = host::values(&z);
                return host::new_pieces_and_rows(
                    y,
                    width,
                    &mut rows,
                    #[inline(always)]
                    |start, y, rows| norm.apply(part(source, start, y.len()), y, rows),
                );
            }
            // z takes the place of x, which nobody looks at any more where it comes from a product.
            host::new_pieces_beside_and_rows(
                z.storage_mut::<f32>(),
                y,
                width,
                &mut rows,
                #[inline(always)]
                |start, z, y, rows| {
                    if let Some(keep) = keep {
                        keep.apply(start, z);
                    }
                    if let Some(residual) = residual {
                        let residual = part(residual, start, z.len());
                        for (z, residual) in z.iter_mut().zip(residual) {
                            *z += residual;
                        }
                    }
                    norm.apply(z, y, rows);
                },
            )
        });
        let y = host::tensor(y, z.layout().shape().as_slice());
        let saved = needs.contains(&true).then_some(Saved { z, rows, gamma });
        (y, saved)
    }

    fn backward(self, saved: Option<Saved>, grad: Host, needs: [bool; 4]) -> [Option<Host>; 4] {
        let Some(Saved { z, rows, gamma }) = saved else { return [const { None }; 4] };
        let width = width(&z);
        let (grad, source, scale) = (host::whole(grad), host::values(&z), host::values(&gamma));
        let [needs_x, needs_residual, needs_gamma, needs_beta] = needs;
        let sums = |with_z: bool| {
            let grad = host::values(&grad);
            let sums = host::row_sums(
                rows.len(),
                width,
                #[inline(always)]
                |from, to, sums| {
                    for (row, [mean, inverse]) in (from..to).zip(rows.get(from..to).unwrap_or_default()) {
                        let (grad, z) = (part(grad, row * width, width), part(source, row * width, width));
                        if with_z {
                            for ((sum, grad), z) in sums.iter_mut().zip(grad).zip(z) {
                                *sum += grad * (z - mean) * inverse;
                            }
                        } else {
                            for (sum, grad) in sums.iter_mut().zip(grad) {
                                *sum += grad;
                            }
                        }
                    }
                },
            );
            host::tensor(sums, &[width])
        };
        let gamma_grad = needs_gamma.then(|| sums(true));
        let beta_grad = needs_beta.then(|| sums(false));
        if !needs_x && !needs_residual {
            return [None, None, gamma_grad, beta_grad];
        }
        let dz = host::update(
            grad,
            width,
            #[inline(always)]
            |start, grad| {
                let rows = rows.get(start / width..).unwrap_or_default();
                let z = part(source, start, grad.len());
                for ((grad, z), [mean, inverse]) in grad.chunks_exact_mut(width).zip(z.chunks_exact(width)).zip(rows) {
                    for (grad, scale) in grad.iter_mut().zip(scale) {
                        *grad *= scale;
                    }
                    let sum = lanes(grad, 0.0, |a, x| a + x) / width as f32;
                    let along = lanes2(grad, z, |grad, z| grad * (z - mean)) * inverse * inverse / width as f32;
                    for (grad, z) in grad.iter_mut().zip(z) {
                        *grad = (*grad - sum - (z - mean) * along) * inverse;
                    }
                }
            },
        );
        let Some(keep) = self.keep else {
            return [needs_x.then(|| dz.clone()), needs_residual.then_some(dz), gamma_grad, beta_grad];
        };
        let dx = needs_x.then(|| {
            host::update(
                dz.clone(),
                1,
                #[inline(always)]
                |start, piece| keep.apply(start, piece),
            )
        });
        [dx, needs_residual.then_some(dz), gamma_grad, beta_grad]
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, TensorData, Tolerance};
    use proptest::prelude::*;

    use super::*;
    use crate::ops::dropout::kept;

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
