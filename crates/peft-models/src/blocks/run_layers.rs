//! The layers of a stack one after the other, the first of them without keeping what they compute.

use burn::{module::Module, tensor::Tensor};
use peft_backends::recomputed;

/// What `layers` make of a hidden state. `run` gets a layer, its number, the hidden state and `others`; the first `checkpointed`
/// layers keep their inputs alone and run again when gradients are due ([`recomputed`]).
///
/// Whatever of a graph the layers look at beside the hidden state has to be among `others`.
///
/// # Shapes
/// - `hidden`, returned: `[batch, sequence, hidden]`
/// - `others`: at most two that all layers share, as an encoder's states
pub fn run_layers<L, F, const K: usize>(
    layers: &[L],
    checkpointed: usize,
    hidden: Tensor<3>,
    others: [Tensor<3>; K],
    run: F,
) -> Tensor<3>
where
    L: Module + 'static,
    F: Fn(&L, usize, Tensor<3>, [Tensor<3>; K]) -> Tensor<3> + Clone + Send + 'static,
{
    layers.iter().enumerate().fold(hidden, |hidden, (at, layer)| {
        if at >= checkpointed {
            return run(layer, at, hidden, others.clone());
        }
        let run = run.clone();
        recomputed(layer, hidden, others.clone(), move |layer, hidden, others| run(layer, at, hidden, others))
    })
}
