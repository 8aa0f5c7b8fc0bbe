//! Operations that change the disk, one at a time, so that a test can stop a run between any two of them.

use std::{
    cell::Cell,
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    path::Path,
};

use crate::{Error, Result};

thread_local! {
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// For tests of what a kill leaves: after so many operations of this thread every later one fails, those that would clean up too.
/// None takes the limit away.
#[doc(hidden)]
pub fn stop_after(operations: Option<usize>) {
    LEFT.set(operations);
}

/// Whether [`stop_after`] has stopped this thread.
pub(super) fn is_stopped() -> bool {
    LEFT.get() == Some(0)
}

/// Asks for one more operation.
pub(super) fn operation() -> io::Result<()> {
    match LEFT.get() {
        Some(0) => Err(io::Error::other("stopped by a test")),
        left => {
            LEFT.set(left.map(|left| left - 1));
            Ok(())
        }
    }
}

/// Creates a folder and those above it.
///
/// # Errors
/// [`Error::Io`].
pub fn create_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    run(path, "create the folder", || fs::create_dir_all(path))
}

/// Renames a file or a folder.
///
/// # Errors
/// [`Error::Io`] with the new name.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    run(to, "create", || fs::rename(from, to))
}

/// Removes a file, if it is there.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_file(path: &Path) -> Result<()> {
    run(path, "remove", || fs::remove_file(path).or_else(|error| absent(&error).then_some(()).ok_or(error)))
}

/// Removes a folder with all that is in it, if it is there.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_folder(path: &Path) -> Result<()> {
    run(path, "remove", || fs::remove_dir_all(path).or_else(|error| absent(&error).then_some(()).ok_or(error)))
}

/// Removes a folder if nothing is in it; says whether it did.
pub(super) fn remove_if_empty(path: &Path) -> bool {
    run(path, "remove", || fs::remove_dir(path)).is_ok()
}

/// Adds to the end of a file, which is created if need be.
///
/// # Errors
/// [`Error::Io`].
pub fn append(path: &Path, bytes: &[u8]) -> Result<()> {
    run(path, "write", || OpenOptions::new().append(true).create(true).open(path)?.write_all(bytes))
}

/// Waits until names of files in a folder would survive a power cut; not every system can.
pub fn sync_folder(path: &Path) {
    if let Ok(folder) = fs::File::open(path) {
        let _synced = folder.sync_all();
    }
}

fn run(path: &Path, action: &'static str, change: impl FnOnce() -> io::Result<()>) -> Result<()> {
    operation().and_then(|()| change()).map_err(|source| Error::Io { path: path.to_owned(), action, source })
}

fn absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}
