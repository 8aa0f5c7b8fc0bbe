//! A folder as a source of rows: a file, or several numbered ones, for each part of a data set.

use std::path::{Path, PathBuf};

use peft_core::{Error, Result, data::example::Row};

use super::{LAYOUTS, read_rows};

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What is learnt.
    Train,
    /// What chooses between settings.
    Validation,
    /// What is measured on at last; where there is none, the validation part.
    Test,
}

impl Part {
    /// What the part's files are called, without extension and number.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train"],
            Self::Validation => &["validation", "valid", "val", "dev", "eval"],
            Self::Test => &["test", "validation", "valid", "val", "dev", "eval"],
        }
    }
}

/// Reads the rows of a file, or of a part's files in a folder: `train.tsv`, `validation.jsonl` (or `valid`, `val`, `dev`,
/// `eval`), `test.csv`, `train-00000-of-00002.parquet`.
///
/// # Errors
/// As [`read_rows`]; [`Error::File`] if the folder has no file of that part, or has it in several layouts.
pub fn read_part(path: &Path, part: Part) -> Result<Vec<Row>> {
    if !path.is_dir() {
        return read_rows(path);
    }
    let files = part_files(path, part)?;
    if files.is_empty() {
        let names: Vec<_> = part.names().iter().map(|name| format!("{name}.*")).collect();
        let extensions: Vec<_> = LAYOUTS.iter().map(|layout| format!(".{}", layout.extension)).collect();
        let problem = format!("the folder has no {} in one of {}", names.join(" or "), extensions.join(" "));
        return Err(Error::File { path: path.to_owned(), problem });
    }
    Ok(files.iter().map(|file| read_rows(file)).collect::<Result<Vec<_>>>()?.concat())
}

/// Whether there are rows of that part: always for a file.
///
/// # Errors
/// As [`read_part`].
pub fn has_part(path: &Path, part: Part) -> Result<bool> {
    Ok(!path.is_dir() || !part_files(path, part)?.is_empty())
}

fn part_files(folder: &Path, part: Part) -> Result<Vec<PathBuf>> {
    let io = |source| Error::Io { path: folder.to_owned(), action: "read", source };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        all.push(entry.map_err(io)?.path());
    }
    all.sort();
    for name in part.names() {
        let found: Vec<PathBuf> = all.iter().filter(|path| is_named(path, name)).cloned().collect();
        let layouts = found.iter().map(|path| path.extension()).collect::<std::collections::BTreeSet<_>>();
        if layouts.len() > 1 {
            let names: Vec<_> = found.iter().filter_map(|path| path.file_name()?.to_str()).collect();
            let problem = format!("holds `{name}` in several layouts ({}): name the file", names.join(", "));
            return Err(Error::File { path: folder.to_owned(), problem });
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

fn is_named(path: &Path, name: &str) -> bool {
    let text = |part: Option<&std::ffi::OsStr>| part.and_then(|part| part.to_str()).unwrap_or_default().to_lowercase();
    let (stem, extension) = (text(path.file_stem()), text(path.extension()));
    let rest = stem.strip_prefix(name);
    let named = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    named && LAYOUTS.iter().any(|layout| layout.extension == extension)
}
