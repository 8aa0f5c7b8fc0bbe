//! Dropout that keeps no mask: the backward pass works it out again.

use burn::tensor::{Distribution, Tensor};

#[cfg(feature = "gpu")]
use crate::{
    kernels::cube,
    nodes::{
        gpu,
        node::{Input, apply},
    },
};
use crate::{
    kernels::{dropout_mask::Keep, host},
    nodes::{
        draws::{Draw, drawn},
        host::dropout::kept,
    },
};

/// Sets each element to zero with probability `drop` and divides the rest by `1 - drop` (Srivastava et al. 2014).
///
/// What is dropped follows from the state of the device's random numbers alone.
pub fn dropout<const D: usize>(x: Tensor<D>, drop: f64) -> Tensor<D> {
    if drop <= 0.0 {
        return x;
    }
    #[cfg(feature = "gpu")]
    if cube::takes(&x) {
        let keep = Keep::draw(drop);
        return apply(gpu::Dropout(keep), [Input::new(x)]);
    }
    if !host::takes(&x) {
        let keep = 1.0 - drop;
        // The mask is scaled, not the product: that keeps one operation out of the backward pass.
        let mask = || x.clone().without_autodiff().random_like(Distribution::Bernoulli(keep)).flatten(0, D - 1);
        let draw = || Draw::Mask(Box::new(mask()));
        return match drawn(draw) {
            Draw::Mask(mask) => {
                let mask = mask.reshape(x.dims()) / keep;
                x * mask
            }
            Draw::Seed(_) => unreachable!("a layer that runs again draws in the order that it drew in"),
        };
    }
    let keep = Keep::draw(drop);
    kept(x, keep)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use burn::tensor::Device;

    use super::*;
    use crate::nodes::draws::{recorded, replayed, runs_twice};

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
    fn what_was_drawn_is_drawn_again() {
        let device = Device::flex();
        let double = Tensor::<2>::ones([70, 9], (&device, burn::tensor::DType::F64));
        let both = || {
            assert!(runs_twice());
            let single = dropout(Tensor::<2>::ones([70, 9], &device), 0.3);
            [single.into_data(), dropout(double.clone(), 0.3).into_data(), dropout(double.clone(), 0.3).into_data()]
        };
        let (first, draws) = recorded(both);
        assert_ne!(first[1], first[2]);
        assert_eq!(replayed(draws, both), first);
        assert!(!runs_twice());
    }

    #[test]
    fn two_calls_drop_different_elements() {
        let x = Tensor::<1>::ones([4096], &Device::flex());
        let (a, b) = (dropout(x.clone(), 0.5), dropout(x, 0.5));
        let same = a.equal(b).int().sum().into_scalar::<i64>();
        assert!((1800..2300).contains(&same), "{same}");
    }
}
