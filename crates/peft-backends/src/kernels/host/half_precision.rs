//! Half precision as a form to keep numbers in: operations compute in single precision and round once, at their end.

use burn::tensor::{DType, Tensor, TensorData};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::few_rows::Wide;
use crate::kernels::host::{self, Host, PIECE, part, vectorised};

/// Whether elements of this type are half as wide as those that are computed with.
pub(crate) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// The tensor in this type. Where a backend's own operations mix no types, what is kept in another is cast where it is used.
pub(crate) fn of_type<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}

/// The tensor in single precision, laid out as it was.
pub(crate) fn widened(tensor: &Host) -> Host {
    if !is_half(tensor.dtype()) {
        return tensor.clone();
    }
    let fills = tensor.layout().num_elements() * size_of::<u16>() == tensor.bytes().len();
    let tensor = if fills { tensor.clone() } else { tensor.to_contiguous() };
    let count = tensor.layout().num_elements();
    let wide = host::written(count, |wide| match tensor.dtype() {
        DType::BF16 => {
            let source = tensor.storage::<bf16>();
            host::new_pieces(
                wide,
                1,
                #[inline(always)]
                |start, wide| {
                    let source = source.get(start..start + wide.len()).unwrap_or_default();
                    for (wide, x) in wide.iter_mut().zip(source) {
                        *wide = x.wide();
                    }
                },
            )
        }
        _ => {
            let source = tensor.storage::<f16>();
            host::new_pieces(wide, 1, |start, wide| {
                source.get(start..start + wide.len()).unwrap_or_default().convert_to_f32_slice(wide);
            })
        }
    });
    host::tensor(wide, &[count]).with_layout(tensor.layout().clone())
}

/// The tensor rounded to this type; as it is where that is single precision.
pub(crate) fn narrowed(tensor: Host, dtype: DType) -> Host {
    if !is_half(dtype) || tensor.dtype() != DType::F32 {
        return tensor;
    }
    let fills = tensor.layout().num_elements() * size_of::<f32>() == tensor.bytes().len();
    let tensor = if fills { tensor } else { tensor.to_contiguous() };
    let source = host::values(&tensor);
    let count = source.len();
    let data = match dtype {
        DType::BF16 => {
            let mut narrow = vec![bf16::ZERO; count];
            narrow.par_chunks_mut(PIECE).enumerate().for_each(|(index, narrow)| {
                vectorised(
                    #[inline(always)]
                    || {
                        let source = part(source, index * PIECE, narrow.len());
                        for (narrow, x) in narrow.iter_mut().zip(source) {
                            *narrow = bf16::from_bits(rounded(*x));
                        }
                    },
                );
            });
            TensorData::new(narrow, [count])
        }
        _ => {
            let mut narrow = vec![f16::ZERO; count];
            narrow.par_chunks_mut(PIECE).zip(source.par_chunks(PIECE)).for_each(|(narrow, source)| {
                narrow.convert_from_f32_slice(source);
            });
            TensorData::new(narrow, [count])
        }
    };
    Host::from_data(data).with_layout(tensor.layout().clone())
}

/// The upper half of a float's bits, rounded to nearest, ties to even.
#[inline(always)]
fn rounded(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // Rounding could carry a NaN over to infinity.
    let quiet = bits >> 16 | 0x40;
    (if x.is_nan() { quiet } else { nearest }) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rounding_is_that_of_half(bits: u32) {
            let x = f32::from_bits(bits);
            prop_assert_eq!(rounded(x), bf16::from_f32(x).to_bits());
        }
    }

    #[test]
    fn a_transposed_tensor_stays_transposed() {
        for dtype in [DType::BF16, DType::F16] {
            let values: Vec<f32> = (0..12).map(|x| x as f32 - 3.5).collect();
            let tensor = host::tensor(values, &[3, 4]).permute(&[1, 0]);
            let there = narrowed(tensor.clone(), dtype);
            assert_eq!(there.dtype(), dtype);
            let back = widened(&there);
            assert_eq!(back.layout(), tensor.layout());
            assert_eq!(host::values(&back), host::values(&tensor));
        }
    }
}
