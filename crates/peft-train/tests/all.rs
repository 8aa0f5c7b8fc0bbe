//! Recipes and training from outside the crate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod recipe;
mod seq2seq;
mod several;
mod tagger;
mod training;
