//! Scaled dot-product attention over heads, with fewer key heads than query heads where the model has it so.

use burn::{
    nn::Dropout,
    tensor::{Tensor, module, ops::AttentionModuleOptions},
};
use peft_backends::{
    device::is_host,
    ops::{self, Weights, softmax},
};
use peft_core::{PastShape, Result};

use super::{AttentionMask, Fields, dropout};

/// How a hidden state divides into heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// How many heads.
    pub count: usize,
    /// Dimensions of one.
    pub dim: usize,
}

impl Heads {
    /// What stands before the input where these are the heads of the keys of so many layers.
    pub fn past(self, layers: usize) -> PastShape {
        PastShape { layers, heads: self.count, head_dim: self.dim }
    }

    /// As many heads as the key `count` says, that share `width` evenly; `whole` is the key of that.
    ///
    /// # Errors
    /// [`peft_core::Error::Config`] if there is no such number, or it does not divide the width.
    pub fn dividing(width: usize, whole: &str, fields: Fields<'_>, count: &str) -> Result<Self> {
        let heads = fields.size(count)?;
        if !width.is_multiple_of(heads) {
            return Err(Fields::error(count, format!("{heads} heads do not divide the {whole} {width}")));
        }
        Ok(Self { count: heads, dim: width / heads })
    }

    /// Dimensions of all heads together.
    pub fn width(self) -> usize {
        self.count * self.dim
    }

    /// `[batch, sequence, count · dim]` to `[batch, count, sequence, dim]`, without a copy.
    pub fn split(self, x: Tensor<3>) -> Tensor<4> {
        let [batch, length, _] = x.dims();
        x.reshape([batch, length, self.count, self.dim]).swap_dims(1, 2)
    }

    /// `[batch, count, sequence, dim]` to `[batch, sequence, count · dim]`.
    pub fn merge(self, x: Tensor<4>) -> Tensor<3> {
        let [batch, _, length, _] = x.dims();
        x.swap_dims(1, 2).reshape([batch, length, self.width()])
    }
}

/// How scores differ from the plain `q kᵀ / √dim`.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// The factor in place of `1 / √dim`.
    pub scale: Option<f64>,
    /// Scores become `cap · tanh(score / cap)`, as in Gemma 2.
    pub soft_cap: Option<f64>,
    /// What is added to the scaled scores, `[batch or 1, heads or 1, queries, keys]`: relative positions.
    pub bias: Option<Tensor<4>>,
}

/// `dropout(softmax(q kᵀ / √dim + mask)) v`, the scores changed as `scores` says.
///
/// Without a graph and without dropout one kernel of Burn's does it all, and one of ours where a pass back will come on the
/// processor. Otherwise the scale goes to the queries, which are smaller
/// than the scores, and query heads that share a key head lie below each other in one product, so keys are not repeated.
///
/// # Shapes
/// - `q`: `[batch, heads, queries, dim]`
/// - `k`: `[batch, key heads, keys, dim]`; `heads` is a multiple of `key heads`
/// - `v`: `[batch, key heads, keys, value dim]`
/// - returned: `[batch, heads, queries, value dim]`
pub fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: &AttentionMask,
    drop: &Dropout,
    scores: &Scores,
) -> Tensor<4> {
    let [batch, heads, queries, dim] = q.dims();
    let [_, key_heads, keys, _] = k.dims();
    let width = v.dims()[3];
    let is_plain = ![&q, &k, &v].into_iter().chain(&scores.bias).any(|tensor| tensor.is_autodiff());
    let drops = drop.training.is_enabled() && drop.prob > 0.0;
    // Burn's kernel shares key heads between query heads on the processor only.
    if is_plain && !drops && !ops::runs_twice() && (heads == key_heads || is_host(&q.device())) {
        let is_causal = mask.only_causal() && queries == keys;
        let options = AttentionModuleOptions { is_causal, scale: scores.scale, softcap: scores.soft_cap };
        let (hidden, bias) = match mask.additive(q.dtype()) {
            // The kernel gives nothing to a query that sees nothing; PyTorch, and what is below, all keys alike.
            Some(additive) if mask.may_hide_all() => {
                let bias = scores.bias.clone().map_or_else(|| additive.clone(), |bias| bias + additive.clone());
                (None, Some(bias))
            }
            _ if is_causal => (None, scores.bias.clone()),
            _ => (mask.hidden(), scores.bias.clone()),
        };
        let not_finite = not_finite(&q, &k, scores.bias.as_ref());
        let attended = module::attention(q, k, v, hidden, bias, options);
        return match not_finite {
            Some(not_finite) => attended + not_finite,
            None => attended,
        };
    }
    let scale = scores.scale.unwrap_or_else(|| (dim as f64).powf(-0.5));
    if scores.bias.is_none() {
        let weights = Weights { scale, soft_cap: scores.soft_cap, drop: if drops { drop.prob } else { 0.0 } };
        if let Some(attended) = ops::attention(&q, &k, &v, mask.sight(), weights) {
            return attended;
        }
    }
    let stacked = queries * heads / key_heads;
    let q = (q * scale).reshape([batch, key_heads, stacked, dim]);
    let mut products = q.matmul(k.swap_dims(2, 3)).reshape([batch, heads, queries, keys]);
    if let Some(cap) = scores.soft_cap {
        products = (products / cap).tanh() * cap;
    }
    if let Some(bias) = scores.bias.clone() {
        products = products + bias;
    }
    if let Some(mask) = mask.additive(products.dtype()) {
        products = products + mask;
    }
    let weights = dropout(drop, softmax(products));
    weights.reshape([batch, key_heads, stacked, keys]).matmul(v).reshape([batch, heads, queries, width])
}

/// NaN for the queries whose scores are not numbers and zero for the others, `[batch, heads, queries, 1]`; none if all of them are.
///
/// Burn's kernel on the processor takes a query whose scores are all NaN for one that sees nothing, and gives it zeros.
fn not_finite(q: &Tensor<4>, k: &Tensor<4>, bias: Option<&Tensor<4>>) -> Option<Tensor<4>> {
    if [q, k].into_iter().chain(bias).all(ops::is_finite_on_host) {
        return None;
    }
    let [batch, heads, ..] = q.dims();
    let [_, key_heads, ..] = k.dims();
    let zeros = |x: &Tensor<4>| (x.clone() * 0.0).sum_dim(3);
    let of_keys = zeros(k).sum_dim(2).expand([batch, key_heads, heads / key_heads, 1]);
    let scores = zeros(q) + of_keys.reshape([batch, heads, 1, 1]);
    Some(bias.map_or_else(|| scores.clone(), |bias| scores.clone() + zeros(bias)))
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
                    true => AttentionMask::causal(padding, &hidden, 0),
                    false => AttentionMask::bidirectional(padding, &hidden),
                };
                let bias = Some(random(4).slice([0..1, 0..4, 0..5, 0..5]));
                for scores in [Scores::default(), Scores { scale: Some(0.5), soft_cap: Some(0.7), bias }] {
                    let kernel = attend(q.clone(), k.clone(), v.clone(), &mask, &off, &scores);
                    let parts = attend(q.clone().autodiff(), k.clone(), v.clone(), &mask, &off, &scores);
                    kernel.into_data().assert_approx_eq::<f32>(&parts.into_data(), Tolerance::absolute(1e-6));
                }
            }
        }
    }

    #[test]
    fn a_token_that_sees_nothing_looks_at_all_alike() {
        let plain = Device::flex();
        let off = Dropout { prob: 0.0, training: Param::from_bool(false) };
        let x = Tensor::<4>::random([1, 1, 3, 4], Distribution::Default, &plain);
        let left = Tensor::<2, Int>::from_data([[0, 0, 1]], &plain);
        let mask = AttentionMask::causal(Some(&left), &Tensor::zeros([1, 3, 1], &plain), 0);
        for q in [x.clone(), x.clone().autodiff()] {
            let y = attend(q, x.clone(), x.clone(), &mask, &off, &Scores::default()).without_autodiff();
            let mean = x.clone().mean_dim(2).slice([0..1, 0..1, 0..1, 0..4]).into_data();
            y.slice([0..1, 0..1, 0..1, 0..4]).into_data().assert_approx_eq::<f32>(&mean, Tolerance::absolute(1e-6));
        }
    }

    #[test]
    fn scores_that_are_not_numbers_are_never_hidden() {
        let plain = Device::flex();
        let off = Dropout { prob: 0.0, training: Param::from_bool(false) };
        let random = |heads| Tensor::<4>::random([2, heads, 3, 4], Distribution::Default, &plain);
        let nan = |x: Tensor<4>, at: [std::ops::Range<usize>; 4]| {
            let size = at.clone().map(|range| range.len());
            x.slice_assign(at, Tensor::full(size, f32::NAN, &plain))
        };
        let hidden = Tensor::<3>::zeros([2, 3, 1], &plain);
        let masks = [AttentionMask::causal(None, &hidden, 0), AttentionMask::bidirectional(None, &hidden)];
        let is_nan = |q: &Tensor<4>, k: &Tensor<4>, scores: &Scores, mask: &AttentionMask| {
            let attended = attend(q.clone(), k.clone(), random(2), mask, &off, scores);
            let values = attended.into_data().try_into_vec::<f32>().unwrap();
            let rows = values.chunks(4).enumerate().filter(|(_, row)| row[0].is_nan());
            rows.map(|(at, _)| at).collect::<Vec<usize>>()
        };
        for mask in &masks {
            // One query of the first row's third head; all keys of the second row's first key head, which two heads share.
            let (q, k) = (random(4), random(2));
            let found = is_nan(&nan(q.clone(), [0..1, 2..3, 1..2, 0..4]), &k, &Scores::default(), mask);
            assert_eq!(found, [7]);
            let found = is_nan(&q, &nan(k.clone(), [1..2, 0..1, 0..3, 0..1]), &Scores::default(), mask);
            assert_eq!(found, [12, 13, 14, 15, 16, 17]);
            let bias = nan(Tensor::zeros([1, 4, 3, 3], &plain), [0..1, 3..4, 0..3, 0..3]);
            let found = is_nan(&q, &k, &Scores { bias: Some(bias), ..Scores::default() }, mask);
            assert_eq!(found, [9, 10, 11, 21, 22, 23]);
        }
    }
}
