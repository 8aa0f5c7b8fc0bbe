//! The autodiff node of softmax on the processor: the forward pass, what it keeps, and the backward pass.

use crate::{
    kernels::host::{self, Host, lanes, lanes2, vector_math::exp, width},
    nodes::node::Fused,
};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Softmax;

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
