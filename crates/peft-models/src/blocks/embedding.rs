//! The ends of a model: tokens in, pooled tokens and spans out.

use burn::{
    nn::Embedding,
    tensor::{Bool, Int, Tensor},
};
use peft_core::{Inputs, PastKeyValues, adapted_embedding};

/// The embedded input: `inputs_embeds` where there are such, else the words of `input_ids`, behind the prompt; none if both
/// are absent.
///
/// # Shapes
/// - returned: `[batch, prompt + sequence, dimensions]`
pub fn embed(words: &Embedding, inputs: &Inputs) -> Option<Tensor<3>> {
    embed_scaled(words, 1.0, inputs)
}

/// The same where words, but neither prompt nor embedded inputs, are multiplied by a factor.
pub fn embed_scaled(words: &Embedding, scale: f64, inputs: &Inputs) -> Option<Tensor<3>> {
    let words = |ids| match adapted_embedding(words, ids) {
        words if scale == 1.0 => words,
        words => words * scale,
    };
    let embedded = inputs.inputs_embeds.clone().or_else(|| inputs.input_ids.clone().map(words))?;
    Some(behind_prompt(inputs.prompt.as_ref(), embedded))
}

/// An embedded input with the prompt before it, if there is one.
///
/// # Shapes
/// - `prompt`: `[batch, prompt, dimensions]`
/// - `embedded`: `[batch, sequence, dimensions]`
/// - returned: `[batch, prompt + sequence, dimensions]`
pub fn behind_prompt(prompt: Option<&Tensor<3>>, embedded: Tensor<3>) -> Tensor<3> {
    match prompt {
        Some(prompt) => Tensor::cat(vec![prompt.clone().cast(embedded.dtype()), embedded], 1),
        None => embedded,
    }
}

/// How many positions stand before the input.
pub fn past_length(inputs: &Inputs) -> usize {
    inputs.past_key_values.as_ref().map_or(0, PastKeyValues::length)
}

/// The position of each token: `position_ids`, or counted from the end of the past for all rows alike.
///
/// # Shapes
/// - returned: `[batch, sequence]` or `[1, sequence]`
pub fn positions(inputs: &Inputs, hidden: &Tensor<3>) -> Tensor<2, Int> {
    inputs.position_ids.clone().unwrap_or_else(|| counted(past_length(inputs), hidden))
}

/// Where the positions end, one past the greatest. Only `position_ids` are looked at to tell.
pub fn positions_end(inputs: &Inputs, hidden: &Tensor<3>) -> i64 {
    match &inputs.position_ids {
        Some(ids) => ids.clone().max().into_scalar::<i64>().saturating_add(1),
        None => i64::try_from(past_length(inputs) + hidden.dims()[1]).unwrap_or(i64::MAX),
    }
}

/// Positions counted from the end of the past, for all rows alike.
///
/// # Shapes
/// - returned: `[1, sequence]`
pub fn counted(past: usize, hidden: &Tensor<3>) -> Tensor<2, Int> {
    let range = [past, past + hidden.dims()[1]].map(|place| i64::try_from(place).unwrap_or(i64::MAX));
    Tensor::<1, Int>::arange(range[0]..range[1], &hidden.device().inner()).unsqueeze()
}

/// The hidden state of each row's first token.
///
/// # Shapes
/// - `hidden`: `[batch, sequence, dimensions]`
/// - returned: `[batch, dimensions]`
pub fn first_token(hidden: &Tensor<3>) -> Tensor<2> {
    let [batch, _, width] = hidden.dims();
    hidden.clone().slice([0..batch, 0..1, 0..width]).reshape([batch, width])
}

/// The hidden state of each row's right-most token that counts; of the last token where nothing tells them apart.
///
/// # Shapes
/// - `hidden`: `[batch, sequence, dimensions]`
/// - `counts`: `[batch, sequence]`
/// - returned: `[batch, dimensions]`
pub fn last_token(hidden: Tensor<3>, counts: Option<Tensor<2, Bool>>) -> Tensor<2> {
    let [batch, length, width] = hidden.dims();
    let Some(counts) = counts else {
        return hidden.slice([0..batch, length.saturating_sub(1)..length, 0..width]).reshape([batch, width]);
    };
    let device = hidden.device().inner();
    let count = |n: usize| Tensor::<1, Int>::arange(0..i64::try_from(n).unwrap_or(i64::MAX), &device);
    let places = counts.int() * count(length).unsqueeze();
    let last = places.max_dim(1).reshape([batch]);
    let row_starts = count(batch) * i64::try_from(length).unwrap_or(i64::MAX);
    hidden.reshape([batch * length, width]).select(0, row_starts + last)
}

/// Start and end logits of spans from the two columns of `qa_outputs`.
///
/// # Shapes
/// - `logits`: `[batch, sequence, 2]`
/// - returned: two of `[batch, sequence]`
pub fn split_span_logits(logits: Tensor<3>) -> (Tensor<2>, Tensor<2>) {
    let [batch, length, _] = logits.dims();
    let column = |at: usize| logits.clone().slice([0..batch, 0..length, at..at + 1]).reshape([batch, length]);
    (column(0), column(1))
}
