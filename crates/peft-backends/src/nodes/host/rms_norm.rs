//! The autodiff node of RMSNorm on the processor: the forward pass, what it keeps, and the backward pass.

use crate::{
    kernels::host::{self, Host, lanes2, part, width},
    nodes::node::{Fused, Kept},
};

#[derive(Debug, Clone, Copy)]
pub(crate) struct RmsNorm {
    pub(crate) offset: f32,
    pub(crate) epsilon: f32,
}

impl RmsNorm {
    pub(crate) fn new(offset: f64, epsilon: f64) -> Self {
        Self { offset: offset as f32, epsilon: epsilon as f32 }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Saved {
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
