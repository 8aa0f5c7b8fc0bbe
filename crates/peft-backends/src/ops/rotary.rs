//! Rotary positions in one pass each way.

use burn::tensor::Tensor;

#[cfg(feature = "gpu")]
use crate::{
    kernels::cube,
    nodes::{gpu, node::apply},
};
use crate::{
    kernels::host,
    nodes::{
        host::rotary::Rotate,
        node::{Input, run},
    },
};

/// Turns the first `half` dimensions of each head against the next `half`: `x₁ cos - x₂ sin`, `x₂ cos + x₁ sin`; those beyond
/// are multiplied with their cosine (Su et al. 2021, arXiv:2104.09864, with halves for pairs as in Transformers). None if these
/// tensors are not the processor's in single or half precision.
///
/// # Shapes
/// - `x`, returned: `[batch, sequence, heads, dim]`
/// - `cos`, `sin`: `[batch or 1, sequence, 1, dim]`
pub fn rotate(x: &Tensor<4>, cos: &Tensor<4>, sin: &Tensor<4>, half: usize) -> Option<Tensor<4>> {
    let [batch, length, _, dim] = x.dims();
    let fits = |table: &Tensor<4>| {
        let [rows, positions, one, columns] = table.dims();
        (rows == 1 || rows == batch) && [positions, one, columns] == [length, 1, dim]
    };
    #[cfg(feature = "gpu")]
    if [x, cos, sin].into_iter().all(cube::takes) && fits(cos) && fits(sin) && 2 * half <= dim {
        return Some(apply(gpu::Rotate { half }, [x, cos, sin].map(|x| Input::new(x.clone()))));
    }
    if ![x, cos, sin].into_iter().all(host::takes)
        || !fits(cos)
        || !fits(sin)
        || x.dims().contains(&0)
        || 2 * half > dim
    {
        return None;
    }
    Some(run(Rotate { half }, [x, cos, sin].map(|x| Input::new(x.clone()))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use burn::tensor::{Device, Distribution, Tolerance};
    use proptest::prelude::*;

    use super::*;

    fn plain(x: &Tensor<4>, cos: &Tensor<4>, sin: &Tensor<4>, half: usize) -> Option<Tensor<4>> {
        let dim = x.dims()[3];
        let part = |from: usize, to: usize| x.clone().narrow(3, from, to - from);
        let mut turned = vec![-part(half, 2 * half), part(0, half)];
        if 2 * half < dim {
            turned.push(part(2 * half, dim) * 0.0);
        }
        Some(x.clone() * cos.clone() + Tensor::cat(turned, 3) * sin.clone())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn agrees_with_the_plain_operations(
            [batch, length, heads] in [1..4_usize, 1..60_usize, 1..5_usize],
            (half, beyond) in (1..20_usize, 0..7_usize),
            shared: bool,
        ) {
            let (device, dim) = (Device::flex(), 2 * half + beyond);
            let random = |dims: [usize; 4]| Tensor::<4>::random(dims, Distribution::Normal(0.0, 1.0), &device);
            let table = || random([if shared { 1 } else { batch }, length, 1, dim]);
            let (x, cos, sin) = (random([batch, length, heads, dim]), table(), table());
            let upstream = random([batch, length, heads, dim]);
            let run = |f: fn(&Tensor<4>, &Tensor<4>, &Tensor<4>, usize) -> Option<Tensor<4>>| {
                let leaf = x.clone().autodiff().require_grad();
                let y = f(&leaf, &cos, &sin, half).unwrap();
                let gradients = (y.clone() * upstream.clone()).sum().backward();
                (y.without_autodiff().into_data(), leaf.grad(&gradients).map(|grad| grad.into_data()))
            };
            let ((fast, fast_grad), (slow, slow_grad)) = (run(rotate), run(plain));
            fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-5, 1e-6));
            prop_assert!(fast_grad.is_some() && slow_grad.is_some());
            if let (Some(fast), Some(slow)) = (fast_grad, slow_grad) {
                fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-5, 1e-6));
            }
        }
    }
}
