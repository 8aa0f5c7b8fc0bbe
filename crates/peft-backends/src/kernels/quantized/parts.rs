//! The parts of a quantized matrix, as files have them: codes and scales.

use std::fmt::Debug;

use crate::kernels::quantized::{codebook::FourBit, ggml::GgmlType};

/// How a matrix is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Codes of four bits, a scale for each 64 of them: `load_in_4bit`.
    FourBit {
        /// Which.
        codes: FourBit,
        /// Whether the scales are codes themselves, of eight bits: `bnb_4bit_use_double_quant`.
        nested: bool,
    },
    /// Integers of eight bits, a scale for each output: `load_in_8bit`.
    Int8,
    /// Blocks of a GGUF file, as they lie in it. `quantize_q8_0` makes some.
    Ggml(GgmlType),
}

/// A packed matrix's numbers, as they are in files.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedParts {
    /// `[d_out, d_in]`: what is packed is the transpose of Burn's weight, row by row.
    pub dims: [usize; 2],
    /// How they are packed.
    pub packing: Packing,
    /// Values that share a scale, of codes of four bits.
    pub block: usize,
    /// Two codes a byte, the first in its high half; or one.
    pub codes: Vec<u8>,
    /// What codes are multiplied with.
    pub scales: ScaleParts,
}

/// The scales of a packed matrix.
#[derive(Debug, Clone, PartialEq)]
pub enum ScaleParts {
    /// One a block of codes of four bits, or one a row of codes of eight: there the largest absolute value.
    Plain(Vec<f32>),
    /// `map[code] · absmax + offset`.
    Nested {
        /// One a block.
        codes: Vec<u8>,
        /// One for each `block` of codes.
        absmax: Vec<f32>,
        /// 256 values.
        map: Vec<f32>,
        /// Codes that share an `absmax`.
        block: usize,
        /// What is added to all.
        offset: f32,
    },
}

impl PackedParts {
    /// Blocks of GGML, which have their scales in them.
    pub fn of_blocks(kind: GgmlType, dims: [usize; 2], codes: Vec<u8>) -> Self {
        Self { dims, packing: Packing::Ggml(kind), block: kind.block(), codes, scales: ScaleParts::Plain(Vec::new()) }
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let count = self.dims.iter().try_fold(1_usize, |count, side| count.checked_mul(*side));
        let count = count.ok_or_else(|| format!("a matrix of {:?} has too many values", self.dims))?;
        let (codes, scales) = match self.packing {
            Packing::FourBit { .. } if self.block == 0 || self.block % 2 == 1 => {
                return Err(format!("blocks of {} values are not supported", self.block));
            }
            Packing::FourBit { .. } => (count.div_ceil(2), count.div_ceil(self.block)),
            Packing::Int8 => (count, self.dims[0]),
            Packing::Ggml(kind) if !self.dims[1].is_multiple_of(kind.block()) => {
                return Err(format!("rows of {} values are no whole blocks of {}", self.dims[1], kind.label()));
            }
            Packing::Ggml(kind) => (kind.bytes(count).unwrap_or_default(), 0),
        };
        let wrong = |what: &str, found: usize, needed: usize| {
            Err(format!("has {found} {what}, a matrix of {:?} needs {needed}", self.dims))
        };
        if self.codes.len() != codes {
            return wrong("bytes", self.codes.len(), codes);
        }
        let (found, nested) = match &self.scales {
            ScaleParts::Plain(scales) => (scales.len(), None),
            ScaleParts::Nested { codes, absmax, map, block, .. } => (codes.len(), Some((absmax, map, *block))),
        };
        if found != scales {
            return wrong("scales", found, scales);
        }
        match nested {
            Some((_, map, _)) if map.len() != 256 => wrong("values in the map of its scales", map.len(), 256),
            Some((absmax, _, block)) if block == 0 || absmax.len() != scales.div_ceil(block) => {
                wrong("scales of scales", absmax.len(), scales.div_ceil(block.max(1)))
            }
            _ => Ok(()),
        }
    }
}
