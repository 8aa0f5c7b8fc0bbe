//! Embeddings of the base model that an adapter's file brings: PEFT's `save_embedding_layers`, and a vocabulary that grew.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use burn::tensor::TensorData;

use super::{PeftModel, tensors::is_stored_transposed};
use crate::{BaseModel, DynTensor, Error, ModelInfo, Plan, Result, adapter::AdapterFolder};

/// What PEFT puts between a module's name and `weight` for the base model's own values inside its wrappers.
const INSIDE_WRAPPERS: [&str; 3] = [".original_module", ".token_adapter.base_layer", ".base_layer"];
/// What PEFT puts between a module's name and `weight` for a saved copy.
const COPY: &str = ".modules_to_save";

/// The values of the base model's embeddings that are in an adapter's file.
#[derive(Debug, Default)]
pub(super) struct Brought {
    /// Keys of the file and the parameters that they are.
    pub(super) keys: Vec<(String, String)>,
    /// Values in place of the base model's own, in the orientation of memory.
    values: BTreeMap<String, DynTensor>,
    /// Whether they differ by more than another float type explains.
    differs: bool,
}

impl AdapterFolder {
    /// The size of the vocabulary of the base model with this adapter, if the file brings embeddings of another size than `info` says: the
    /// vocabulary that was resized before training.
    ///
    /// # Errors
    /// [`Error::Tensors`] if its embeddings differ in size.
    pub fn resized_vocabulary(&self, info: &ModelInfo) -> Result<Option<usize>> {
        // Two vocabularies have no one size.
        let Some(words) = info.number("vocab_size").filter(|_| info.number("decoder_vocab_size").is_none()) else {
            return Ok(None);
        };
        let mut found: BTreeMap<usize, String> = BTreeMap::new();
        for module in embeddings(info) {
            let wrapped = INSIDE_WRAPPERS.iter().copied().chain([COPY, ""]);
            let tables = wrapped.map(|inside| (format!("{module}{inside}.weight"), 0));
            for (key, axis) in tables.chain([(format!("{module}.lora_embedding_A"), 1)]) {
                let data = self.prefixes().iter().find_map(|prefix| self.tensors.get(&format!("{prefix}{key}")));
                let rows = data.filter(|data| data.shape().num_dims() == 2).map(|data| data.shape()[axis]);
                found.extend(rows.map(|rows| (rows, key)));
            }
        }
        match found.len() {
            0 | 1 => Ok(found.into_keys().find(|rows| *rows != words)),
            _ => {
                let problems = found.into_iter().map(|(rows, key)| format!("`{key}`: is of {rows} words"));
                let problems = problems.chain(["one model has one vocabulary".to_owned()]).collect();
                Err(Error::Tensors { origin: self.path.display().to_string(), problems })
            }
        }
    }
}

fn embeddings(info: &ModelInfo) -> impl Iterator<Item = &String> {
    [&info.input_embedding, &info.output_embedding].into_iter().flatten()
}

impl PeftModel {
    /// Finds the embeddings of the base model that an adapter file also holds.
    pub(super) fn brought_embeddings(
        &self,
        prefix: &str,
        plan: &Plan,
        folder: &AdapterFolder,
        problems: &mut Vec<String>,
    ) -> Brought {
        let mut brought = Brought::default();
        for module in embeddings(&self.base.info) {
            let parameter = format!("{module}.weight");
            let is_saved = plan.saved.contains(module);
            let inside = INSIDE_WRAPPERS.iter().copied().chain((!is_saved).then_some(""));
            for key in inside.map(|inside| format!("{prefix}{module}{inside}.weight")) {
                let Some(data) = folder.tensors.get(&key) else { continue };
                brought.keys.push((key.clone(), parameter.clone()));
                let own = self.base_values(&HashSet::from([parameter.as_str()])).remove(&parameter);
                let Some(own) = own else { continue };
                let transposed = is_stored_transposed(&self.tree, &parameter);
                let stored = if transposed { own.clone().transposed() } else { own.clone() };
                if stored.shape() != data.shape().as_slice() || !data.dtype().is_float() {
                    problems.push(format!(
                        "`{key}`: is {:?}, the base model's own is {:?}; of a resized vocabulary the base model has to be loaded \
                         with its size (LoadOptions::vocab_size)",
                        data.shape().as_slice(),
                        stored.shape()
                    ));
                    continue;
                }
                let (mine, theirs) = (floats(stored.to_data()), floats(data.clone()));
                let near = mine.iter().zip(&theirs).all(is_near);
                brought.differs |= !near;
                if mine == theirs || near && self.base.quantized.get(&parameter).is_some() {
                    continue;
                }
                let value = DynTensor::from_data(data.clone().convert::<f32>(), &self.device.clone().inner());
                let value = value.map(|value| value.cast(stored.to_data().dtype()));
                let value = value.map(|value| if transposed { value.transposed() } else { value });
                brought.values.extend(value.map(|value| (parameter.clone(), value)));
            }
        }
        brought
    }

    /// Replaces the base model's embeddings by them, as PEFT does on loading.
    ///
    /// # Errors
    /// [`Error::Adapter`] if there are adapters already: they would get other embeddings than they were trained with.
    pub(super) fn take_embeddings(&mut self, name: &str, brought: Brought) -> Result<()> {
        if brought.values.is_empty() {
            return Ok(());
        }
        if let Some((other, _)) = self.adapters.first() {
            if !brought.differs {
                return Ok(());
            }
            return Err(Error::Adapter(format!(
                "adapter `{name}` brings other embeddings than those that `{other}` has: they cannot be on one model"
            )));
        }
        let BaseModel { module, info, quantized } = self.base.clone();
        let mut values: HashMap<String, DynTensor> = brought.values.into_iter().collect();
        for (copy, original) in &info.tied {
            let turned = is_stored_transposed(&self.tree, copy) != is_stored_transposed(&self.tree, original);
            let turn = |value: &DynTensor| if turned { value.clone().transposed() } else { value.clone() };
            if let Some(value) = values.get(original).map(turn) {
                values.insert(copy.clone(), value);
            } else if let Some(value) = values.get(copy).map(turn) {
                values.insert(original.clone(), value);
            }
        }
        let module = module.map_params(&|path| info.rename(path), &mut |name, param| match values.get(name) {
            Some(value) => param.with_value(value.clone()),
            None => param,
        });
        let quantized = quantized.iter().filter(|(name, _)| !values.contains_key(*name));
        let quantized = quantized.map(|(name, weight)| (name.to_owned(), Arc::clone(weight))).collect();
        self.base = BaseModel { module, info, quantized };
        Ok(())
    }
}

fn floats(data: TensorData) -> Vec<f32> {
    data.convert::<f32>().try_to_vec::<f32>().unwrap_or_default()
}

/// Whether two values are one; that of the file may be of a shorter float type.
fn is_near((own, copy): (&f32, &f32)) -> bool {
    (own - copy).abs() <= 1e-2 * own.abs() + 1e-5
}
