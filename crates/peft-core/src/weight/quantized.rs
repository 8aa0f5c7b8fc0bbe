//! Weights that are kept quantized: what a model knows of a matrix whose values are nowhere in memory.
//!
//! In the module a [`placeholder`] stands in the weight's place, with its shape and no memory; [`attach`](crate::model::attach::attach)
//! hangs the quantized weight on it. Whoever asks the parameter for its value gets it dequantized, and layers that are
//! [adapted](crate::adapted_linear) compute with it as it is.

use std::{any::Any, collections::BTreeMap, fmt::Debug, sync::Arc};

use burn::{
    module::{Param, ParamId},
    tensor::{DType, Device, Int, Tensor, TensorData, module},
};

use crate::{DynParam, DynTensor};

/// A frozen linear layer's weight, or a table of words, in fewer bits than its values need.
pub trait QuantizedWeight: Debug + Send + Sync {
    /// The values in single precision, as large as the layer: `[d_in, d_out]`, a table's `[words, dimensions]`.
    fn dense(&self) -> Tensor<2>;

    /// `[d_in, d_out]`.
    fn dims(&self) -> [usize; 2];

    /// `x W + b`, of which nothing dense is kept for the pass back.
    ///
    /// # Shapes
    /// - `input`: `[tokens, d_in]`
    /// - returned: `[tokens, d_out]`
    fn linear(&self, input: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2>;

    /// Rows of a table of words, for one that is.
    ///
    /// # Shapes
    /// - `ids`: `[batch, sequence]`
    /// - returned: `[batch, sequence, dimensions]`
    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        module::embedding(self.dense(), ids)
    }

    /// How it is quantized: `nf4`.
    fn kind(&self) -> &str;

    /// The memory it takes.
    fn bytes(&self) -> usize;

    /// Other values quantized in the same way, `[d_in, d_out]`, which changes them; none where values cannot be quantized so.
    fn requantized(&self, values: Tensor<2>) -> Option<Arc<dyn QuantizedWeight>>;

    /// What checkpoints hold of it, by name; nothing if they cannot. `parameter` is the name of the dense weight.
    fn stored(&self, parameter: &str) -> Vec<(String, TensorData)>;

    /// The same on another device.
    fn to_device(&self, device: &Device) -> Arc<dyn QuantizedWeight>;

    /// What a backend's operations know it as: for tuners that have an operation of their own.
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

    /// The memory of all of them.
    pub fn bytes(&self) -> usize {
        self.0.values().map(|weight| weight.bytes()).sum()
    }
}

impl FromIterator<(String, Arc<dyn QuantizedWeight>)> for QuantizedWeights {
    fn from_iter<I: IntoIterator<Item = (String, Arc<dyn QuantizedWeight>)>>(weights: I) -> Self {
        Self(Arc::new(weights.into_iter().collect()))
    }
}

/// A parameter of a shape and without values: one number, which is none, seen from every place.
///
/// What forgets that the weight is quantized computes NaN, and not something plausible.
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
