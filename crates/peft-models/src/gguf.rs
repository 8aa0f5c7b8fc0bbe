//! GGUF: one file with a model's configuration, its quantised weights and its tokenizer.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Families: Llama (and Mistral, which GGUF calls
//! Llama), Qwen 2 and 3, Gemma 2 and 3. Weights are dequantised when a model is
//! loaded, or stay as they are.

pub(crate) mod config;
mod file;
pub(crate) mod names;
pub(crate) mod tokenizer;

use std::path::{Path, PathBuf};

use peft_core::{Error, Result};

pub(crate) use file::GgufFile;
pub(crate) use peft_backends::ops::GgmlType;

/// The GGUF file that a model's path means: the file itself, or the only one in a folder that has no `config.json`.
///
/// # Errors
/// [`Error::File`] for a folder with several, [`Error::Io`] for one that cannot be listed.
pub(crate) fn file_of(model: &Path) -> Result<Option<PathBuf>> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if !model.is_dir() {
        return Ok(is_gguf(model).then(|| model.to_owned()));
    }
    if model.join(crate::checkpoint::CONFIG).exists() {
        return Ok(None);
    }
    let io = |source| Error::Io { path: model.to_owned(), action: "list", source };
    let entries = model.read_dir().map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
    let mut files = entries.into_iter().map(|entry| entry.path()).filter(|path| is_gguf(path));
    match (files.next(), files.next()) {
        (Some(one), Some(other)) => {
            let problem = format!("holds several GGUF files: name one of them, such as {}", one.min(other).display());
            Err(Error::File { path: model.to_owned(), problem })
        }
        (first, _) => Ok(first),
    }
}

/// A tensor of a GGUF file, as its header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufEntry {
    /// Its name in the file.
    pub name: String,
    /// How its values are packed: `Q4_K`, `F16`, ….
    pub dtype: &'static str,
    /// Its shape in PyTorch's order, the outermost dimension first.
    pub shape: Vec<usize>,
}

/// The tensors of the GGUF file that a model's path means, in the order of their names; none where it means no such file.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Io`], [`Error::File`] if it is not a whole GGUF file.
pub fn gguf_entries(model: &Path) -> Result<Option<Vec<GgufEntry>>> {
    let Some(file) = file_of(model)? else { return Ok(None) };
    let tensors = GgufFile::open(&file)?.tensors.into_iter();
    let entry = |(name, tensor): (String, file::GgufTensor)| GgufEntry {
        name,
        dtype: tensor.kind.label(),
        shape: tensor.shape,
    };
    Ok(Some(tensors.map(entry).collect()))
}
