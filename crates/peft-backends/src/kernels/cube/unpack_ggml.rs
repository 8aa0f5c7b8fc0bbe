//! A matrix in blocks as GGUF files have them made dense: a unit for each value, the bytes of blocks four in a word.
//!
//! Every formula rounds once at most, so that the values are the bits that the processor reads.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::{
    cube::{launch, unpack::byte},
    quantized::ggml::GgmlType,
};

/// Whether there is a kernel for blocks of this type.
pub(crate) fn has_kernel(kind: GgmlType) -> bool {
    kind != GgmlType::F64
}

pub(crate) fn run(words: CubeTensor, kind: GgmlType, dims: [usize; 2], dtype: DType) -> CubeTensor {
    let words = launch::whole(words);
    let out = launch::empty(&words, dims, dtype);
    let client = out.client.clone();
    let (count, dim) = launch::units(&client, out.meta.num_elements());
    let bytes = launch::small(kind.bytes(kind.block()).unwrap_or_default());
    let element = launch::element(&out);
    ggml_kernel::launch(
        &client,
        count,
        dim,
        words.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        bytes,
        kind,
        kind.block(),
        element,
    );
    out
}

#[cube(launch)]
fn ggml_kernel<O: Float>(
    words: &[u32],
    out: &mut [O],
    bytes: u32,
    #[comptime] kind: GgmlType,
    #[comptime] values: usize,
    #[define(O)] _dtype: ElemType,
) {
    let place = ABSOLUTE_POS;
    if place >= out.len() {
        terminate!();
    }
    let (block, at) = (place / values * bytes as usize, place % values);
    let mut value = 0.0f32;
    if comptime!(kind == GgmlType::F32) {
        value = f32::from_bits(words[place]);
    }
    if comptime!(kind == GgmlType::F16) {
        value = half(words, block);
    }
    if comptime!(kind == GgmlType::Bf16) {
        value = f32::from_bits(two_bytes(words, block) << 16);
    }
    if comptime!(values == 32) {
        value = of_32(words, block, at, kind);
    }
    if comptime!(kind == GgmlType::Q2K) {
        value = q2_k(words, block, at);
    }
    if comptime!(kind == GgmlType::Q3K) {
        value = q3_k(words, block, at);
    }
    if comptime!(matches!(kind, GgmlType::Q4K | GgmlType::Q5K)) {
        value = q4_or_5_k(words, block, at, comptime!(kind == GgmlType::Q5K));
    }
    if comptime!(kind == GgmlType::Q6K) {
        value = q6_k(words, block, at);
    }
    out[place] = O::cast_from(value);
}

/// Two bytes of one word.
#[cube]
fn two_bytes(words: &[u32], at: usize) -> u32 {
    (words[at / 4] >> ((at % 4) as u32 * 8)) & 65_535u32
}

/// A number in half precision, which not all devices have.
#[cube]
fn half(words: &[u32], at: usize) -> f32 {
    let bits = two_bytes(words, at);
    let (exponent, mantissa) = ((bits >> 10) & 31u32, bits & 1023u32);
    // Below the smallest exponent numbers are multiples of 2⁻²⁴; the largest is that of infinity and of what is no number.
    let exponent_of_single = select(exponent == 31u32, 255u32, exponent + 112u32);
    let normal = f32::from_bits((exponent_of_single << 23) | (mantissa << 13));
    let size = select(exponent == 0u32, f32::cast_from(mantissa) * 5.960_464_5e-8f32, normal);
    select(bits >= 32_768u32, -size, size)
}

#[cube]
fn signed(byte: u32) -> f32 {
    let value = f32::cast_from(byte);
    select(byte >= 128u32, value - 256.0f32, value)
}

/// Blocks of 32 values: a scale, a minimum perhaps, fifth bits perhaps, and the codes, the low halves of whose bytes come first.
#[cube]
fn of_32(words: &[u32], block: usize, at: usize, #[comptime] kind: GgmlType) -> f32 {
    let has_minimum = comptime!(matches!(kind, GgmlType::Q4_1 | GgmlType::Q5_1));
    let has_fifth = comptime!(matches!(kind, GgmlType::Q5_0 | GgmlType::Q5_1));
    let head = comptime!(if has_minimum { 4usize } else { 2 });
    let number = if comptime!(kind == GgmlType::Q8_0) {
        signed(byte(words, block + head + at))
    } else {
        let codes = comptime!(if has_fifth { head + 4 } else { head });
        let both = byte(words, block + codes + at % 16);
        let mut code = select(at < 16, both & 15u32, both >> 4);
        if comptime!(has_fifth) {
            let fifth = byte(words, block + head + at / 8) >> (at % 8) as u32;
            code |= (fifth & 1u32) << 4;
        }
        let middle = comptime!(match (has_minimum, has_fifth) {
            (true, _) => 0.0f32,
            (false, true) => 16.0,
            (false, false) => 8.0,
        });
        f32::cast_from(code) - middle
    };
    let mut value = number * half(words, block);
    if comptime!(has_minimum) {
        value += half(words, block + 2);
    }
    value
}

#[cube]
fn q2_k(words: &[u32], block: usize, at: usize) -> f32 {
    let run = at / 16;
    let both = byte(words, block + run);
    let scale = half(words, block + 80) * f32::cast_from(both & 15u32);
    let minimum = half(words, block + 82) * f32::cast_from(both >> 4);
    let codes = byte(words, block + 16 + run / 8 * 32 + run % 2 * 16 + at % 16);
    let code = (codes >> (run % 8 / 2 * 2) as u32) & 3u32;
    scale * f32::cast_from(code) - minimum
}

#[cube]
fn q3_k(words: &[u32], block: usize, at: usize) -> f32 {
    let run = at / 16;
    let (part, pair) = (run % 2 * 16 + at % 16, run % 8 / 2);
    // A scale of six bits: four in a half byte of the first eight, two in one of the last four.
    let low = (byte(words, block + 96 + run % 8) >> (run / 8 * 4) as u32) & 15u32;
    let high = (byte(words, block + 104 + run % 4) >> (run / 4 * 2) as u32) & 3u32;
    let scale = half(words, block + 108) * (f32::cast_from(low | (high << 4)) - 32.0f32);
    let code = (byte(words, block + 32 + run / 8 * 32 + part) >> (pair * 2) as u32) & 3u32;
    let third = (byte(words, block + part) >> (run / 8 * 4 + pair) as u32) & 1u32;
    scale * (f32::cast_from(code | (third << 2)) - 4.0f32)
}

/// With fifth bits or without.
#[cube]
fn q4_or_5_k(words: &[u32], block: usize, at: usize, #[comptime] fifth: bool) -> f32 {
    let (run, column) = (at / 32, at % 32);
    // Scale and minimum of a run, six bits each, in twelve bytes.
    let packed = block + 4;
    let mut scale = byte(words, packed + run % 4) & 63u32;
    let mut minimum = byte(words, packed + run % 4 + 4) & 63u32;
    if run >= 4 {
        let low = byte(words, packed + run + 4);
        scale = (low & 15u32) | ((byte(words, packed + run - 4) >> 6) << 4);
        minimum = (low >> 4) | ((byte(words, packed + run) >> 6) << 4);
    }
    let codes = comptime!(if fifth { 48usize } else { 16 });
    let both = byte(words, block + codes + run / 2 * 32 + column);
    let mut code = (both >> (run % 2 * 4) as u32) & 15u32;
    if comptime!(fifth) {
        code |= ((byte(words, block + 16 + column) >> run as u32) & 1u32) << 4;
    }
    let size = half(words, block) * f32::cast_from(scale);
    size * f32::cast_from(code) - half(words, block + 2) * f32::cast_from(minimum)
}

#[cube]
fn q6_k(words: &[u32], block: usize, at: usize) -> f32 {
    let (run, column) = (at / 32, at % 32);
    let (side, part) = (run / 4, run % 4);
    let low = (byte(words, block + side * 64 + part % 2 * 32 + column) >> (part / 2 * 4) as u32) & 15u32;
    let high = (byte(words, block + 128 + side * 32 + column) >> (part * 2) as u32) & 3u32;
    let scale = half(words, block + 208) * signed(byte(words, block + 192 + side * 8 + part * 2 + column / 16));
    scale * (f32::cast_from(low | (high << 4)) - 32.0f32)
}
