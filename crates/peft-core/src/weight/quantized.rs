//! Quantized weights: what a model knows of a matrix that is not in memory in full precision.
//!
//! The module has a [`placeholder`] for the weight, of its shape and without memory; [`attach`](crate::model::attach::attach)
//! attaches the quantized weight to it. The value of the parameter is the dequantized weight, and layers that are
//! [adapted](crate::adapted_linear) compute with it as it is.

use std::{any::Any, collections::BTreeMap, fmt::Debug, sync::Arc};

use burn::{
    module::{Param, ParamId},
    tensor::{DType, Device, Int, Tensor, TensorData, module},
};

use crate::{DynParam, DynTensor};

/// A frozen linear layer's weight, or token embeddings, in 8 bits a value or fewer.
pub trait QuantizedWeight: Debug + Send + Sync {
    /// The values in single precision, as large as the layer: `[d_in, d_out]`, of token embeddings `[vocabulary, dimensions]`.
    fn dense(&self) -> Tensor<2>;

    /// `[d_in, d_out]`.
    fn dims(&self) -> [usize; 2];

    /// `x W + b`, which keeps no dense weight for the backward pass.
    ///
    /// # Shapes
    /// - `input`: `[tokens, d_in]`
    /// - returned: `[tokens, d_out]`
    fn linear(&self, input: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2>;

    /// Looks up token embeddings.
    ///
    /// # Shapes
    /// - `ids`: `[batch, sequence]`
    /// - returned: `[batch, sequence, dimensions]`
    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        module::embedding(self.dense(), ids)
    }

    /// The data type: `nf4`, `Q8_0`.
    fn kind(&self) -> &str;

    /// The memory it takes, in bytes.
    fn bytes(&self) -> usize;

    /// Quantizes other values `[d_in, d_out]` to the same data type, with rounding; none where that is not supported.
    fn requantized(&self, values: Tensor<2>) -> Option<Arc<dyn QuantizedWeight>>;

    /// Its tensors in a checkpoint, by name; empty if checkpoints cannot hold it. `parameter` is the name of the dense weight.
    fn stored(&self, parameter: &str) -> Vec<(String, TensorData)>;

    /// The weight on another device.
    fn to_device(&self, device: &Device) -> Arc<dyn QuantizedWeight>;

    /// The concrete type, for a backend's fused operations.
    fn as_any(&self) -> &dyn Any;
}

/// The quantized weights of a model by the names of their parameters.
#[derive(Debug, Clone, Default)]
pub struct QuantizedWeights(Arc<BTreeMap<String, Arc<dyn QuantizedWeight>>>);

impl QuantizedWeights {
    /// The parameter's weight, if it is quantized.
    pub fn get(&self, parameter: &str) -> Option<&Arc<dyn QuantizedWeight>> {
        self.0.get(parameter)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and weights in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn QuantizedWeight>)> {
        self.0.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    /// The memory of all of them, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.values().map(|weight| weight.bytes()).sum()
    }
}

impl FromIterator<(String, Arc<dyn QuantizedWeight>)> for QuantizedWeights {
    fn from_iter<I: IntoIterator<Item = (String, Arc<dyn QuantizedWeight>)>>(weights: I) -> Self {
        Self(Arc::new(weights.into_iter().collect()))
    }
}

/// A parameter of a shape without memory: one NaN, expanded.
///
/// Code that reads the placeholder instead of the quantized weight computes NaN rather than something plausible.
pub fn placeholder(id: ParamId, shape: [usize; 2], dtype: DType, device: &Device) -> Param<Tensor<2>> {
    let nothing = Tensor::<2>::from_data(TensorData::new(vec![f32::NAN], [1, 1]).convert_dtype(dtype), (device, dtype));
    Param::initialized(id, nothing.expand(shape))
}

/// The value of a parameter of the base model, dequantized if it is quantized.
pub fn base_value(param: &DynParam, quantized: Option<&Arc<dyn QuantizedWeight>>) -> DynTensor {
    let value = param.tensor().without_autodiff();
    match (quantized, &value) {
        (Some(quantized), DynTensor::R2(placeholder)) => DynTensor::R2(quantized.dense()).cast(placeholder.dtype()),
        _ => value,
    }
}
