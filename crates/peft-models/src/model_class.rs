//! The class of model that an adapter is for.
//!
//! Its task says so; without a task `auto_mapping`, which PEFT writes then; else the names in its file, as of adapters that
//! Transformers' own `add_adapter` made.

use std::{collections::HashSet, path::Path};

use burn::tensor::Device;
use peft_core::{
    AutoClass, BaseModel, Error, ModelInfo, PeftConfig, Result, adapter::AdapterFolder, files::ADAPTER_CONFIG,
};
use serde::Serialize;

use crate::checkpoint::{self, LoadOptions};

/// What says which class a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassSource {
    /// `task_type` of the adapter's configuration.
    TaskType,
    /// `auto_mapping` of the adapter's configuration.
    AutoMapping,
    /// The names in the adapter's file.
    Keys,
    /// `architectures` of the model's configuration.
    Architectures,
    /// Nothing: it is the backbone.
    Backbone,
}

/// The class that a base model is built as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelClass {
    /// The class.
    pub class: AutoClass,
    /// What says so.
    pub source: ClassSource,
}

impl ModelClass {
    /// The class of the model in a folder that an adapter is for.
    ///
    /// # Errors
    /// As [`checkpoint::skeleton`]; [`Error::NoSuchHead`] if `auto_mapping` names a class that the architecture does not have.
    pub fn of_adapter(model: &Path, adapter: &AdapterFolder) -> Result<Self> {
        let names: Vec<&str> = adapter.named_tensors().map(|(name, _)| name).collect();
        Self::find(model, &adapter.config, &names).map_err(|error| error.in_file(&adapter.path.join(ADAPTER_CONFIG)))
    }

    /// The same of a configuration alone.
    ///
    /// # Errors
    /// As [`of_adapter`](Self::of_adapter).
    pub fn of_config(model: &Path, config: &PeftConfig) -> Result<Self> {
        Self::find(model, config, &[])
    }

    /// The class that a model was saved as; the backbone where it is none that the architecture has here, and the one with a head
    /// for words where a GGUF file says nothing.
    ///
    /// # Errors
    /// As [`checkpoint::skeleton`].
    pub fn of_model(model: &Path) -> Result<Self> {
        let candidates = Candidates::new(model)?;
        if let Some(class) = candidates.saved()? {
            return Ok(Self { class, source: ClassSource::Architectures });
        }
        let is_unsaid = candidates.saved_as.is_none();
        let words = [AutoClass::CAUSAL_LM].into_iter().find(|class| is_unsaid && candidates.classes.contains(class));
        let class = words.unwrap_or(AutoClass::MODEL);
        Ok(Self { class, source: ClassSource::Backbone })
    }

    fn find(model: &Path, config: &PeftConfig, names: &[&str]) -> Result<Self> {
        if let Some(task) = config.task()? {
            return Ok(Self { class: task.auto_class.clone(), source: ClassSource::TaskType });
        }
        let candidates = Candidates::new(model)?;
        if let Some(mapped) = config.base_model_class() {
            let class = candidates.named(mapped)?.ok_or_else(|| candidates.lacks(mapped, config))?;
            return Ok(Self { class, source: ClassSource::AutoMapping });
        }
        let fitting = candidates.fitting(names)?;
        // Names alone may fit several heads: the checkpoint's own is the nearest.
        let saved = candidates.saved()?.filter(|saved| fitting.contains(saved));
        Ok(match saved.or_else(|| fitting.into_iter().next()) {
            Some(class) => Self { class, source: ClassSource::Keys },
            None => Self { class: AutoClass::MODEL, source: ClassSource::Backbone },
        })
    }
}

/// The classes that a model can be.
struct Candidates<'a> {
    model: &'a Path,
    classes: &'static [AutoClass],
    /// The class that its configuration names.
    saved_as: Option<String>,
}

impl<'a> Candidates<'a> {
    fn new(model: &'a Path) -> Result<Self> {
        let saved_as = checkpoint::saved_class(&checkpoint::read_config(model)?).map(str::to_owned);
        Ok(Self { model, classes: checkpoint::classes(model)?, saved_as })
    }

    fn build(&self, class: &AutoClass) -> Result<BaseModel> {
        checkpoint::skeleton(self.model, class, &LoadOptions::default(), &Device::flex())
    }

    /// The class that Transformers calls by this name.
    fn named(&self, name: &str) -> Result<Option<AutoClass>> {
        for class in self.classes {
            if self.build(class)?.info.class_name == name {
                return Ok(Some(class.clone()));
            }
        }
        Ok(None)
    }

    fn saved(&self) -> Result<Option<AutoClass>> {
        self.saved_as.as_deref().map_or(Ok(None), |name| self.named(name))
    }

    /// The classes with a module for each of these names.
    fn fitting(&self, names: &[&str]) -> Result<Vec<AutoClass>> {
        let mut fitting = Vec::new();
        for class in self.classes.iter().filter(|_| !names.is_empty()) {
            let tree = self.build(class)?.tree();
            let modules: HashSet<&str> =
                tree.modules.iter().filter(|m| !m.params.is_empty()).map(|m| m.name.as_str()).collect();
            let has = |name: &&str| {
                name.match_indices('.').any(|(at, _)| name.get(..at).is_some_and(|module| modules.contains(module)))
            };
            if names.iter().all(has) {
                fitting.push(class.clone());
            }
        }
        Ok(fitting)
    }

    fn lacks(&self, mapped: &str, config: &PeftConfig) -> Error {
        let names: Vec<String> =
            self.classes.iter().filter_map(|class| Some(self.build(class).ok()?.info.class_name.clone())).collect();
        let model_type = checkpoint::read_config(self.model).map(|config| ModelInfo { config, ..ModelInfo::custom() });
        let model_type = model_type.ok().and_then(|info| Some(info.config.get("model_type")?.as_str()?.to_owned()));
        let class = match config.base_model_name_or_path.as_deref().filter(|name| !name.is_empty()) {
            Some(base) => format!("{mapped}, which the adapter was trained on (`{base}`)"),
            None => format!("{mapped}, which the adapter was trained on"),
        };
        Error::NoSuchHead { model_type: model_type.unwrap_or_default(), class, has: names.join(", ") }
    }
}
