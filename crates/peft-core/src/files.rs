//! Adapter folders on disk: validated whole before anything changes, written atomically.

mod adapter_folder;
mod atomic;
mod model_card;
mod pytorch_file;
mod safetensors_file;

use std::{io::ErrorKind, path::Path};

use crate::{Error, Result};

pub use adapter_folder::{
    ADAPTER_CONFIG, ADAPTER_PYTORCH_WEIGHTS, ADAPTER_WEIGHTS, AdapterFolder, PROMPT_ENCODER_WEIGHTS,
};
pub use atomic::{create_folder, write_atomically};
pub use model_card::model_card;
pub use pytorch_file::{PytorchFile, PytorchTensor};
pub use safetensors_file::{TensorFile, from_view, write_safetensors};

/// Reads a text file.
///
/// # Errors
/// [`Error::NotFound`] (with `what` it should have been), [`Error::Io`], [`Error::File`] if it is not UTF-8.
pub fn read_text(path: &Path, what: &str) -> Result<String> {
    String::from_utf8(read_bytes(path, what)?)
        .map_err(|error| Error::File { path: path.to_owned(), problem: format!("not UTF-8 text: {error}") })
}

/// Reads a file.
///
/// # Errors
/// [`Error::NotFound`] (with `what` it should have been) or [`Error::Io`].
pub fn read_bytes(path: &Path, what: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => Error::NotFound { path: path.to_owned(), what: what.to_owned() },
        _ => Error::Io { path: path.to_owned(), action: "read", source },
    })
}
