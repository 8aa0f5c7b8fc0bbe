//! A bidirectional LSTM over a short sequence, with PyTorch's tensors.

use burn::tensor::{Tensor, activation::sigmoid};
use peft_core::plugins::tuner::{Init, TensorSpec, Tensors};

/// PyTorch's names have these endings for the two directions.
const DIRECTIONS: [&str; 2] = ["", "_reverse"];

/// The tensors of one layer; all but the first read both directions of the layer before.
pub(super) fn specs(layer: usize, width: usize, inner: usize) -> Vec<TensorSpec> {
    let d_in = if layer == 0 { width } else { 2 * inner };
    let init = Init::Uniform { bound: 1.0 / (inner.max(1) as f64).sqrt() };
    let tensors = DIRECTIONS.iter().flat_map(|direction| {
        [
            ("weight_ih", vec![4 * inner, d_in]),
            ("weight_hh", vec![4 * inner, inner]),
            ("bias_ih", vec![4 * inner]),
            ("bias_hh", vec![4 * inner]),
        ]
        .map(|(name, shape)| TensorSpec {
            name: named(name, layer, direction).into(),
            shape,
            init,
            trainable: true,
        })
    });
    tensors.collect()
}

fn named(name: &str, layer: usize, direction: &str) -> String {
    format!("lstm_head.{name}_l{layer}{direction}")
}

/// The hidden states of both directions.
///
/// # Shapes
/// - `input`: `[tokens, d_in]`
/// - returned: `[tokens, 2 · inner]`
pub(super) fn layer(tensors: &Tensors<'_>, layer: usize, input: Tensor<2>) -> Tensor<2> {
    let both = DIRECTIONS.map(|direction| one_way(tensors, layer, direction, input.clone()));
    Tensor::cat(both.to_vec(), 1)
}

/// `c = f ⊙ c + i ⊙ g`, `h = o ⊙ tanh(c)`, with the gates `i`, `f`, `g`, `o` in that order.
fn one_way(tensors: &Tensors<'_>, layer: usize, direction: &str, input: Tensor<2>) -> Tensor<2> {
    let get = |name: &str| named(name, layer, direction);
    let recurrent = tensors.get::<2>(&get("weight_hh")).transpose();
    let [inner, _] = recurrent.dims();
    let bias = tensors.get::<1>(&get("bias_ih")) + tensors.get::<1>(&get("bias_hh"));
    let [tokens, _] = input.dims();
    let given = input.matmul(tensors.get::<2>(&get("weight_ih")).transpose()) + bias.unsqueeze();
    let mut state: Option<(Tensor<2>, Tensor<2>)> = None;
    let mut outputs = Vec::with_capacity(tokens);
    let is_reverse = direction != DIRECTIONS[0];
    for step in 0..tokens {
        let token = if is_reverse { tokens - 1 - step } else { step };
        let gates = given.clone().slice([token..token + 1, 0..4 * inner]);
        let gates = match &state {
            Some((hidden, _)) => gates + hidden.clone().matmul(recurrent.clone()),
            None => gates,
        };
        let gate = |at: usize| gates.clone().slice([0..1, at * inner..(at + 1) * inner]);
        let added = sigmoid(gate(0)) * gate(2).tanh();
        let cell = match state.take() {
            Some((_, cell)) => sigmoid(gate(1)) * cell + added,
            None => added,
        };
        let hidden = sigmoid(gate(3)) * cell.clone().tanh();
        outputs.push(hidden.clone());
        state = Some((hidden, cell));
    }
    if is_reverse {
        outputs.reverse();
    }
    Tensor::cat(outputs, 0)
}
