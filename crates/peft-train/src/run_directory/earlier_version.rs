//! Runs of versions without a manifest: which files of a folder are theirs, by what only they wrote.

use std::{fs, path::Path};

use peft_core::{
    adapter::is_own_model_card,
    files::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, Manifest, PROMPT_ENCODER_WEIGHTS},
};
use peft_models::{
    TOKENIZER_FILES,
    checkpoint::{CONFIG, WEIGHTS},
};
use toml::{Table, Value};

use crate::{Result, labels::LABELS_FILE, recipe::RECIPE_FILE, trainer_log::LOG_FILE};

/// Keys that a recipe has when every default was written into it, and hardly one that somebody wrote.
const RESOLVED: [&str; 4] = ["adam_beta1", "adam_beta2", "adam_epsilon", "per_device_eval_batch_size"];

/// The files of such a run; none if the folder has a manifest or another's files.
pub(super) fn manifest(folder: &Path, made_by: &str) -> Result<Option<Manifest>> {
    let (recipe, log) = (folder.join(RECIPE_FILE), folder.join(LOG_FILE));
    if folder.join(MANIFEST).exists() || !log.is_file() {
        return Ok(None);
    }
    let Some(recipe) = fs::read_to_string(recipe).ok().and_then(|text| text.parse::<Table>().ok()) else {
        return Ok(None);
    };
    let training = recipe.get("training").and_then(Value::as_table);
    if !training.is_some_and(|training| RESOLVED.iter().all(|key| training.contains_key(*key))) {
        return Ok(None);
    }
    let trains_all = recipe.get("adapter").and_then(|adapter| adapter.get("peft_type")?.as_str()) == Some("FULL");
    let card = fs::read_to_string(folder.join("README.md")).is_ok_and(|text| is_own_model_card(&text));
    let mut names = vec![RECIPE_FILE, LOG_FILE, LABELS_FILE];
    names.extend(TOKENIZER_FILES);
    if card {
        names.extend(["README.md", ADAPTER_CONFIG, ADAPTER_WEIGHTS, PROMPT_ENCODER_WEIGHTS]);
    }
    if trains_all {
        names.extend([CONFIG, WEIGHTS]);
    }
    let mut manifest = Manifest::new(made_by);
    let there = names.into_iter().filter(|name| folder.join(name).exists());
    manifest.files.extend(there.map(|name| (name.to_owned(), None)));
    Ok(Some(manifest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_an_earlier_version_is_told_from_files_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let found = || manifest(folder.path(), "train").unwrap();
        write("adapter_config.json", "{}");
        write("recipe.toml", "[training]\noutput_dir = \"out\"\n");
        assert!(found().is_none());
        write("trainer_log.jsonl", "");
        assert!(found().is_none(), "a recipe that somebody wrote");
        let resolved: String = RESOLVED.iter().map(|key| format!("{key} = 1\n")).collect();
        write("recipe.toml", &format!("[adapter]\npeft_type = \"LORA\"\n[training]\n{resolved}"));
        assert!(!found().unwrap().has("adapter_config.json"), "an adapter without a card of ours");
        write("README.md", "- Made by `peft` (Rust) in the file format of PEFT 0.19");
        assert!(found().unwrap().has("adapter_config.json") && !found().unwrap().has("config.json"));
    }
}
