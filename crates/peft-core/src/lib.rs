//! The traits, the configuration type, adapters and files of `peft`: everything that names no tuner, no task, no
//! architecture and no backend.
//!
//! An [`Adapter`] is a value: a [`PeftConfig`] and named tensors. [`attach`](attach::attach) hangs adapters on the
//! parameters of any Burn module through Burn's own reparameterization hook; [`PeftModel`] keeps a base model and its
//! named adapters together. Tuners, tasks and architectures are plugins found in the [`registry`].

pub use inventory;

pub mod adapter;
pub mod architecture;
pub mod attach;
pub mod bad_rows;
pub mod batch;
pub mod by_rows;
pub mod chat;
pub mod checked_inputs;
pub mod config;
pub mod dyn_module;
pub mod dyn_tensor;
pub mod error;
pub mod example;
pub mod explain;
pub mod files;
pub mod finite;
pub mod fresh;
pub mod linear;
pub mod loss;
pub mod metrics;
pub mod model;
pub mod module_tree;
pub mod names;
pub mod packed;
pub mod past;
pub mod plan;
pub mod prompt;
mod prompted;
pub mod random;
pub mod registry;
pub mod running_model;
pub mod shift_right;
pub mod task;
pub mod tokenizer;
pub mod tuner;
pub mod word_logits;

pub use adapter::{Adapter, AdapterSet};
pub use architecture::{ArchitecturePlugin, AutoClass, BaseModel, ModelInfo, PastShape};
pub use attach::Acting;
pub use bad_rows::BadRows;
pub use batch::{Batch, Inputs, Labels, Outputs};
pub use checked_inputs::{CheckedBatch, CheckedInputs};
pub use config::PeftConfig;
pub use dyn_module::{DynModule, Forward};
pub use dyn_tensor::{DynParam, DynTensor};
pub use error::{Error, Result};
pub use explain::Explanation;
pub use fresh::{Fresh, FreshValues};
pub use linear::{Conv1D, LinearParts, adapted_embedding, adapted_linear, adapted_linear_by, linear_parts};
pub use model::PeftModel;
pub use module_tree::{ModuleInfo, ModuleKind, ModuleTree};
pub use names::{PeftType, TaskType};
pub use packed::{FrozenWeight, PackedWeight, PackedWeights};
pub use past::PastKeyValues;
pub use plan::Plan;
pub use prompt::PromptTuner;
pub use running_model::RunningModel;
pub use shift_right::{DecoderStart, ShiftRight};
pub use task::{Task, TaskPlugin};
pub use tuner::{Tuner, TunerPlugin};
pub use word_logits::WordLogits;
