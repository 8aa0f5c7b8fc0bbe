//! The same model with the adapters that Burn has built in: what someone would train who does without this library.
//!
//! Model, loss and first values are those of a [`PeftModel`]; the factors hang on the weights as Burn's `LoraAdapter`, which
//! forms the sum of weight and product at every use, and the optimiser is Burn's, module by module.

use std::{collections::HashMap, sync::Arc};

use burn::{
    module::{LoraAdapter, Module, Param, ParamId, Reparameterizer},
    optim::{AdamWConfig, GradientsParams, ModuleOptimizer},
    tensor::Tensor,
};
use peft::{
    CheckedBatch, DynModule, DynParam, Error, ModelInfo, PeftModel, Result, TaskPlugin,
    adapter::{AdapterTensor, Role},
};

use crate::case::Train;

/// A model with Burn's adapters, in training.
pub(crate) struct BurnLora {
    /// None only while a step replaces it.
    module: Option<Box<dyn DynModule>>,
    info: Arc<ModelInfo>,
    task: &'static TaskPlugin,
    optimizer: ModuleOptimizer,
    /// What is trained, with its rank.
    trained: Vec<(ParamId, usize)>,
    lr: f64,
    max_grad_norm: f64,
}

impl BurnLora {
    /// Takes the adapter's values over from a model with one LoRA adapter.
    ///
    /// # Errors
    /// If the adapter is no plain LoRA for a task.
    pub(crate) fn new(mut model: PeftModel, case: &Train) -> Result<Self> {
        let task = model.task()?.ok_or_else(|| Error::Adapter("the adapter has no task_type".to_owned()))?;
        let [name] = model.active() else {
            return Err(Error::Adapter("Burn has one adapter on a weight".to_owned()));
        };
        let adapter = model.adapter(&name.clone())?.clone();
        let option =
            |key: &str| adapter.config.options.get(key).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
        let scale = option("lora_alpha") / option("r");
        let mut tensors: HashMap<&str, Vec<&AdapterTensor>> = HashMap::new();
        for tensor in &adapter.tensors {
            tensors.entry(&tensor.parameter).or_default().push(tensor);
        }
        let info = Arc::clone(&model.base().info);
        let module = model.base().module.boxed_clone().map_params(
            &|path| info.rename(path),
            &mut |name, param| match (param, tensors.get(name).map(Vec::as_slice)) {
                (_, Some([copy])) if matches!(copy.role, Role::Saved) => copy.param.clone(),
                (DynParam::R2(weight), Some([a, b])) => match (turned(a, &weight), turned(b, &weight)) {
                    (Some(a), Some(b)) => {
                        DynParam::R2(weight.apply_reparameterization(Given(Some(LoraAdapter { a, b, scale }))))
                    }
                    _ => DynParam::R2(weight),
                },
                (param, _) => param,
            },
        );
        let training = &case.training;
        let optimizer = AdamWConfig::new()
            .with_beta_1(training.adam_beta1 as f32)
            .with_beta_2(training.adam_beta2 as f32)
            .with_epsilon(training.adam_epsilon as f32)
            .with_weight_decay(training.weight_decay as f32)
            .init();
        Ok(Self {
            module: Some(module.set_training(true)),
            info,
            task,
            optimizer,
            trained: adapter.tensors.iter().map(|tensor| (tensor.param.id(), tensor.param.shape().len())).collect(),
            lr: training.learning_rate,
            max_grad_norm: training.max_grad_norm,
        })
    }

    /// One step; returns the loss before it, `[1]`.
    pub(crate) fn step(&mut self, batch: &CheckedBatch) -> Result<Tensor<1>> {
        let module = self.module.take().ok_or_else(|| Error::Adapter("an earlier step failed".to_owned()))?;
        let outputs = module.forward(&batch.inputs);
        let loss = self.task.task.loss(&batch.labels, &self.info)?.mean(&outputs)?;
        let gradients = self.clipped(module.gradients(&mut loss.backward()));
        self.module = Some(module.step(&mut self.optimizer, self.lr, gradients));
        Ok(loss.without_autodiff())
    }

    /// The gradients with a norm of at most `max_grad_norm` together: Burn's own clipping looks at one tensor at a time.
    fn clipped(&self, mut gradients: GradientsParams) -> GradientsParams {
        let square = |(id, rank): &(ParamId, usize)| match rank {
            1 => gradients.get::<1>(*id).map(|gradient| gradient.square().sum()),
            _ => gradients.get::<2>(*id).map(|gradient| gradient.square().sum()),
        };
        let Some(norm) = self.trained.iter().filter_map(square).reduce(|sum, square| sum + square).map(Tensor::sqrt)
        else {
            return gradients;
        };
        let factor = norm.add_scalar(1e-6).recip().mul_scalar(self.max_grad_norm).clamp_max(1.0);
        for (id, rank) in &self.trained {
            match rank {
                1 => scale::<1>(&mut gradients, *id, &factor),
                _ => scale::<2>(&mut gradients, *id, &factor),
            }
        }
        gradients
    }
}

fn scale<const D: usize>(gradients: &mut GradientsParams, id: ParamId, factor: &Tensor<1>) {
    if let Some(gradient) = gradients.remove::<D>(id) {
        gradients.register(id, gradient * factor.clone().reshape([1; D]));
    }
}

/// A factor as Burn has it: the transpose of PEFT's, row by row in memory as Burn makes one, of the weight's type.
fn turned(tensor: &AdapterTensor, weight: &Param<Tensor<2>>) -> Option<Param<Tensor<2>>> {
    let value = tensor.param.val::<2>()?;
    let device = value.device();
    let turned =
        Tensor::<2>::from_data(value.without_autodiff().transpose().into_data(), (&device, weight.val().dtype()));
    Some(Param::initialized(tensor.param.id(), turned.require_grad()))
}

/// Hangs an adapter with given factors on a weight; `Lora` would draw them.
struct Given(Option<LoraAdapter>);

impl Reparameterizer for Given {
    type Reparam = LoraAdapter;

    fn reparameterize<const D: usize>(
        &mut self,
        _path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<LoraAdapter>) {
        (param, self.0.take())
    }
}
