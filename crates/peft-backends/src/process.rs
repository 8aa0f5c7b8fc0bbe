//! The process on its operating system: memory, mapped files, signals, and the end when memory runs out.

pub(crate) mod mapped_file;
pub(crate) mod memory;
pub(crate) mod out_of_memory;
pub mod signals;
