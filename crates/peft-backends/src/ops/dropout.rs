//! Dropout that keeps no mask: the backward pass works it out again.

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind, unary},
        },
        backend_extension,
        tensor::FloatTensor,
    },
    tensor::{Distribution, Tensor},
};

use super::host;

/// Sets each element to zero with probability `drop` and divides the rest by `1 - drop` (Srivastava et al. 2014).
///
/// What is dropped follows from the state of the device's random numbers alone.
pub fn dropout<const D: usize>(x: Tensor<D>, drop: f64) -> Tensor<D> {
    if drop <= 0.0 {
        return x;
    }
    let keep = 1.0 - drop;
    if !host::takes(&x) {
        // The mask is scaled, not the product: that keeps one operation out of the backward pass.
        let mask = x.clone().without_autodiff().random_like(Distribution::Bernoulli(keep)) / keep;
        return x * mask;
    }
    let draw = Tensor::<1>::random([2], Distribution::Uniform(0.0, 1.0), &x.device().inner());
    let draw = draw.into_data().try_to_vec::<f32>().unwrap_or_default();
    let seed = draw.iter().fold(0, |seed, part| seed << 24 | (f64::from(*part) * f64::from(1 << 24)) as u64);
    Tensor::from_dispatch(<Dispatch as DropoutOps>::fused_dropout(x.into_dispatch(), seed, drop))
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait DropoutOps: Backend {
    fn fused_dropout(x: FloatTensor<Self>, seed: u64, drop: f64) -> FloatTensor<Self>;
}

impl DropoutOps for Flex {
    fn fused_dropout(x: FloatTensor<Self>, seed: u64, drop: f64) -> FloatTensor<Self> {
        let scale = (1.0 / (1.0 - drop)) as f32;
        // The share of all 32-bit numbers that drops an element.
        let bound = (drop * 4_294_967_296.0) as u32;
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        host::update(
            x,
            1,
            #[inline(always)]
            |start, piece| {
                let start = start as u32;
                for (offset, x) in piece.iter_mut().enumerate() {
                    let place = start.wrapping_add(offset as u32);
                    let kept = mix(mix(place ^ low).wrapping_add(high)) >= bound;
                    *x *= if kept { scale } else { 0.0 };
                }
            },
        )
    }
}

/// Spreads each bit of a number over all 32 (Wellons, "Prospecting for hash functions", 2018).
#[inline(always)]
fn mix(x: u32) -> u32 {
    let x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    let x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

impl<B: Backend + DropoutOps, C: CheckpointStrategy> DropoutOps for Autodiff<B, C> {
    fn fused_dropout(x: FloatTensor<Self>, seed: u64, drop: f64) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Dropout;
        impl<B: Backend + DropoutOps> Backward<B, 1> for Dropout {
            type State = (u64, f64);
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (seed, drop) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| B::fused_dropout(grad, seed, drop));
            }
        }
        match Dropout.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((seed, drop), B::fused_dropout(x.into_primitive(), seed, drop)),
            OpsKind::UnTracked(prep) => prep.finish(B::fused_dropout(x.into_primitive(), seed, drop)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use burn::tensor::Device;

    use super::*;

    #[test]
    fn drops_the_share_asked_for_and_keeps_the_mean() {
        let device = Device::flex();
        for drop in [0.0, 0.1, 0.5, 0.9] {
            let y = dropout(Tensor::<2>::ones([300, 1000], &device), drop).into_data().try_to_vec::<f32>().unwrap();
            let zeros = y.iter().filter(|y| **y == 0.0).count() as f64 / 3e5;
            assert!((zeros - drop).abs() < 0.005, "{zeros} of {drop}");
            assert!(y.iter().all(|y| *y == 0.0 || (f64::from(*y) * (1.0 - drop) - 1.0).abs() < 1e-6));
            // Neighbours drop independently of each other.
            let pairs = y.windows(2).filter(|pair| *pair == [0.0, 0.0]).count() as f64 / 3e5;
            assert!((pairs - drop * drop).abs() < 0.005, "{pairs}");
        }
    }

    #[test]
    fn gradients_pass_where_elements_passed() {
        let leaf = Tensor::<2>::ones([70, 999], &Device::flex()).autodiff().require_grad();
        let y = dropout(leaf.clone(), 0.3);
        let gradients = y.clone().sum().backward();
        let passed = leaf.grad(&gradients).unwrap().into_data();
        passed.assert_eq(&y.without_autodiff().into_data(), true);
    }

    #[test]
    fn two_calls_drop_different_elements() {
        let x = Tensor::<1>::ones([4096], &Device::flex());
        let (a, b) = (dropout(x.clone(), 0.5), dropout(x, 0.5));
        let same = a.equal(b).int().sum().into_scalar::<i64>();
        assert!((1800..2300).contains(&same), "{same}");
    }
}
