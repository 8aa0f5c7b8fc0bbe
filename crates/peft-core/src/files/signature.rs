//! What a file really is, told from its first bytes: for files that are not what their names promise.

use std::path::Path;

use crate::{Error, Result};

/// A file of Git LFS in place of the large file it stands for; the first is the extension's older name.
const LFS_POINTERS: [&[u8]; 2] =
    [b"version https://hawser.github.com/spec/", b"version https://git-lfs.github.com/spec/"];

/// Refuses a Git LFS pointer: a repository that was cloned without `git lfs` has these in place of its large files.
///
/// # Errors
/// [`Error::File`] with how to get the file itself.
pub fn refuse_lfs_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    if !LFS_POINTERS.iter().any(|start| bytes.starts_with(start)) {
        return Ok(());
    }
    let size = bytes.get(..bytes.len().min(1024)).and_then(lfs_size);
    let size = size.map(|size| format!(" of {size} bytes")).unwrap_or_default();
    let problem = format!(
        "a Git LFS pointer, not the file{size} it stands for: run `git lfs install` and `git lfs pull` in the repository, or \
         download the file from the Hub"
    );
    Err(Error::File { path: path.to_owned(), problem })
}

fn lfs_size(pointer: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(pointer).ok()?;
    text.lines().find_map(|line| line.strip_prefix("size "))?.trim().parse().ok()
}

/// What a file that is not what it should be is instead; none where nothing is recognised.
pub fn recognise(bytes: &[u8]) -> Option<&'static str> {
    const MAGIC: [(&[u8], &str); 10] = [
        (b"GGUF", "a GGUF file"),
        (b"ggjt", "a GGML file, the format before GGUF"),
        (b"PAR1", "a Parquet file"),
        (b"ARROW1", "an Arrow file"),
        (b"PK\x03\x04", "a zip archive, as PyTorch writes"),
        (b"\x80\x02", "a pickle, as PyTorch writes"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"\x89HDF", "an HDF5 file, as Keras writes"),
        (b"\xff\xfe", "text in UTF-16"),
        (b"\xfe\xff", "text in UTF-16"),
    ];
    if let Some((_, is)) = MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(is);
    }
    let start = bytes.get(..bytes.len().min(512)).unwrap_or_default();
    // A character of several bytes may be cut in two.
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(start.get(..error.valid_up_to()).unwrap_or_default()).unwrap_or_default()
        }
        Err(_) => return None,
    };
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let lower = text.to_ascii_lowercase();
    if text.is_empty() || text.contains(|c: char| c.is_control() && !c.is_whitespace()) {
        None
    } else if lower.starts_with("<!doctype html") || lower.starts_with("<html") {
        Some("a web page, as a download that needs a login leaves")
    } else if text.starts_with(['{', '[']) {
        Some("JSON text")
    } else {
        Some("text")
    }
}

/// The problem of a file that should hold something else: what it is, where that can be told, else what the parser said.
pub fn not_a(wanted: &str, bytes: &[u8], parser: &dyn std::fmt::Display) -> String {
    if bytes.is_empty() {
        return format!("not a whole {wanted}: it is empty");
    }
    match recognise(bytes) {
        Some(is) => format!("not a {wanted} but {is}"),
        None => format!("not a whole {wanted}: {parser}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_of_git_lfs_is_named_with_what_to_run() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 437951328\n";
        let message = refuse_lfs_pointer(Path::new("m/model.safetensors"), pointer).unwrap_err().to_string();
        assert!(message.starts_with("m/model.safetensors: a Git LFS pointer"), "{message}");
        assert!(message.contains("437951328 bytes") && message.contains("git lfs pull"), "{message}");
        assert!(refuse_lfs_pointer(Path::new("x"), b"version 2 of my text").is_ok());
    }

    #[test]
    fn files_are_told_by_their_first_bytes() {
        for (bytes, is) in [
            (&b"GGUF\x03\0\0\0"[..], Some("a GGUF file")),
            (b"PK\x03\x04....", Some("a zip archive, as PyTorch writes")),
            (b"text,label\nfine,pos\n", Some("text")),
            ("\u{feff} {\"a\": 1}".as_bytes(), Some("JSON text")),
            (b"<!DOCTYPE html><html>", Some("a web page, as a download that needs a login leaves")),
            (b"\x08\0\0\0\0\0\0\0{}", None),
            (b"", None),
        ] {
            assert_eq!(recognise(bytes), is);
        }
        let cut = [&[b'a'; 511][..], "é".as_bytes()].concat();
        assert_eq!(recognise(&cut), Some("text"));
    }
}
