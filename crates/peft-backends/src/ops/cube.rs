//! The operations on a GPU, as CubeCL kernels that WGPU and CUDA share.
//!
//! [`Kernels`] lists them as operations of the backend, so that Burn's fusion queues them among its own; the files beside it
//! have a node for each, with a pass forward and a pass back, and the kernels. Whatever the type of the tensors, they compute in
//! single precision.

mod activation;
mod adamw;
mod attention;
mod cross_entropies;
mod dropout;
#[allow(clippy::too_many_arguments, reason = "the macro takes tensors one by one")]
mod kernels;
mod launch;
mod lora_linear;
mod low_rank_by_rows;
mod norm;
mod overwrite;
mod product;
mod rotary;
mod row;
mod soft_cap;
mod softmax;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests;
mod unpack;
mod unpack_ggml;

use burn::{
    backend::{DispatchTensorKind, tensor::FloatTensor},
    tensor::{BackendPrimitive, DType, Tensor, kind::Basic},
};

pub(super) use activation::{Activation, Curve, Gated};
pub(super) use adamw::{Formula, OnDevice, adamw};
pub(super) use attention::Attention;
pub(super) use cross_entropies::{CrossEntropies, Targets};
pub(super) use dropout::Dropout;
use kernels::Kernels;
pub(super) use lora_linear::LoraLinear;
pub(super) use low_rank_by_rows::LowRankByRows;
pub(super) use norm::{Kind, Norm};
pub(super) use overwrite::{Memory, memory, overwrite};
pub(super) use rotary::Rotate;
pub(super) use softmax::Softmax;
pub(super) use unpack::{Code, Packed, unpack};
pub(super) use unpack_ggml::{has_kernel, unpack_ggml};

use super::host;

/// The backend of all CubeCL runtimes; a tensor's device says which one it runs on.
pub(crate) type Gpu = burn::backend::Cube;

/// A tensor in a GPU's memory.
pub(super) type OnGpu = FloatTensor<Gpu>;

/// Whether a GPU's version can take the tensor.
pub(super) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    let is_float = matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16);
    host::is_fused() && is_float && !x.dims().contains(&0) && is_on_gpu(&x.clone().into_dispatch().kind)
}

fn is_on_gpu(kind: &DispatchTensorKind) -> bool {
    match kind {
        DispatchTensorKind::Cube(_) => true,
        DispatchTensorKind::Autodiff(inner) => is_on_gpu(inner),
        DispatchTensorKind::Flex(_) => false,
    }
}

/// What a tensor without a graph that is known to be there is on a GPU.
pub(super) fn primitive<const D: usize, K: Basic + BackendPrimitive<Gpu>>(x: Tensor<D, K>) -> K::Primitive {
    match x.try_into_primitive::<Gpu>() {
        Ok(x) => x,
        Err(error) => unreachable!("asked for before: {error:?}"),
    }
}

/// The inputs of an operation that has all of them.
fn all<const N: usize>(inputs: [Option<OnGpu>; N]) -> [OnGpu; N] {
    inputs.map(|input| match input {
        Some(input) => input,
        None => unreachable!("an operation is given its inputs"),
    })
}
