//! A frozen matrix in four or eight bits a value, in memory of the processor or of a GPU.

#[cfg(feature = "gpu")]
mod gpu;

use std::fmt::{self, Debug, Formatter};

use burn::{
    backend::Flex,
    tensor::{DType, Device, Int, Tensor, TensorData},
};

#[cfg(feature = "gpu")]
use crate::kernels::cube::{self, primitive};
use crate::{
    device::is_host,
    kernels::{
        host,
        quantized::{
            frozen,
            parts::{PackedParts, Packing, ScaleParts},
            reader::{self, HostPacked, HostScales},
        },
    },
};

/// A packed matrix on a device.
#[derive(Clone)]
pub struct PackedMatrix {
    pub(crate) dims: [usize; 2],
    pub(crate) packing: Packing,
    pub(crate) block: usize,
    pub(crate) codes: Codes,
    pub(crate) scales: Scales,
    /// What codes of four bits stand for, where a GPU looks them up.
    #[cfg(feature = "gpu")]
    pub(crate) table: Option<Tensor<1>>,
}

#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one for a layer")]
pub(crate) enum Scales {
    Plain(Tensor<1>),
    Nested { codes: Codes, absmax: Tensor<1>, map: Tensor<1>, block: usize, offset: f32 },
}

/// Bytes on a device: as they are on the processor, four in a word elsewhere, for not all kernels can read bytes.
#[derive(Debug, Clone)]
pub(crate) struct Codes {
    tensor: Tensor<1, Int>,
    /// How many there are.
    count: usize,
}

impl Codes {
    pub(crate) fn new(mut bytes: Vec<u8>, device: &Device) -> Self {
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

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let data = self.tensor.to_data();
        if self.tensor.dtype() == DType::U8 {
            return data.try_into_vec::<u8>().unwrap_or_default();
        }
        let words = data.convert::<i32>().try_into_vec::<i32>().unwrap_or_default();
        words.into_iter().flat_map(i32::to_le_bytes).take(self.count).collect()
    }

    pub(crate) fn to_device(&self, device: &Device) -> Self {
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
    pub(crate) fn unpacked(&self) -> Tensor<2> {
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
    pub(crate) fn is_on_gpu(&self) -> bool {
        let has_kernel = match self.packing {
            Packing::Ggml(kind) => cube::unpack_ggml::has_kernel(kind),
            Packing::FourBit { .. } | Packing::Int8 => true,
        };
        has_kernel && !is_host(&self.codes.tensor.device())
    }

    /// The values of a matrix that [is on a GPU](Self::is_on_gpu), `[d_in, d_out]`, by its kernel.
    #[cfg(feature = "gpu")]
    pub(crate) fn dense_as(&self, dtype: DType) -> Tensor<2> {
        let words = primitive(self.codes.tensor.clone());
        let back = |values| Tensor::from_primitive::<cube::Gpu>(values).transpose();
        if let Packing::Ggml(kind) = self.packing {
            return back(gpu::unpack_ggml(words, kind, self.dims, dtype));
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
        let code = cube::unpack::Code { dims: self.dims, four_bits, block, step: reader::INT8_STEP, nested: of_scales };
        let packed = gpu::Packed { words, table: primitive(table), scales: primitive(scales), nested };
        back(gpu::unpack(packed, code, dtype))
    }
}

impl Debug for PackedMatrix {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedMatrix").field("dims", &self.dims()).field("packing", &self.packing).finish()
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

impl HostPacked {
    /// None for a matrix on another device.
    pub(crate) fn new(matrix: &PackedMatrix) -> Option<Self> {
        let int = |x: &Codes| x.tensor.clone().try_into_primitive::<Flex>().ok();
        let float = |x: &Tensor<1>| x.clone().try_into_primitive::<Flex>().ok();
        let scales = match &matrix.scales {
            Scales::Plain(scales) => HostScales::Plain(float(scales)?),
            Scales::Nested { codes, absmax, map, block, offset } => HostScales::Nested {
                codes: int(codes)?,
                absmax: float(absmax)?,
                map: float(map)?,
                block: *block,
                offset: *offset,
            },
        };
        let PackedMatrix { dims, packing, block, ref codes, .. } = *matrix;
        Some(Self { dims, packing, block, codes: int(codes)?, scales })
    }
}
