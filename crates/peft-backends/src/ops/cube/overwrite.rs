//! New values in the memory of a tensor, whoever else holds it.

use burn::tensor::{BackendPrimitive, Tensor, kind::Basic};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{Gpu, Kernels, OnGpu, is_on_gpu, launch, primitive};

/// What a [`Slot`](crate::ops::Slot) holds.
pub(in crate::ops) type Memory = OnGpu;

/// The memory of a tensor without a graph; none if it is not a GPU's.
pub(in crate::ops) fn memory<const D: usize, K>(x: Tensor<D, K>) -> Option<Memory>
where
    K: Basic + BackendPrimitive<Gpu, Primitive = Memory>,
{
    is_on_gpu(&x.clone().into_dispatch().kind).then(|| primitive(x))
}

/// Writes `values` over those of `place`, which has as many of the same type.
///
/// Both primitives of a GPU are one type, and an operation is asked for which of the two it gets.
pub(in crate::ops) fn overwrite(place: Memory, values: Memory) -> Memory {
    if place.dtype.is_float() { Gpu::overwrite(place, values) } else { Gpu::overwrite_ints(place, values) }
}

/// The same as a launch. Unlike [`launch::own`] it makes no copy of `place`, which has to lie in one piece: all who hold it see
/// the new values from then on, by intention.
pub(super) fn in_place(place: CubeTensor, values: CubeTensor) -> CubeTensor {
    let client = place.client.clone();
    let (count, dim) = launch::units(&client, place.meta.num_elements());
    let element = launch::element(&place);
    let values = launch::whole(values).into_buffer_arg();
    in_place_kernel::launch(&client, count, dim, values, place.clone().into_buffer_arg(), element);
    place
}

#[cube(launch)]
fn in_place_kernel<E: Numeric>(values: &[E], place: &mut [E], #[define(E)] _dtype: ElemType) {
    let at = ABSOLUTE_POS;
    if at >= place.len() {
        terminate!();
    }
    place[at] = values[at];
}
