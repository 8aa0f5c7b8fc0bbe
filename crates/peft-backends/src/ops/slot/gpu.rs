//! Slots in the memory of a GPU.

use crate::kernels::cube::{Gpu, Memory, backend::Kernels};

/// Writes `values` over those of `place`, which has as many of the same type.
///
/// Both primitives of a GPU are one type, and an operation is asked for which of the two it gets.
pub(crate) fn overwrite(place: Memory, values: Memory) -> Memory {
    if place.dtype.is_float() { Gpu::overwrite(place, values) } else { Gpu::overwrite_ints(place, values) }
}
