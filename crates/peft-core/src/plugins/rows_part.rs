//! Rows of a batch that one adapter acts on, as a layer's tuner is given them.

use std::ops::Range;

use burn::tensor::Tensor;

use super::tuner::{LayerTuner, LinearCall, Tensors};

/// Rows side by side, or the tokens in them, and what acts on them.
#[derive(Debug)]
pub struct RowsPart<'a> {
    /// The adapter's number among those that act here, in the order in which they first come.
    pub adapter: usize,
    /// The rows of the layer's input `[tokens, d_in]`.
    pub rows: Range<usize>,
    /// The adapter's tuner on this layer.
    pub layer: &'a dyn LayerTuner,
    /// The adapter's tensors on this layer.
    pub tensors: Tensors<'a>,
}

/// Adds the contributions of adapters to their rows, each part by itself.
///
/// # Shapes
/// - `output`, returned: `[tokens, d_out]`
pub fn one_by_one(parts: &[RowsPart<'_>], call: &LinearCall, output: &Tensor<2>) -> Tensor<2> {
    let mut done = Vec::new();
    let mut at = 0;
    let total = output.dims()[0];
    for RowsPart { rows, layer, tensors, .. } in parts {
        done.extend((rows.start > at).then(|| output.clone().narrow(0, at, rows.start - at)));
        let narrow = |x: &Tensor<2>| x.clone().narrow(0, rows.start, rows.len());
        let call = LinearCall {
            input: narrow(&call.input),
            weight: call.weight.clone(),
            bias: call.bias.clone(),
            training: call.training,
        };
        done.push(layer.forward(tensors, &call, narrow(output)));
        at = rows.end;
    }
    done.extend((at < total).then(|| output.clone().narrow(0, at, total - at)));
    Tensor::cat(done, 0)
}
