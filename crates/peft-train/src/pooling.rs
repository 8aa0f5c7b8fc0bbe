//! What a sentence encoder's folder says of its vectors, in the files of sentence-transformers.

use std::path::{Component, Path, PathBuf};

use peft_core::{Error, data::example::Pooling, files::read_text};
use serde_json::{Map, Value};

use crate::Result;

/// The modules that a text goes through.
const MODULES: &str = "modules.json";
/// Where the pooling is without [`MODULES`].
const POOLING: &str = "1_Pooling";
/// How long texts may be, and whether they are lower-cased.
const TRANSFORMER: &str = "sentence_bert_config.json";

/// What a sentence encoder's files say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SentenceEncoder {
    pub(crate) pooling: Option<Pooling>,
    pub(crate) max_seq_length: Option<usize>,
    pub(crate) lower_case: bool,
}

impl SentenceEncoder {
    /// Reads the files in the first of the folders that has some.
    ///
    /// # Errors
    /// If a file is broken, or asks for a pooling that is none of [`Pooling`], for several, or for another module behind it.
    pub(crate) fn of_folders(folders: &[&Path]) -> Result<Self> {
        let has_one = |folder: &&&Path| [MODULES, POOLING, TRANSFORMER].iter().any(|file| folder.join(file).exists());
        folders.iter().find(has_one).map_or_else(|| Ok(Self::default()), |folder| Self::of_folder(folder))
    }

    fn of_folder(folder: &Path) -> Result<Self> {
        let transformer = object(&folder.join(TRANSFORMER))?.unwrap_or_default();
        let max_seq_length = transformer.get("max_seq_length").and_then(Value::as_u64);
        Ok(Self {
            pooling: pooling(&pooling_folder(folder)?)?,
            max_seq_length: max_seq_length.and_then(|length| usize::try_from(length).ok()).filter(|length| *length > 0),
            lower_case: transformer.get("do_lower_case").and_then(Value::as_bool).unwrap_or(false),
        })
    }
}

/// The folder of the pooling; [`MODULES`] names it.
fn pooling_folder(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(MODULES);
    if !path.exists() {
        return Ok(folder.join(POOLING));
    }
    let wrong = |problem: String| Error::File { path: path.clone(), problem };
    let modules: Vec<Map<String, Value>> = serde_json::from_str(&read_text(&path, "a sentence encoder's modules")?)
        .map_err(|error| wrong(format!("not a list of modules: {error}")))?;
    let mut found = folder.join(POOLING);
    for module in modules {
        let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" | "Normalize" => {}
            "Pooling" => {
                let named = Path::new(module.get("path").and_then(Value::as_str).unwrap_or(POOLING));
                if !named.components().all(|part| matches!(part, Component::Normal(_))) {
                    return Err(wrong(format!("`path` of {kind} leaves the folder")).into());
                }
                found = folder.join(named);
            }
            other => {
                let problem = format!(
                    "module `{other}` is not supported (supported: Transformer, Pooling, Normalize): without it the \
                     vectors would be others; remove it from the file to have those of the pooling"
                );
                return Err(wrong(problem).into());
            }
        }
    }
    Ok(found)
}

/// What `config.json` of the pooling says, by its old keys or the new one; none without such a file.
fn pooling(folder: &Path) -> Result<Option<Pooling>> {
    let path = folder.join("config.json");
    let Some(config) = object(&path)? else { return Ok(None) };
    let named: Vec<&str> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode],
        Some(Value::Array(modes)) => modes.iter().filter_map(Value::as_str).collect(),
        _ => {
            let chosen = config.iter().filter(|(_, value)| **value == Value::Bool(true));
            chosen.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")).collect()
        }
    };
    Ok(Some(match named.as_slice() {
        [] | ["mean" | "mean_tokens"] => Pooling::Mean,
        ["cls" | "cls_token"] => Pooling::Cls,
        ["lasttoken"] => Pooling::Last,
        ["max" | "max_tokens"] => Pooling::Max,
        other => {
            let problem = format!("pools by {}: set `pooling` to mean, cls, last or max", other.join(" and "));
            return Err(Error::File { path, problem }.into());
        }
    }))
}

/// The JSON object in a file; none without the file.
fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(path, "a sentence encoder's file")?;
    let broken = |error| Error::File { path: path.to_owned(), problem: format!("not a JSON object: {error}") };
    Ok(Some(serde_json::from_str(&text).map_err(broken)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn read(files: &[(&str, &str)]) -> Result<SentenceEncoder> {
        SentenceEncoder::of_folders(&[folder(&[]).path(), folder(files).path()])
    }

    #[test]
    fn a_sentence_encoder_says_how_it_pools_in_the_words_of_any_release() {
        let check = |text: &str, pooling: Pooling| {
            assert_eq!(read(&[("1_Pooling/config.json", text)]).unwrap().pooling, Some(pooling), "{text}");
        };
        assert_eq!(read(&[]).unwrap(), SentenceEncoder::default());
        check(
            r#"{"word_embedding_dimension": 384, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#,
            Pooling::Cls,
        );
        check(r#"{"pooling_mode_lasttoken": true}"#, Pooling::Last);
        check(r#"{"embedding_dimension": 16, "pooling_mode": "cls"}"#, Pooling::Cls);
        check(r#"{"pooling_mode": "lasttoken", "pooling_mode_mean_tokens": true}"#, Pooling::Last);
        check(r#"{"pooling_mode": ["max"]}"#, Pooling::Max);
        check(r#"{"pooling_mode": "mean"}"#, Pooling::Mean);
        for text in [
            r#"{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}"#,
            r#"{"pooling_mode": "weightedmean"}"#,
            r#"{"pooling_mode": ["cls", "mean"]}"#,
        ] {
            let error = read(&[("1_Pooling/config.json", text)]).unwrap_err().to_string();
            assert!(error.contains("1_Pooling/config.json") && error.contains("set `pooling` to mean"), "{error}");
        }
    }

    #[test]
    fn the_modules_of_a_sentence_encoder_name_the_pooling_and_what_is_not_supported() {
        let modules = |kind: &str, path: &str| {
            format!(
                r#"[{{"type": "sentence_transformers.models.Transformer", "path": ""}}, {{"type": "x.{kind}", "path": "{path}"}}]"#
            )
        };
        let cls = ("2_Pool/config.json", r#"{"pooling_mode": "cls"}"#);
        let found = read(&[("modules.json", &modules("Pooling", "2_Pool")), cls]).unwrap();
        assert_eq!(found.pooling, Some(Pooling::Cls));
        for (kind, path, words) in [("Dense", "2_Dense", "`Dense`"), ("Pooling", "../2_Pool", "leaves the folder")] {
            let error = read(&[("modules.json", &modules(kind, path)), cls]).unwrap_err().to_string();
            assert!(error.contains("modules.json") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_sentence_encoder_says_how_long_its_texts_are_and_whether_they_are_lower_cased() {
        let found =
            read(&[("sentence_bert_config.json", r#"{"max_seq_length": 256, "do_lower_case": true}"#)]).unwrap();
        assert_eq!(found, SentenceEncoder { pooling: None, max_seq_length: Some(256), lower_case: true });
        assert_eq!(
            read(&[("sentence_bert_config.json", r#"{"max_seq_length": null}"#)]).unwrap(),
            SentenceEncoder::default()
        );
    }
}
