//! A frozen matrix in four or eight bits a value, and linear layers on it that keep nothing dense.
//!
//! The numbers are bitsandbytes' own, so that what one wrote the other reads. On the processor products unpack a band of the
//! matrix at a time, in the pass forward and again in the pass back, and gradients of the input are exact; on other devices
//! the matrix is unpacked by plain operations or, on a GPU, by a kernel.

mod codebook;
mod frozen;
mod ggml;
mod q8_0;
mod quantize;
mod reader;

use std::fmt::{self, Debug, Formatter};

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData, module};

pub use codebook::FourBit;
pub(super) use frozen::Frozen;
pub use ggml::GgmlType;
pub use q8_0::quantize_q8_0;
pub use quantize::quantize;
pub(super) use reader::HostPacked;

#[cfg(feature = "gpu")]
use super::cube::{self, primitive};
use super::{
    host,
    linear_cross_entropies::{packed_cross_entropies, packed_cross_entropies_of_each},
    lora_linear::{LowRank, packed_linear},
};
use crate::device::is_host;

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
    /// Blocks of a GGUF file, as they lie in it. [`quantize_q8_0`] makes some.
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

/// A packed matrix on a device.
#[derive(Clone)]
pub struct PackedMatrix {
    dims: [usize; 2],
    packing: Packing,
    block: usize,
    codes: Codes,
    scales: Scales,
    /// What codes of four bits stand for, where a GPU looks them up.
    #[cfg(feature = "gpu")]
    table: Option<Tensor<1>>,
}

#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one for a layer")]
enum Scales {
    Plain(Tensor<1>),
    Nested { codes: Codes, absmax: Tensor<1>, map: Tensor<1>, block: usize, offset: f32 },
}

/// Bytes on a device: as they are on the processor, four in a word elsewhere, for not all kernels can read bytes.
#[derive(Debug, Clone)]
struct Codes {
    tensor: Tensor<1, Int>,
    /// How many there are.
    count: usize,
}

impl Codes {
    fn new(mut bytes: Vec<u8>, device: &Device) -> Self {
        let count = bytes.len();
        let tensor = if is_host(device) {
            Tensor::from_data(TensorData::new(bytes, [count]), (device, DType::U8))
        } else {
            bytes.resize(count.next_multiple_of(4), 0);
            let (words, _) = bytes.as_chunks::<4>();
            let words: Vec<i32> = words.iter().map(|word| i32::from_le_bytes(*word)).collect();
            let length = words.len();
            Tensor::from_data(TensorData::new(words, [length]), (device, DType::I32))
        };
        Self { tensor, count }
    }

    fn bytes(&self) -> Vec<u8> {
        let data = self.tensor.to_data();
        if self.tensor.dtype() == DType::U8 {
            return data.try_into_vec::<u8>().unwrap_or_default();
        }
        let words = data.convert::<i32>().try_into_vec::<i32>().unwrap_or_default();
        words.into_iter().flat_map(i32::to_le_bytes).take(self.count).collect()
    }

    fn to_device(&self, device: &Device) -> Self {
        if is_host(device) == is_host(&self.tensor.device()) {
            return Self { tensor: self.tensor.clone().to_device(device), count: self.count };
        }
        Self::new(self.bytes(), device)
    }
}

impl PackedMatrix {
    /// Puts a packed matrix on a device.
    ///
    /// # Errors
    /// What does not fit, if the parts are not as many as the dimensions ask for.
    pub fn new(parts: PackedParts, device: &Device) -> Result<Self, String> {
        parts.check()?;
        let PackedParts { dims, packing, block, codes, scales } = parts;
        let scales = match scales {
            ScaleParts::Plain(scales) => Scales::Plain(floats(scales, device)),
            ScaleParts::Nested { codes, absmax, map, block, offset } => Scales::Nested {
                codes: Codes::new(codes, device),
                absmax: floats(absmax, device),
                map: floats(map, device),
                block,
                offset,
            },
        };
        Ok(Self {
            dims,
            packing,
            block,
            codes: Codes::new(codes, device),
            scales,
            #[cfg(feature = "gpu")]
            table: table(packing, device),
        })
    }

    /// `[d_in, d_out]`, as Burn has weights.
    pub fn dims(&self) -> [usize; 2] {
        [self.dims[1], self.dims[0]]
    }

    /// How it is packed.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// The memory it takes.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Plain(scales) => 4 * scales.dims()[0],
            Scales::Nested { codes, absmax, map, .. } => codes.count + 4 * (absmax.dims()[0] + map.dims()[0]),
        };
        self.codes.count + scales
    }

    /// Its numbers, as files have them.
    pub fn parts(&self) -> PackedParts {
        let floats = |x: &Tensor<1>| x.to_data().convert::<f32>().try_to_vec::<f32>().unwrap_or_default();
        let scales = match &self.scales {
            Scales::Plain(scales) => ScaleParts::Plain(floats(scales)),
            Scales::Nested { codes, absmax, map, block, offset } => ScaleParts::Nested {
                codes: codes.bytes(),
                absmax: floats(absmax),
                map: floats(map),
                block: *block,
                offset: *offset,
            },
        };
        PackedParts { dims: self.dims, packing: self.packing, block: self.block, codes: self.codes.bytes(), scales }
    }

    /// The same on another device.
    #[must_use]
    pub fn to_device(&self, device: &Device) -> Self {
        let device = &device.clone().inner();
        let scales = match self.scales.clone() {
            Scales::Plain(scales) => Scales::Plain(scales.to_device(device)),
            Scales::Nested { codes, absmax, map, block, offset } => Scales::Nested {
                codes: codes.to_device(device),
                absmax: absmax.to_device(device),
                map: map.to_device(device),
                block,
                offset,
            },
        };
        Self {
            codes: self.codes.to_device(device),
            scales,
            #[cfg(feature = "gpu")]
            table: table(self.packing, device),
            ..self.clone()
        }
    }

    /// The values, `[d_in, d_out]`, in single precision.
    pub fn dense(&self) -> Tensor<2> {
        let [d_out, d_in] = self.dims;
        let Some(packed) = HostPacked::new(self) else { return self.unpacked() };
        let values = host::written(d_out * d_in, |out| frozen::unpack_new(&packed, out));
        let device = &self.codes.tensor.device();
        Tensor::<1>::from_data(TensorData::new(values, [d_out * d_in]), device).reshape([d_out, d_in]).transpose()
    }

    /// [`dense`](Self::dense) by operations that every device has.
    fn unpacked(&self) -> Tensor<2> {
        let [d_out, d_in] = self.dims;
        let (count, device) = (d_out * d_in, &self.codes.tensor.device());
        #[cfg(feature = "gpu")]
        if self.is_on_gpu() {
            return self.dense_as(DType::F32);
        }
        let codes = self.codes.tensor.clone().cast(burn::tensor::IntDType::I32);
        let scales = match &self.scales {
            Scales::Plain(scales) => scales.clone(),
            Scales::Nested { codes, absmax, map, block, offset } => {
                let values = map.clone().select(0, codes.tensor.clone().cast(burn::tensor::IntDType::I32));
                values * spread(absmax.clone(), *block, codes.count) + *offset
            }
        };
        let values = match self.packing {
            Packing::FourBit { codes: kind, .. } => {
                let high = codes.clone().bitwise_right_shift_scalar(4_i32);
                let both: Tensor<2, Int> = Tensor::stack(vec![high, codes.bitwise_and_scalar(15_i32)], 1);
                let table = Tensor::<1>::from_data(TensorData::from(*kind.values()), device);
                let values = table.select(0, both.reshape([2 * count.div_ceil(2)]).narrow(0, 0, count));
                values * spread(scales, self.block, count)
            }
            // Their formats are taken apart on the host.
            Packing::Ggml(kind) => {
                Tensor::from_data(TensorData::new(kind.dequantize(&self.codes.bytes()), [count]), device)
            }
            Packing::Int8 => {
                let signed = codes.clone() - codes.greater_equal_elem(128_i32).int().mul_scalar(256_i32);
                signed.float() * spread(scales, d_in, count) * reader::INT8_STEP
            }
        };
        values.reshape([d_out, d_in]).transpose()
    }

    /// Whether it lies in words as a GPU's kernel takes it.
    #[cfg(feature = "gpu")]
    pub(super) fn is_on_gpu(&self) -> bool {
        let has_kernel = match self.packing {
            Packing::Ggml(kind) => cube::has_kernel(kind),
            Packing::FourBit { .. } | Packing::Int8 => true,
        };
        has_kernel && !is_host(&self.codes.tensor.device())
    }

    /// The values of a matrix that [is on a GPU](Self::is_on_gpu), `[d_in, d_out]`, by its kernel.
    #[cfg(feature = "gpu")]
    pub(super) fn dense_as(&self, dtype: DType) -> Tensor<2> {
        let words = primitive(self.codes.tensor.clone());
        let back = |values| Tensor::from_primitive::<cube::Gpu>(values).transpose();
        if let Packing::Ggml(kind) = self.packing {
            return back(cube::unpack_ggml(words, kind, self.dims, dtype));
        }
        let (scales, nested, of_scales) = match &self.scales {
            Scales::Plain(scales) => (scales.clone(), None, None),
            Scales::Nested { codes, absmax, map, block, offset } => (
                absmax.clone(),
                Some((primitive(codes.tensor.clone()), primitive(map.clone()))),
                Some((*block, *offset)),
            ),
        };
        let (four_bits, block) = match self.packing {
            Packing::FourBit { .. } => (true, self.block),
            Packing::Int8 | Packing::Ggml(_) => (false, self.dims[1]),
        };
        let table = self.table.clone().unwrap_or_else(|| scales.clone());
        let code = cube::Code { dims: self.dims, four_bits, block, step: reader::INT8_STEP, nested: of_scales };
        let packed = cube::Packed { words, table: primitive(table), scales: primitive(scales), nested };
        back(cube::unpack(packed, code, dtype))
    }

    /// `x W + b`; nothing dense is kept for the pass back.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_in]`
    /// - returned: `[tokens, d_out]`
    pub fn linear(&self, x: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        if let Some(y) = packed_linear(&x, self, bias.as_ref(), None) {
            return y;
        }
        let weight = self.dense();
        let weight = if weight.dtype() == x.dtype() { weight } else { weight.cast(FloatDType::from(x.dtype())) };
        module::linear(x, weight, bias)
    }

    /// Rows of what is packed, `[d_out, d_in]`: the matrix as a table of words.
    ///
    /// # Shapes
    /// - `ids`: `[batch, sequence]`
    /// - returned: `[batch, sequence, d_in]`
    pub fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let ([batch, sequence], [d_out, d_in]) = (ids.dims(), self.dims);
        let Some(packed) = HostPacked::new(self) else { return module::embedding(self.unpacked().transpose(), ids) };
        let (device, reader) = (ids.device().inner(), packed.reader());
        let ids = ids.into_data().convert::<i64>().try_into_vec::<i64>().unwrap_or_default();
        let mut rows = vec![0.0; ids.len() * d_in];
        for (row, id) in rows.chunks_mut(d_in.max(1)).zip(&ids) {
            let id = usize::try_from(*id).unwrap_or(usize::MAX);
            assert!(id < d_out, "word {id} of a table of {d_out}");
            reader.read(id * d_in, row);
        }
        Tensor::<1>::from_data(TensorData::new(rows, [ids.len() * d_in]), &device).reshape([batch, sequence, d_in])
    }

    /// [`linear_cross_entropies`](super::linear_cross_entropies) on it; none where that is none.
    pub fn cross_entropies(
        &self,
        hidden: &Tensor<2>,
        targets: &[Option<usize>],
        soft_cap: Option<f64>,
    ) -> Option<Tensor<1>> {
        packed_cross_entropies(hidden, self, targets, soft_cap)
    }

    /// [`linear_cross_entropies_of_each`](super::linear_cross_entropies_of_each) on it; none where that is none.
    pub fn cross_entropies_of_each(
        &self,
        hidden: &Tensor<2>,
        targets: &Tensor<1, Int>,
        soft_cap: Option<f64>,
    ) -> Option<Tensor<1>> {
        packed_cross_entropies_of_each(hidden, self, targets, soft_cap)
    }

    /// [`lora_linear`](super::lora_linear) on it; none where that is none.
    pub fn lora_linear(&self, x: &Tensor<2>, bias: Option<&Tensor<1>>, lora: LowRank) -> Option<Tensor<2>> {
        packed_linear(x, self, bias, Some(lora))
    }
}

impl Debug for PackedMatrix {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedMatrix").field("dims", &self.dims()).field("packing", &self.packing).finish()
    }
}

impl PackedParts {
    /// Blocks of GGML, which have their scales in them.
    pub fn of_blocks(kind: GgmlType, dims: [usize; 2], codes: Vec<u8>) -> Self {
        Self { dims, packing: Packing::Ggml(kind), block: kind.block(), codes, scales: ScaleParts::Plain(Vec::new()) }
    }

    fn check(&self) -> Result<(), String> {
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

#[cfg(feature = "gpu")]
fn table(packing: Packing, device: &Device) -> Option<Tensor<1>> {
    match packing {
        Packing::FourBit { codes, .. } if !is_host(device) => Some(floats(codes.values().to_vec(), device)),
        _ => None,
    }
}

fn floats(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), (device, DType::F32))
}

/// Each of the values for `block` elements, of which there are `count`.
fn spread(values: Tensor<1>, block: usize, count: usize) -> Tensor<1> {
    let blocks = values.dims()[0];
    values.unsqueeze_dim::<2>(1).repeat(&[1, block]).reshape([blocks * block]).narrow(0, 0, count)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use burn::tensor::{Distribution, Tolerance};
    use proptest::prelude::*;

    use super::*;
    use crate::ops::lora_linear;

    const PACKINGS: [Packing; 5] = [
        Packing::FourBit { codes: FourBit::Nf4, nested: false },
        Packing::FourBit { codes: FourBit::Nf4, nested: true },
        Packing::FourBit { codes: FourBit::Fp4, nested: false },
        Packing::FourBit { codes: FourBit::Fp4, nested: true },
        Packing::Int8,
    ];

    fn random(dims: [usize; 2]) -> Tensor<2> {
        Tensor::random(dims, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    fn packed([d_in, d_out]: [usize; 2], packing: Packing) -> PackedMatrix {
        let values = random([d_out, d_in]).into_data().try_into_vec::<f32>().unwrap();
        PackedMatrix::new(quantize(&values, [d_out, d_in], packing).unwrap(), &Device::flex()).unwrap()
    }

    fn close(fast: &TensorData, slow: &TensorData) {
        fast.assert_approx_eq::<f32>(slow, Tolerance::rel_abs(1e-3, 1e-3));
    }

    /// The packed operations against the same on the unpacked weight.
    fn check([tokens, d_in, d_out, rank]: [usize; 4], packing: Packing, biased: bool, adapted: bool) {
        check_matrix(&packed([d_in, d_out], packing), [tokens, d_in, d_out, rank], biased, adapted);
    }

    fn check_matrix(matrix: &PackedMatrix, [tokens, d_in, d_out, rank]: [usize; 4], biased: bool, adapted: bool) {
        let (x, bias, upstream) =
            (random([tokens, d_in]), random([1, d_out]).reshape([d_out]), random([tokens, d_out]));
        let (a, b) = (random([rank, d_in]), random([d_out, rank]));
        let bias = biased.then_some(bias);
        let run = |dense: bool| {
            let leaf = |x: &Tensor<2>| x.clone().autodiff().require_grad();
            let (x, a, b) = (leaf(&x), leaf(&a), leaf(&b));
            let lora = adapted.then(|| LowRank { a: a.clone(), b: b.clone(), scale: 0.5, drop: 0.0 });
            let y = match (dense, lora) {
                (false, None) => matrix.linear(x.clone(), bias.clone()),
                (false, Some(lora)) => matrix.lora_linear(&x, bias.as_ref(), lora).unwrap(),
                (true, None) => module::linear(x.clone(), matrix.unpacked(), bias.clone()),
                (true, Some(lora)) => lora_linear(&x, &matrix.unpacked(), bias.as_ref(), lora).unwrap(),
            };
            let gradients = (y.clone() * upstream.clone()).sum().backward();
            let grads = [x, a, b].map(|x| x.grad(&gradients).map(Tensor::into_data));
            (y.without_autodiff().into_data(), grads)
        };
        let ((fast, fast_grads), (slow, slow_grads)) = (run(false), run(true));
        close(&fast, &slow);
        for (fast, slow) in fast_grads.iter().zip(&slow_grads) {
            assert_eq!(fast.is_some(), slow.is_some());
            fast.iter().zip(slow).for_each(|(fast, slow)| close(fast, slow));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn agrees_with_the_unpacked_weight(
            sizes in [1..300_usize, 1..150_usize, 1..150_usize, 1..10_usize],
            few in 1..20_usize,
            packing in 0..5_usize,
            biased: bool,
            adapted: bool,
        ) {
            let [tokens, d_in, d_out, rank] = sizes;
            let packing = *PACKINGS.get(packing).unwrap();
            check([tokens, d_in, d_out, rank], packing, biased, adapted);
            check([few, d_in, d_out, rank], packing, biased, adapted);
        }

        #[test]
        fn reading_anywhere_gives_the_same_values(
            sizes in [1..40_usize, 1..150_usize],
            packing in 0..5_usize,
            from in 0..200_usize,
            length in 0..300_usize,
        ) {
            let matrix = packed(sizes, *PACKINGS.get(packing).unwrap());
            let host = HostPacked::new(&matrix).unwrap();
            let all = matrix.unpacked().transpose().into_data().try_into_vec::<f32>().unwrap();
            let from = from.min(all.len());
            let length = length.min(all.len() - from);
            let mut part = vec![f32::NAN; length];
            host.reader().read(from, &mut part);
            let whole = all.get(from..from + length).unwrap();
            prop_assert!(part.iter().zip(whole).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()), "{part:?} {whole:?}");
        }
    }

    #[test]
    fn blocks_of_gguf_are_multiplied() {
        for (kind, bytes) in [(GgmlType::Q4_1, 20), (GgmlType::Q8_0, 34)] {
            // Scales of one hundredth, and other bytes as they come.
            let scale = half::f16::from_f32(0.01).to_le_bytes();
            let block = |block: usize| {
                (0..bytes)
                    .map(move |at| if at < 4 && at < bytes - 16 { scale[at % 2] } else { (block * 31 + at * 7) as u8 })
            };
            let [d_out, d_in] = [30, 64];
            let codes: Vec<u8> = (0..d_out * d_in / 32).flat_map(block).collect();
            let parts = PackedParts::of_blocks(kind, [d_out, d_in], codes);
            let matrix = PackedMatrix::new(parts.clone(), &Device::flex()).unwrap();
            check_matrix(&matrix, [40, d_in, d_out, 4], true, true);
            check_matrix(&matrix, [3, d_in, d_out, 4], false, false);
            let host = HostPacked::new(&matrix).unwrap();
            let all = kind.dequantize(&parts.codes);
            let mut part = vec![f32::NAN; 100];
            host.reader().read(77, &mut part);
            assert_eq!(part, all.get(77..177).unwrap());
            assert!(PackedMatrix::new(PackedParts { dims: [60, 32 - 1], ..parts }, &Device::flex()).is_err());
        }
    }

    #[test]
    fn more_than_one_band_is_multiplied() {
        for packing in PACKINGS {
            check([40, 700, 2000, 3], packing, true, true);
        }
    }

    #[test]
    fn packed_again_the_values_stay() {
        for packing in [Packing::FourBit { codes: FourBit::Nf4, nested: false }, Packing::Int8] {
            let matrix = packed([96, 40], packing);
            let values = matrix.dense().transpose().into_data().try_into_vec::<f32>().unwrap();
            let again = quantize(&values, [40, 96], packing).unwrap();
            assert_eq!(again.codes, matrix.parts().codes);
        }
    }

    #[test]
    fn sizes_are_four_and_a_half_bits_and_less() {
        let bits = |packing| packed([512, 1024], packing).bytes() as f64 * 8.0 / (512.0 * 1024.0);
        assert_eq!(PACKINGS.map(|packing| (bits(packing) * 100.0).round()), [450.0, 414.0, 450.0, 414.0, 806.0]);
    }
}
