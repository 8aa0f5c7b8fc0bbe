//! The product of a gated feed-forward block in one pass each way.

use burn::tensor::{Tensor, activation};

#[cfg(feature = "gpu")]
use super::{
    cube::{self, Curve, Gated},
    node::apply,
};
use super::{
    gelu::{gelu_tanh, tanh_gelu_and_slope},
    host::{self, part},
    node::{Fused, Host, Input, run},
    vector_math::sigmoid,
};

/// `gate σ(gate) · up` (Shazeer 2020, arXiv:2002.05202).
pub fn silu_gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    Gate::Silu.gated(gate, up)
}

/// [`gelu_tanh`]`(gate) · up`, as in Gemma.
pub fn gelu_tanh_gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    Gate::GeluTanh.gated(gate, up)
}

/// The activation of a gated feed-forward block's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x σ(x)`.
    Silu,
    /// [`gelu_tanh`].
    GeluTanh,
}

impl Gate {
    /// The activation of `gate` times `up`.
    pub(super) fn gated<const D: usize>(self, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
        let is_alike = gate.dims() == up.dims();
        #[cfg(feature = "gpu")]
        if is_alike && cube::takes(&gate) && cube::takes(&up) {
            return apply(Gated(self.curve()), [Input::new(gate), Input::new(up)]);
        }
        if is_alike && host::takes(&gate) && host::takes(&up) {
            return run(self, [Input::new(gate), Input::new(up)]);
        }
        let gate = match self {
            Self::Silu => activation::silu(gate),
            Self::GeluTanh => gelu_tanh(gate),
        };
        gate * up
    }

    #[cfg(feature = "gpu")]
    fn curve(self) -> Curve {
        match self {
            Self::Silu => Curve::Silu,
            Self::GeluTanh => Curve::GeluTanh,
        }
    }

    /// The product.
    pub(super) fn product(self, gates: &[f32], ups: &[f32]) -> Vec<f32> {
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
    pub(super) fn back(self, grads: &mut [f32], gates: &mut [f32], ups: &mut [f32]) {
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
    fn at(self, x: f32) -> [f32; 2] {
        match self {
            Self::Silu => {
                let s = sigmoid(x);
                [x * s, s * (1.0 + x * (1.0 - s))]
            }
            Self::GeluTanh => tanh_gelu_and_slope(x),
        }
    }
}

impl Fused<2> for Gate {
    type Saved = Option<[Host; 2]>;

    fn forward(&self, inputs: [Option<Host>; 2], needs: [bool; 2]) -> (Host, Option<[Host; 2]>) {
        let [gate, up] = inputs.map(|x| host::whole(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0]))));
        let y = self.product(host::values(&gate), host::values(&up));
        let y = host::tensor(y, gate.layout().shape().as_slice());
        let saved = needs.contains(&true).then_some([gate, up]);
        (y, saved)
    }

    fn backward(self, saved: Option<[Host; 2]>, grad: Host, [needs_gate, needs_up]: [bool; 2]) -> [Option<Host>; 2] {
        let Some([gate, up]) = saved else { return [None, None] };
        let (gates, ups) = (host::values(&gate), host::values(&up));
        let mut dgate = host::whole(grad);
        let dims = gate.layout().shape().as_slice().to_vec();
        // The gradient of the result becomes that of the gate in its place.
        let dup = host::written(gates.len(), |dup| {
            host::new_pieces_beside(
                dgate.storage_mut::<f32>(),
                dup,
                #[inline(always)]
                |start, grad, dup| {
                    let both = part(gates, start, grad.len()).iter().zip(part(ups, start, dup.len()));
                    let all = grad.iter_mut().zip(dup).zip(both);
                    match self {
                        Self::Silu => {
                            for ((grad, dup), (gate, up)) in all {
                                let [y, slope] = Self::Silu.at(*gate);
                                *dup = *grad * y;
                                *grad *= up * slope;
                            }
                        }
                        Self::GeluTanh => {
                            for ((grad, dup), (gate, up)) in all {
                                let [y, slope] = Self::GeluTanh.at(*gate);
                                *dup = *grad * y;
                                *grad *= up * slope;
                            }
                        }
                    }
                },
            )
        });
        [needs_gate.then_some(dgate), needs_up.then(|| host::tensor(dup, &dims))]
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tolerance};
    use proptest::prelude::*;

    use super::*;

    type Gated = fn(Tensor<2>, Tensor<2>) -> Tensor<2>;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn agrees_with_the_plain_operations(rows in 1..40_usize, columns in 1..700_usize, swapped: bool, gelu: bool) {
            let device = Device::flex();
            let random = |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Normal(0.0, 2.0), &device);
            let gate = random(if swapped { [columns, rows] } else { [rows, columns] });
            let (up, upstream) = (random([rows, columns]), random([rows, columns]));
            let run = |f: Gated| {
                let (gate, up) = (gate.clone().autodiff().require_grad(), up.clone().autodiff().require_grad());
                let y = f(if swapped { gate.clone().swap_dims(0, 1) } else { gate.clone() }, up.clone());
                let gradients = (y.clone() * upstream.clone()).sum().backward();
                let grads = [gate.grad(&gradients).map(|g| g.into_data()), up.grad(&gradients).map(|g| g.into_data())];
                (y.without_autodiff().into_data(), grads)
            };
            let (fast, slow): (Gated, Gated) = match gelu {
                true => (gelu_tanh_gated::<2>, |gate, up| gelu_tanh(gate) * up),
                false => (silu_gated::<2>, |gate, up| activation::silu(gate) * up),
            };
            let ((fast, fast_grads), (slow, slow_grads)) = (run(fast), run(slow));
            fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-4, 1e-5));
            for (fast, slow) in fast_grads.into_iter().zip(slow_grads) {
                prop_assert!(fast.is_some() && slow.is_some());
                if let (Some(fast), Some(slow)) = (fast, slow) {
                    fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-4, 2e-5));
                }
            }
        }
    }
}
