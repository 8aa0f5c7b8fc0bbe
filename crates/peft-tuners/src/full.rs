//! Full fine-tuning: every parameter is trained, and the result is a model.
//!
//! No `peft_type` of PEFT, but what one compares adapters with, and what a new model needs before it can have one.

use peft_core::{
    ModelInfo, ModuleTree, PeftConfig, Plan, Result, inventory,
    plugins::{
        plan::TaskRules,
        tuner::{Tuner, TunerPlugin},
    },
};
use serde::{Deserialize, Serialize};

inventory::submit! {
    TunerPlugin::new::<Full>("FULL", "every parameter is trained; the result is a model, not an adapter")
}

/// Full fine-tuning; it has no options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Full {}

impl Tuner for Full {
    fn trains_in_place(&self) -> bool {
        true
    }

    /// Every module with parameters of its own, but those that are another one or that the model works out by itself.
    fn plan(&self, config: &PeftConfig, model: &ModuleTree, info: &ModelInfo, _task: &TaskRules) -> Result<Plan> {
        let is_own = |name: &str| !info.is_computed(name) && !info.tied.iter().any(|(copy, _)| copy == name);
        let trained = model.modules.iter().filter(|module| {
            module.params.iter().any(|param| !param.is_buffer && is_own(&format!("{}.{}", module.name, param.name)))
        });
        Ok(Plan {
            config: config.clone(),
            adapted: Vec::new(),
            tokens: Vec::new(),
            skipped: Vec::new(),
            saved: trained.map(|module| module.name.clone()).filter(|name| !name.is_empty()).collect(),
            biases: Vec::new(),
            in_place: true,
            prompt: None,
            notes: Vec::new(),
        })
    }
}
