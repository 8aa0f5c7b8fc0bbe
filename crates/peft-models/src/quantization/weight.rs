//! A linear layer's weight in four or eight bits.

use std::{any::Any, sync::Arc};

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_backends::ops::{PackedMatrix, PackedParts, Packing, quantize};
use peft_core::QuantizedWeight;

use super::stored;

/// A packed matrix as a model's weight.
#[derive(Debug, Clone)]
pub struct QuantizedMatrix {
    matrix: PackedMatrix,
    /// Whether it is a table, whose rows are looked up, and not the weight of a layer.
    is_table: bool,
    /// The type that it had before, as PyTorch names it.
    dtype: String,
}

impl QuantizedMatrix {
    /// Puts a packed weight on a device; `dtype` is the type that it had before.
    ///
    /// # Errors
    /// What does not fit, of parts from a file.
    pub fn new(parts: PackedParts, dtype: &str, device: &Device) -> Result<Self, String> {
        let matrix = PackedMatrix::new(parts, &device.clone().inner())?;
        Ok(Self { matrix, is_table: false, dtype: dtype.to_owned() })
    }

    /// The same numbers as a table of words, which an output layer may be tied to.
    #[must_use]
    pub fn as_table(&self) -> Self {
        Self { is_table: true, ..self.clone() }
    }

    /// The matrix.
    pub fn matrix(&self) -> &PackedMatrix {
        &self.matrix
    }
}

impl QuantizedWeight for QuantizedMatrix {
    fn dense(&self) -> Tensor<2> {
        if self.is_table { self.matrix.dense().transpose() } else { self.matrix.dense() }
    }

    fn dims(&self) -> [usize; 2] {
        self.matrix.dims()
    }

    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.matrix.embed(ids)
    }

    fn linear(&self, input: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        self.matrix.linear(input, bias)
    }

    fn kind(&self) -> &str {
        match self.matrix.packing() {
            Packing::FourBit { codes, .. } => codes.name(),
            Packing::Int8 => "int8",
            Packing::Ggml(kind) => kind.label(),
        }
    }

    fn bytes(&self) -> usize {
        self.matrix.bytes()
    }

    fn requantized(&self, values: Tensor<2>) -> Option<Arc<dyn QuantizedWeight>> {
        let [d_in, d_out] = self.matrix.dims();
        let device = values.device().inner();
        let values = values.without_autodiff();
        let values = if self.is_table { values } else { values.transpose() }.into_data().convert::<f32>();
        let values = values.try_to_vec::<f32>().unwrap_or_default();
        let parts = quantize(&values, [d_out, d_in], self.matrix.packing())?;
        let matrix = PackedMatrix::new(parts, &device).ok()?;
        Some(Arc::new(Self { matrix, ..self.clone() }))
    }

    fn stored(&self, parameter: &str) -> Vec<(String, TensorData)> {
        stored::tensors(parameter, self.matrix.parts(), &self.dtype)
    }

    fn to_device(&self, device: &Device) -> Arc<dyn QuantizedWeight> {
        Arc::new(Self { matrix: self.matrix.to_device(device), ..self.clone() })
    }

    fn as_any(&self) -> &dyn Any {
        &self.matrix
    }
}
