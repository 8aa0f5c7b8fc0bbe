//! Whether values are numbers, neither NaN nor an infinity: of anything else no answer, metric or weight is made.

use std::collections::BTreeMap;

use burn::tensor::{DType, TensorData};

use crate::{Error, Result};

/// Whether values that a model gave are numbers.
///
/// # Errors
/// [`Error::NotFiniteOutput`] if one is NaN or an infinity.
pub fn check_finite(values: &[f32], name: &str) -> Result<()> {
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(Error::NotFiniteOutput { output: name.to_owned() }),
    }
}

/// Whether all values of a tensor are numbers in single precision; whole numbers always are.
pub fn is_finite(data: &TensorData) -> bool {
    match data.dtype() {
        DType::F32 => data.as_slice::<f32>().is_ok_and(|values| values.iter().all(|value| value.is_finite())),
        dtype => !dtype.is_float() || data.iter::<f32>().all(f32::is_finite),
    }
}

/// The name of the first tensor that holds NaN or an infinity.
pub fn first_not_finite(tensors: &BTreeMap<String, TensorData>) -> Option<&str> {
    tensors.iter().find(|(_, data)| !is_finite(data)).map(|(name, _)| name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_no_number_is_found_in_every_float_type() {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            for (value, finite) in [(1.0_f32, true), (f32::NAN, false), (f32::NEG_INFINITY, false)] {
                let data = TensorData::new(vec![0.5, value], [2]).convert_dtype(dtype);
                assert_eq!(is_finite(&data), finite, "{value} {dtype:?}");
            }
        }
        assert!(is_finite(&TensorData::from([i64::MAX, -1])));
        let tensors = ["a", "b"].map(|name| (name.to_owned(), TensorData::from([f32::NAN])));
        assert_eq!(first_not_finite(&BTreeMap::from(tensors)), Some("a"));
    }
}
