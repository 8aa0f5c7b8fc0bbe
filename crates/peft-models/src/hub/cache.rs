//! One repository in the cache: `refs/REVISION` names a commit, `snapshots/COMMIT` has its files, as links into `blobs`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{HubId, needed::Needed};
use crate::checkpoint::shards::read_index;

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
    /// The folder of the repository that was asked for.
    subfolder: Option<String>,
}

impl Cached {
    pub(super) fn new(cache: &Path, id: &HubId) -> Self {
        let name = format!("models--{}", id.repo.replace('/', "--"));
        Self {
            folder: cache.join(&name),
            #[cfg(feature = "hub")]
            locks: cache.join(".locks").join(&name),
            revision: id.revision.clone(),
            subfolder: id.subfolder.clone(),
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

    /// What was asked for in it.
    pub(super) fn place(&self) -> Option<PathBuf> {
        let snapshot = self.snapshot()?;
        Some(self.subfolder.as_ref().map_or_else(|| snapshot.clone(), |folder| snapshot.join(folder)))
    }

    /// What was asked for, if it has what is needed.
    ///
    /// # Errors
    /// With what is missing.
    pub(super) fn complete(&self, needed: Needed) -> Result<PathBuf, String> {
        let folder = self.snapshot().ok_or("not")?;
        let incomplete = |lack: String| format!("only in part ({lack})");
        let selection = needed.select_in(&listing(&folder), self.subfolder.as_deref()).map_err(incomplete)?;
        let folder = folder.join(&selection.folder);
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

/// The names of the files that are there.
fn listing(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut below = vec![String::new()];
    while let Some(prefix) = below.pop() {
        for entry in fs::read_dir(folder.join(&prefix)).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = format!("{prefix}{name}");
            // A link whose blob was deleted is no file; links to folders are not the cache's.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                below.push(format!("{name}/"));
            } else if entry.path().is_file() {
                found.insert(name);
            }
        }
    }
    found
}
