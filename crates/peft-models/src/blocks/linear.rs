//! Linear layers, with adapters or without, by the fused operations where there are any.

use burn::{nn::Linear, tensor::Tensor};
use peft_backends::ops::{self, Adapted, LowRank, Normed, PackedMatrix, Weight};
use peft_core::{
    AdapterSet, Conv1D, FrozenWeight, LinearParts, Outputs, VocabularyLogits, adapted_linear_by, linear_parts,
    plugins::tuner,
    weight::vocabulary_logits::{Targets, soft_capped},
};

/// A linear layer and the active adapters on its weight: [`peft_core::adapted_linear`], computed by [`ops::linear`].
///
/// # Shapes
/// - `input`: `[..., d_in]`
/// - returned: `[..., d_out]`
pub fn adapted_linear<const D: usize>(linear: &Linear, input: Tensor<D>) -> Tensor<D> {
    adapted_linear_by(ops::linear, linear, input)
}

/// [`adapted_linear`] of a norm's result.
///
/// # Shapes
/// - `input`: `[batch, sequence, d_in]`
/// - returned: `[batch, sequence, d_out]`
pub(super) fn adapted_linear_of(linear: &Linear, input: Normed<3>) -> Tensor<3> {
    let Some(layer) = adapted_parts(linear) else { return adapted_linear(linear, input.value) };
    let [batch, length, _] = input.value.dims();
    let [_, d_out] = linear.weight.dims();
    ops::adapted(input.rows(), layer).reshape([batch, length, d_out])
}

/// The layer as an operation that has several inside takes it; none where [`adapted_linear`] has to compute it.
pub(super) fn adapted_parts(linear: &Linear) -> Option<Adapted> {
    let LinearParts { weight, bias, low_rank } = linear_parts(linear)?;
    let weight = match weight {
        FrozenWeight::Dense(weight) => Weight::Dense(weight),
        FrozenWeight::Quantized(weight) => Weight::Packed(weight.as_any().downcast_ref::<PackedMatrix>()?.clone()),
    };
    let low_rank = low_rank.map(|tuner::LowRank { a, b, scale, drop }| LowRank { a, b, scale, drop });
    Some(Adapted { weight, bias, low_rank })
}

/// The same of GPT-2's projection.
///
/// # Shapes
/// - `input`: `[..., d_in]`
/// - returned: `[..., d_out]`
pub fn adapted_conv1d<const D: usize>(conv: &Conv1D, input: Tensor<D>) -> Tensor<D> {
    conv.forward_by(ops::linear, input)
}

/// Logits over the vocabulary by the output layer: left to whom they concern, where nothing adapts the layer.
///
/// # Shapes
/// - `hidden`: `[batch, positions, d_in]`
pub fn word_logits(head: &Linear, hidden: Tensor<3>, soft_cap: Option<f64>) -> Outputs {
    let weight = match head.weight.reparameterization::<AdapterSet>() {
        None => Some(FrozenWeight::Dense(head.weight.val())),
        Some(set) => set.quantized().filter(|_| set.is_plain()).map(FrozenWeight::Quantized),
    };
    if let Some(weight) = weight.filter(|_| head.bias.is_none()) {
        let words = VocabularyLogits { hidden, weight, soft_cap, product: ops::linear, losses };
        return Outputs::new().with_vocabulary_logits("logits", words);
    }
    Outputs::new().with("logits", soft_capped(adapted_linear(head, hidden), soft_cap))
}

fn losses(hidden: &Tensor<2>, weight: &FrozenWeight, targets: Targets<'_>, soft_cap: Option<f64>) -> Option<Tensor<1>> {
    match weight {
        FrozenWeight::Dense(weight) => match targets {
            Targets::Known(targets) => ops::linear_cross_entropies(hidden, weight, targets, soft_cap),
            Targets::OnDevice(targets) => ops::linear_cross_entropies_of_each(hidden, weight, targets, soft_cap),
        },
        FrozenWeight::Quantized(weight) => {
            let weight = weight.as_any().downcast_ref::<PackedMatrix>()?;
            match targets {
                Targets::Known(targets) => weight.cross_entropies(hidden, targets, soft_cap),
                Targets::OnDevice(targets) => weight.cross_entropies_of_each(hidden, targets, soft_cap),
            }
        }
    }
}
