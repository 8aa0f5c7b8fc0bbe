//! A model with a prompt before its input, as one Burn module.

use std::{collections::HashMap, sync::Arc};

use burn::{
    module::{Module, ModuleDisplay, ParamId},
    optim::{GradientsParams, ModuleOptimizer},
    tensor::{Device, Gradients},
};

use crate::{
    Acting, Adapter, AdapterSet, CheckedInputs, DynModule, DynParam, DynTensor, Forward, ModuleTree, Outputs,
    QuantizedWeights,
    model::{
        attach,
        dyn_module::{ParamFn, with_params, with_training},
    },
    plugins::prompt::PromptPlan,
};

/// A model and the prompt before its input: optimisers, devices and `valid` see the prompt's tensors as they see
/// the model's.
///
/// It does not implement [`Forward`]: a model has at most one prompt.
#[derive(Module, Debug)]
pub(crate) struct Prompted<M: Module> {
    model: M,
    prompt: AdapterSet,
    #[module(skip)]
    plan: Arc<PromptPlan>,
}

impl<M: Module> Prompted<M> {
    pub(crate) fn new(model: M, prompt: AdapterSet, plan: Arc<PromptPlan>) -> Self {
        Self { model, prompt, plan }
    }

    /// After a change of values: the prompt is pulled back to what it may be.
    fn constrained(self) -> Self {
        let Self { model, prompt, plan } = self;
        let prompt = prompt.constrained(|name, value| plan.tuner.constrain(name, value));
        Self { model, prompt, plan }
    }
}

impl<M: Module + ModuleDisplay + Forward + 'static> DynModule for Prompted<M> {
    fn forward(&self, inputs: &CheckedInputs) -> Outputs {
        let inputs = self.plan.before(inputs, &self.prompt.prompt(), self.prompt.is_training());
        Forward::forward(&self.model, &inputs)
    }

    fn boxed_clone(&self) -> Box<dyn DynModule> {
        Box::new(self.clone())
    }

    fn tree(&self, rename: &dyn Fn(&str) -> String) -> ModuleTree {
        ModuleTree::of(&self.model, rename)
    }

    fn attach(
        &self,
        rename: &dyn Fn(&str) -> String,
        quantized: &QuantizedWeights,
        adapters: &[(&str, &Adapter)],
        acting: &Acting,
    ) -> Box<dyn DynModule> {
        self.model.attach(rename, quantized, adapters, acting)
    }

    fn attached_params(&self) -> HashMap<ParamId, DynParam> {
        attach::params_by_id(self)
    }

    fn map_params(self: Box<Self>, rename: &dyn Fn(&str) -> String, f: ParamFn<'_>) -> Box<dyn DynModule> {
        let Self { model, prompt, plan } = *self;
        Box::new(Self::new(with_params(model, rename, f), prompt, plan))
    }

    fn set_training(self: Box<Self>, training: bool) -> Box<dyn DynModule> {
        Box::new(with_training(*self, training))
    }

    fn valid(&self) -> Box<dyn DynModule> {
        Box::new(Module::valid(self))
    }

    fn gradients(&self, gradients: &mut Gradients) -> GradientsParams {
        GradientsParams::from_module(gradients, self)
    }

    fn step(
        self: Box<Self>,
        optimizer: &mut ModuleOptimizer,
        lr: f64,
        gradients: GradientsParams,
    ) -> Box<dyn DynModule> {
        Box::new(optimizer.step(lr, *self, gradients).constrained())
    }

    fn assign(self: Box<Self>, values: HashMap<ParamId, DynTensor>) -> Box<dyn DynModule> {
        Box::new(attach::assign(*self, values).constrained())
    }

    fn to_device(self: Box<Self>, device: &Device) -> Box<dyn DynModule> {
        Box::new(Module::to_device(*self, device))
    }
}
