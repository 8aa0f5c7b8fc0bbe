//! Writing so that a reader sees the old file or the new one, never a part.

use std::{io::Write, path::Path};

use tempfile::NamedTempFile;

use super::disk;
use crate::{Error, Result};

/// What the names of everything unfinished begin with: a killed run leaves such names, and the next one sweeps them.
pub(super) const UNFINISHED: &str = ".peft-";

/// Writes to a temporary name, syncs, and renames. The mode of a new file follows from the umask.
///
/// # Errors
/// [`Error::Io`]; the file is then as it was before.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |source| Error::Io { path: path.to_owned(), action: "write", source };
    disk::operation().map_err(io)?;
    let mut file = temporary(path).map_err(io)?;
    if let Err(error) = disk::operation() {
        // As a kill would leave it.
        let (half, _) = bytes.split_at(bytes.len() / 2);
        let _written = file.write_all(half);
        let _kept = file.keep();
        return Err(io(error));
    }
    file.write_all(bytes).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    if let Err(error) = disk::operation() {
        let _kept = file.keep();
        return Err(io(error));
    }
    file.persist(path).map(drop).map_err(|error| io(error.error))
}

/// A new file beside `path`. In a folder that is itself unfinished it lies beside that folder, where leftovers are looked for.
fn temporary(path: &Path) -> std::io::Result<NamedTempFile> {
    let parent = |path: &Path| path.parent().filter(|parent| !parent.as_os_str().is_empty()).map(Path::to_owned);
    let folder = parent(path).unwrap_or_else(|| ".".into());
    let is_unfinished = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED));
    let folder = if is_unfinished { parent(&folder).unwrap_or_else(|| ".".into()) } else { folder };
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED).suffix(".tmp");
    // The system takes away what the umask forbids; the default of temporary files would be private.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}
