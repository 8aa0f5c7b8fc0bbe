//! `peft_manifest.json`: which files of a folder a program wrote, so that it replaces and removes those and no others.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{read_bytes, write_atomically};
use crate::{Error, Result, files::hex};

/// The file's name.
pub const MANIFEST: &str = "peft_manifest.json";

/// The version that is written, and the newest that is read.
const VERSION: u32 = 1;

/// Files up to this size have their hash in the manifest: those that people edit. Of a larger one the length is kept.
const HASHED: u64 = 1 << 20;

/// The files that a program wrote into a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// The verb that wrote them: `train` or `merge`.
    pub made_by: String,
    /// What each held when it was written, by its path in the folder; none for a file that grows, as a log does.
    pub files: BTreeMap<String, Option<Contents>>,
}

/// What a file held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl Manifest {
    /// One without files.
    pub fn new(made_by: &str) -> Self {
        Self { version: VERSION, made_by: made_by.to_owned(), files: BTreeMap::new() }
    }

    /// The manifest of a folder; none if it has none.
    ///
    /// # Errors
    /// [`Error::File`] for one that is broken, or of a newer program.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(MANIFEST);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_bytes(&path, "the list of files that were written")?;
        let problem = match serde_json::from_slice::<Self>(&bytes) {
            Ok(manifest) if manifest.version <= VERSION => return Ok(Some(manifest)),
            Ok(manifest) => format!("is of version {}, and this program knows {VERSION}: update it", manifest.version),
            Err(error) => format!("no list of written files: {error}; name another folder, or move this one away"),
        };
        Err(Error::File { path, problem })
    }

    /// Writes it into a folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        write_atomically(&folder.join(MANIFEST), format!("{text}\n").as_bytes())
    }

    /// Whether the program wrote this file, by its path in the folder.
    pub fn has(&self, file: &str) -> bool {
        file == MANIFEST || self.files.contains_key(file)
    }

    /// The files that hold something else than what was written, those that are gone left out.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn changed(&self, folder: &Path) -> Result<Vec<String>> {
        let mut changed = Vec::new();
        for (name, contents) in &self.files {
            let path = folder.join(name);
            if let Some(contents) = contents
                && path.symlink_metadata().is_ok()
                && Contents::of(&path)? != *contents
            {
                changed.push(name.clone());
            }
        }
        Ok(changed)
    }
}

impl Contents {
    /// What a file holds now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn of(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: PathBuf::from(path), action: "read", source };
        let bytes = path.symlink_metadata().map_err(io)?.len();
        let small = bytes <= HASHED && path.is_file();
        let sha256 = if small { Some(hex(&Sha256::digest(std::fs::read(path).map_err(io)?))) } else { None };
        Ok(Self { bytes, sha256 })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_edited_file_is_told_from_one_that_is_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut manifest = Manifest::new("train");
        for (name, text) in [("README.md", "card"), ("recipe.toml", "[model]"), ("log", "1\n")] {
            std::fs::write(folder.path().join(name), text).unwrap();
            let contents = Contents::of(&folder.path().join(name)).unwrap();
            manifest.files.insert(name.to_owned(), (name != "log").then_some(contents));
        }
        manifest.write(folder.path()).unwrap();
        let read = Manifest::read(folder.path()).unwrap().unwrap();
        assert_eq!(read, manifest);
        std::fs::write(folder.path().join("README.md"), "mine").unwrap();
        std::fs::write(folder.path().join("log"), "1\n2\n").unwrap();
        std::fs::remove_file(folder.path().join("recipe.toml")).unwrap();
        assert_eq!(read.changed(folder.path()).unwrap(), ["README.md"]);
    }

    #[test]
    fn a_manifest_that_is_none_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Manifest::read(folder.path()).unwrap().is_none());
        for (text, says) in [("{", "no list"), (r#"{"version": 9, "made_by": "train", "files": {}}"#, "version 9")] {
            std::fs::write(folder.path().join(MANIFEST), text).unwrap();
            let message = Manifest::read(folder.path()).unwrap_err().to_string();
            assert!(message.contains(MANIFEST) && message.contains(says), "{message}");
        }
    }
}
