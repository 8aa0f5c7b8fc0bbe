//! A quantized matrix in a GPU's memory.

use burn::{
    backend::tensor::{FloatTensor, IntTensor},
    tensor::DType,
};

use crate::kernels::{
    cube::{Gpu, backend::Kernels, unpack::Code},
    quantized::ggml::GgmlType,
};

/// The values, `[d_out, d_in]`.
pub(crate) fn unpack_ggml(words: IntTensor<Gpu>, kind: GgmlType, dims: [usize; 2], dtype: DType) -> FloatTensor<Gpu> {
    Gpu::unpack_ggml(words, kind, dims, dtype)
}

/// A packed matrix on a GPU.
pub(crate) struct Packed {
    /// The codes, four bytes a word.
    pub(crate) words: IntTensor<Gpu>,
    /// The values of codes of four bits.
    pub(crate) table: FloatTensor<Gpu>,
    /// The scales, or what their codes are multiplied with.
    pub(crate) scales: FloatTensor<Gpu>,
    /// The codes of scales and the values of these.
    pub(crate) nested: Option<(IntTensor<Gpu>, FloatTensor<Gpu>)>,
}

/// The values, `[d_out, d_in]`.
pub(crate) fn unpack(packed: Packed, code: Code, dtype: DType) -> FloatTensor<Gpu> {
    let Packed { words, table, scales, nested } = packed;
    let (scale_words, map) = nested.unwrap_or_else(|| (words.clone(), scales.clone()));
    Gpu::unpack(words, table, scales, scale_words, map, code, dtype)
}
