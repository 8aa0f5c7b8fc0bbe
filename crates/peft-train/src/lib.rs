//! Recipes, the training loop, checkpoints and evaluation of `peft`.
//!
//! [`train`] turns a [`Recipe`] into an adapter folder; [`evaluate`](evaluate::evaluate) and [`Predict`](evaluate::Predict)
//! use one. Everything that a recipe decides is resolved and judged before the first step.

pub mod activations;
mod best_metric;
mod best_model;
pub mod captured_steps;
pub mod checkpoint;
mod columns;
pub mod data;
pub mod dataset;
pub mod error;
pub mod evaluate;
mod exact;
mod fingerprint;
mod identity;
pub mod labels;
pub mod memory;
pub mod observer;
pub mod optimizer;
pub mod packing;
mod pooling;
pub mod prepare;
pub mod recipe;
pub mod report;
pub mod row_adapters;
mod run_directory;
pub mod schedule;
mod seeds;
pub mod step_plan;
mod trainee;
pub mod trainer;
pub mod trainer_log;
pub mod writing;

pub use captured_steps::CapturedSteps;
pub use dataset::Dataset;
pub use error::{Error, Result};
pub use observer::{Event, Observer, Silent};
pub use optimizer::Optimizer;
pub use prepare::{Prepared, prepare};
pub use recipe::Recipe;
pub use report::TrainReport;
pub use run_directory::check_output_dir;
pub use trainer::{TrainOptions, train};
pub use writing::Writing;

// Tests ask for tasks and tuners by name, which a crate that nothing names would not register.
#[cfg(test)]
use peft as _;
