//! Whether values are finite, at the cost of one visit, where they can be looked at without waiting for a device.

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::kernels::host::{self, Host, PIECE, half_precision::widened, lanes, vectorised};

/// Whether no value of a tensor on the processor is NaN or an infinity; true of a tensor on another device, which is not looked at.
pub fn is_finite_on_host<const D: usize>(x: &Tensor<D>) -> bool {
    if x.is_autodiff() || !matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16) {
        return true;
    }
    match x.clone().try_into_primitive::<burn::backend::Flex>() {
        Ok(values) => is_finite(&widened(&values)),
        Err(_) => true,
    }
}

fn is_finite(x: &Host) -> bool {
    // A view's order does not matter, but what else is in its memory does.
    let fills = x.layout().num_elements() * size_of::<f32>() == x.bytes().len();
    let copy = (!fills).then(|| host::whole(x.clone()));
    let values = host::values(copy.as_ref().unwrap_or(x));
    let sum = |piece: &[f32]| {
        vectorised(
            #[inline(always)]
            // Zero times what is not finite is NaN.
            || lanes(piece, 0.0, |a, x| x.mul_add(0.0, a)),
        )
    };
    let sum = if values.len() < 4 * PIECE { sum(values) } else { values.par_chunks(PIECE).map(sum).sum() };
    sum == 0.0
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, FloatDType};

    use super::*;

    #[test]
    fn a_value_that_is_not_finite_is_found_wherever_it_stands() {
        let device = Device::flex();
        for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
            for length in [1, 15, 16, 33, 5 * PIECE + 3] {
                let x = Tensor::<1>::ones([length], &device).cast(dtype);
                assert!(is_finite_on_host(&x), "{length} {dtype:?}");
                for (at, value) in [(0, f32::NAN), (length / 2, f32::INFINITY), (length - 1, f32::NEG_INFINITY)] {
                    let one = Tensor::<1>::full([1], value, &device).cast(dtype);
                    let x = x.clone().slice_assign(at..at + 1, one);
                    assert!(!is_finite_on_host(&x), "{value} at {at} of {length} {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn of_a_view_only_its_own_values_count() {
        let x = Tensor::<2>::from_data([[1.0, f32::NAN], [2.0, 3.0]], &Device::flex());
        assert!(is_finite_on_host(&x.clone().slice([1..2, 0..2])) && !is_finite_on_host(&x.swap_dims(0, 1)));
    }
}
