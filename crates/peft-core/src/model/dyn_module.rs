//! A model behind a pointer: any Burn module that can run a batch.

use std::{collections::HashMap, fmt::Debug};

use burn::{
    module::{Flag, Module, ModuleDisplay, ModuleMapper, Param, ParamId},
    optim::{GradientsParams, ModuleOptimizer},
    tensor::{Device, Gradients, Tensor},
};

use crate::{
    Acting, Adapter, CheckedInputs, DynParam, DynTensor, Inputs, ModuleTree, Outputs, QuantizedWeights,
    model::{attach, prompted::Prompted},
};

/// What a Burn module needs to become a model of `peft`: a forward pass.
///
/// Inputs are [`CheckedInputs`] before they get here, so this only computes.
pub trait Forward: Sync {
    /// Runs the model.
    fn forward(&self, inputs: &Inputs) -> Outputs;
}

/// Receives each float parameter with its checkpoint name and returns it, changed or not.
pub type ParamFn<'a> = &'a mut dyn FnMut(&str, DynParam) -> DynParam;

/// A model whose type is known only at run time. Every `Module` with [`Forward`] is one.
///
/// [`PeftModel`](crate::PeftModel) and [`RunningModel`](crate::RunningModel) run it for a caller; by itself it knows neither what its
/// inputs were checked for nor the adapters of their rows.
pub trait DynModule: Send + Sync + Debug {
    /// Runs the model.
    fn forward(&self, inputs: &CheckedInputs) -> Outputs;
    /// A copy that shares the weights.
    fn boxed_clone(&self) -> Box<dyn DynModule>;
    /// Modules and parameters by checkpoint name, without initialising anything.
    fn tree(&self, rename: &dyn Fn(&str) -> String) -> ModuleTree;
    /// The model with adapters attached, see [`attach`](attach::attach).
    fn attach(
        &self,
        rename: &dyn Fn(&str) -> String,
        quantized: &QuantizedWeights,
        adapters: &[(&str, &Adapter)],
        acting: &Acting,
    ) -> Box<dyn DynModule>;
    /// The current values of the tensors that [`attach`](Self::attach) added, by parameter id.
    fn attached_params(&self) -> HashMap<ParamId, DynParam>;
    /// Replaces the model's parameters one by one, by name; a prompt before it stays.
    fn map_params(self: Box<Self>, rename: &dyn Fn(&str) -> String, f: ParamFn<'_>) -> Box<dyn DynModule>;
    /// Switches dropout on or off.
    fn set_training(self: Box<Self>, training: bool) -> Box<dyn DynModule>;
    /// The model without autodiff: for evaluation.
    fn valid(&self) -> Box<dyn DynModule>;
    /// Takes the gradients of this model's parameters.
    fn gradients(&self, gradients: &mut Gradients) -> GradientsParams;
    /// One step of the optimiser.
    fn step(
        self: Box<Self>,
        optimizer: &mut ModuleOptimizer,
        lr: f64,
        gradients: GradientsParams,
    ) -> Box<dyn DynModule>;
    /// Assigns new values, by parameter id, to the tensors that [`attach`](Self::attach) added; others stay.
    fn assign(self: Box<Self>, values: HashMap<ParamId, DynTensor>) -> Box<dyn DynModule>;
    /// Moves the model.
    fn to_device(self: Box<Self>, device: &Device) -> Box<dyn DynModule>;
}

impl<M: Module + ModuleDisplay + Forward + 'static> DynModule for M {
    fn forward(&self, inputs: &CheckedInputs) -> Outputs {
        Forward::forward(self, inputs)
    }

    fn boxed_clone(&self) -> Box<dyn DynModule> {
        Box::new(self.clone())
    }

    fn tree(&self, rename: &dyn Fn(&str) -> String) -> ModuleTree {
        ModuleTree::of(self, rename)
    }

    fn attach(
        &self,
        rename: &dyn Fn(&str) -> String,
        quantized: &QuantizedWeights,
        adapters: &[(&str, &Adapter)],
        acting: &Acting,
    ) -> Box<dyn DynModule> {
        let attached = attach::attach(self.clone(), rename, quantized, adapters, acting);
        match attach::prompt(adapters, acting) {
            Some((prompt, plan)) => Box::new(Prompted::new(attached, prompt, plan)),
            None => Box::new(attached),
        }
    }

    fn attached_params(&self) -> HashMap<ParamId, DynParam> {
        attach::params_by_id(self)
    }

    fn map_params(self: Box<Self>, rename: &dyn Fn(&str) -> String, f: ParamFn<'_>) -> Box<dyn DynModule> {
        Box::new(with_params(*self, rename, f))
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
        Box::new(optimizer.step(lr, *self, gradients))
    }

    fn assign(self: Box<Self>, values: HashMap<ParamId, DynTensor>) -> Box<dyn DynModule> {
        Box::new(attach::assign(*self, values))
    }

    fn to_device(self: Box<Self>, device: &Device) -> Box<dyn DynModule> {
        Box::new(Module::to_device(*self, device))
    }
}

/// The module with dropout switched on or off.
pub(crate) fn with_training<M: Module>(module: M, training: bool) -> M {
    struct Training(bool);
    impl ModuleMapper for Training {
        fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
            flag.with_value(self.0)
        }
    }
    module.map(&mut Training(training))
}

/// The module with other parameters.
pub(crate) fn with_params<M: Module>(module: M, rename: &dyn Fn(&str) -> String, f: ParamFn<'_>) -> M {
    module.map(&mut MapParams { path: Vec::new(), rename, f })
}

struct MapParams<'a> {
    path: Vec<String>,
    rename: &'a dyn Fn(&str) -> String,
    f: ParamFn<'a>,
}

impl ModuleMapper for MapParams<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = (self.rename)(&self.path.join("."));
        match DynParam::wrap(param.clone()) {
            Some(wrapped) => (self.f)(&name, wrapped).get::<D>().unwrap_or(param),
            None => param,
        }
    }
}
