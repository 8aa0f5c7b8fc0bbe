//! The active adapters of one parameter, in the form in which they are attached to it.

use std::sync::Arc;

use burn::{
    module::{
        Devices, Flag, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param,
        Reparameterization,
    },
    tensor::{Device, Tensor},
};

use super::{rows::AdapterRows, value::Role};
use crate::{
    DynParam, DynTensor, QuantizedWeight,
    plugins::tuner::{LayerTuner, Tensors},
};

/// One adapter's tensors on one parameter.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) adapter: Arc<str>,
    pub(crate) role: Role,
    pub(crate) tensors: Vec<(Arc<str>, DynParam)>,
}

/// The active adapters of one parameter, in the form of Burn's reparameterization hook; also its weight, where it is quantized.
///
/// A layer that knows nothing of adapters gets the effective weight from `Param::val`; [`adapted_linear`](crate::adapted_linear)
/// finds the set and adds to the activation instead.
#[derive(Debug, Clone)]
pub struct AdapterSet {
    pub(crate) entries: Vec<Entry>,
    pub(crate) training: Param<Flag>,
    quantized: Option<Arc<dyn QuantizedWeight>>,
    /// Which adapter acts on which rows; all act on all rows where nothing is said.
    rows: Option<Arc<AdapterRows>>,
}

impl AdapterSet {
    /// The container name that module visitors are given.
    pub(crate) const CONTAINER: &'static str = "Struct:AdapterSet";

    pub(crate) fn new(entries: Vec<Entry>) -> Self {
        Self { entries, training: Param::from_bool(false), quantized: None, rows: None }
    }

    /// The set on the placeholder of a quantized weight.
    pub(crate) fn on(self, quantized: Option<Arc<dyn QuantizedWeight>>) -> Self {
        Self { quantized, ..self }
    }

    /// The set with each adapter acting on its own rows only.
    pub(crate) fn by(self, rows: Option<Arc<AdapterRows>>) -> Self {
        Self { rows, ..self }
    }

    /// Which adapter acts on which rows, where they do so by row: trained biases never do.
    pub(crate) fn differs_by_row(&self) -> Option<&Arc<AdapterRows>> {
        self.rows.as_ref().filter(|_| self.entries.iter().any(|entry| !matches!(entry.role, Role::Bias)))
    }

    /// Whether one of the rows has an adapter that acts here.
    pub(crate) fn acts_on_rows(&self) -> bool {
        let acts = |rows: &AdapterRows| {
            self.entries.iter().any(|entry| !matches!(entry.role, Role::Bias) && rows.has(&entry.adapter))
        };
        self.rows.as_deref().is_some_and(acts)
    }

    /// Whether an adapter has a copy of the parameter.
    pub(crate) fn has_copies(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry.role, Role::Saved))
    }

    /// An adapter's copy of the parameter.
    pub(crate) fn copy_of<const D: usize>(&self, adapter: Option<&str>) -> Option<Tensor<D>> {
        let is_copy = |entry: &&Entry| matches!(entry.role, Role::Saved) && Some(&*entry.adapter) == adapter;
        self.entries.iter().find(is_copy)?.tensors.first()?.1.val()
    }

    /// The bias that was trained in the place of the base's own.
    pub(crate) fn trained_bias(&self) -> Option<Tensor<1>> {
        self.entries.iter().find(|entry| matches!(entry.role, Role::Bias))?.tensors.first()?.1.val()
    }

    /// The tuner of an adapter with its tensors.
    pub(crate) fn tuned_by(&self, adapter: &str) -> Option<(&dyn LayerTuner, Tensors<'_>)> {
        self.entries.iter().find_map(|entry| match &entry.role {
            Role::Tuned(layer) if &*entry.adapter == adapter => Some((&**layer, Tensors(&entry.tensors))),
            _ => None,
        })
    }

    /// The parameter's weight, if it is quantized.
    pub fn quantized(&self) -> Option<Arc<dyn QuantizedWeight>> {
        self.quantized.clone()
    }

    /// Whether the parameter as a whole is replaced by a trained copy.
    pub fn replaces(&self) -> bool {
        self.entries.iter().any(|entry| !matches!(entry.role, Role::Tuned(_)))
    }

    /// Whether no adapter is there, only a weight that is quantized.
    pub fn is_plain(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether dropout acts.
    pub fn is_training(&self) -> bool {
        self.training.is_enabled()
    }

    /// The tuners of the active adapters with their tensors.
    pub fn tuned(&self) -> impl Iterator<Item = (&dyn LayerTuner, Tensors<'_>)> {
        self.entries.iter().filter_map(|entry| match &entry.role {
            Role::Tuned(layer) => Some((&**layer, Tensors(&entry.tensors))),
            Role::Prompt | Role::Saved | Role::Tied { .. } | Role::Bias => None,
        })
    }

    /// The tensors of the prompt, if this is one's.
    pub(crate) fn prompt(&self) -> Tensors<'_> {
        let is_prompt = |entry: &&Entry| matches!(entry.role, Role::Prompt);
        Tensors(self.entries.iter().find(is_prompt).map_or(&[], |entry| &entry.tensors))
    }

    /// The set with those tensors of rank 2 replaced for which `f` has another value.
    pub(crate) fn constrained(self, f: impl Fn(&str, Tensor<2>) -> Option<Tensor<2>>) -> Self {
        let Self { entries, training, quantized, rows } = self;
        let entry = |entry: Entry| {
            let tensors = entry.tensors.into_iter().map(|(name, param)| {
                let value = param.val::<2>().and_then(|value| f(&name, value.detach()));
                let param = match (param, value) {
                    (DynParam::R2(param), Some(value)) => {
                        DynParam::R2(param.map(|_| value.clone().detach().require_grad()))
                    }
                    (param, _) => param,
                };
                (name, param)
            });
            Entry { tensors: tensors.collect(), ..entry }
        };
        Self { entries: entries.into_iter().map(entry).collect(), training, quantized, rows }
    }

    fn quantized_on(&self, device: &Device) -> Option<Arc<dyn QuantizedWeight>> {
        self.quantized.as_ref().map(|quantized| quantized.to_device(device))
    }

    fn each(self, mut f: impl FnMut(DynParam) -> DynParam) -> Self {
        let entry = |entry: Entry| Entry {
            tensors: entry.tensors.into_iter().map(|(name, param)| (name, f(param))).collect(),
            ..entry
        };
        Self { entries: self.entries.into_iter().map(entry).collect(), ..self }
    }
}

impl Module for AdapterSet {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        for entry in &self.entries {
            visitor.enter_module(&entry.adapter, Self::CONTAINER);
            for (name, param) in &entry.tensors {
                visitor.enter_module(name, Self::CONTAINER);
                param.visit(visitor);
                visitor.exit_module(name, Self::CONTAINER);
            }
            visitor.exit_module(&entry.adapter, Self::CONTAINER);
        }
        visitor.enter_module("training", Self::CONTAINER);
        self.training.visit(visitor);
        visitor.exit_module("training", Self::CONTAINER);
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let entries = self.entries.into_iter().map(|entry| {
            mapper.enter_module(&entry.adapter, Self::CONTAINER);
            let mut tensors = Vec::with_capacity(entry.tensors.len());
            for (name, param) in entry.tensors {
                mapper.enter_module(&name, Self::CONTAINER);
                let param = param.map(mapper);
                mapper.exit_module(&name, Self::CONTAINER);
                tensors.push((name, param));
            }
            mapper.exit_module(&entry.adapter, Self::CONTAINER);
            Entry { tensors, ..entry }
        });
        let entries = entries.collect();
        mapper.enter_module("training", Self::CONTAINER);
        let training = Module::map(self.training, mapper);
        mapper.exit_module("training", Self::CONTAINER);
        Self { entries, training, quantized: self.quantized, rows: self.rows }
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        let params = self.entries.iter().flat_map(|entry| &entry.tensors);
        params.fold(devices, |devices, (_, param)| param.collect_devices(devices))
    }

    fn to_device(self, device: &Device) -> Self {
        Self { quantized: self.quantized_on(device), ..self }.each(|param| param.moved_to(device))
    }

    fn fork(self, device: &Device) -> Self {
        Self { quantized: self.quantized_on(device), ..self }.each(|param| param.fork(device))
    }

    fn valid(&self) -> Self {
        let training = self.training.valid();
        Self { training, ..self.clone() }.each(|param| param.valid())
    }

    fn train(self) -> Self {
        let training = Module::train(self.training.clone());
        Self { training, ..self }.each(DynParam::train)
    }

    fn materialize(self) -> Self {
        self
    }
}

impl ModuleDisplayDefault for AdapterSet {
    fn content(&self, content: burn::module::Content) -> Option<burn::module::Content> {
        content.set_top_level_type("AdapterSet").optional()
    }
}

impl ModuleDisplay for AdapterSet {}

impl Reparameterization for AdapterSet {
    const NAME: &'static str = "peft";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        // What is replaced anyway need not be dequantized.
        let quantized = self.quantized.as_ref().filter(|_| !self.replaces()).map(|quantized| quantized.dense());
        let dequantized = quantized.map(|dense| DynTensor::R2(dense).cast(base.dtype())).and_then(|dense| dense.get());
        if let Some(rows) = self.differs_by_row() {
            if self.acts_on_rows() {
                rows.refuse(|| {
                    "a layer computes with an adapted parameter as a whole, which cannot differ by row".to_owned()
                });
            }
            return dequantized.unwrap_or(base);
        }
        let base = dequantized.unwrap_or(base);
        let frozen = DynTensor::wrap(base.clone());
        self.entries.iter().enumerate().fold(base, |value, (at, entry)| match &entry.role {
            Role::Saved | Role::Bias => entry.tensors.first().and_then(|(_, copy)| copy.val()).unwrap_or(value),
            Role::Tied { transposed } => {
                let copy = entry.tensors.first().map(|(_, copy)| copy.tensor());
                let copy = copy.map(|copy| if *transposed { copy.transposed() } else { copy });
                copy.and_then(|copy| copy.get()).unwrap_or(value)
            }
            Role::Prompt => value,
            Role::Tuned(layer) => match (DynTensor::wrap(value.clone()), &frozen) {
                (Some(weight), Some(frozen)) if at > 0 => {
                    layer.merged_onto(&Tensors(&entry.tensors), weight, frozen).get().unwrap_or(value)
                }
                (Some(weight), _) => layer.merged(&Tensors(&entry.tensors), weight).get().unwrap_or(value),
                (None, _) => value,
            },
        })
    }
}
