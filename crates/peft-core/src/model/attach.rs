//! Attaching adapters to a model and taking their values back: pure functions from models to models.

use std::{collections::HashMap, sync::Arc};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId, Reparameterizer},
    tensor::Tensor,
};

use crate::{
    Adapter, AdapterSet, DynParam, DynTensor, QuantizedWeights,
    adapter::{Entry, Role, rows::AdapterRows},
    plugins::prompt::PromptPlan,
};

/// Where the adapters that are attached to a model act.
#[derive(Debug, Clone)]
pub enum Acting {
    /// Nowhere.
    Off,
    /// All of them on all rows.
    Together,
    /// Each on its own rows.
    ByRow(Arc<AdapterRows>),
}

impl Acting {
    fn is_on(&self) -> bool {
        !matches!(self, Self::Off)
    }

    fn rows(&self) -> Option<Arc<AdapterRows>> {
        match self {
            Self::ByRow(rows) => Some(Arc::clone(rows)),
            Self::Off | Self::Together => None,
        }
    }
}

/// Attaches the adapters to the base model's parameters.
///
/// The base is not changed and no weight is copied. Parameters without an adapter are left as they are; call this on a
/// plain base model, since Burn keeps an older reparameterization and drops a newer one.
///
/// With [`Acting::Off`] only trained biases act, as PEFT's `disable_adapter` leaves them. Weights that are `quantized` are attached
/// to their placeholders in any case.
pub fn attach<M: Module>(
    base: M,
    rename: &dyn Fn(&str) -> String,
    quantized: &QuantizedWeights,
    adapters: &[(&str, &Adapter)],
    acting: &Acting,
) -> M {
    let enabled = acting.is_on();
    let mut sets: HashMap<&str, Vec<Entry>> = HashMap::new();
    for (name, adapter) in adapters {
        let name: Arc<str> = Arc::from(*name);
        for tensor in &adapter.tensors {
            if matches!(tensor.role, Role::Prompt) || !enabled && !matches!(tensor.role, Role::Bias) {
                continue;
            }
            let entries = sets.entry(&tensor.parameter).or_default();
            let value = (Arc::clone(&tensor.name), tensor.param.clone());
            match entries.last_mut() {
                Some(last) if last.adapter == name => last.tensors.push(value),
                _ => {
                    entries.push(Entry { adapter: Arc::clone(&name), role: tensor.role.clone(), tensors: vec![value] })
                }
            }
        }
    }
    for (name, adapter) in adapters.iter().filter(|_| enabled) {
        for tie in &adapter.ties {
            let Some(tensor) = adapter.tensors.iter().find(|tensor| tensor.parameter == tie.original) else { continue };
            let role = match &tensor.role {
                Role::Tuned(layer) => match layer.tied(tie.transposed) {
                    Some(layer) => Role::Tuned(layer),
                    None => continue,
                },
                _ => Role::Tied { transposed: tie.transposed },
            };
            let tensors = vec![(Arc::clone(&tensor.name), tensor.param.clone())];
            sets.entry(&tie.copy).or_default().push(Entry { adapter: Arc::from(*name), role, tensors });
        }
    }
    let sets =
        sets.into_iter().map(|(parameter, entries)| (parameter, AdapterSet::new(entries).by(acting.rows()))).collect();
    base.map(&mut Attach { path: Vec::new(), rename, quantized, sets })
}

/// The tensors of the prompt among the adapters, and how it enters; none if there is no prompt or adapters are switched off.
pub(crate) fn prompt(adapters: &[(&str, &Adapter)], acting: &Acting) -> Option<(AdapterSet, Arc<PromptPlan>)> {
    let (name, adapter) = adapters.iter().find(|(_, adapter)| acting.is_on() && adapter.plan.prompt.is_some())?;
    let tensors = adapter.prompt_tensors().collect();
    let entry = Entry { adapter: Arc::from(*name), role: Role::Prompt, tensors };
    Some((AdapterSet::new(vec![entry]), Arc::clone(adapter.plan.prompt.as_ref()?)))
}

struct Attach<'a> {
    path: Vec<String>,
    rename: &'a dyn Fn(&str) -> String,
    quantized: &'a QuantizedWeights,
    sets: HashMap<&'a str, AdapterSet>,
}

impl ModuleMapper for Attach<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = (self.rename)(&self.path.join("."));
        let quantized = self.quantized.get(&name).cloned();
        match self.sets.remove(name.as_str()) {
            None if quantized.is_none() => param,
            set => {
                let set = set.unwrap_or_else(|| AdapterSet::new(Vec::new()));
                param.apply_reparameterization(Once(Some(set.on(quantized))))
            }
        }
    }
}

struct Once(Option<AdapterSet>);

impl Reparameterizer for Once {
    type Reparam = AdapterSet;

    fn reparameterize<const D: usize>(
        &mut self,
        _path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<AdapterSet>) {
        (param, self.0.take())
    }
}

/// The module with new values of those parameters that `values` has, by identity; what was trained before is so again.
///
/// All occurrences of a parameter get one tensor, so that their gradients are still summed.
pub(crate) fn assign<M: Module>(module: M, values: HashMap<ParamId, DynTensor>) -> M {
    struct Assign {
        values: HashMap<ParamId, DynTensor>,
        done: HashMap<ParamId, DynTensor>,
    }
    impl ModuleMapper for Assign {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let id = param.id;
            if let Some(value) = self.values.remove(&id).and_then(|value| value.get::<D>()) {
                let tracked = tracked_like(&param.base(), value);
                self.done.extend(DynTensor::wrap(tracked).map(|tracked| (id, tracked)));
            }
            match self.done.get(&id).and_then(DynTensor::get) {
                Some(value) => param.map(|_| value),
                None => param,
            }
        }
    }
    module.map(&mut Assign { values, done: HashMap::new() })
}

/// A value with the part in the graph that the one before had.
fn tracked_like<const D: usize>(before: &Tensor<D>, value: Tensor<D>) -> Tensor<D> {
    let value = value.without_autodiff();
    let Some(strategy) = before.gradient_checkpointing_strategy() else { return value };
    value.autodiff().with_gradient_checkpointing_strategy(strategy).set_require_grad(before.is_require_grad())
}

/// The float parameters of a module by identity: the adapters' current values after a training step.
pub fn params_by_id<M: Module>(module: &M) -> HashMap<ParamId, DynParam> {
    struct Collect {
        path: Vec<bool>,
        found: HashMap<ParamId, DynParam>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, _name: &str, container: &str) {
            self.path.push(container == "Reparameterization" || container == AdapterSet::CONTAINER);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.path.contains(&true) {
                self.found.extend(DynParam::wrap(param.clone()).map(|wrapped| (param.id, wrapped)));
            }
        }
    }
    let mut collect = Collect { path: Vec::new(), found: HashMap::new() };
    module.visit(&mut collect);
    collect.found
}
