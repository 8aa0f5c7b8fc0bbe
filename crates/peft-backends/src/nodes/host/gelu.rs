//! The autodiff node of GELU on the processor: the forward pass, what it keeps, and the backward pass.

use crate::{
    kernels::host::{
        self, Host,
        gelu::{normal, tanh_gelu_and_slope},
        vector_math::exp,
    },
    nodes::node::Fused,
};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Gelu {
    Exact,
    Tanh,
}

impl Fused<1> for Gelu {
    type Saved = Option<Host>;

    fn forward(&self, [x]: [Option<Host>; 1], needs: [bool; 1]) -> (Host, Option<Host>) {
        let x = host::whole(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0])));
        let saved = needs[0].then(|| x.clone());
        let y = match self {
            Self::Exact => host::update(
                x,
                1,
                #[inline(always)]
                |_, piece| {
                    for x in piece {
                        *x *= normal(*x);
                    }
                },
            ),
            Self::Tanh => host::update(
                x,
                1,
                #[inline(always)]
                |_, piece| {
                    for x in piece {
                        *x = tanh_gelu_and_slope(*x)[0];
                    }
                },
            ),
        };
        (y, saved)
    }

    fn backward(self, saved: Option<Host>, grad: Host, _: [bool; 1]) -> [Option<Host>; 1] {
        /// `1 / √(2π)`, the density's height.
        const HEIGHT: f32 = 0.398_942_3;
        let combine = |x: Host| match self {
            Self::Exact => host::combine(
                grad,
                &x,
                1,
                #[inline(always)]
                |grad, x| {
                    for (grad, x) in grad.iter_mut().zip(x) {
                        *grad *= normal(*x) + x * HEIGHT * exp(-0.5 * x * x);
                    }
                },
            ),
            Self::Tanh => host::combine(
                grad,
                &x,
                1,
                #[inline(always)]
                |grad, x| {
                    for (grad, x) in grad.iter_mut().zip(x) {
                        *grad *= tanh_gelu_and_slope(*x)[1];
                    }
                },
            ),
        };
        [saved.map(combine)]
    }
}
