//! Scaled dot-product attention over heads, with fewer key heads than query heads where the model has it so.

use burn::{
    nn::Dropout,
    tensor::{Tensor, activation::softmax, module, ops::AttentionModuleOptions},
};
use peft_backends::device::is_host;

use super::{AttentionMask, dropout};

/// How a hidden state divides into heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// How many heads.
    pub count: usize,
    /// Dimensions of one.
    pub dim: usize,
}

impl Heads {
    /// `[batch, sequence, count · dim]` to `[batch, count, sequence, dim]`, without a copy.
    pub fn split(self, x: Tensor<3>) -> Tensor<4> {
        let [batch, length, _] = x.dims();
        x.reshape([batch, length, self.count, self.dim]).swap_dims(1, 2)
    }

    /// `[batch, count, sequence, dim]` to `[batch, sequence, count · dim]`.
    pub fn merge(self, x: Tensor<4>) -> Tensor<3> {
        let [batch, _, length, _] = x.dims();
        x.swap_dims(1, 2).reshape([batch, length, self.count * self.dim])
    }
}

/// `dropout(softmax(q kᵀ / √dim + mask)) v`.
///
/// Without a graph and without dropout one kernel does it all. Otherwise the scale goes to the queries, which are smaller
/// than the scores, and query heads that share a key head lie below each other in one product, so keys are not repeated.
///
/// # Shapes
/// - `q`: `[batch, heads, queries, dim]`
/// - `k`, `v`: `[batch, key heads, keys, dim]`; `heads` is a multiple of `key heads`
/// - returned: `[batch, heads, queries, dim]`
pub fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: &AttentionMask, drop: &Dropout) -> Tensor<4> {
    let [batch, heads, queries, dim] = q.dims();
    let [_, key_heads, keys, _] = k.dims();
    let is_plain = !q.is_autodiff() && !k.is_autodiff() && !v.is_autodiff();
    let drops = drop.training.is_enabled() && drop.prob > 0.0;
    // Burn's kernel shares key heads between query heads on the processor only.
    if is_plain && !drops && (heads == key_heads || is_host(&q.device())) {
        let options = AttentionModuleOptions { is_causal: mask.only_causal(), ..Default::default() };
        let hidden = if options.is_causal { None } else { mask.hidden() };
        return module::attention(q, k, v, hidden, None, options);
    }
    let stacked = queries * heads / key_heads;
    let q = (q * (dim as f64).powf(-0.5)).reshape([batch, key_heads, stacked, dim]);
    let scores = q.matmul(k.swap_dims(2, 3)).reshape([batch, heads, queries, keys]);
    let scores = match mask.additive(scores.dtype()) {
        Some(mask) => scores + mask,
        None => scores,
    };
    let weights = dropout(drop, softmax(scores, 3));
    weights.reshape([batch, key_heads, stacked, keys]).matmul(v).reshape([batch, heads, queries, dim])
}

#[cfg(test)]
mod tests {
    use burn::{
        module::Param,
        tensor::{Device, Distribution, Int, Tolerance},
    };

    use super::*;

    #[test]
    fn the_kernel_and_its_parts_agree() {
        let plain = Device::flex();
        let off = Dropout { prob: 0.0, training: Param::from_bool(true) };
        let random = |heads| Tensor::<4>::random([2, heads, 5, 8], Distribution::Default, &plain);
        let (q, k, v) = (random(4), random(2), random(2));
        let hidden = Tensor::<3>::zeros([2, 5, 1], &plain);
        let padded = Tensor::<2, Int>::from_data([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], &plain);
        for causal in [false, true] {
            for padding in [None, Some(&padded)] {
                let mask = match causal {
                    true => AttentionMask::causal(padding, &hidden),
                    false => AttentionMask::bidirectional(padding, &hidden),
                };
                let kernel = attend(q.clone(), k.clone(), v.clone(), &mask, &off);
                let parts = attend(q.clone().autodiff(), k.clone(), v.clone(), &mask, &off);
                kernel.into_data().assert_approx_eq::<f32>(&parts.into_data(), Tolerance::absolute(1e-6));
            }
        }
    }

    #[test]
    fn a_token_that_sees_nothing_is_a_number() {
        let plain = Device::flex();
        let off = Dropout { prob: 0.0, training: Param::from_bool(false) };
        let x = Tensor::<4>::random([1, 1, 3, 4], Distribution::Default, &plain);
        let left = Tensor::<2, Int>::from_data([[0, 0, 1]], &plain);
        let mask = AttentionMask::causal(Some(&left), &Tensor::zeros([1, 3, 1], &plain));
        for q in [x.clone(), x.clone().autodiff()] {
            let y = attend(q, x.clone(), x.clone(), &mask, &off).without_autodiff();
            assert!(y.is_finite().all().into_scalar::<bool>());
        }
    }
}
