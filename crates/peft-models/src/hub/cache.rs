//! One repository in the cache: `refs/REVISION` names a commit, `snapshots/COMMIT` has its files, as links into `blobs`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{
    HubId,
    needed::{Needed, POOLING},
};
use crate::{chat_template, checkpoint::shards::read_index};

/// The folder of a repository, at a revision.
#[derive(Debug)]
pub(super) struct Cached {
    /// `models--org--name`.
    pub(super) folder: PathBuf,
    /// The locks of its blobs, as `huggingface_hub` names them.
    #[cfg(feature = "hub")]
    locks: PathBuf,
    /// The revision asked for.
    revision: String,
}

impl Cached {
    pub(super) fn new(cache: &Path, id: &HubId) -> Self {
        let name = format!("models--{}", id.repo.replace('/', "--"));
        Self {
            folder: cache.join(&name),
            #[cfg(feature = "hub")]
            locks: cache.join(".locks").join(&name),
            revision: id.revision.clone(),
        }
    }

    /// The folder of the files' contents, each named after its hash.
    #[cfg(feature = "hub")]
    pub(super) fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }

    /// The file that whoever fetches a blob has locked.
    #[cfg(feature = "hub")]
    pub(super) fn lock(&self, blob: &str) -> PathBuf {
        self.locks.join(format!("{blob}.lock"))
    }

    /// The file that says which commit the revision is.
    pub(super) fn reference(&self) -> PathBuf {
        self.folder.join("refs").join(&self.revision)
    }

    /// The folder of a commit's files.
    pub(super) fn of_commit(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The folder of the revision's files, if there is one: a branch or tag that was looked up before, or a commit.
    pub(super) fn snapshot(&self) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.reference()).ok();
        let commit = commit.as_deref().map(str::trim).filter(|commit| is_commit(commit)).unwrap_or(&self.revision);
        Some(self.of_commit(commit)).filter(|folder| folder.is_dir())
    }

    /// That folder, if it has what is needed.
    ///
    /// # Errors
    /// With what is missing.
    pub(super) fn complete(&self, needed: Needed) -> Result<PathBuf, String> {
        let folder = self.snapshot().ok_or("not")?;
        let incomplete = |lack: String| format!("only in part ({lack})");
        let selection = needed.select(&listing(&folder)).map_err(incomplete)?;
        let Some(index) = selection.index else { return Ok(folder) };
        let shards = read_index(&folder.join(index)).map_err(|error| incomplete(error.to_string()))?;
        match shards.values().find(|shard| !folder.join(shard).exists()) {
            Some(shard) => Err(incomplete(format!("no {shard}"))),
            None => Ok(folder),
        }
    }
}

/// A commit's hash, as it may stand in a path.
pub(super) fn is_commit(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The names of the files that could be needed and are there.
fn listing(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    // A link whose blob was deleted is no file.
    let files = entries.filter(|entry| entry.path().is_file()).filter_map(|entry| entry.file_name().into_string().ok());
    let templates = chat_template::additional(folder)
        .into_iter()
        .filter_map(|(_, path)| Some(format!("{}/{}", chat_template::FOLDER, path.file_name()?.to_str()?)));
    let files = files.chain(templates);
    files.chain(folder.join(POOLING).is_file().then(|| POOLING.to_owned())).collect()
}
