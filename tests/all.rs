//! What holds across the crates of the workspace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod adapters;
#[cfg(feature = "wgpu")]
mod captured_steps;
mod chat_templates;
mod config;
mod damage;
mod dependencies;
mod docs;
mod files;
mod fixture;
mod fresh;
mod generation;
mod gguf;
mod golden_cases;
#[cfg(feature = "wgpu")]
mod gpu;
mod gradients;
mod half_precision;
mod hub;
mod mixed;
mod opening;
mod optimizer;
mod packing;
mod parquet;
mod past;
mod prompts;
mod pytorch;
mod quantization;
mod recompute;
mod registry;
mod text_metrics;
mod tidiness;
mod words;
