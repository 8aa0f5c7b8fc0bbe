//! From values to blocks of Q8_0, by GGML's formula: a scale in half precision and 32 codes of eight bits.

use half::f16;
use rayon::prelude::*;

use crate::kernels::quantized::{ggml::GgmlType, parts::PackedParts};

/// Values that share a scale.
const BLOCK: usize = 32;

/// The scale and the codes.
const BYTES: usize = 2 + BLOCK;

/// Blocks that one thread does at a time.
const RUN: usize = 256;

/// Packs a matrix as files have it, `[d_out, d_in]` row by row; none if its rows are no whole blocks.
pub fn quantize_q8_0(values: &[f32], dims: [usize; 2]) -> Option<PackedParts> {
    let [_, d_in] = dims;
    let mut codes = d_in.is_multiple_of(BLOCK).then(|| vec![0; values.len() / BLOCK * BYTES])?;
    let runs = codes.par_chunks_mut(RUN * BYTES).zip(values.par_chunks(RUN * BLOCK));
    runs.for_each(|(bytes, values)| {
        let (blocks, _) = bytes.as_chunks_mut::<BYTES>();
        blocks.iter_mut().zip(values.as_chunks::<BLOCK>().0).for_each(|(bytes, values)| block(values, bytes));
    });
    Some(PackedParts::of_blocks(GgmlType::Q8_0, dims, codes))
}

fn block(values: &[f32; BLOCK], bytes: &mut [u8; BYTES]) {
    let most = values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    // Codes are of the scale before it is rounded, as GGML has it.
    let scale = most / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let [low, high, codes @ ..] = bytes;
    [*low, *high] = f16::from_f32(scale).to_le_bytes();
    for (code, x) in codes.iter_mut().zip(values) {
        *code = ((x * inverse).round() as i8).cast_unsigned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_within_half_a_step() {
        let values: Vec<f32> =
            (0..BLOCK * 300).map(|i| ((i * i) as f32).sin() * 10.0_f32.powi(i as i32 / 1000 - 4)).collect();
        let parts = quantize_q8_0(&values, [100, BLOCK * 3]).unwrap();
        let back = GgmlType::Q8_0.dequantize(&parts.codes);
        for (values, back) in values.chunks(BLOCK).zip(back.chunks(BLOCK)) {
            let most = values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            // Half a step; and what a scale loses in half precision, 127 times at most.
            let scale = most / 127.0;
            let lost = (scale - f16::from_f32(scale).to_f32()).abs();
            let bound = scale / 2.0 + 127.0 * lost + most * 1e-6;
            values.iter().zip(back).for_each(|(x, y)| assert!((x - y).abs() <= bound, "{x} {y} {bound}"));
        }
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(quantize_q8_0(&[0.0; 66], [2, 33]), None);
        assert_eq!(quantize_q8_0(&[0.0; 64], [2, 32]).unwrap().codes, [0; 68]);
    }
}
