//! A base model: a module, what it says of itself, and its quantized weights.

use std::sync::Arc;

use burn::tensor::DType;

use crate::{Acting, DynModule, ModelInfo, ModuleTree, PackedWeights, RunningModel, weight::quantized::base_value};

/// A model before any adapter.
#[derive(Debug)]
pub struct BaseModel {
    /// The module.
    pub module: Box<dyn DynModule>,
    /// What it says of itself.
    pub info: Arc<ModelInfo>,
    /// The weights that are kept packed, for which placeholders stand in the module.
    pub packed: PackedWeights,
}

impl BaseModel {
    /// A model of dense weights.
    pub fn new(module: Box<dyn DynModule>, info: impl Into<Arc<ModelInfo>>) -> Self {
        Self { module, info: info.into(), packed: PackedWeights::default() }
    }

    /// The memory of the weights; those that are tied count once.
    pub fn bytes(&self) -> usize {
        let is_copy = |name: &str| self.info.tied.iter().any(|(copy, _)| copy == name);
        let mut bytes = 0;
        self.module.boxed_clone().map_params(&|path| self.info.rename(path), &mut |name, param| {
            bytes += match self.packed.get(name) {
                _ if is_copy(name) => 0,
                Some(packed) => packed.bytes(),
                None => param.shape().iter().product::<usize>() * param.tensor().dtype().size(),
            };
            param
        });
        bytes
    }

    /// The same with every packed weight unpacked.
    #[must_use]
    pub fn unpacked(self) -> Self {
        let Self { module, info, packed } = self;
        let module = module.map_params(&|path| info.rename(path), &mut |name, param| match packed.get(name) {
            Some(weight) => param.clone().with_value(base_value(&param, Some(weight))),
            None => param,
        });
        Self { module, info, packed: PackedWeights::default() }
    }

    /// The same with its parameters in another type; packed weights stay as they are.
    #[must_use]
    pub fn cast(self, dtype: DType) -> Self {
        let Self { module, info, packed } = self;
        let module = module.map_params(&|path| info.rename(path), &mut |name, param| match packed.get(name) {
            Some(_) => param,
            None => param.clone().with_value(param.tensor().without_autodiff().cast(dtype)),
        });
        Self { module, info, packed }
    }

    /// The model as it runs without an adapter.
    pub fn running(&self) -> RunningModel {
        RunningModel::new(self.unadapted().valid(), Arc::clone(&self.info))
    }

    /// The module as it runs without an adapter.
    pub(crate) fn unadapted(&self) -> Box<dyn DynModule> {
        self.module.attach(&|path| self.info.rename(path), &self.packed, &[], &Acting::Together).set_training(false)
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
        let (info, packed) = (Arc::clone(&self.info), self.packed.clone());
        Self { module: self.module.boxed_clone(), info, packed }
    }
}
