//! How the processor's versions walk over tensors: contiguous pieces, one thread each, with the widest vectors there are.

use burn::{
    backend::{Flex, tensor::FloatTensor},
    tensor::{DType, Tensor},
};
use pulp::Arch;
use rayon::prelude::*;

use crate::device::is_host;

/// Elements that one thread takes at a time: enough to outweigh handing them over, few enough to stay in its cache.
const PIECE: usize = 1 << 14;

/// Whether the processor's version can take the tensor: others go through the plain operations.
pub(super) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && is_host(&x.device().inner())
}

/// Changes a tensor in place, piece by piece, or a copy if others hold it.
///
/// `f` gets the place of the piece's first element and the piece, which is made of whole rows of `row` elements.
pub(super) fn update(tensor: FloatTensor<Flex>, row: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> FloatTensor<Flex> {
    let mut tensor = tensor.to_contiguous();
    let piece = (PIECE / row.max(1)).max(1) * row.max(1);
    let arch = Arch::new();
    tensor.storage_mut::<f32>().par_chunks_mut(piece).enumerate().for_each(|(index, out)| {
        arch.dispatch(
            #[inline(always)]
            || f(index * piece, out),
        );
    });
    tensor
}

/// Like [`update`], with the elements of another tensor of the same shape at hand.
pub(super) fn combine(
    into: FloatTensor<Flex>,
    other: FloatTensor<Flex>,
    row: usize,
    f: impl Fn(&mut [f32], &[f32]) + Sync,
) -> FloatTensor<Flex> {
    let other = other.to_contiguous();
    let other: &[f32] = other.as_slice().unwrap_or_default();
    update(
        into,
        row,
        #[inline(always)]
        |start, out| f(out, other.get(start..start + out.len()).unwrap_or_default()),
    )
}
