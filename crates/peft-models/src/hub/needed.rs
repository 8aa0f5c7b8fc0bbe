//! Which files of a repository are needed, decided from their names.

use std::collections::BTreeSet;

use peft_core::{
    error::quoted,
    files::{ADAPTER_CONFIG, ADAPTER_PYTORCH_WEIGHTS, ADAPTER_WEIGHTS, PROMPT_ENCODER_WEIGHTS},
};

use crate::{
    chat_template::is_additional,
    checkpoint::{CONFIG, INDEX, PYTORCH_INDEX, PYTORCH_WEIGHTS, WEIGHTS},
    tokenizer_files::{FILES as TOKENIZER, SENTENCE_ENCODER},
};

/// What a model says of its generation.
const SETTINGS: &[&str] = &["generation_config.json"];
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
    /// The folder that they lie in; empty for the repository itself.
    pub(super) folder: String,
    /// Those whose names are known beforehand, in that folder.
    pub(super) files: Vec<String>,
    /// The index among them whose shards are needed too.
    pub(super) index: Option<&'static str>,
}

impl Needed {
    /// What it is, for messages.
    pub(super) fn what(self) -> &'static str {
        if self == Self::Adapter { "an adapter's folder" } else { "a model's folder or file" }
    }

    /// Chooses among the files that there are, in a folder if one is named. An adapter that is not where it is looked for is taken
    /// from the only folder that has one.
    ///
    /// # Errors
    /// With what is missing.
    pub(super) fn select_in(self, there: &BTreeSet<String>, folder: Option<&str>) -> Result<Selection, String> {
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None if self == Self::Adapter && !there.contains(ADAPTER_CONFIG) => only_adapter(there)?,
            None => String::new(),
        };
        if folder.is_empty() {
            return self.select(there);
        }
        let inside = |name: &String| Some(name.strip_prefix(&folder)?.strip_prefix('/')?.to_owned());
        let inside: BTreeSet<String> = there.iter().filter_map(inside).collect();
        let selection = self.select(&inside).map_err(|lack| format!("{lack} in `{folder}`"))?;
        Ok(Selection { folder, ..selection })
    }

    fn select(self, there: &BTreeSet<String>) -> Result<Selection, String> {
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
            return Ok(Selection { folder: String::new(), files, index });
        }
        if !has(CONFIG) {
            return gguf(there).map(|file| Selection { folder: String::new(), files: vec![file], index });
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
        Ok(Selection { folder: String::new(), files, index })
    }
}

/// The only folder of a repository that has an adapter; empty if none has one, which is told of as missing.
fn only_adapter(there: &BTreeSet<String>) -> Result<String, String> {
    let folder = |name: &String| Some(name.strip_suffix(ADAPTER_CONFIG)?.strip_suffix('/')?.to_owned());
    let found: Vec<String> = there.iter().filter_map(folder).collect();
    match found.as_slice() {
        [] => Ok(String::new()),
        [one] => Ok(one.clone()),
        [first, ..] => Err(format!(
            "no {ADAPTER_CONFIG}, and {} folders with one: {}; name one of them, as in ORG/NAME:{first}",
            found.len(),
            quoted(found.join(", "))
        )),
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
    fn an_adapter_is_found_in_the_folder_that_is_named_or_the_only_one() {
        let adapter = |folder: &str| [ADAPTER_CONFIG, ADAPTER_WEIGHTS].map(|name| format!("{folder}/{name}"));
        let found = |there: &[String], folder| {
            let selection = Needed::Adapter.select_in(&there.iter().cloned().collect(), folder);
            selection.map(|selection| (selection.folder, selection.files))
        };
        let files = vec![ADAPTER_WEIGHTS.to_owned(), ADAPTER_CONFIG.to_owned()];
        let (one, two) = (adapter("math"), adapter("deep/code"));
        assert_eq!(found(&one, None), Ok(("math".to_owned(), files.clone())));
        let both = [&one[..], &two].concat();
        assert_eq!(found(&both, Some("deep/code")), Ok(("deep/code".to_owned(), files)));
        let error = found(&both, None).unwrap_err();
        assert!(
            error.contains("2 folders with one: deep/code, math; name one of them, as in ORG/NAME:deep/code"),
            "{error}"
        );
        assert!(found(&both, Some("none")).unwrap_err().contains("in `none`"));
        assert!(found(&[], None).unwrap_err().contains("no adapter_model.safetensors"));
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
