//! Tuners and the target rules that they share.
//!
//! [`select`] decides which modules of a model are adapted and says why; [`heads`] keeps what a task trains in full out of
//! it; [`defaults`] knows where each architecture is adapted when nobody says. A tuner is one file that registers itself.

mod alternatives;
pub mod defaults;
pub mod full;
pub mod heads;
pub mod lora;
pub mod pattern;
pub mod prompt;
pub mod select;
pub mod trainable_tokens;
