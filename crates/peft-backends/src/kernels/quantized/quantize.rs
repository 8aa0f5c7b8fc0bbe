//! From values to codes, by bitsandbytes' formulas.

use half::f16;
use rayon::prelude::*;

use crate::kernels::quantized::{
    codebook::{FourBit, dynamic_map},
    parts::{PackedParts, Packing, ScaleParts},
};

/// Values that share a scale.
pub(crate) const BLOCK: usize = 64;

/// Scales that share a scale.
pub(crate) const NESTED_BLOCK: usize = 256;

/// Below it a scale counts as this.
const LEAST: f32 = 1e-38;

/// Packs a matrix as files have it, `[d_out, d_in]` row by row; none for what only a GGUF file has.
pub fn quantize(values: &[f32], dims: [usize; 2], packing: Packing) -> Option<PackedParts> {
    let (codes, scales) = match packing {
        Packing::FourBit { codes, nested } => {
            let (codes, scales) = four_bit(values, codes);
            (codes, if nested { nest(&scales) } else { ScaleParts::Plain(scales) })
        }
        Packing::Int8 => int8(values, dims[1]),
        Packing::Ggml(_) => return None,
    };
    Some(PackedParts { dims, packing, block: BLOCK, codes, scales })
}

/// Blocks that one thread does at a time.
const RUN: usize = 256;

fn four_bit(values: &[f32], kind: FourBit) -> (Vec<u8>, Vec<f32>) {
    let (order, bounds) = kind.sorted();
    let mut codes = vec![0; values.len().div_ceil(2)];
    let mut scales = vec![0.0; values.len().div_ceil(BLOCK)];
    let runs = codes.par_chunks_mut(RUN * BLOCK / 2).zip(scales.par_chunks_mut(RUN));
    runs.zip(values.par_chunks(RUN * BLOCK)).for_each(|((codes, scales), values)| {
        let blocks = codes.chunks_mut(BLOCK / 2).zip(scales).zip(values.chunks(BLOCK));
        for ((codes, scale), values) in blocks {
            let most = values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            // A last block that is not whole is divided, whole ones are multiplied.
            let whole = values.len() == BLOCK;
            *scale = if whole { most } else { most.max(LEAST) };
            let inverse = 1.0 / most.max(LEAST);
            let code = |x: &f32| {
                let scaled = if whole { x * inverse } else { x / *scale };
                let place = bounds.iter().filter(|bound| scaled.clamp(-1.0, 1.0) > **bound).count();
                order.get(place).copied().unwrap_or_default()
            };
            for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
                *byte = match pair {
                    [high, low] => code(high) << 4 | code(low),
                    [high] => code(high) << 4 | code(&0.0),
                    _ => 0,
                };
            }
        }
    });
    (codes, scales)
}

/// Eight bits for each scale's distance from their mean.
fn nest(scales: &[f32]) -> ScaleParts {
    let mean = scales.iter().map(|scale| f64::from(*scale)).sum::<f64>() / scales.len().max(1) as f64;
    let (map, offset) = (dynamic_map(), mean as f32);
    let mut codes = Vec::with_capacity(scales.len());
    let mut absmax = Vec::with_capacity(scales.len().div_ceil(NESTED_BLOCK));
    for block in scales.chunks(NESTED_BLOCK) {
        let most = block.iter().fold(0.0_f32, |most, scale| most.max((scale - offset).abs()));
        absmax.push(most);
        // Scales that are all the same have no distance to tell apart.
        let code = |scale: &f32| if most == 0.0 { 0 } else { nearest(&map, (scale - offset) / most) };
        codes.extend(block.iter().map(code));
    }
    ScaleParts::Nested { codes, absmax, map, block: NESTED_BLOCK, offset }
}

/// The place of the nearest value of an ascending map, of the lower one if both are as near.
fn nearest(map: &[f32], value: f32) -> u8 {
    let above = map.partition_point(|entry| *entry <= value).clamp(1, map.len().saturating_sub(1));
    let distance = |at: usize| map.get(at).map_or(f32::INFINITY, |entry| (entry - value).abs());
    let place = if distance(above) < distance(above - 1) { above } else { above - 1 };
    u8::try_from(place).unwrap_or(u8::MAX)
}

fn int8(values: &[f32], d_in: usize) -> (Vec<u8>, ScaleParts) {
    // The library takes weights through 16 bits on the way.
    let half = |x: f32| f16::from_f32(x).to_f32();
    let rows: Vec<(Vec<u8>, f32)> = values
        .par_chunks(d_in.max(1))
        .map(|row| {
            let most = row.iter().fold(0.0_f32, |most, x| most.max(half(*x).abs()));
            let factor = 127.0 * (1.0 / most);
            let code = |x: &f32| ((half(*x) * factor).round_ties_even() as i8).cast_unsigned();
            (row.iter().map(code).collect(), most)
        })
        .collect();
    let scales = rows.iter().map(|(_, scale)| *scale).collect();
    (rows.into_iter().flat_map(|(codes, _)| codes).collect(), ScaleParts::Plain(scales))
}
