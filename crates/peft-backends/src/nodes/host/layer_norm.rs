//! The autodiff node of layer normalization with dropout and residual on the processor: the forward pass, what it keeps, and the backward pass.

use crate::{
    kernels::{
        dropout_mask::Keep,
        host::{self, Host, lanes, lanes2, part, width},
    },
    nodes::node::{Fused, Kept},
};

#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerNorm {
    pub(crate) keep: Option<Keep>,
    pub(crate) epsilon: f32,
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
pub(crate) struct Saved {
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
