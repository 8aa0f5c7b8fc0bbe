//! What several architectures are made of. An architecture in another crate is built from the same parts.
//!
//! Everything here takes plain tensors, autodiff tensors and mixtures of both: frozen layers below the lowest adapter run
//! without a graph.

mod activation;
mod attention;
mod dropout;
mod embedding;
mod fields;
mod layers;
mod mask;
mod rotary;

pub use activation::Activation;
pub use attention::{Heads, Scores, attend};
pub use dropout::dropout;
pub use embedding::{embed, last_token, past_length, positions, split_span_logits};
pub use fields::Fields;
pub use layers::Layers;
pub use mask::AttentionMask;
pub use rotary::{Rotary, RotaryTables};
