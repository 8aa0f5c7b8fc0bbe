//! The files of a tokenizer, which go along with what was trained on it.

use std::path::Path;

use peft_core::{
    Result,
    files::{create_folder, read_bytes, write_atomically},
};
use serde_json::Value;

use crate::{chat_template, gguf};

/// Their names, in the folder of a model.
pub const FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    chat_template::FILE,
];

/// What sentence-transformers keeps beside a sentence encoder's tokenizer: how texts become vectors.
pub(crate) const SENTENCE_ENCODER: &[&str] =
    &["modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"];

/// Puts the tokenizer of a model into a folder: the files beside it, or what a GGUF file holds; with a sentence encoder's
/// files, which say how its texts become vectors.
///
/// # Errors
/// [`peft_core::Error::Io`]; [`peft_core::Error::File`] for a GGUF file without a tokenizer.
pub fn copy_tokenizer(model: &Path, folder: &Path) -> Result<()> {
    if let Some(path) = gguf::file_of(model)? {
        let documents = gguf::tokenizer::read(&gguf::GgufFile::open(&path)?)?;
        write_atomically(&folder.join("tokenizer.json"), documents.tokenizer.to_string().as_bytes())?;
        let config = Value::Object(documents.config).to_string();
        return write_atomically(&folder.join("tokenizer_config.json"), config.as_bytes());
    }
    for name in FILES.iter().chain(SENTENCE_ENCODER) {
        let (path, copy) = (model.join(name), folder.join(name));
        if path.exists() {
            copy.parent().map_or(Ok(()), create_folder)?;
            write_atomically(&copy, &read_bytes(&path, "a tokenizer file")?)?;
        }
    }
    // The templates that a chat with tools takes, and others with names of their own.
    for (_, path) in chat_template::additional(model) {
        let target = folder.join(chat_template::FOLDER);
        create_folder(&target)?;
        let name = path.file_name().unwrap_or_default();
        write_atomically(&target.join(name), &read_bytes(&path, "a chat template")?)?;
    }
    Ok(())
}
