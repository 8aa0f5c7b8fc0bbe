//! A linear layer, frozen or not, and the low-rank adapter beside it as one operation.
//!
//! `y = x W + b + s (drop(x) A) B`, of which `x` and `x A` are kept for the pass back.

use burn::{
    backend::Flex,
    tensor::{DType, Tensor, module},
};

#[cfg(feature = "gpu")]
use crate::{
    kernels::cube,
    nodes::{gpu, node::apply},
};
use crate::{
    kernels::{
        dropout_mask::Keep,
        host::{
            self, few_rows,
            half_precision::{narrowed, of_type, widened},
            matrix::Matrix,
        },
        quantized::reader::HostPacked,
        quantized_matrix::PackedMatrix,
    },
    nodes::{
        draws::runs_twice,
        host::{linear::Linear, projection::Projection},
        node::{Input, run},
    },
    ops::{adapted::Adapted, normed::Normed},
};

/// The two factors of an adapter as PEFT has them in its files.
#[derive(Debug)]
pub struct LowRank {
    /// `[rank, d_in]`.
    pub a: Tensor<2>,
    /// `[d_out, rank]`.
    pub b: Tensor<2>,
    /// What their product is multiplied with.
    pub scale: f64,
    /// Probability of dropping an element of the adapter's input.
    pub drop: f64,
}

/// `x W + b`.
///
/// # Shapes
/// - `x`: `[tokens, d_in]`
/// - `weight`: `[d_in, d_out]`
/// - returned: `[tokens, d_out]`
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    if !fit(&x, &weight, bias.as_ref()) {
        let dtype = x.dtype();
        return module::linear(x, of_type(weight, dtype), bias.map(|bias| of_type(bias, dtype)));
    }
    if let Some(y) = in_half(&x, &weight) {
        return bias.into_iter().fold(y, |y, bias| y + bias.unsqueeze());
    }
    let inputs = [Input::new(x), Input::new(weight), Input::optional(bias), Input::Absent, Input::Absent];
    run(Linear::new(Projection::new(0.0, 0.0, None)), inputs)
}

/// A few rows times a weight in half precision, which is then read as it is; none for other tensors.
fn in_half(x: &Tensor<2>, weight: &Tensor<2>) -> Option<Tensor<2>> {
    let is_plain = |x: &Tensor<2>| x.dtype() == DType::BF16 && !x.is_autodiff() && !runs_twice();
    let [rows, columns] = [x.dims()[0], weight.dims()[1]];
    if !is_plain(x) || !is_plain(weight) || !few_rows::are_few(rows, weight.dims()) {
        return None;
    }
    let [x, weight] = [x, weight].map(|x| x.clone().try_into_primitive::<Flex>().ok());
    let (x, weight) = (host::whole(widened(&x?)), weight?);
    let weight = Matrix::of_half(&weight);
    if !weight.strides().contains(&1) {
        return None;
    }
    let y = few_rows::product(Matrix::of(&x), weight);
    Some(Tensor::from_primitive::<Flex>(narrowed(host::tensor(y, &[rows, columns]), DType::BF16)))
}

/// `x W + b + scale · drop(x) Aᵀ Bᵀ`; none if these tensors are not the processor's in single or half precision.
///
/// # Shapes
/// - `x`: `[tokens, d_in]`
/// - `weight`: `[d_in, d_out]`
/// - returned: `[tokens, d_out]`
pub fn lora_linear(x: &Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>, lora: LowRank) -> Option<Tensor<2>> {
    #[cfg(feature = "gpu")]
    if [x, weight, &lora.a, &lora.b].into_iter().all(cube::takes) && bias.is_none_or(cube::takes) {
        let keep = (lora.drop > 0.0).then(|| Keep::draw(lora.drop));
        let op = gpu::LoraLinear { scale: lora.scale as f32, keep, packed: None };
        let weight = Input::new(of_type(weight.clone(), x.dtype()));
        let bias = Input::optional(bias.map(|bias| of_type(bias.clone(), x.dtype())));
        return Some(apply(op, [Input::new(x.clone()), weight, bias, Input::new(lora.a), Input::new(lora.b)]));
    }
    if !fit(x, weight, bias) || !host::takes(&lora.a) || !host::takes(&lora.b) {
        return None;
    }
    let keep = (lora.drop > 0.0).then(|| Keep::draw(lora.drop));
    Some(fused(x, weight, bias, lora, keep))
}

fn fused(x: &Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>, lora: LowRank, keep: Option<Keep>) -> Tensor<2> {
    let LowRank { a, b, scale, .. } = lora;
    let inputs = [
        Input::new(x.clone()),
        Input::new(weight.clone()),
        Input::optional(bias.cloned()),
        Input::new(a),
        Input::new(b),
    ];
    run(Linear::new(Projection { scale: scale as f32, keep, packed: None }), inputs)
}

/// A linear layer whose weight is packed, with an adapter or without; none as [`lora_linear`].
pub(crate) fn packed_linear(
    x: &Tensor<2>,
    weight: &PackedMatrix,
    bias: Option<&Tensor<1>>,
    lora: Option<LowRank>,
) -> Option<Tensor<2>> {
    #[cfg(feature = "gpu")]
    if cube::takes(x) && bias.is_none_or(cube::takes) && weight.is_on_gpu() {
        let keep = lora.as_ref().filter(|lora| lora.drop > 0.0).map(|lora| Keep::draw(lora.drop));
        let scale = lora.as_ref().map_or(0.0, |lora| lora.scale) as f32;
        let [a, b] = lora.map_or([None, None], |LowRank { a, b, .. }| [Some(a), Some(b)]).map(Input::optional);
        let op = gpu::LoraLinear { scale, keep, packed: Some(weight.clone()) };
        let bias = Input::optional(bias.map(|bias| of_type(bias.clone(), x.dtype())));
        return Some(apply(op, [Input::new(x.clone()), Input::Absent, bias, a, b]));
    }
    let takes_lora = |lora: &LowRank| host::takes(&lora.a) && host::takes(&lora.b);
    let fit = host::takes(x) && bias.is_none_or(host::takes) && lora.as_ref().is_none_or(takes_lora);
    let packed = HostPacked::new(weight).filter(|_| fit && !x.dims().contains(&0))?;
    let [scale, drop] = lora.as_ref().map_or([0.0; 2], |lora| [lora.scale, lora.drop]);
    let projection = Projection::new(scale, drop, Some(packed));
    let [a, b] = lora.map_or([None, None], |LowRank { a, b, .. }| [Some(a), Some(b)]).map(Input::optional);
    let inputs = [Input::new(x.clone()), Input::Absent, Input::optional(bias.cloned()), a, b];
    Some(run(Linear::new(projection), inputs))
}

fn fit(x: &Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> bool {
    host::takes(x) && host::takes(weight) && bias.is_none_or(host::takes) && !x.dims().contains(&0)
}

/// A linear layer, with its adapter if it has one, of a norm's result.
///
/// # Shapes
/// - `x`: `[tokens, d_in]`
/// - returned: `[tokens, d_out]`
pub fn adapted(x: Normed<2>, layer: Adapted) -> Tensor<2> {
    match x.into_parts() {
        (x, Some(origin)) if layer.is_frozen_on_host() => {
            let (layer, [weight, bias, a, b]) = layer.into_parts();
            run(Linear { layer, origin: Some(origin) }, [Input::new(x), weight, bias, a, b])
        }
        (x, _) => layer.forward(x),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use burn::tensor::{Device, Distribution, TensorData, Tolerance};
    use proptest::prelude::*;

    use super::*;
    use crate::nodes::host::dropout::kept;

    fn reference(
        x: Tensor<2>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        lora: LowRank,
        keep: Option<Keep>,
    ) -> Tensor<2> {
        let y = x.clone().matmul(weight);
        let y = bias.map_or_else(|| y.clone(), |bias| y.clone() + bias.unsqueeze());
        let LowRank { a, b, scale, .. } = lora;
        let x = keep.map_or_else(|| x.clone(), |keep| kept(x.clone(), keep));
        y + x.matmul(a.transpose()).mul_scalar(scale).matmul(b.transpose())
    }

    fn close(fast: &TensorData, slow: &TensorData) {
        fast.assert_approx_eq::<f32>(slow, Tolerance::rel_abs(1e-3, 1e-3));
    }

    fn check([tokens, d_in, d_out, rank]: [usize; 4], drop: f64, turned: bool, biased: bool, all: bool) {
        let device = Device::flex();
        let random = |rows, columns| Tensor::<2>::random([rows, columns], Distribution::Normal(0.0, 1.0), &device);
        let weight = if turned { random(d_out, d_in).transpose() } else { random(d_in, d_out) };
        let (x, bias) = (random(tokens, d_in), random(1, d_out).reshape([d_out]));
        let (a, b, upstream) = (random(rank, d_in), random(d_out, rank), random(tokens, d_out));
        let run = |fast: bool| -> (TensorData, Vec<Option<TensorData>>) {
            let keep = (drop > 0.0).then(|| Keep::new(12_345, drop));
            let (x, a, b) = (x.clone().autodiff(), a.clone().autodiff(), b.clone().autodiff());
            let (x, a, b) = (x.require_grad(), a.require_grad(), b.require_grad());
            let (weight, bias) = match all {
                true => (weight.clone().autodiff().require_grad(), bias.clone().autodiff().require_grad()),
                false => (weight.clone(), bias.clone()),
            };
            let bias_in = biased.then(|| bias.clone());
            let lora = LowRank { a: a.clone(), b: b.clone(), scale: 0.5, drop };
            let y = match fast {
                true => fused(&x, &weight, bias_in.as_ref(), lora, keep),
                false => reference(x.clone(), weight.clone(), bias_in, lora, keep),
            };
            let gradients = (y.clone() * upstream.clone()).sum().backward();
            let of = |x: &Tensor<2>| x.grad(&gradients).map(|grad| grad.into_data());
            let mut grads = vec![of(&x), of(&a), of(&b)];
            if all {
                grads.push(of(&weight));
                grads.push(bias.grad(&gradients).map(|grad| grad.into_data()));
            }
            (y.without_autodiff().into_data(), grads)
        };
        let ((fast, fast_grads), (slow, slow_grads)) = (run(true), run(false));
        close(&fast, &slow);
        for (fast, slow) in fast_grads.iter().zip(&slow_grads) {
            assert_eq!(fast.is_some(), slow.is_some());
            if let (Some(fast), Some(slow)) = (fast, slow) {
                close(fast, slow);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn agrees_with_the_plain_operations(
            sizes in [1..700_usize, 1..90_usize, 1..90_usize, 1..10_usize],
            drops: bool,
            turned: bool,
            biased: bool,
            all: bool,
        ) {
            check(sizes, if drops { 0.25 } else { 0.0 }, turned, biased, all);
        }
    }

    #[test]
    fn every_rank_up_to_64_is_right() {
        for rank in 1..=64 {
            check([37, 33, 29, rank], 0.0, false, true, false);
        }
    }

    #[test]
    fn a_plain_input_gets_no_gradient_and_factors_do() {
        let device = Device::flex();
        let random = |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Default, &device);
        let leaf = |dims| random(dims).autodiff().require_grad();
        let (a, b) = (leaf([2, 7]), leaf([5, 2]));
        let lora = LowRank { a: a.clone(), b: b.clone(), scale: 1.0, drop: 0.0 };
        let (x, weight) = (random([9, 7]), random([7, 5]));
        let gradients = lora_linear(&x, &weight, None, lora).unwrap().sum().backward();
        assert!(a.grad(&gradients).is_some() && b.grad(&gradients).is_some());
        let y = linear(x.clone(), weight.clone(), None);
        assert!(!y.is_autodiff());
        close(&y.into_data(), &x.matmul(weight).into_data());
    }
}
