//! The activations of gated feed-forward blocks, and their derivatives.

use crate::kernels::host::{self, gelu::tanh_gelu_and_slope, part, vector_math::sigmoid};

/// The activation of a gated feed-forward block's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x σ(x)`.
    Silu,
    /// GELU by the hyperbolic tangent: `gelu_pytorch_tanh`.
    GeluTanh,
}

impl Gate {
    /// The product.
    pub(crate) fn product(self, gates: &[f32], ups: &[f32]) -> Vec<f32> {
        #[inline(always)]
        fn each(gate: Gate, y: &mut [f32], gates: &[f32], ups: &[f32]) {
            for (y, (x, up)) in y.iter_mut().zip(gates.iter().zip(ups)) {
                *y = gate.at(*x)[0] * up;
            }
        }
        host::written(gates.len(), |y| {
            host::new_pieces(
                y,
                1,
                #[inline(always)]
                |start, y| {
                    let (gates, ups) = (part(gates, start, y.len()), part(ups, start, y.len()));
                    // One loop for each, without a choice inside.
                    match self {
                        Self::Silu => each(Self::Silu, y, gates, ups),
                        Self::GeluTanh => each(Self::GeluTanh, y, gates, ups),
                    }
                },
            )
        })
    }

    /// From the gradient of the product, the gate and what it is multiplied with: the product in the place of its gradient, and the
    /// gradients of the two in theirs.
    pub(crate) fn back(self, grads: &mut [f32], gates: &mut [f32], ups: &mut [f32]) {
        #[inline(always)]
        fn each(gate: Gate, grads: &mut [f32], gates: &mut [f32], ups: &mut [f32]) {
            for ((grad, x), up) in grads.iter_mut().zip(gates).zip(ups) {
                let [y, slope] = gate.at(*x);
                let (product, dgate, dup) = (y * *up, *grad * *up * slope, *grad * y);
                (*grad, *x, *up) = (product, dgate, dup);
            }
        }
        host::piece_triples(
            [grads, gates, ups],
            #[inline(always)]
            |grads, gates, ups| match self {
                Self::Silu => each(Self::Silu, grads, gates, ups),
                Self::GeluTanh => each(Self::GeluTanh, grads, gates, ups),
            },
        );
    }

    /// The activation and its slope.
    #[inline(always)]
    pub(crate) fn at(self, x: f32) -> [f32; 2] {
        match self {
            Self::Silu => {
                let s = sigmoid(x);
                [x * s, s * (1.0 + x * (1.0 - s))]
            }
            Self::GeluTanh => tanh_gelu_and_slope(x),
        }
    }
}
