//! The base model as its adapters need it: the class, the vocabulary and the classes of the head that they were trained with.

use std::path::Path;

use burn::tensor::Device;
use peft_core::{
    AutoClass, BaseModel, Error, ModelInfo, PeftConfig, Result, adapter::AdapterFolder, plugins::task::LabelSet,
};

use crate::{
    checkpoint::{self, LoadOptions, Loaded},
    model_class::ModelClass,
};

/// How a base model is loaded.
#[derive(Debug, Clone)]
pub struct BaseFor {
    /// Its class.
    pub class: ModelClass,
    /// With what follows from the adapters.
    pub options: LoadOptions,
}

impl BaseFor {
    /// For these adapters, as [`AdapterFolder::read`] gives them, by name; for none as [`alone`](Self::alone).
    ///
    /// # Errors
    /// As [`ModelClass::of_adapter`]; [`Error::Adapter`] if two of them are for models that differ.
    pub fn adapters(model: &Path, adapters: &[(String, AdapterFolder)], options: LoadOptions) -> Result<Self> {
        let Some(((name, first), others)) = adapters.split_first() else { return Self::alone(model, options) };
        let class = ModelClass::of_adapter(model, first)?;
        let info = checkpoint::skeleton(model, &class.class, &options, &Device::flex())?.info;
        let mut options = LoadOptions { vocab_size: first.resized_vocabulary(&info)?, ..options };
        let mut sized = name;
        for (other, folder) in others {
            let own = ModelClass::of_adapter(model, folder)?;
            if own.class != class.class {
                return Err(Error::Adapter(format!(
                    "adapter `{other}` is for an {}, `{name}` for an {}: they cannot be on one model",
                    own.class, class.class
                )));
            }
            match (options.vocab_size, folder.resized_vocabulary(&info)?) {
                (Some(words), Some(own)) if words != own => {
                    return Err(Error::Adapter(format!(
                        "adapter `{other}` has a vocabulary of {own}, `{sized}` one of {words}: they cannot be on one model"
                    )));
                }
                (None, Some(own)) => (options.vocab_size, sized) = (Some(own), other),
                _ => {}
            }
        }
        if options.labels.is_none() {
            options.labels = classes_of_head(first, &info);
        }
        // The adapters bring the head.
        options.ignore_mismatched_sizes |= options.labels.is_some();
        Ok(Self { class, options })
    }

    /// For a configuration, before there is an adapter.
    ///
    /// # Errors
    /// As [`ModelClass::of_config`].
    pub fn config(model: &Path, config: &PeftConfig, options: LoadOptions) -> Result<Self> {
        Ok(Self { class: ModelClass::of_config(model, config)?, options })
    }

    /// For no adapter: as it was saved.
    ///
    /// # Errors
    /// As [`ModelClass::of_model`].
    pub fn alone(model: &Path, options: LoadOptions) -> Result<Self> {
        Ok(Self { class: ModelClass::of_model(model)?, options })
    }

    /// Loads it.
    ///
    /// # Errors
    /// As [`checkpoint::load`].
    pub fn load(&self, model: &Path, device: &Device) -> Result<Loaded> {
        checkpoint::load(model, &self.class.class, &self.options, device)
    }

    /// Builds it without weights.
    ///
    /// # Errors
    /// As [`checkpoint::skeleton`].
    pub fn skeleton(&self, model: &Path) -> Result<BaseModel> {
        checkpoint::skeleton(model, &self.class.class, &self.options, &Device::flex())
    }
}

/// The classes of the head that an adapter brings, where the base model's configuration has another number of them. They have no
/// names: only `labels.json` has some.
fn classes_of_head(adapter: &AdapterFolder, info: &ModelInfo) -> Option<LabelSet> {
    let is_classifier = [AutoClass::SEQUENCE_CLASSIFICATION, AutoClass::TOKEN_CLASSIFICATION].contains(&info.class);
    // The last module of a head is the one with the classes.
    let heads = info.head_modules.iter().rev().filter(|_| is_classifier);
    let keys = heads.flat_map(|head| [format!("{head}.weight"), format!("{head}.out_proj.weight")]);
    let mut rows = keys.filter_map(|key| {
        let found = |(name, data): (&str, &burn::tensor::TensorData)| {
            (name == key).then(|| data.shape().as_slice().first().copied()).flatten()
        };
        adapter.named_tensors().find_map(found)
    });
    let rows = rows.next().filter(|rows| *rows != info.num_labels())?;
    let problem_type = match info.problem_type() {
        Some("multi_label_classification") => "multi_label_classification",
        _ if rows == 1 => "regression",
        _ => "single_label_classification",
    };
    Some(LabelSet { labels: (0..rows).map(|row| format!("LABEL_{row}")).collect(), problem_type })
}
