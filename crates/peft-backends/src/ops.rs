//! Operations that a training step spends its time in, each one pass forward and one backward.
//!
//! Every operation has three forms: plain tensor operations, which any backend has and which are the reference; a version
//! for the processor that uses all its threads and vector units; and a backward pass written by hand. Callers see one
//! function and get the fastest form that the tensor's device and type have.

mod adamw;
mod attention;
#[cfg(feature = "gpu")]
mod cube;
mod dropout;
mod few_rows;
mod finite;
mod gated;
mod gated_mlp;
mod gelu;
mod half_precision;
mod host;
mod layer_norm;
mod linear_cross_entropies;
mod lora_linear;
mod low_rank_by_rows;
mod node;
mod normed;
mod packed;
mod product;
mod projection;
mod rms_norm;
mod rotary;
mod self_test;
mod sight;
mod slot;
mod softmax;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests;
mod vector_math;

pub use adamw::{AdamW, Trained, Updated, adamw};
pub use attention::{Weights, attention};
#[cfg(feature = "gpu")]
pub(crate) use cube::Gpu;
pub(crate) use dropout::{Draws, recorded, replayed};
pub use dropout::{dropout, is_random, runs_twice};
pub use finite::is_finite_on_host;
pub use gated::{Gate, gelu_tanh_gated, silu_gated};
pub use gated_mlp::gated_mlp;
pub use gelu::{gelu, gelu_tanh};
pub use host::set_fused;
pub use layer_norm::layer_norm;
pub use linear_cross_entropies::{linear_cross_entropies, linear_cross_entropies_of_each};
pub use lora_linear::{LowRank, adapted, linear, lora_linear};
pub use low_rank_by_rows::{Run, low_rank_by_rows};
pub use normed::Normed;
pub use packed::{FourBit, GgmlType, PackedMatrix, PackedParts, Packing, ScaleParts, quantize, quantize_q8_0};
pub use projection::{Adapted, Weight};
pub use rms_norm::rms_norm;
pub use rotary::rotate;
pub use self_test::{SelfTest, self_test};
pub use sight::{Marks, Sight};
pub use slot::Slot;
pub use softmax::softmax;
