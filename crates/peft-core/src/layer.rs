//! Layers that find the adapters on their own weights.

pub mod embedding;
pub mod linear;
mod rows;
