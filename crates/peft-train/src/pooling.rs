//! How a sentence encoder's folder says that its vectors are pooled.

use std::path::Path;

use peft::{Error, example::Pooling, files::read_text};
use serde_json::{Map, Value};

use crate::Result;

/// Where sentence-transformers keeps it.
const FILE: &str = "1_Pooling/config.json";

/// What `1_Pooling/config.json` says; none without such a file.
///
/// # Errors
/// If the file is broken, or asks for a pooling that is none of [`Pooling`], or for several.
pub(crate) fn of_model(folder: &Path) -> Result<Option<Pooling>> {
    let path = folder.join(FILE);
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(&path, "a sentence encoder's pooling")?;
    let wrong = |problem: String| Error::File { path: path.clone(), problem };
    let config: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| wrong(format!("not a JSON object: {error}")))?;
    let chosen = config.iter().filter(|(key, value)| key.starts_with("pooling_mode_") && **value == Value::Bool(true));
    match chosen.map(|(key, _)| key.as_str()).collect::<Vec<_>>().as_slice() {
        [] | ["pooling_mode_mean_tokens"] => Ok(Some(Pooling::Mean)),
        ["pooling_mode_cls_token"] => Ok(Some(Pooling::Cls)),
        ["pooling_mode_lasttoken"] => Ok(Some(Pooling::Last)),
        ["pooling_mode_max_tokens"] => Ok(Some(Pooling::Max)),
        other => {
            let problem = format!("pools by {}: set `pooling` to mean, cls, last or max", other.join(" and "));
            Err(wrong(problem).into())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_sentence_encoder_says_how_it_pools() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(of_model(folder.path()).unwrap(), None);
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        let check = |text: &str| {
            std::fs::write(folder.path().join(FILE), text).unwrap();
            of_model(folder.path())
        };
        let cls =
            r#"{"word_embedding_dimension": 384, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        assert_eq!(check(cls).unwrap(), Some(Pooling::Cls));
        assert_eq!(check(r#"{"pooling_mode_lasttoken": true}"#).unwrap(), Some(Pooling::Last));
        let error =
            check(r#"{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}"#).unwrap_err().to_string();
        assert!(error.contains("1_Pooling/config.json") && error.contains("set `pooling` to mean"), "{error}");
    }
}
