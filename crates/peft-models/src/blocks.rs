//! What several architectures are made of. An architecture in another crate is built from the same parts.
//!
//! Everything here takes plain tensors, autodiff tensors and mixtures of both: frozen layers below the lowest adapter run
//! without a graph.

mod activation;
mod attention;
mod bart_layers;
mod bert_layers;
mod clamp_f16;
mod cross_attention;
mod decoder;
mod decoder_heads;
mod dropout;
mod embedding;
mod encoder;
mod encoder_decoder;
mod fields;
mod gated_mlp;
mod layer_norm;
mod layer_type;
mod layers;
mod linear;
mod mask;
mod pre_norm_layer;
mod rms_norm;
mod rotary;
mod rotary_attention;
mod run_layers;
mod sandwich_layer;

pub use activation::Activation;
pub use attention::{Heads, Scores, attend};
pub use bart_layers::{BartFamily, BartPositions};
pub use bert_layers::{BertEmbeddings, BertEncoder, BertFeedForward, BertOutput, BertPooler, BertSizes};
pub use clamp_f16::clamp_f16;
pub use cross_attention::{AttentionSizes, CrossAttention};
pub use decoder::{Decoder, DecoderContext, DecoderLayer, DecoderSizes, Sight, View};
pub use decoder_heads::{CausalBackbone, CausalModel, class_name};
pub use dropout::dropout;
pub use embedding::{
    behind_prompt, counted, embed, embed_scaled, first_token, last_token, past_length, positions, positions_end,
    split_span_logits,
};
pub use encoder::{
    Encoder, EncoderModel, FirstTokenClassifier, PooledClassifier, attention_of, of_class, self_attention,
};
pub use encoder_decoder::{CrossContext, Seq2SeqBackbone, Seq2SeqModel, target_ids};
pub use fields::Fields;
pub use gated_mlp::GatedMlp;
pub use layer_norm::LayerNorm;
pub use layer_type::LayerType;
pub use layers::Layers;
pub use linear::{adapted_conv1d, adapted_linear, word_logits};
pub use mask::AttentionMask;
pub use pre_norm_layer::PreNormLayer;
pub use rms_norm::RmsNorm;
pub use rotary::{Rotary, RotaryTables};
pub use rotary_attention::{AttentionOptions, RotaryAttention, RotaryHeads};
pub use run_layers::run_layers;
pub use sandwich_layer::SandwichLayer;
