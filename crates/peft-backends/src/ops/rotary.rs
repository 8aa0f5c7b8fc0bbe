//! Rotary positions in one pass each way.

use burn::tensor::Tensor;

#[cfg(feature = "gpu")]
use super::{cube, node::apply};
use super::{
    host,
    node::{Fused, Host, Input, run},
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
        return Some(apply(cube::Rotate { half }, [x, cos, sin].map(|x| Input::new(x.clone()))));
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

#[derive(Debug, Clone, Copy)]
struct Rotate {
    half: usize,
}

impl Rotate {
    /// Turns forward with `sign` 1, back with -1.
    fn turn(self, x: Host, [cos, sin]: [&Host; 2], sign: f32) -> Host {
        let mut dims = [0; 4];
        dims.iter_mut().zip(x.layout().shape().as_slice()).for_each(|(to, from)| *to = *from);
        let [_, length, heads, dim] = dims;
        let (cos, sin, half) = (host::values(cos), host::values(sin), self.half);
        let (row, table) = (heads * dim, length * dim);
        // A table of one row serves all rows of the batch.
        let at = move |position: usize| position * dim % if cos.len() > table { usize::MAX } else { table };
        host::update(
            x,
            row,
            #[inline(always)]
            |start, piece| {
                for (index, heads) in piece.chunks_exact_mut(row).enumerate() {
                    let place = at(start / row + index);
                    let (cos, sin) = (host::part(cos, place, dim), host::part(sin, place, dim));
                    for head in heads.chunks_exact_mut(dim) {
                        let (pairs, beyond) = head.split_at_mut(2 * half);
                        let (first, second) = pairs.split_at_mut(half);
                        let tables = cos.iter().zip(sin).zip(cos.iter().skip(half).zip(sin.iter().skip(half)));
                        for ((a, b), ((cos_a, sin_a), (cos_b, sin_b))) in first.iter_mut().zip(second).zip(tables) {
                            // Going back the angles of the two swap as well: they are the same but for the table's rounding.
                            let (x, y) = (*a, *b);
                            *a = x * cos_a - sign * y * if sign > 0.0 { sin_a } else { sin_b };
                            *b = y * cos_b + sign * x * if sign > 0.0 { sin_b } else { sin_a };
                        }
                        for (x, cos) in beyond.iter_mut().zip(cos.iter().skip(2 * half)) {
                            *x *= cos;
                        }
                    }
                }
            },
        )
    }
}

impl Fused<3> for Rotate {
    type Saved = Option<[Host; 2]>;

    fn forward(&self, inputs: [Option<Host>; 3], needs: [bool; 3]) -> (Host, Option<[Host; 2]>) {
        let [x, cos, sin] = inputs.map(|x| host::whole(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0, 0, 0, 0]))));
        let y = self.turn(x, [&cos, &sin], 1.0);
        (y, needs[0].then_some([cos, sin]))
    }

    fn backward(self, saved: Option<[Host; 2]>, grad: Host, _: [bool; 3]) -> [Option<Host>; 3] {
        let Some([cos, sin]) = saved else { return [None, None, None] };
        [Some(self.turn(grad, [&cos, &sin], -1.0)), None, None]
    }
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
