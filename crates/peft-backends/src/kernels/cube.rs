//! CubeCL kernels, which WGPU and CUDA share.
//!
//! [`backend::Kernels`] lists them as operations of the backend, so that Burn's fusion queues them among its own. Whatever the type of
//! the tensors, they compute in single precision.

pub(crate) mod activation;
pub(crate) mod adamw;
pub(crate) mod attention;
#[allow(clippy::too_many_arguments, reason = "the macro takes tensors one by one")]
pub(crate) mod backend;
pub(crate) mod cross_entropies;
pub(crate) mod dropout;
pub(crate) mod launch;
pub(crate) mod low_rank_by_rows;
pub(crate) mod norm;
pub(crate) mod overwrite;
pub(crate) mod product;
pub(crate) mod rotary;
pub(crate) mod row;
pub(crate) mod soft_cap;
pub(crate) mod softmax;
pub(crate) mod unpack;
pub(crate) mod unpack_ggml;

use burn::{
    backend::{DispatchTensorKind, tensor::FloatTensor},
    tensor::{BackendPrimitive, DType, Tensor, kind::Basic},
};

use crate::kernels::host;

/// The backend of all CubeCL runtimes; a tensor's device says which one it runs on.
pub(crate) type Gpu = burn::backend::Cube;

/// A tensor in a GPU's memory.
pub(crate) type OnGpu = FloatTensor<Gpu>;

/// Whether a GPU's version can take the tensor.
pub(crate) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
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
pub(crate) fn primitive<const D: usize, K: Basic + BackendPrimitive<Gpu>>(x: Tensor<D, K>) -> K::Primitive {
    match x.try_into_primitive::<Gpu>() {
        Ok(x) => x,
        Err(error) => unreachable!("asked for before: {error:?}"),
    }
}

/// What a [`Slot`](crate::ops::Slot) holds.
pub(crate) type Memory = OnGpu;

/// The memory of a tensor without a graph; none if it is not a GPU's.
pub(crate) fn memory<const D: usize, K>(x: Tensor<D, K>) -> Option<Memory>
where
    K: Basic + BackendPrimitive<Gpu, Primitive = Memory>,
{
    is_on_gpu(&x.clone().into_dispatch().kind).then(|| primitive(x))
}
