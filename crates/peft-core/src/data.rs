//! From rows of data files to batches, and the losses on them.

pub mod bad_rows;
pub mod chat;
pub mod example;
pub mod loss;
pub mod tokenizer;
