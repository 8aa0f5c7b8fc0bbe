//! Reading and writing files: validated whole before anything changes, written atomically.

mod adapter_files;
mod atomic;
mod disk;
mod manifest;
mod output_file;
mod output_folder;
mod pytorch_file;
mod safetensors_file;
mod signature;

use std::{io::ErrorKind, path::Path};

use crate::{Error, Result};

pub use adapter_files::{ADAPTER_CONFIG, ADAPTER_PYTORCH_WEIGHTS, ADAPTER_WEIGHTS, PROMPT_ENCODER_WEIGHTS};
pub use atomic::write_atomically;
pub use disk::{append, create_folder, remove_file, remove_folder, rename, stop_after, sync_folder};
pub use manifest::{MANIFEST, Manifest};
pub use output_file::check_output_file;
pub use output_folder::{Clears, OutputFolder};
pub use pytorch_file::{PytorchFile, PytorchTensor};
pub use safetensors_file::{TensorFile, from_view, write_safetensors};
pub use signature::{not_a, recognise, refuse_lfs_pointer};

/// A hash as files have it: in lower case hexadecimal.
pub fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a text file, without the byte order mark that some editors put before it.
///
/// # Errors
/// [`Error::NotFound`] (with `what` it should have been), [`Error::Io`], [`Error::File`] if it is not UTF-8.
pub fn read_text(path: &Path, what: &str) -> Result<String> {
    text_of(path, read_bytes(path, what)?)
}

/// The text of a file's bytes, without a byte order mark.
///
/// # Errors
/// [`Error::File`] with the line that is not UTF-8.
pub fn text_of(path: &Path, bytes: Vec<u8>) -> Result<String> {
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let (utf8, bytes) = (error.utf8_error(), error.as_bytes());
        let problem = match bytes {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "text in UTF-16: save it as UTF-8".to_owned(),
            _ => {
                let line = bytes.iter().take(utf8.valid_up_to()).filter(|byte| **byte == b'\n').count() + 1;
                format!("line {line} is not UTF-8 text: {utf8}")
            }
        };
        Error::File { path: path.to_owned(), problem }
    })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}

/// What Windows editors put before text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Reads a file.
///
/// # Errors
/// [`Error::NotFound`] (with `what` it should have been) or [`Error::Io`]; [`Error::File`] for a Git LFS pointer.
pub fn read_bytes(path: &Path, what: &str) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => Error::NotFound { path: path.to_owned(), what: what.to_owned() },
        _ => Error::Io { path: path.to_owned(), action: "read", source },
    })?;
    refuse_lfs_pointer(path, &bytes)?;
    Ok(bytes)
}
