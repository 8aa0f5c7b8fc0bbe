//! Trainable tokens: some rows of the token embeddings are trained, all others are frozen.
//!
//! LoRA has it as the option `trainable_token_indices`. An output layer that is tied to the table has the same rows.

use std::sync::Arc;

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use peft_core::{
    DynTensor, Error, ModelInfo, ModuleKind, ModuleTree, Result,
    plugins::{
        plan::Adapted,
        tuner::{Init, LayerTuner, LinearCall, TensorSpec, Tensors},
    },
};
use serde_json::Value;

use crate::lora::as_dtype;

const KEY: &str = "trainable_token_indices";
const DELTA: &str = "token_adapter.trainable_tokens_delta";

/// Trained rows of token embeddings, or of the output layer that is tied to them.
#[derive(Debug, Clone)]
pub struct TrainableTokens {
    /// The rows.
    pub indices: Vec<usize>,
    /// Values of a row.
    pub dimensions: usize,
    /// Whether rows of the table are columns of the weight: an output layer's.
    pub is_turned: bool,
}

impl TrainableTokens {
    /// The tables that the option names, each with its tokens: a list is of the input embedding, an object of modules by name.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not a list of token ids of the vocabulary.
    pub fn plan(option: Option<&Value>, tree: &ModuleTree, info: &ModelInfo) -> Result<Vec<Adapted>> {
        let named: Vec<(String, &Value)> = match option {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(tables)) => tables.iter().map(|(name, tokens)| (name.clone(), tokens)).collect(),
            Some(tokens) => {
                let module = info
                    .input_embedding
                    .clone()
                    .ok_or_else(|| Error::config(KEY, "the model has no token embeddings"))?;
                vec![(module, tokens)]
            }
        };
        let mut planned = Vec::new();
        for (name, tokens) in named {
            let is_it = |module: &str| {
                module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            let table = tree.modules.iter().find(|m| m.kind == ModuleKind::Embedding && is_it(&m.name));
            let Some((table, (rows, dimensions))) = table.and_then(|table| Some((table, table.weight_dims()?))) else {
                return Err(Error::config(KEY, format!("`{name}` is not an embedding of this model")));
            };
            let indices: Vec<usize> = serde_json::from_value(tokens.clone())
                .map_err(|error| Error::config(KEY, format!("should be a list of tokens: {error}")))?;
            if let Some(outside) = indices.iter().find(|index| **index >= rows) {
                return Err(Error::config(KEY, format!("token {outside}: `{}` has {rows}", table.name)));
            }
            let layer = Arc::new(Self { indices, dimensions, is_turned: false });
            planned.push(Adapted { module: table.name.clone(), reason: KEY.to_owned(), layer });
        }
        Ok(planned)
    }

    /// The row indices, on the device of another tensor.
    fn rows(&self, beside: &Tensor<2>) -> Tensor<1, Int> {
        let rows: Vec<i64> = self.indices.iter().map(|index| i64::try_from(*index).unwrap_or(i64::MAX)).collect();
        Tensor::from_data(TensorData::new(rows, [self.indices.len()]), &beside.device())
    }

    /// What is added to the rows of a weight to make them the trained ones.
    fn change(&self, tensors: &Tensors<'_>, weight: &Tensor<2>) -> Tensor<2> {
        let learnt = as_dtype(tensors.get::<2>(DELTA), weight.dtype());
        let learnt = if self.is_turned { learnt.transpose() } else { learnt };
        learnt - weight.clone().select(self.axis(), self.rows(weight))
    }

    fn axis(&self) -> usize {
        usize::from(self.is_turned)
    }
}

impl LayerTuner for TrainableTokens {
    fn tensors(&self) -> Vec<TensorSpec> {
        let shape = vec![self.indices.len(), self.dimensions];
        vec![TensorSpec { name: DELTA.into(), shape, init: Init::Derived, trainable: true }]
    }

    fn merged(&self, tensors: &Tensors<'_>, weight: DynTensor) -> DynTensor {
        let DynTensor::R2(weight) = weight else { return weight };
        let (change, rows) = (self.change(tensors, &weight), self.rows(&weight));
        DynTensor::R2(weight.select_assign(self.axis(), rows, change, IndexingUpdateOp::Add))
    }

    fn derived(&self, _tensors: &Tensors<'_>, weight: DynTensor) -> Option<DynTensor> {
        let weight = weight.get::<2>()?;
        Some(DynTensor::R2(weight.clone().select(self.axis(), self.rows(&weight))))
    }

    fn forward(&self, tensors: &Tensors<'_>, call: &LinearCall, output: Tensor<2>) -> Tensor<2> {
        let weight = call.weight.dense();
        let change = call.input.clone().matmul(self.change(tensors, &weight));
        let rows = self.rows(&weight);
        output.select_assign(1, rows, change, IndexingUpdateOp::Add)
    }

    fn tied(&self, is_turned: bool) -> Option<Arc<dyn LayerTuner>> {
        Some(Arc::new(Self { is_turned, ..self.clone() }))
    }

    fn summary(&self) -> String {
        format!("{} tokens", self.indices.len())
    }
}
