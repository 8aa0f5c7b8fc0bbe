//! Attention for training: no more of the scores is ever in memory than those of a few queries.
//!
//! Kept for the pass back are the inputs, the result and one number a query, the logarithm of the sum of its powers (Dao et al.
//! 2022, arXiv:2205.14135); scores and what dropout took of them are worked out again.

use burn::tensor::Tensor;

#[cfg(feature = "gpu")]
use crate::{kernels::cube, nodes::gpu};
use crate::{
    kernels::{
        attention_mask::Sight,
        attention_weights::Weights,
        dropout_mask::Keep,
        host::{self, attention::Attention},
    },
    nodes::node::{Input, run},
};

/// `dropout(softmax(scale · q kᵀ)) v` where `sight` says; none if these tensors are not the processor's in single or half precision.
///
/// A query that sees no key looks at all alike, as in PyTorch.
///
/// # Shapes
/// - `q`: `[batch, heads, queries, dim]`
/// - `k`: `[batch, key heads, keys, dim]`; `heads` is a multiple of `key heads`
/// - `v`: `[batch, key heads, keys, value dim]`
/// - returned: `[batch, heads, queries, value dim]`, in memory with the heads of a position side by side
pub fn attention(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, sight: &Sight, weights: Weights) -> Option<Tensor<4>> {
    let all = [q, k, v];
    let [batch, _, keys, _] = k.dims();
    let fits = |length: usize| length == batch * keys;
    if !sight.hidden.as_ref().is_none_or(|hidden| fits(hidden.len()))
        || !sight.examples.as_ref().is_none_or(|examples| fits(examples.len()))
    {
        return None;
    }
    let draw = || (weights.drop > 0.0).then(|| Keep::draw(weights.drop));
    #[cfg(feature = "gpu")]
    if all.into_iter().all(cube::takes) {
        return gpu::Attention::run(sight, weights, draw, all);
    }
    if !all.into_iter().all(host::takes) || all.iter().any(|x| x.dims().contains(&0)) {
        return None;
    }
    let keep = draw();
    Some(run(Attention::new(sight, weights, keep), all.map(|x| Input::new(x.clone()))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use burn::tensor::{Device, Distribution, TensorData, Tolerance};
    use proptest::prelude::*;

    use super::{run as run_node, *};
    use crate::{kernels::host::attention::TILE, nodes::host::dropout::kept, ops::softmax};

    /// Sizes and choices of a case.
    #[derive(Debug, Clone, Copy)]
    struct Case {
        batch: usize,
        key_heads: usize,
        group: usize,
        queries: usize,
        keys: usize,
        dims: [usize; 2],
    }

    /// 0 where a query sees a key and the least finite number where not.
    fn additive(case: Case, sight: &Sight) -> Tensor<4> {
        let Case { batch, queries, keys, .. } = case;
        let mut values = Vec::with_capacity(batch * queries * keys);
        for row in 0..batch {
            for query in 0..queries {
                for key in 0..keys {
                    let place = query + keys - queries;
                    let mut seen = !sight.causal || key <= place;
                    if let Some([before, after]) = sight.window {
                        seen &= key + before >= place && key <= place + after;
                    }
                    if let Some(hidden) = &sight.hidden {
                        seen &= !hidden[row * keys + key];
                    }
                    if let Some(examples) = &sight.examples {
                        seen &= examples[row * keys + key] == examples[row * keys + query];
                    }
                    values.push(if seen { 0.0 } else { f32::MIN });
                }
            }
        }
        Tensor::from_data(TensorData::new(values, [batch, 1, queries, keys]), &Device::flex())
    }

    fn reference([q, k, v]: [Tensor<4>; 3], mask: Tensor<4>, weights: Weights, keep: Option<Keep>) -> Tensor<4> {
        let group = q.dims()[1] / k.dims()[1];
        let [batch, heads, keys, _] = k.dims();
        let repeated = |x: Tensor<4>| {
            let width = x.dims()[3];
            let all = [batch, heads, group, keys, width];
            x.reshape([batch, heads, 1, keys, width]).expand(all).reshape([batch, heads * group, keys, width])
        };
        let mut scores = q.matmul(repeated(k).swap_dims(2, 3)) * weights.scale;
        if let Some(cap) = weights.soft_cap {
            scores = (scores / cap).tanh() * cap;
        }
        let used = softmax(scores + mask);
        keep.map_or_else(|| used.clone(), |keep| kept(used.clone(), keep)).matmul(repeated(v))
    }

    fn check(case: Case, sight: &Sight, weights: Weights) {
        let device = Device::flex();
        let Case { batch, key_heads, group, queries, keys, dims: [dim, width] } = case;
        let heads = key_heads * group;
        // As projections leave them: the heads of a position side by side.
        let random = |positions, heads, dim| {
            Tensor::<4>::random([batch, positions, heads, dim], Distribution::Normal(0.0, 1.0), &device)
        };
        let (q, k, v) = (random(queries, heads, dim), random(keys, key_heads, dim), random(keys, key_heads, width));
        let weight = random(heads, queries, width);
        let mask = additive(case, sight);
        let run = |fast: bool| -> (TensorData, Vec<TensorData>) {
            let keep = (weights.drop > 0.0).then(|| Keep::new(0x1234_5678_9abc, weights.drop));
            let leaves = [&q, &k, &v].map(|x| x.clone().autodiff().require_grad());
            let all = leaves.each_ref().map(|x| x.clone().swap_dims(1, 2));
            let y: Tensor<4> = match fast {
                true => run_node(Attention::new(sight, weights, keep), all.map(Input::new)),
                false => reference(all, mask.clone(), weights, keep),
            };
            let gradients = (y.clone() * weight.clone()).sum().backward();
            let grads = leaves.iter().map(|leaf| leaf.grad(&gradients).unwrap().into_data());
            (y.without_autodiff().into_data(), grads.collect())
        };
        let ((fast, fast_grads), (slow, slow_grads)) = (run(true), run(false));
        fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-4, 1e-5));
        for (fast, slow) in fast_grads.iter().zip(&slow_grads) {
            fast.assert_approx_eq::<f32>(slow, Tolerance::rel_abs(1e-3, 1e-4));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn agrees_with_the_plain_operations(
            (batch, key_heads, group) in (1..3_usize, 1..3_usize, 1..4_usize),
            (queries, more) in (1..150_usize, 0..20_usize),
            dims in [1..20_usize, 1..20_usize],
            causal: bool,
            window in proptest::option::of([0..9_usize, 0..9_usize]),
            hides in proptest::option::of(1..4_usize),
            caps: bool,
            drops: bool,
        ) {
            let keys = queries + more;
            let hidden = hides.map(|from| (0..batch * keys).map(|at| at % keys % 4 >= from || at % keys < from).collect());
            let sight = Sight { causal, window, hidden, ..Sight::default() };
            let weights = Weights {
                scale: 0.4,
                // What comes back through the cap of a query that sees nothing is not the same, and counts nowhere.
                soft_cap: (caps && hides.is_none()).then_some(1.5),
                drop: if drops { 0.25 } else { 0.0 },
            };
            check(Case { batch, key_heads, group, queries, keys, dims }, &sight, weights);
        }

        #[test]
        fn packed_examples_do_not_see_each_other(lengths in [1..50_usize, 1..50_usize, 1..50_usize], windowed: bool) {
            let rows = [lengths, [lengths[2], lengths[0], lengths[1]]];
            let queries = lengths.iter().sum::<usize>() + 2;
            let examples: Vec<i64> = rows
                .iter()
                .flat_map(|row| {
                    let own = row.iter().zip(1..).flat_map(|(length, id)| std::iter::repeat_n(id, *length));
                    own.chain([0, 0])
                })
                .collect();
            let hidden = examples.iter().map(|id| *id == 0).collect();
            let window = windowed.then_some([3, 0]);
            let sight = Sight { causal: true, window, hidden: Some(hidden), examples: Some(examples.into()), ..Sight::default() };
            let case = Case { batch: 2, key_heads: 1, group: 2, queries, keys: queries, dims: [5, 6] };
            check(case, &sight, Weights { scale: 0.4, soft_cap: None, drop: 0.0 });
        }
    }

    #[test]
    fn a_tile_never_sees_what_lies_behind_it() {
        // Values that no query may see are no numbers; what comes out is some.
        let device = Device::flex();
        let (queries, dim) = (3 * TILE + 5, 4);
        let x = Tensor::<4>::random([1, 1, queries, dim], Distribution::Default, &device);
        let sight = Sight { causal: true, ..Sight::default() };
        let weights = Weights { scale: 1.0, soft_cap: None, drop: 0.0 };
        let poisoned = x.clone().slice_fill([0..1, 0..1, 2 * TILE..queries, 0..dim], f32::NAN);
        let clean = attention(&x, &x, &x, &sight, weights).unwrap();
        let y = attention(&x, &x, &poisoned, &sight, weights).unwrap();
        let first = |y: Tensor<4>| y.slice([0..1, 0..1, 0..2 * TILE, 0..dim]).into_data();
        first(y).assert_eq(&first(clean), true);
    }
}
