//! Folding adapters into a copy of the base model.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use burn::{module::Param, tensor::TensorData};

use super::PeftModel;
use crate::{
    Adapter, BaseModel, DynParam, DynTensor, Error, Result,
    adapter::{AdapterTensor, Role, Tie},
    tuner::Tensors,
};

impl PeftModel {
    /// Folds the active adapters into a copy of the base model: PEFT's `merge_and_unload(safe_merge=True)`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a merged value is not finite; the model is as it was then.
    pub fn merge(&mut self) -> Result<BaseModel> {
        self.sync();
        let active = self.active.iter().filter_map(|name| Some((name, self.adapters.get(name)?)));
        if let Some((name, _)) = active.into_iter().find(|(_, adapter)| adapter.plan.prompt.is_some()) {
            return Err(Error::Adapter(format!(
                "`{name}` is a prompt: it stands before the input and changes no weight, so there is nothing to merge"
            )));
        }
        let mut broken = None;
        let info = Arc::clone(&self.base.info);
        let mut hung: BTreeMap<&str, Vec<(&str, &AdapterTensor)>> = BTreeMap::new();
        for name in &self.active {
            let Some(adapter) = self.adapters.get(name) else { continue };
            for tensor in &adapter.tensors {
                hung.entry(&tensor.parameter).or_default().push((name, tensor));
            }
        }
        let ties: HashMap<&str, (&Tie, DynTensor)> =
            self.active.iter().filter_map(|name| self.adapters.get(name)).flat_map(tied_values).collect();
        let module = self.base.module.boxed_clone().map_params(&|path| info.rename(path), &mut |name, param| {
            if let Some((tie, value)) = ties.get(name) {
                let value = if tie.transposed { value.clone().transposed() } else { value.clone() };
                return with_value(param, value);
            }
            let Some(tensors) = hung.get(name) else { return param };
            let merged = merge_one(&param, tensors);
            if !is_finite(&merged) {
                broken = broken
                    .take()
                    .or_else(|| tensors.first().map(|(adapter, _)| (name.to_owned(), (*adapter).to_owned())));
            }
            with_value(param, merged)
        });
        match broken {
            Some((parameter, adapter)) => Err(Error::NotFinite { parameter, adapter }),
            None => Ok(BaseModel { module, info }),
        }
    }
}

fn merge_one(param: &DynParam, tensors: &[(&str, &AdapterTensor)]) -> DynTensor {
    let mut value = param.tensor().without_autodiff();
    let mut at = 0;
    while let Some((adapter, first)) = tensors.get(at) {
        let group: Vec<(Arc<str>, DynParam)> = tensors
            .iter()
            .skip(at)
            .take_while(|(name, _)| name == adapter)
            .map(|(_, t)| (Arc::clone(&t.name), t.param.valid()))
            .collect();
        at += group.len().max(1);
        value = match &first.role {
            Role::Saved | Role::Tied { .. } | Role::Bias => first.param.tensor().without_autodiff(),
            Role::Prompt => value,
            Role::Tuned(layer) => layer.merged(&Tensors::new(&group), value),
        };
    }
    value
}

/// What the tied parameters of the base model are.
fn tied_values(adapter: &Adapter) -> impl Iterator<Item = (&str, (&Tie, DynTensor))> {
    adapter.ties.iter().filter_map(|tie| {
        let original = adapter.tensors.iter().find(|tensor| tensor.parameter == tie.original)?;
        Some((tie.copy.as_str(), (tie, original.param.tensor().without_autodiff())))
    })
}

fn with_value(param: DynParam, value: DynTensor) -> DynParam {
    match (param, value) {
        (DynParam::R1(p), DynTensor::R1(t)) => DynParam::R1(Param::initialized(p.id, t)),
        (DynParam::R2(p), DynTensor::R2(t)) => DynParam::R2(Param::initialized(p.id, t)),
        (DynParam::R3(p), DynTensor::R3(t)) => DynParam::R3(Param::initialized(p.id, t)),
        (DynParam::R4(p), DynTensor::R4(t)) => DynParam::R4(Param::initialized(p.id, t)),
        (param, _) => param,
    }
}

fn is_finite(tensor: &DynTensor) -> bool {
    let finite = |data: TensorData| {
        data.convert::<f32>().try_to_vec::<f32>().is_ok_and(|values| values.iter().all(|value| value.is_finite()))
    };
    finite(tensor.to_data())
}
