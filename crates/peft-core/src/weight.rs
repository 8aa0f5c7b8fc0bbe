//! The weights that layers multiply with: dense, quantized, and an output layer whose logits are computed when asked for.

mod frozen;
pub mod quantized;
pub mod token_logits;

pub use frozen::{FrozenWeight, Product};
pub use quantized::{PackedWeight, PackedWeights};
pub use token_logits::WordLogits;
