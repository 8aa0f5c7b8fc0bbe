//! The sizes of a prompt, read from the model as PEFT reads them.

use peft_core::{
    Error, ModelInfo, ModuleTree, PastShape, Result,
    plugins::{
        plan::TaskRules,
        prompt::{PromptEntry, PromptShape},
    },
};
use serde_json::Value;

use super::PromptOptions;

/// Where a model's configuration has its sizes; the first that is there counts.
const LAYERS: &[&str] = &["num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers"];
const WIDTH: &[&str] = &["hidden_size", "n_embd", "d_model", "dim"];
const HEADS: &[&str] = &["num_attention_heads", "n_head", "num_heads", "encoder_attention_heads", "n_heads"];

pub(super) struct Resolved {
    pub(super) shape: PromptShape,
    /// As the file has it: the model's, even where the prompt does not depend on it.
    pub(super) num_layers: Option<usize>,
    pub(super) num_attention_heads: Option<usize>,
    pub(super) notes: Vec<String>,
}

/// The sizes for a model, and what was corrected.
///
/// # Errors
/// [`Error::Config`] if the model cannot take such a prompt, with the reason.
pub(super) fn resolve(
    options: &PromptOptions,
    entry: PromptEntry,
    model: &ModuleTree,
    info: &ModelInfo,
    task: &TaskRules,
) -> Result<Resolved> {
    let num_virtual_tokens = match options.num_virtual_tokens {
        Some(count) if count > 0 => count,
        Some(_) => return Err(Error::config("num_virtual_tokens", "must be at least 1")),
        None => {
            return Err(Error::config("num_virtual_tokens", "missing: how many virtual tokens stand before the input"));
        }
    };
    if let Some(most) = info.max_positions.filter(|most| num_virtual_tokens >= *most) {
        let problem = format!("{num_virtual_tokens} leave no room for text: the model has {most} positions");
        return Err(Error::config("num_virtual_tokens", problem));
    }
    at_most(&[("num_virtual_tokens", num_virtual_tokens)])?;
    let num_transformer_submodules = options.num_transformer_submodules.unwrap_or(task.num_transformer_submodules);
    if !(1..=2).contains(&num_transformer_submodules) {
        let problem = format!("{num_transformer_submodules}: 1, or 2 for an encoder and its decoder");
        return Err(Error::config("num_transformer_submodules", problem));
    }
    let find = |keys: &[&str]| keys.iter().find_map(|key| info.number(key));
    let mut notes = Vec::new();
    match entry {
        PromptEntry::Embeddings => {
            if !info.takes_prompt {
                let problem =
                    format!("{} takes no vectors before its embedded input, which this method needs", info.class_name);
                return Err(Error::config("peft_type", problem));
            }
            let width = info.input_embedding.as_ref().and_then(|name| model.get(name)?.weight_dims());
            let Some((_, width)) = width else {
                let problem = format!("{} does not say which module embeds its input", info.class_name);
                return Err(Error::config("peft_type", problem));
            };
            if let Some(given) = options.token_dim.filter(|given| *given != width) {
                let problem =
                    format!("{given}: the model's words have {width} dimensions, and virtual tokens stand among them");
                return Err(Error::config("token_dim", problem));
            }
            if options.token_dim.is_none()
                && let Some(hidden) = find(WIDTH).filter(|hidden| *hidden != width)
            {
                notes.push(format!(
                    "token_dim: {width}, the width of the words, and not the hidden size {hidden} that PEFT takes, with which \
                     it fails"
                ));
            }
            let num_layers = options.num_layers.or_else(|| find(LAYERS));
            let num_attention_heads = options.num_attention_heads.or_else(|| find(HEADS));
            let shape = PromptShape {
                num_virtual_tokens,
                num_transformer_submodules,
                token_dim: width,
                num_layers: num_layers.unwrap_or(0),
                num_attention_heads: num_attention_heads.unwrap_or(0),
            };
            Ok(Resolved { shape, num_layers, num_attention_heads, notes })
        }
        PromptEntry::PastKeyValues => {
            let Some(PastShape { layers, heads, head_dim }) = info.past else {
                let problem = format!(
                    "the attention of {} takes no keys and values before those of its input, which this method needs; \
                     PROMPT_TUNING and P_TUNING work",
                    info.class_name
                );
                return Err(Error::config("peft_type", problem));
            };
            let own = [
                ("num_layers", options.num_layers, layers),
                ("num_attention_heads", options.num_attention_heads, heads),
                ("token_dim", options.token_dim, heads * head_dim),
            ];
            // PEFT corrects what is given for all heads where groups of heads share their keys, and fails elsewhere.
            let is_grouped = info.config.get("num_key_value_heads").is_some_and(|value| !value.is_null());
            for (key, given, own) in own {
                let Some(given) = given.filter(|given| *given != own) else { continue };
                let problem = format!(
                    "{given} does not fit: the model's attention has {own} ({layers} layers of {heads} heads of {head_dim} for keys)"
                );
                if !is_grouped || key == "num_layers" {
                    return Err(Error::config(key, problem));
                }
                notes.push(format!("{key}: {given} becomes {own}, the heads that keys have"));
            }
            let hidden = find(WIDTH);
            if !is_grouped && options.token_dim.is_none() && hidden.is_some_and(|hidden| hidden != heads * head_dim) {
                notes.push(format!(
                    "token_dim: {}, the width of the keys, and not the hidden size that PEFT takes, with which it fails",
                    heads * head_dim
                ));
            }
            let shape = PromptShape {
                num_virtual_tokens,
                num_transformer_submodules,
                token_dim: heads * head_dim,
                num_layers: layers,
                num_attention_heads: heads,
            };
            Ok(Resolved { shape, num_layers: Some(layers), num_attention_heads: Some(heads), notes })
        }
    }
}

/// Judges sizes that only the configuration says: far beyond what anyone trains, and still countable.
pub(super) fn at_most(sizes: &[(&str, usize)]) -> Result<()> {
    const MOST: usize = 1 << 20;
    match sizes.iter().find(|(_, size)| *size > MOST) {
        Some((key, size)) => Err(Error::config(*key, format!("{size}: must be at most {MOST}"))),
        None => Ok(()),
    }
}

/// The type that options with words have: an unknown word is an error that lists the known ones.
pub(super) fn one_of(key: &str, value: &str, known: &[&str]) -> Result<()> {
    if known.contains(&value) {
        return Ok(());
    }
    Err(Error::config(key, format!("`{}` is none of {}", Value::from(value), known.join(", "))))
}
