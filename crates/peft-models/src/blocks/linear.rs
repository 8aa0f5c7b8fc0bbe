//! Linear layers, with adapters or without, by the fused operations where there are any.

use burn::{nn::Linear, tensor::Tensor};
use peft_backends::ops::{self, PackedMatrix};
use peft_core::{AdapterSet, Conv1D, FrozenWeight, Outputs, WordLogits, adapted_linear_by, word_logits::soft_capped};

/// A linear layer and the active adapters on its weight: [`peft_core::adapted_linear`], computed by [`ops::linear`].
///
/// # Shapes
/// - `input`: `[..., d_in]`
/// - returned: `[..., d_out]`
pub fn adapted_linear<const D: usize>(linear: &Linear, input: Tensor<D>) -> Tensor<D> {
    adapted_linear_by(ops::linear, linear, input)
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
        Some(set) => set.packed().filter(|_| set.is_plain()).map(FrozenWeight::Packed),
    };
    if let Some(weight) = weight.filter(|_| head.bias.is_none()) {
        let words = WordLogits { hidden, weight, soft_cap, product: ops::linear, losses };
        return Outputs::new().with_words("logits", words);
    }
    Outputs::new().with("logits", soft_capped(adapted_linear(head, hidden), soft_cap))
}

fn losses(
    hidden: &Tensor<2>,
    weight: &FrozenWeight,
    targets: &[Option<usize>],
    soft_cap: Option<f64>,
) -> Option<Tensor<1>> {
    match weight {
        FrozenWeight::Dense(weight) => ops::linear_cross_entropies(hidden, weight, targets, soft_cap),
        FrozenWeight::Packed(weight) => {
            weight.as_any().downcast_ref::<PackedMatrix>()?.cross_entropies(hidden, targets, soft_cap)
        }
    }
}
