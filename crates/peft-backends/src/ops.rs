//! Operations that a training step spends its time in, each one pass forward and one backward.
//!
//! Every operation has three forms: plain tensor operations, which any backend has and which are the reference; a version
//! for the processor that uses all its threads and vector units; and a backward pass written by hand. Callers see one
//! function and get the fastest form that the tensor's device and type have.

mod dropout;
mod gelu;
mod host;
mod softmax;
mod vector_math;

pub use dropout::dropout;
pub use gelu::gelu;
pub use softmax::softmax;
