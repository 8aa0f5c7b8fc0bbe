//! The one door to the `tokenizers` crate, which panics on files that it does not expect.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use peft_core::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

/// Runs what may panic; a panic is an error with its message.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        text.and_then(|text| text.lines().next()).unwrap_or("it failed without a message").to_owned()
    })
}

/// A tokenizer from the text of `tokenizer.json`.
///
/// # Errors
/// [`Error::File`] that names the file.
pub(crate) fn parsed(path: &Path, text: &str) -> Result<Tokenizer> {
    let broken = |problem: String| Error::File { path: path.to_owned(), problem };
    if let Ok(parts) = serde_json::from_str::<Parts>(text) {
        check_tables(&parts.normalizer).and_then(|()| check_templates(&parts.post_processor)).map_err(broken)?;
    }
    let found = guarded(|| {
        let mut tokenizer: Tokenizer = text.parse().map_err(|error: tokenizers::Error| error.to_string())?;
        // Padding may be to any length, which would be memory.
        let padding = tokenizer.get_padding().cloned();
        tokenizer.with_padding(None);
        // What a file breaks shows with the first text; that a text cannot be encoded is no fault of the file.
        _ = tokenizer.encode_fast(("a", "a"), true);
        tokenizer.with_padding(padding);
        Ok(tokenizer)
    });
    found.and_then(|found| found).map_err(|problem: String| broken(format!("no tokenizer: {problem}")))
}

/// The parts of a file that are judged beforehand.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    post_processor: Value,
}

/// Each table of characters must hold as much as it says: memory is taken for that.
fn check_tables(part: &Value) -> std::result::Result<(), String> {
    match part {
        Value::Array(list) => list.iter().try_for_each(check_tables),
        Value::Object(map) => map.iter().try_for_each(|(key, value)| match value.as_str() {
            Some(table) if key == "precompiled_charsmap" => check_table(table)
                .ok_or_else(|| "`normalizer`: its table of characters (`precompiled_charsmap`) is broken".to_owned()),
            _ => check_tables(value),
        }),
        _ => Ok(()),
    }
}

/// A table is the size of its trie in bytes, the trie, and the texts that characters become.
fn check_table(table: &str) -> Option<()> {
    let bytes = BASE64_STANDARD.decode(table).ok()?;
    let (size, rest) = bytes.split_first_chunk::<4>()?;
    let (trie, texts) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*size)).ok()?)?;
    std::str::from_utf8(texts).ok()?;
    (!trie.is_empty() && trie.len().is_multiple_of(4)).then_some(())
}

/// Each special token of a template must be listed with its id.
fn check_templates(part: &Value) -> std::result::Result<(), String> {
    let list = |key: &str| part.get(key).and_then(Value::as_array).into_iter().flatten();
    list("processors").try_for_each(check_templates)?;
    if part.get("type").and_then(Value::as_str) != Some("TemplateProcessing") {
        return Ok(());
    }
    for piece in list("single").chain(list("pair")) {
        let token = piece.get("SpecialToken").and_then(|token| token.get("id")).and_then(Value::as_str);
        if let Some(token) = token.filter(|token| part.get("special_tokens").and_then(|all| all.get(*token)).is_none())
        {
            return Err(format!("`post_processor`: the special token `{token}` is not listed in its `special_tokens`"));
        }
    }
    Ok(())
}
