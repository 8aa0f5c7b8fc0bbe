//! Models: a base model, its adapters, and how both run.

pub mod architecture;
pub mod attach;
pub mod base_model;
pub mod checked_inputs;
pub mod dyn_module;
pub mod explain;
pub mod peft_model;
mod prompted;
pub mod running_model;
