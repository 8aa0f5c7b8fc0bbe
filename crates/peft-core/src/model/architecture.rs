//! Architectures as plugins: how a model is built from its Hugging Face configuration.

use std::sync::Arc;

use burn::tensor::Device;
use serde_json::{Map, Value};

use crate::{AutoClass, BaseModel, Error, Result, plugins::registry::Plugin};

/// An architecture as a plugin: one `model_type` of Hugging Face configurations.
pub struct ArchitecturePlugin {
    /// The word in `model_type`.
    pub name: &'static str,
    /// The heads it can be built with.
    pub classes: &'static [AutoClass],
    /// Builds the model without weights: parameters are lazy until they are loaded or used.
    pub build: fn(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel>,
    /// One line for `peft plugins`.
    pub summary: &'static str,
}

inventory::collect!(ArchitecturePlugin);

impl ArchitecturePlugin {
    /// Builds the model with the head of `class`.
    ///
    /// # Errors
    /// [`Error::NoSuchHead`] if the architecture has none like it; [`Error::Config`] if the configuration cannot be used.
    pub fn build(&self, config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
        if !self.classes.contains(class) {
            let has: Vec<_> = self.classes.iter().map(AutoClass::as_str).collect();
            let (model_type, class) = (self.name.to_owned(), class.to_string());
            return Err(Error::NoSuchHead { model_type, class, has: has.join(", ") });
        }
        let mut base = (self.build)(config, class, device)?;
        Arc::make_mut(&mut base.info).class = class.clone();
        Ok(base)
    }
}

impl Plugin for ArchitecturePlugin {
    const KIND: &'static str = "architecture";

    fn name(&self) -> &'static str {
        self.name
    }
}
