//! The traits, the configuration type, adapters and files of `peft`: everything that names no tuner, no task, no
//! architecture and no backend.
//!
//! An [`Adapter`] is a value: a [`PeftConfig`] and named tensors. [`attach`](model::attach::attach) attaches adapters to the
//! parameters of any Burn module through Burn's own reparameterization hook; [`PeftModel`] keeps a base model and its
//! named adapters together. Tuners, tasks and architectures are plugins found in the [`registry`](plugins::registry).

pub use inventory;

pub mod adapter;
pub mod batch;
pub mod data;
pub mod error;
pub mod files;
pub mod layer;
pub mod metrics;
pub mod model;
pub mod model_info;
pub mod plugins;
pub mod tensor;
pub mod weight;

pub use adapter::{Adapter, AdapterSet};
pub use batch::{Batch, Inputs, Labels, Outputs, PastKeyValues};
pub use data::bad_rows::BadRows;
pub use error::{Error, Result};
pub use layer::{
    embedding::adapted_embedding,
    linear::{Conv1D, LinearParts, adapted_linear, adapted_linear_by, linear_parts},
};
pub use model::{
    architecture::ArchitecturePlugin,
    attach::Acting,
    base_model::BaseModel,
    checked_inputs::{CheckedBatch, CheckedInputs},
    dyn_module::{DynModule, Forward},
    explain::Explanation,
    peft_model::PeftModel,
    running_model::RunningModel,
};
pub use model_info::{AutoClass, DecoderStart, ModelInfo, PastShape, ShiftRight};
pub use plugins::{
    config::PeftConfig,
    names::{PeftType, TaskType},
    plan::Plan,
    prompt::PromptTuner,
    task::{Task, TaskPlugin},
    tuner::{Tuner, TunerPlugin},
};
pub use tensor::{
    dyn_tensor::{DynParam, DynTensor},
    fresh::{Fresh, FreshValues},
    module_tree::{ModuleInfo, ModuleKind, ModuleTree},
};
pub use weight::{FrozenWeight, QuantizedWeight, QuantizedWeights, VocabularyLogits};
