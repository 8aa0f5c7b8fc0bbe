//! One process at a time fetches a blob, by the locks that `huggingface_hub` takes, and leftovers of killed ones go.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
};

use peft_core::{Error, Result, files::create_folder};
use tempfile::{Builder, NamedTempFile};

use super::{cache::Cached, digest::ETag};

/// How the names of files begin that become blobs when they are whole.
const PARTIAL: &str = ".peft-";

/// The right to write a blob and the links to it.
#[derive(Debug)]
pub(super) struct BlobLock {
    /// Whether another process was waited for.
    pub(super) has_waited: bool,
    _file: File,
}

impl BlobLock {
    /// Takes the lock of a blob; `waiting` is called if another process has it.
    ///
    /// # Errors
    /// [`Error::Io`] if the cache cannot be written.
    pub(super) fn take(cached: &Cached, etag: &ETag, waiting: impl FnOnce()) -> Result<Self> {
        let path = cached.lock(etag.as_str());
        create_folder(path.parent().unwrap_or(&path))?;
        let failed = |source| Error::Io { path: path.clone(), action: "create", source };
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        let has_waited = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        if has_waited {
            waiting();
            // Where a file system has no locks, a file that two processes fetch is fetched twice.
            _ = file.lock();
        }
        Ok(Self { has_waited, _file: file })
    }

    /// A file beside the blob, for what will become it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn partial(&self, cached: &Cached, etag: &ETag) -> Result<NamedTempFile> {
        let folder = cached.blobs();
        create_folder(&folder)?;
        let prefix = format!("{PARTIAL}{}.", etag.as_str());
        let mut builder = Builder::new();
        builder.prefix(&prefix);
        // Temporary files are private; those of the cache have the usual mode.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        builder.tempfile_in(&folder).map_err(|source| Error::Io { path: folder.clone(), action: "write", source })
    }
}

/// Removes what killed processes left of blobs, and nothing of those that still run.
pub(super) fn sweep(cached: &Cached) {
    for entry in fs::read_dir(cached.blobs()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PARTIAL)) else { continue };
        let etag = rest.split('.').next().unwrap_or_default();
        if !is_locked(&cached.lock(etag)) {
            // Another process may have swept it.
            _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether a process holds the lock. Whoever fetches a blob has made the file of its lock before.
fn is_locked(lock: &Path) -> bool {
    match File::open(lock) {
        Ok(file) => file.try_lock().is_err(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}
