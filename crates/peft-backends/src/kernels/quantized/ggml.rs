//! The block formats of GGML, dequantised: a block's scale and minimum, and a few bits a value.
//!
//! Formats: `ggml-common.h` and `ggml-quants.c` of <https://github.com/ggml-org/ggml>. All numbers are little-endian.

use half::f16;
use rayon::prelude::*;

/// How the values of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "their names say all that there is to say")]
pub enum GgmlType {
    F32,
    F16,
    Bf16,
    F64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// A type's number in files, its name, the values of a block and its bytes.
const TYPES: &[(u32, GgmlType, &str, usize, usize)] = &[
    (0, GgmlType::F32, "F32", 1, 4),
    (1, GgmlType::F16, "F16", 1, 2),
    (2, GgmlType::Q4_0, "Q4_0", 32, 18),
    (3, GgmlType::Q4_1, "Q4_1", 32, 20),
    (6, GgmlType::Q5_0, "Q5_0", 32, 22),
    (7, GgmlType::Q5_1, "Q5_1", 32, 24),
    (8, GgmlType::Q8_0, "Q8_0", 32, 34),
    (10, GgmlType::Q2K, "Q2_K", 256, 84),
    (11, GgmlType::Q3K, "Q3_K", 256, 110),
    (12, GgmlType::Q4K, "Q4_K", 256, 144),
    (13, GgmlType::Q5K, "Q5_K", 256, 176),
    (14, GgmlType::Q6K, "Q6_K", 256, 210),
    (28, GgmlType::F64, "F64", 1, 8),
    (30, GgmlType::Bf16, "BF16", 1, 2),
];

/// Blocks that one thread does at a time.
const RUN: usize = 256;

impl GgmlType {
    /// The type of that number.
    ///
    /// # Errors
    /// What is supported, for one that is not.
    pub fn from_id(id: u32) -> Result<Self, String> {
        let known = TYPES.iter().find(|(known, ..)| *known == id).map(|(_, kind, ..)| *kind);
        known.ok_or_else(|| {
            let names: Vec<_> = TYPES.iter().map(|(_, _, name, ..)| *name).collect();
            format!("type {id} is not supported (supported: {})", names.join(", "))
        })
    }

    pub(crate) fn entry(self) -> (&'static str, usize, usize) {
        let entry = TYPES.iter().find(|(_, kind, ..)| *kind == self);
        entry.map_or(("", 1, 1), |(_, _, name, values, bytes)| (name, *values, *bytes))
    }

    /// Its name.
    pub fn label(self) -> &'static str {
        self.entry().0
    }

    /// The values of a block.
    pub fn block(self) -> usize {
        self.entry().1
    }

    /// The bytes of so many values, which are whole blocks.
    pub fn bytes(self, values: usize) -> Option<usize> {
        let (_, block, bytes) = self.entry();
        (values / block).checked_mul(bytes)
    }

    /// The values of whole blocks, on all threads.
    pub fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        let (_, block, size) = self.entry();
        let run = RUN.max(4096 / block);
        let mut values = vec![0.0; bytes.len() / size * block];
        values
            .par_chunks_mut(block * run)
            .zip(bytes.par_chunks(size * run))
            .for_each(|(values, bytes)| self.read(bytes, values));
        values
    }

    /// Writes the values of whole blocks.
    #[inline(always)]
    pub(crate) fn read(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Self::F32 => blocks::<4, 1>(bytes, values, |b, y| y[0] = f32::from_le_bytes(*b)),
            Self::F16 => blocks::<2, 1>(bytes, values, |b, y| y[0] = half(*b)),
            Self::Bf16 => blocks::<2, 1>(bytes, values, |b, y| {
                y[0] = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }),
            Self::F64 => blocks::<8, 1>(bytes, values, |b, y| y[0] = f64::from_le_bytes(*b) as f32),
            Self::Q4_0 => blocks(bytes, values, q4_0),
            Self::Q4_1 => blocks(bytes, values, q4_1),
            Self::Q5_0 => blocks(bytes, values, q5_0),
            Self::Q5_1 => blocks(bytes, values, q5_1),
            Self::Q8_0 => blocks(bytes, values, q8_0),
            Self::Q2K => blocks(bytes, values, q2_k),
            Self::Q3K => blocks(bytes, values, q3_k),
            Self::Q4K => blocks(bytes, values, q4_k),
            Self::Q5K => blocks(bytes, values, q5_k),
            Self::Q6K => blocks(bytes, values, q6_k),
        }
    }
}

#[inline(always)]
fn blocks<const B: usize, const N: usize>(bytes: &[u8], values: &mut [f32], block: impl Fn(&[u8; B], &mut [f32; N])) {
    for (values, bytes) in values.as_chunks_mut::<N>().0.iter_mut().zip(bytes.as_chunks::<B>().0) {
        block(bytes, values);
    }
}

#[inline(always)]
fn half(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

#[inline(always)]
fn signed(byte: u8) -> f32 {
    f32::from(byte.cast_signed())
}

/// Two values a byte: the low halves come first.
#[inline(always)]
fn nibbles(bytes: &[u8], mut value: impl FnMut(usize, u8)) {
    for (at, byte) in bytes.iter().enumerate() {
        value(at, byte & 15);
        value(at + bytes.len(), byte >> 4);
    }
}

#[inline(always)]
fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = half([b[0], b[1]]);
    nibbles(&b[2..], |at, q| y[at] = (f32::from(q) - 8.0) * d);
}

#[inline(always)]
fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half([b[0], b[1]]), half([b[2], b[3]]));
    nibbles(&b[4..], |at, q| y[at] = f32::from(q) * d + m);
}

#[inline(always)]
fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let d = half([b[0], b[1]]);
    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    nibbles(&b[6..], |at, q| y[at] = (f32::from(q) + ((high >> at) & 1) as f32 * 16.0 - 16.0) * d);
}

#[inline(always)]
fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (half([b[0], b[1]]), half([b[2], b[3]]));
    let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    nibbles(&b[8..], |at, q| y[at] = (f32::from(q) + ((high >> at) & 1) as f32 * 16.0) * d + m);
}

#[inline(always)]
fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = half([b[0], b[1]]);
    for (y, q) in y.iter_mut().zip(&b[2..]) {
        *y = signed(*q) * d;
    }
}

fn q2_k(b: &[u8; 84], y: &mut [f32; 256]) {
    let (scales, quants) = (&b[..16], &b[16..80]);
    let (d, least) = (half([b[80], b[81]]), half([b[82], b[83]]));
    // Runs of 16 values: four pairs of runs share the bits of 32 bytes.
    for (run, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = scales[run];
        let (d, m) = (d * f32::from(scale & 15), least * f32::from(scale >> 4));
        let (half, shift, side) = (run / 8, run % 8 / 2 * 2, run % 2);
        for (y, q) in y.iter_mut().zip(&quants[half * 32 + side * 16..]) {
            *y = d * f32::from((q >> shift) & 3) - m;
        }
    }
}

fn q3_k(b: &[u8; 110], y: &mut [f32; 256]) {
    let (mask, quants, packed) = (&b[..32], &b[32..96], &b[96..108]);
    let d = half([b[108], b[109]]);
    for (run, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // A scale of six bits: four in a half byte of the first eight, two in one of the last four.
        let low = if run < 8 { packed[run] & 15 } else { packed[run - 8] >> 4 };
        let high = (packed[8 + run % 4] >> (run / 4 * 2)) & 3;
        let d = d * (f32::from(low | high << 4) - 32.0);
        let (half, pair, side) = (run / 8, run % 8 / 2, run % 2);
        let (quants, mask) = (&quants[half * 32 + side * 16..], &mask[side * 16..]);
        for ((y, q), m) in y.iter_mut().zip(quants).zip(mask) {
            let less = if m >> (half * 4 + pair) & 1 == 1 { 0.0 } else { 4.0 };
            *y = d * (f32::from((q >> (pair * 2)) & 3) - less);
        }
    }
}

/// Scale and minimum of a run of 32 values, six bits each, in twelve bytes.
fn scale_and_minimum(packed: &[u8], run: usize) -> (f32, f32) {
    let (scale, minimum) = if run < 4 {
        (packed[run] & 63, packed[run + 4] & 63)
    } else {
        let low = packed[run + 4];
        ((low & 15) | (packed[run - 4] >> 6) << 4, (low >> 4) | (packed[run] >> 6) << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, least) = (half([b[0], b[1]]), half([b[2], b[3]]));
    let (scales, quants) = (&b[4..16], &b[16..]);
    for (run, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, run);
        let (d, m) = (d * scale, least * minimum);
        for (y, q) in y.iter_mut().zip(&quants[run / 2 * 32..]) {
            *y = d * f32::from((q >> (run % 2 * 4)) & 15) - m;
        }
    }
}

fn q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (d, least) = (half([b[0], b[1]]), half([b[2], b[3]]));
    let (scales, high, quants) = (&b[4..16], &b[16..48], &b[48..]);
    for (run, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, run);
        let (d, m) = (d * scale, least * minimum);
        for ((y, q), h) in y.iter_mut().zip(&quants[run / 2 * 32..]).zip(high) {
            *y = d * f32::from((q >> (run % 2 * 4)) & 15 | (h >> run & 1) << 4) - m;
        }
    }
}

fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    let (low, high, scales) = (&b[..128], &b[128..192], &b[192..208]);
    let d = half([b[208], b[209]]);
    for (run, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, part) = (run / 4, run % 4);
        let (low, high) = (&low[half * 64 + part % 2 * 32..], &high[half * 32..]);
        for (at, ((y, l), h)) in y.iter_mut().zip(low).zip(high).enumerate() {
            let q = (l >> (part / 2 * 4)) & 15 | ((h >> (part * 2)) & 3) << 4;
            *y = d * signed(scales[half * 8 + part * 2 + at / 16]) * (f32::from(q) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_whole() {
        for (id, kind, _, values, bytes) in TYPES {
            assert_eq!(GgmlType::from_id(*id), Ok(*kind));
            assert_eq!(kind.dequantize(&vec![0; *bytes]).len(), *values);
            assert_eq!(kind.bytes(values * 3), Some(bytes * 3));
        }
        assert!(GgmlType::from_id(16).unwrap_err().contains("Q6_K"));
    }
}
