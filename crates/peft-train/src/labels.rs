//! `labels.json`: the classes of an adapter whose base model has no head of its own.
//!
//! PEFT's `adapter_config.json` has no place for class names, and a headless base model has none either, so they lie beside
//! it as `{"labels": ["negative", "positive"], "problem_type": "single_label_classification"}`, which PEFT reads past.

use std::path::Path;

use peft_core::{
    Error as PeftError,
    files::{read_text, write_atomically},
    plugins::task::LabelSet,
};
use serde::{Deserialize, Serialize};

use crate::{Result, checkpoint::file_of_run};

/// The file's name.
pub const LABELS_FILE: &str = "labels.json";

/// What kinds of problem there are, as `problem_type` of Transformers calls them.
pub(crate) const PROBLEM_TYPES: [&str; 3] = ["single_label_classification", "multi_label_classification", "regression"];

#[derive(Serialize, Deserialize)]
struct LabelsFile {
    labels: Vec<String>,
    problem_type: String,
}

/// Reads the classes of an adapter folder, or of the run that it is a checkpoint of; none if there is no such file.
///
/// # Errors
/// If the file is broken, with what it should hold.
pub fn read(folder: &Path) -> Result<Option<LabelSet>> {
    let path = file_of_run(folder, LABELS_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(&path, "the classes of the adapter")?;
    let broken = |problem: String| PeftError::File { path: path.clone(), problem };
    let file: LabelsFile = serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
    let known = PROBLEM_TYPES.into_iter().find(|known| *known == file.problem_type).ok_or_else(|| {
        broken(format!("`problem_type` is `{}`, should be one of {}", file.problem_type, PROBLEM_TYPES.join(", ")))
    })?;
    Ok(Some(LabelSet { labels: file.labels, problem_type: known }))
}

/// Writes the classes into an adapter folder.
///
/// # Errors
/// If the file cannot be written.
pub fn write(folder: &Path, labels: &LabelSet) -> Result<()> {
    let file = LabelsFile { labels: labels.labels.clone(), problem_type: labels.problem_type.to_owned() };
    let text = serde_json::to_string_pretty(&file).unwrap_or_default();
    Ok(write_atomically(&folder.join(LABELS_FILE), text.as_bytes())?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn classes_survive_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let labels =
            LabelSet { labels: vec!["no".into(), "yes, \"so\"".into()], problem_type: "single_label_classification" };
        assert_eq!(read(folder.path()).unwrap(), None);
        write(folder.path(), &labels).unwrap();
        assert_eq!(read(folder.path()).unwrap(), Some(labels));
    }

    #[test]
    fn a_checkpoint_has_the_classes_of_its_run() {
        let run = tempfile::tempdir().unwrap();
        let labels = LabelSet { labels: vec!["a".into(), "b".into()], problem_type: "single_label_classification" };
        write(run.path(), &labels).unwrap();
        let checkpoint = run.path().join("checkpoint-2");
        std::fs::create_dir(&checkpoint).unwrap();
        assert_eq!(read(&checkpoint).unwrap(), None, "a folder of another program");
        std::fs::write(checkpoint.join("trainer_state.json"), "{}").unwrap();
        assert_eq!(read(&checkpoint).unwrap(), Some(labels));
    }

    #[test]
    fn a_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for (text, says) in [("{", "EOF"), (r#"{"labels": ["a"], "problem_type": "ranking"}"#, "`ranking`")] {
            std::fs::write(folder.path().join(LABELS_FILE), text).unwrap();
            let message = read(folder.path()).unwrap_err().to_string();
            assert!(message.contains(LABELS_FILE) && message.contains(says), "{message}");
        }
    }
}
