//! Which files of a repository are needed, decided from their names.

use std::collections::BTreeSet;

use peft_core::files::{ADAPTER_CONFIG, ADAPTER_PYTORCH_WEIGHTS, ADAPTER_WEIGHTS, PROMPT_ENCODER_WEIGHTS};

use crate::{
    chat_template::is_additional,
    checkpoint::{CONFIG, INDEX, PYTORCH_INDEX, PYTORCH_WEIGHTS, WEIGHTS},
    tokenizer_files::{FILES as TOKENIZER, SENTENCE_ENCODER},
};

/// What a model says of its generation.
const SETTINGS: &[&str] = &["generation_config.json"];
/// The only one that lies in a folder of its own.
pub(super) const POOLING: &str = "1_Pooling/config.json";
/// What stands beside an adapter and says how it was trained.
const BESIDE_ADAPTER: &[&str] = &["labels.json", "recipe.toml", PROMPT_ENCODER_WEIGHTS];

/// How much of a repository is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    /// The model's configuration.
    Config,
    /// The model's configuration and tokenizer.
    Tokenizer,
    /// The model's configuration, tokenizer and weights.
    Model,
    /// An adapter.
    Adapter,
}

/// The files of a repository that are needed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// Those whose names are known beforehand.
    pub(super) files: Vec<String>,
    /// The index among them whose shards are needed too.
    pub(super) index: Option<&'static str>,
}

impl Needed {
    /// What it is, for messages.
    pub(super) fn what(self) -> &'static str {
        if self == Self::Adapter { "an adapter's folder" } else { "a model's folder or file" }
    }

    /// Chooses among the files that there are.
    ///
    /// # Errors
    /// With what is missing.
    pub(super) fn select(self, there: &BTreeSet<String>) -> Result<Selection, String> {
        let has = |name: &str| there.contains(name);
        let present = |names: &[&str]| names.iter().filter(|name| has(name)).map(|name| (*name).to_owned()).collect();
        let templates = || there.iter().filter(|name| is_additional(name)).cloned();
        let mut files: Vec<String> = Vec::new();
        let mut index = None;
        if self == Self::Adapter {
            let weights = [ADAPTER_WEIGHTS, ADAPTER_PYTORCH_WEIGHTS].into_iter().find(|name| has(name));
            let weights = weights.ok_or_else(|| format!("no {ADAPTER_WEIGHTS}"))?;
            files.extend::<Vec<_>>(present(TOKENIZER));
            files.extend(templates());
            files.extend::<Vec<_>>(present(SENTENCE_ENCODER));
            files.extend::<Vec<_>>(present(BESIDE_ADAPTER));
            files.push(weights.to_owned());
            if !has(ADAPTER_CONFIG) {
                return Err(format!("no {ADAPTER_CONFIG}"));
            }
            files.push(ADAPTER_CONFIG.to_owned());
            return Ok(Selection { files, index });
        }
        if !has(CONFIG) {
            return gguf(there).map(|file| Selection { files: vec![file], index });
        }
        files.push(CONFIG.to_owned());
        if self != Self::Config {
            files.extend::<Vec<_>>(present(TOKENIZER));
            files.extend(templates());
            files.extend::<Vec<_>>(present(SENTENCE_ENCODER));
            files.extend::<Vec<_>>(present(SETTINGS));
        }
        if self == Self::Model {
            let found = [WEIGHTS, INDEX, PYTORCH_WEIGHTS, PYTORCH_INDEX].into_iter().find(|name| has(name));
            let found = found.ok_or_else(|| format!("no {WEIGHTS} and no {PYTORCH_WEIGHTS}, whole or in shards"))?;
            files.push(found.to_owned());
            index = [INDEX, PYTORCH_INDEX].into_iter().find(|index| *index == found);
        }
        Ok(Selection { files, index })
    }
}

/// The GGUF file of a repository that has no configuration.
fn gguf(there: &BTreeSet<String>) -> Result<String, String> {
    let is_gguf = |name: &&String| name.to_lowercase().ends_with(".gguf") && !name.contains('/');
    let found: Vec<&String> = there.iter().filter(is_gguf).collect();
    match found.as_slice() {
        [] => Err(format!("no {CONFIG}")),
        [one] => Ok((*one).clone()),
        [first, ..] => Err(format!("{} GGUF files: download one of them, such as {first}, and name it", found.len())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn check(needed: Needed, there: &[&str], files: &[&str]) {
        let there = there.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(needed.select(&there).unwrap().files, files, "{needed:?}");
    }

    #[test]
    fn only_what_is_needed_is_chosen_and_safetensors_first() {
        let all = [
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "model.safetensors",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tf_model.h5",
            "tokenizer.json",
            "1_Pooling/config.json",
            "additional_chat_templates/tool_use.jinja",
        ];
        let template = "additional_chat_templates/tool_use.jinja";
        check(Needed::Config, &all, &["config.json"]);
        check(Needed::Tokenizer, &all, &["config.json", "tokenizer.json", template, "1_Pooling/config.json"]);
        let model = ["config.json", "tokenizer.json", template, "1_Pooling/config.json", "model.safetensors"];
        check(Needed::Model, &all, &model);
        check(Needed::Model, &["config.json", "pytorch_model.bin"], &["config.json", "pytorch_model.bin"]);
        check(Needed::Model, &["a.gguf", "README.md"], &["a.gguf"]);
        let adapter = ["adapter_config.json", "adapter_model.bin", "adapter_model.safetensors", "optimizer.pt"];
        check(Needed::Adapter, &adapter, &["adapter_model.safetensors", "adapter_config.json"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        for (needed, there, words) in [
            (Needed::Model, vec!["config.json"], "no model.safetensors and no pytorch_model.bin"),
            (Needed::Model, vec!["README.md"], "no config.json"),
            (Needed::Config, vec!["a-q4.gguf", "a-q8.gguf"], "2 GGUF files"),
            (Needed::Adapter, vec!["adapter_config.json"], "no adapter_model.safetensors"),
            (Needed::Adapter, vec!["adapter_model.safetensors"], "no adapter_config.json"),
        ] {
            let there = there.into_iter().map(str::to_owned).collect();
            let error = needed.select(&there).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
