//! The program, as its users meet it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod data;
mod devices;
#[cfg(unix)]
mod docs;
mod folders;
mod generation;
mod program;
