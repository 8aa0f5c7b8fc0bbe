//! The weights that layers multiply with: dense, quantized, and an output layer whose logits are computed when asked for.

mod frozen;
pub mod quantized;
pub mod vocabulary_logits;

pub use frozen::{FrozenWeight, Product};
pub use quantized::{QuantizedWeight, QuantizedWeights};
pub use vocabulary_logits::VocabularyLogits;
