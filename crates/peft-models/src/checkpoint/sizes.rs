//! The sizes in a configuration, judged by what the checkpoint holds before modules are made of them.

use peft_core::Result;
use serde_json::{Map, Value};

use super::shards::Shards;
use crate::blocks::Fields;

/// Keys of how many layers there are.
const LAYERS: &[&str] = &[
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
];

/// Keys of sizes that are one of the dimensions of some tensor, or divide one.
const DIMENSIONS: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "embedding_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "n_embd",
    "n_inner",
    "n_head",
    "dim",
    "hidden_dim",
    "n_heads",
    "d_model",
    "d_ff",
    "d_kv",
    "num_heads",
    "ffn_dim",
    "word_embed_proj_dim",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "encoder_attention_heads",
    "decoder_attention_heads",
];

/// Layers that share their weights have none of their own; so many are no matter.
const FEW_LAYERS: usize = 100;

/// Sizes that take little memory whatever the checkpoint holds: where they do not fit, the shapes of the tensors say more.
const SMALL: usize = 1 << 20;

/// The most classes of a head, which no file may hold yet.
const MOST_LABELS: usize = 1 << 20;

/// Refuses sizes that no checkpoint with these tensors can have. Those that are merely wrong show in the shapes of the tensors.
///
/// # Errors
/// [`peft_core::Error::Config`] with the key.
pub(super) fn check(config: &Map<String, Value>, shards: &Shards) -> Result<()> {
    let number = |key: &&&str| config.get(**key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let tensors = shards.names().count();
    for (key, layers) in LAYERS.iter().filter_map(|key| Some((key, number(&key)?))) {
        if layers > tensors.max(FEW_LAYERS) {
            return Err(Fields::error(key, format!("{layers} layers, and the checkpoint has {tensors} tensors")));
        }
    }
    let largest = shards.names().filter_map(|name| shards.get(name)).map(|stored| values(&stored.shape)).max();
    let largest = largest.unwrap_or(0);
    for (key, size) in DIMENSIONS.iter().filter_map(|key| Some((key, number(&key)?))) {
        if size > largest.max(SMALL) {
            let problem = format!("{size}, and the largest tensor of the checkpoint has {largest} values");
            return Err(Fields::error(key, problem));
        }
    }
    Ok(())
}

/// Refuses a number of classes that nobody has.
///
/// # Errors
/// [`peft_core::Error::Config`] with the key.
pub(super) fn check_labels(config: &Map<String, Value>) -> Result<()> {
    let labels = config.get("num_labels").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    Fields::at_most("num_labels", labels.unwrap_or(0), MOST_LABELS).map(drop)
}

fn values(shape: &[usize]) -> usize {
    peft_core::tensor::module_tree::num_values(shape)
}
