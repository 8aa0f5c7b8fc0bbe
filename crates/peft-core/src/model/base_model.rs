//! A base model: a module, what it says of itself, and its quantized weights.

use std::sync::Arc;

use burn::tensor::DType;

use crate::{Acting, DynModule, ModelInfo, ModuleTree, QuantizedWeights, RunningModel, weight::quantized::base_value};

/// A model before any adapter.
#[derive(Debug)]
pub struct BaseModel {
    /// The module.
    pub module: Box<dyn DynModule>,
    /// What it says of itself.
    pub info: Arc<ModelInfo>,
    /// The quantized weights; the module has placeholders for them.
    pub quantized: QuantizedWeights,
}

impl BaseModel {
    /// A model of dense weights.
    pub fn new(module: Box<dyn DynModule>, info: impl Into<Arc<ModelInfo>>) -> Self {
        Self { module, info: info.into(), quantized: QuantizedWeights::default() }
    }

    /// The memory of the weights; those that are tied count once.
    pub fn bytes(&self) -> usize {
        let is_copy = |name: &str| self.info.tied.iter().any(|(copy, _)| copy == name);
        let mut bytes = 0;
        self.module.boxed_clone().map_params(&|path| self.info.rename(path), &mut |name, param| {
            bytes += match self.quantized.get(name) {
                _ if is_copy(name) => 0,
                Some(quantized) => quantized.bytes(),
                None => param.shape().iter().product::<usize>() * param.tensor().dtype().size(),
            };
            param
        });
        bytes
    }

    /// The model with every quantized weight dequantized.
    #[must_use]
    pub fn dequantized(self) -> Self {
        let Self { module, info, quantized } = self;
        let module = module.map_params(&|path| info.rename(path), &mut |name, param| match quantized.get(name) {
            Some(weight) => param.clone().with_value(base_value(&param, Some(weight))),
            None => param,
        });
        Self { module, info, quantized: QuantizedWeights::default() }
    }

    /// The model with its parameters in another data type; quantized weights stay as they are.
    #[must_use]
    pub fn cast(self, dtype: DType) -> Self {
        let Self { module, info, quantized } = self;
        let module = module.map_params(&|path| info.rename(path), &mut |name, param| match quantized.get(name) {
            Some(_) => param,
            None => param.clone().with_value(param.tensor().without_autodiff().cast(dtype)),
        });
        Self { module, info, quantized }
    }

    /// The model as it runs without an adapter.
    #[must_use]
    pub fn running(&self) -> RunningModel {
        RunningModel::new(self.unadapted().valid(), Arc::clone(&self.info))
    }

    /// The module as it runs without an adapter.
    pub(crate) fn unadapted(&self) -> Box<dyn DynModule> {
        self.module.attach(&|path| self.info.rename(path), &self.quantized, &[], &Acting::Together).set_training(false)
    }

    /// Modules and parameters by checkpoint name.
    pub fn tree(&self) -> ModuleTree {
        let mut tree = self.module.tree(&|path| self.info.rename(path));
        tree.mark_buffers(self.info.buffers);
        tree
    }
}

impl Clone for BaseModel {
    fn clone(&self) -> Self {
        let (info, quantized) = (Arc::clone(&self.info), self.quantized.clone());
        Self { module: self.module.boxed_clone(), info, quantized }
    }
}
