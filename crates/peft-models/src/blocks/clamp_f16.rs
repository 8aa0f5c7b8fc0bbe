//! Hidden states of f16 that must not overflow.

use burn::tensor::{DType, Tensor};

/// The largest number of f16 less 1000, as Transformers has it.
const MOST: f64 = 65504.0 - 1000.0;

/// Hidden states whose infinities are the largest numbers of f16, as after the layers of T5 and in the encoder of BART; the same in
/// any other type.
///
/// Transformers looks whether there is an infinity first. Without one nothing but numbers beyond all others would change, and
/// looking would wait for the device.
pub fn clamp_f16<const D: usize>(hidden: Tensor<D>) -> Tensor<D> {
    if hidden.dtype() == DType::F16 { hidden.clamp(-MOST, MOST) } else { hidden }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, FloatDType};

    use super::*;

    #[test]
    fn an_overflow_in_f16_becomes_the_largest_number() {
        let values = Tensor::<1>::from_data([1.5, f32::INFINITY, f32::NEG_INFINITY], &Device::flex());
        let found = clamp_f16(values.clone().cast(FloatDType::F16)).into_data().convert::<f32>();
        assert_eq!(found.try_to_vec::<f32>().ok(), Some(vec![1.5, 64512.0, -64512.0]));
        let single = clamp_f16(values).into_data().try_to_vec::<f32>().ok();
        assert_eq!(single, Some(vec![1.5, f32::INFINITY, f32::NEG_INFINITY]));
    }
}
