//! Models, checkpoints and tokenizers from outside the crate.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod checkpoint;
mod encoder_decoder;
mod golden;
mod tokenizer;
