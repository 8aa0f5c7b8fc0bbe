//! Tuners and tasks as plugins, the configuration that selects them, and the plans that they make.

pub mod config;
pub mod names;
pub mod plan;
pub mod prompt;
pub mod registry;
pub mod rows_part;
pub mod task;
pub mod tuner;
