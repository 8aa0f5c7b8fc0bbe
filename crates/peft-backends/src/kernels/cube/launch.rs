//! How kernels are started: on tensors in one piece, with as many cubes as there are elements or rows.

use burn::{
    backend::cubecl::dtype_to_storage_type,
    tensor::{DType, Shape},
};
use burn_cubecl::{kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, client::Client, prelude::*};

/// Most cubes in one dimension of a grid that every API has.
const MOST_CUBES: usize = 65_535;

/// The tensor without gaps and in order.
pub(crate) fn whole(x: CubeTensor) -> CubeTensor {
    into_contiguous(x)
}

/// The same to be written to: a copy if somebody else holds it.
pub(crate) fn own(x: CubeTensor) -> CubeTensor {
    let x = whole(x);
    if x.can_mut() { x } else { x.copy() }
}

/// New memory beside `like`.
pub(crate) fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// New memory of the shape and type of `like`.
pub(crate) fn empty_like(like: &CubeTensor) -> CubeTensor {
    empty(like, like.meta.shape().clone(), like.dtype)
}

/// The size of the last dimension.
pub(crate) fn width(x: &CubeTensor) -> usize {
    x.meta.shape().last().copied().unwrap_or(1).max(1)
}

/// The sizes of its dimensions, which are `D`.
pub(crate) fn dims<const D: usize>(x: &CubeTensor) -> [usize; D] {
    let mut dims = [1; D];
    dims.iter_mut().zip(x.meta.shape().iter()).for_each(|(to, from)| *to = *from);
    dims
}

/// The type of its elements, as kernels are told it.
pub(crate) fn element(x: &CubeTensor) -> ElemType {
    dtype_to_storage_type(x.dtype)
}

/// A size as kernels take it; none is as large as the bound.
pub(crate) fn small(x: usize) -> u32 {
    u32::try_from(x).unwrap_or(u32::MAX)
}

/// Elements that a unit takes at a time of tensors like this one: as many as a load has room for, in a divisor of their number.
pub(crate) fn vector_size(x: &CubeTensor) -> usize {
    let count = x.meta.num_elements();
    x.client.io_optimized_vector_sizes(x.dtype.size()).find(|size| count.is_multiple_of(*size)).unwrap_or(1)
}

/// A unit for each of so many.
pub(crate) fn units(client: &Client, count: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(client, count);
    (calculate_cube_count_elemwise(client, count, dim), dim)
}

/// A cube for each of so many: kernels find theirs by `CUBE_POS` and have to look whether there is one.
pub(crate) fn cubes(count: usize) -> CubeCount {
    let rows = count.div_ceil(MOST_CUBES).max(1);
    let columns = count.div_ceil(rows);
    CubeCount::Static(small(columns), small(rows), 1)
}
