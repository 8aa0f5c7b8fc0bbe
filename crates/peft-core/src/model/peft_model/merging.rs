//! Folding adapters into a copy of the base model.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::PeftModel;
use crate::{
    Adapter, BaseModel, DynParam, DynTensor, Error, QuantizedWeight, Result,
    adapter::{AdapterTensor, Role, Tie},
    plugins::tuner::Tensors,
    tensor::finite::is_finite,
    weight::quantized::base_value,
};

impl PeftModel {
    /// Folds the active adapters into a copy of the base model: PEFT's `merge_and_unload(safe_merge=True)`.
    ///
    /// Quantized weights that an adapter changes are dense afterwards.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a merged value is not finite; the model is as it was then.
    pub fn merge(&mut self) -> Result<BaseModel> {
        self.merge_into(Merged::Dense)
    }

    /// [`merge`](Self::merge) with quantized weights quantized again, which rounds the sums: what PEFT does.
    ///
    /// # Errors
    /// As [`merge`](Self::merge).
    pub fn merge_requantized(&mut self) -> Result<BaseModel> {
        self.merge_into(Merged::Requantized)
    }

    fn merge_into(&mut self, merged: Merged) -> Result<BaseModel> {
        self.sync();
        let active = self.active.iter().filter_map(|name| Some((name, self.adapters.get(name)?)));
        if let Some((name, _)) = active.into_iter().find(|(_, adapter)| adapter.plan.prompt.is_some()) {
            return Err(Error::Adapter(format!(
                "`{name}` is a prompt: it stands before the input and changes no weight, so there is nothing to merge"
            )));
        }
        let mut broken = None;
        let info = Arc::clone(&self.base.info);
        let mut attached: BTreeMap<&str, Vec<(&str, &AdapterTensor)>> = BTreeMap::new();
        for name in &self.active {
            let Some(adapter) = self.adapters.get(name) else { continue };
            for tensor in &adapter.tensors {
                attached.entry(&tensor.parameter).or_default().push((name, tensor));
            }
        }
        let ties: HashMap<&str, (&Tie, &AdapterTensor)> =
            self.active.iter().filter_map(|name| self.adapters.get(name)).flat_map(tied_values).collect();
        let quantized = &self.base.quantized;
        let mut still: BTreeMap<String, Arc<dyn QuantizedWeight>> =
            quantized.iter().map(|(name, weight)| (name.to_owned(), Arc::clone(weight))).collect();
        let module = self.base.module.boxed_clone().map_params(&|path| info.rename(path), &mut |name, param| {
            if let Some((tie, tensor)) = ties.get(name) {
                let own = base_value(&param, quantized.get(name));
                still.remove(name);
                return param.with_value(follow(own, tie, tensor));
            }
            let Some(tensors) = attached.get(name) else { return param };
            let value = merge_one(base_value(&param, quantized.get(name)), tensors);
            if !is_finite(&value.to_data()) {
                broken = broken
                    .take()
                    .or_else(|| tensors.first().map(|(adapter, _)| (name.to_owned(), (*adapter).to_owned())));
            }
            match (still.remove(name), &value, merged) {
                (Some(weight), DynTensor::R2(matrix), Merged::Requantized) => {
                    match weight.requantized(matrix.clone()) {
                        Some(weight) => {
                            still.insert(name.to_owned(), weight);
                            param
                        }
                        None => param.with_value(value),
                    }
                }
                _ => param.with_value(value),
            }
        });
        let quantized = still.into_iter().collect();
        match broken {
            Some((parameter, adapter)) => Err(Error::NotFinite { parameter, adapter }),
            None => Ok(BaseModel { module, info, quantized }),
        }
    }
}

/// What becomes of quantized weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Merged {
    Dense,
    Requantized,
}

fn merge_one(frozen: DynTensor, tensors: &[(&str, &AdapterTensor)]) -> DynTensor {
    let mut value = frozen.clone();
    let mut is_first = true;
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
            Role::Tuned(layer) if is_first => layer.merged(&Tensors::new(&group), value),
            Role::Tuned(layer) => layer.merged_onto(&Tensors::new(&group), value, &frozen),
        };
        is_first = false;
    }
    value
}

/// The tied parameters of the base model, and the tensors that they follow.
fn tied_values(adapter: &Adapter) -> impl Iterator<Item = (&str, (&Tie, &AdapterTensor))> {
    adapter.ties.iter().filter_map(|tie| {
        let original = adapter.tensors.iter().find(|tensor| tensor.parameter == tie.original)?;
        Some((tie.copy.as_str(), (tie, original)))
    })
}

/// What a tied parameter is with a tensor on the one that it follows.
fn follow(own: DynTensor, tie: &Tie, tensor: &AdapterTensor) -> DynTensor {
    if let Role::Tuned(layer) = &tensor.role {
        let tensors = [(Arc::clone(&tensor.name), tensor.param.valid())];
        return layer.tied(tie.transposed).map_or(own.clone(), |layer| layer.merged(&Tensors::new(&tensors), own));
    }
    let value = tensor.param.tensor().without_autodiff();
    if tie.transposed { value.transposed() } else { value }
}
