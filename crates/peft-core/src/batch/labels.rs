//! The labels of a batch, from which a task computes its loss.

use std::collections::BTreeMap;

use burn::tensor::TensorData;

use crate::{Error, Result};

/// The label value that no loss counts, as in Transformers.
pub const IGNORE: i64 = -100;

/// The right answers of a batch, on the host, by the names that Transformers uses (`labels`, `start_positions`, …).
#[derive(Debug, Clone, Default)]
pub struct Labels(pub BTreeMap<String, TensorData>);

impl Labels {
    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::Data`] with the names that are there.
    pub fn get(&self, name: &str) -> Result<&TensorData> {
        self.0.get(name).ok_or_else(|| {
            let there: Vec<_> = self.0.keys().map(String::as_str).collect();
            Error::Data(format!("the batch has no `{name}` (it has: {})", there.join(", ")))
        })
    }

    /// Whether there are no labels.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The labels of some of the rows of a batch.
    ///
    /// # Errors
    /// [`Error::Data`] if they are not one entry a row, or cannot be read.
    pub fn rows(&self, rows: &[usize], batch: usize) -> Result<Self> {
        let of = |(name, data): (&String, &TensorData)| {
            let mut shape = data.shape().as_slice().to_vec();
            let wrong =
                || Error::Data(format!("`{name}` is {shape:?}: labels of a batch of {batch} rows begin with the rows"));
            if shape.first() != Some(&batch) {
                return Err(wrong());
            }
            let width = shape.iter().skip(1).product::<usize>() * data.dtype().size();
            let bytes = data.as_bytes();
            let row = |row: &usize| bytes.get(row * width..(row + 1) * width);
            let taken = rows.iter().map(row).collect::<Option<Vec<_>>>().ok_or_else(wrong)?.concat();
            shape[0] = rows.len();
            Ok((name.clone(), TensorData::from_bytes_vec(taken, shape, data.dtype())))
        };
        self.0.iter().map(of).collect::<Result<_>>().map(Self)
    }

    /// The integer labels of that name, flattened.
    ///
    /// # Errors
    /// [`Error::Data`] if they are absent or not integers.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let data = self.get(name)?;
        if data.dtype().is_float() {
            return Err(Error::Data(format!("`{name}` holds floats where whole numbers are needed")));
        }
        data.clone().convert::<i64>().try_to_vec::<i64>().map_err(|e| Error::Data(format!("`{name}`: {e:?}")))
    }

    /// The labels of that name as floats, flattened.
    ///
    /// # Errors
    /// [`Error::Data`] if they are absent.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let data = self.get(name)?;
        data.clone().convert::<f32>().try_to_vec::<f32>().map_err(|e| Error::Data(format!("`{name}`: {e:?}")))
    }
}
