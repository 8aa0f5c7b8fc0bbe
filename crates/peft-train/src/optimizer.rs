//! What follows a loss: the gradients of micro-batches added up, clipped together, and PyTorch's AdamW.

use burn::{
    optim::{AdamWConfig, GradientsParams, ModuleOptimizer, OptimizerRecord},
    tensor::Tensor,
};
use peft::{PeftModel, adapter::AdapterTensor};

use crate::{gradients::Slots, recipe::TrainingArguments};

/// PyTorch's AdamW on the active adapters of a model.
pub struct Optimizer {
    adamw: ModuleOptimizer,
    slots: Slots,
    max_grad_norm: f64,
}

impl Optimizer {
    /// For the tensors that are trained, as [`PeftModel::trainable`] gives them.
    pub fn new(arguments: &TrainingArguments, trained: &[AdapterTensor]) -> Self {
        let adamw = AdamWConfig::new()
            .with_beta_1(arguments.adam_beta1 as f32)
            .with_beta_2(arguments.adam_beta2 as f32)
            .with_epsilon(arguments.adam_epsilon as f32)
            .with_weight_decay(arguments.weight_decay as f32);
        Self { adamw: adamw.init(), slots: Slots::of(trained), max_grad_norm: arguments.max_grad_norm }
    }

    /// Adds `more` to `sum`.
    pub fn accumulate(&self, sum: GradientsParams, more: GradientsParams) -> GradientsParams {
        self.slots.accumulate(sum, more)
    }

    /// One step at learning rate `lr`. Returns the norm of all gradients together before clipping, `[1]`; none if there are no
    /// gradients.
    pub fn step(&mut self, model: &mut PeftModel, lr: f64, mut gradients: GradientsParams) -> Option<Tensor<1>> {
        let norm = self.slots.norm(&gradients);
        if let Some(norm) = norm.as_ref().filter(|_| self.max_grad_norm > 0.0) {
            gradients = self.slots.clip(gradients, norm, self.max_grad_norm);
        }
        model.step(&mut self.adamw, lr, gradients);
        norm
    }

    /// The moments, for a checkpoint.
    pub(crate) fn state(&self) -> &ModuleOptimizer {
        &self.adamw
    }

    /// The same with the moments of a checkpoint.
    #[must_use]
    pub(crate) fn restored(self, record: OptimizerRecord) -> Self {
        Self { adamw: self.adamw.load_record(record), ..self }
    }
}
