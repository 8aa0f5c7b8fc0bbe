//! A packed matrix made dense: a unit for each value, four codes or eight a word.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::cube::launch;

/// How values follow from codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Code {
    /// `[d_out, d_in]`.
    pub(crate) dims: [usize; 2],
    /// Two codes a byte that say which value of a table, or one that is a number itself.
    pub(crate) four_bits: bool,
    /// Values that share a scale.
    pub(crate) block: usize,
    /// What eight bits are multiplied with beside the scale.
    pub(crate) step: f32,
    /// Codes of scales that share one of theirs, and what is added to all, where scales are codes.
    pub(crate) nested: Option<(usize, f32)>,
}

/// Numbers that the kernel is given.
#[derive(CubeLaunch, CubeType)]
struct Numbers {
    block: u32,
    nested_block: u32,
    offset: f32,
    step: f32,
}

pub(crate) fn run(all: [CubeTensor; 5], code: Code, dtype: DType) -> CubeTensor {
    let [words, table, scales, scale_words, map] = all.map(launch::whole);
    let out = launch::empty(&scales, code.dims, dtype);
    let client = out.client.clone();
    let (count, dim) = launch::units(&client, out.meta.num_elements());
    let (nested_block, offset) = code.nested.unwrap_or((1, 0.0));
    let element = launch::element(&out);
    unpack_kernel::launch(
        &client,
        count,
        dim,
        words.into_buffer_arg(),
        table.into_buffer_arg(),
        scales.into_buffer_arg(),
        scale_words.into_buffer_arg(),
        map.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        NumbersLaunch::new(launch::small(code.block), launch::small(nested_block), offset, code.step),
        code.four_bits,
        code.nested.is_some(),
        element,
    );
    out
}

/// A byte of those that lie four in a word.
#[cube]
pub(crate) fn byte(words: &[u32], at: usize) -> u32 {
    (words[at / 4] >> ((at % 4) as u32 * 8)) & 255u32
}

#[cube(launch)]
fn unpack_kernel<O: Float>(
    words: &[u32],
    table: &[f32],
    scales: &[f32],
    scale_words: &[u32],
    map: &[f32],
    out: &mut [O],
    numbers: Numbers,
    #[comptime] four_bits: bool,
    #[comptime] nested: bool,
    #[define(O)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at >= out.len() {
        terminate!();
    }
    let block = at / numbers.block as usize;
    let scale = if comptime!(nested) {
        let code = byte(scale_words, block) as usize;
        map[code] * scales[block / numbers.nested_block as usize] + numbers.offset
    } else {
        scales[block]
    };
    let value = if comptime!(four_bits) {
        let both = byte(words, at / 2);
        // The first of two is the high half.
        let code = select(at % 2 == 1, both & 15u32, both >> 4);
        table[code as usize]
    } else {
        let code = f32::cast_from(byte(words, at));
        select(code >= 128.0f32, code - 256.0f32, code) * numbers.step
    };
    out[at] = O::cast_from(value * scale);
}
