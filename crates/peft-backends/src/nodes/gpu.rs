//! Nodes of a GPU, on tensors of CubeCL's runtimes.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod cross_entropies;
pub(crate) mod dropout;
pub(crate) mod lora_linear;
pub(crate) mod low_rank_by_rows;
pub(crate) mod norm;
pub(crate) mod rotary;
pub(crate) mod softmax;

use crate::kernels::cube::OnGpu;

pub(crate) use attention::Attention;
pub(crate) use cross_entropies::{CrossEntropies, Targets};
pub(crate) use dropout::Dropout;
pub(crate) use lora_linear::LoraLinear;
pub(crate) use low_rank_by_rows::LowRankByRows;
pub(crate) use rotary::Rotate;
pub(crate) use softmax::Softmax;

/// The inputs of an operation that has all of them.
pub(crate) fn all<const N: usize>(inputs: [Option<OnGpu>; N]) -> [OnGpu; N] {
    inputs.map(|input| match input {
        Some(input) => input,
        None => unreachable!("an operation is given its inputs"),
    })
}
