//! Operations that a training step spends its time in, each with a forward and a backward pass.
//!
//! Every operation has three forms: plain tensor operations, which any backend has and which are the reference; a node of the
//! processor, which uses all its threads and vector units; and a node of a GPU. Callers see one function and get the fastest form
//! that the tensor's device and type have.

mod adamw;
mod adapted;
mod attention;
mod dropout;
mod finite;
mod gated;
mod gated_mlp;
mod gelu;
#[cfg(all(test, feature = "gpu"))]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod gpu_tests;
mod layer_norm;
mod linear_cross_entropies;
mod lora_linear;
mod low_rank_by_rows;
mod normed;
mod quantized;
mod rms_norm;
mod rotary;
mod self_test;
mod slot;
mod softmax;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests;

pub use adamw::{AdamW, Trained, Updated, adamw};
pub use adapted::{Adapted, Weight};
pub use attention::attention;
pub use dropout::dropout;
pub use finite::is_finite_on_host;
pub use gated::{gelu_tanh_gated, silu_gated};
pub use gated_mlp::gated_mlp;
pub use gelu::{gelu, gelu_tanh};
pub use layer_norm::layer_norm;
pub use linear_cross_entropies::{linear_cross_entropies, linear_cross_entropies_of_each};
pub use lora_linear::{LowRank, adapted, linear, lora_linear};
pub use low_rank_by_rows::low_rank_by_rows;
pub use normed::Normed;
pub use rms_norm::rms_norm;
pub use rotary::rotate;
pub use self_test::{SelfTest, self_test};
pub use slot::Slot;
pub use softmax::softmax;

pub use crate::{
    kernels::{
        attention_mask::{Marks, Sight},
        attention_weights::Weights,
        host::{gate::Gate, set_fused},
        low_rank_rows::Run,
        quantized::{
            codebook::FourBit,
            ggml::GgmlType,
            parts::{PackedParts, Packing, ScaleParts},
            q8_0::quantize_q8_0,
            quantize::quantize,
        },
        quantized_matrix::PackedMatrix,
    },
    nodes::draws::{is_random, runs_twice},
};
