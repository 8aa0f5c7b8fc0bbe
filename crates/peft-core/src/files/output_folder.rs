//! A folder that a program writes a result into: locked, never over files of others, and replaced as a whole.
//!
//! A result is written into a folder inside, `.peft-unfinished`. When it is whole that folder is renamed, which decides: from
//! then on whoever opens the output folder moves the files into place, however often that is interrupted.

use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    path::{Component, Path, PathBuf},
};

use super::{
    ADAPTER_CONFIG, MANIFEST, Manifest,
    atomic::UNFINISHED as PREFIX,
    disk::{self, create_folder, remove_file, remove_folder, remove_if_empty, rename, sync_folder},
    manifest::Contents,
};
use crate::{Error, Result};

const UNFINISHED: &str = ".peft-unfinished";

/// Without one of these a folder is no model and no adapter: they go first and come last.
const CONFIGURATIONS: [&str; 2] = ["config.json", ADAPTER_CONFIG];

/// What a result takes the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clears {
    /// Files of an earlier result.
    Files,
    /// Those, and whatever else the caller removes: checkpoints.
    All,
}

impl Clears {
    /// The name of a folder whose files only have to be moved.
    fn sealed(self) -> &'static str {
        match self {
            Self::Files => ".peft-result",
            Self::All => ".peft-replacement",
        }
    }
}

/// The folder, and what in it is the program's own.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    own: Manifest,
    /// Whether the manifest is on the disk.
    is_listed: bool,
    lock: Option<File>,
    is_new: bool,
}

impl OutputFolder {
    /// Looks at a folder without changing anything; it need not be there. `made_by` is the verb that writes it.
    ///
    /// # Errors
    /// [`Error::Output`] for a file, for a name that is one of a file, or a folder that another verb wrote.
    pub fn look(path: &Path, made_by: &str) -> Result<Self> {
        let refuse = |problem: String| Error::Output { path: path.to_owned(), problem };
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if extension == "gguf" {
            return Err(refuse(
                "GGUF files are read and not written; name a folder, and let llama.cpp's convert_hf_to_gguf.py convert it"
                    .to_owned(),
            ));
        }
        if ["safetensors", "bin", "pt", "pth", "onnx"].contains(&extension.as_str()) && !path.is_dir() {
            return Err(refuse(format!("a folder is written, and .{extension} names a file; name a folder")));
        }
        if path.exists() && !path.is_dir() {
            return Err(refuse("is a file; name a folder".to_owned()));
        }
        let found = Manifest::read(path)?;
        if let Some(found) = found.as_ref().filter(|found| found.made_by != made_by) {
            return Err(refuse(format!(
                "holds a result of `peft {}`, which `peft {made_by}` does not replace; name another folder, or remove it",
                found.made_by
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            is_listed: found.is_some(),
            own: found.unwrap_or_else(|| Manifest::new(made_by)),
            lock: None,
            is_new: false,
        })
    }

    /// The folder, locked until this is dropped if it is there, and without what killed programs left in it. `clear` removes what
    /// [`Clears::All`] is about.
    ///
    /// # Errors
    /// As [`look`](Self::look); [`Error::Output`] if another program is writing there.
    pub fn open(path: &Path, made_by: &str, clear: &mut dyn FnMut() -> Result<()>) -> Result<Self> {
        let mut folder = Self::look(path, made_by)?;
        if path.is_dir() {
            folder.lock()?;
            folder.recover(clear)?;
            let mut clean = Self::look(path, made_by)?;
            clean.lock = folder.lock.take();
            return Ok(clean);
        }
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What in it is the program's own.
    pub fn own(&self) -> &Manifest {
        &self.own
    }

    /// Takes files for the program's own that a version without manifests wrote.
    pub fn adopt(&mut self, own: Manifest) {
        if !self.is_listed {
            self.own = own;
        }
    }

    /// Refuses to write to or above `path`, however either is reached; `what` it is, such as "base model".
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn protect(&self, what: &str, path: &Path) -> Result<()> {
        let (Some(own), Some(other)) = (resolved(&self.path), resolved(path)) else { return Ok(()) };
        let problem = if own == other {
            format!("is the {what}'s own folder, and the {what} would be lost")
        } else if other.starts_with(&own) {
            format!("holds the {what} ({})", path.display())
        } else {
            return Ok(());
        };
        Err(self.refuse(format!("{problem}; name another folder")))
    }

    /// Refuses to write if some of these files are there and not the program's own.
    ///
    /// # Errors
    /// [`Error::Output`] with their names.
    pub fn refuse_foreign<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<()> {
        let is_there = |name: &&str| self.path.join(name).symlink_metadata().is_ok();
        let foreign: Vec<_> = names.into_iter().filter(|name| !self.own.has(name)).filter(is_there).collect();
        if foreign.is_empty() {
            return Ok(());
        }
        Err(self.refuse(format!(
            "holds {}, which `peft {}` did not write and would replace or stand beside; name another folder, or move it away",
            several(&foreign),
            self.own.made_by
        )))
    }

    /// Refuses to write if one of its own files, but for those that `keeps` says, was changed since it was written.
    ///
    /// # Errors
    /// [`Error::Output`] with their names.
    pub fn refuse_changed(&self, keeps: impl Fn(&str) -> bool) -> Result<()> {
        let changed = self.own.changed(&self.path)?;
        let changed: Vec<_> = changed.iter().map(String::as_str).filter(|name| !keeps(name)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        Err(self.refuse(format!(
            "{} changed since `peft {}` wrote it, and would be replaced; name another folder, or move it away",
            several(&changed),
            self.own.made_by
        )))
    }

    /// Creates the folder if it is not there.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Output`] if another program was faster.
    pub fn create(&mut self) -> Result<()> {
        if self.lock.is_none() {
            self.is_new = !self.path.exists();
            create_folder(&self.path)?;
            self.lock()?;
        }
        Ok(())
    }

    /// An empty folder inside, for what is to be published.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn stage(&mut self) -> Result<PathBuf> {
        self.create()?;
        let staged = self.staged();
        remove_folder(&staged)?;
        create_folder(&staged)?;
        Ok(staged)
    }

    /// The folder that [`stage`](Self::stage) made.
    pub fn staged(&self) -> PathBuf {
        self.path.join(UNFINISHED)
    }

    /// Puts what was staged into place. Own files of before that are not among it are removed, but for those that `keeps` says;
    /// `grows` says which are not finished. A staged folder called `whole` is moved as one, last, and not listed.
    ///
    /// # Errors
    /// [`Error::Output`] if that would replace a file that is not the program's own; [`Error::Io`].
    pub fn publish(
        &mut self,
        clears: Clears,
        keeps: impl Fn(&str) -> bool,
        grows: &[&str],
        whole: Option<&str>,
        clear: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let staged = self.staged();
        let mut new = Manifest::new(&self.own.made_by);
        for name in files(&staged)?.into_iter().filter(|name| name != MANIFEST) {
            if whole.is_some_and(|whole| Path::new(&name).starts_with(whole)) {
                continue;
            }
            let contents = if grows.contains(&name.as_str()) { None } else { Some(Contents::of(&staged.join(&name))?) };
            new.files.insert(name, contents);
        }
        self.refuse_foreign(new.files.keys().map(String::as_str))?;
        self.refuse_changed(&keeps)?;
        for (name, contents) in self.own.files.iter().filter(|(name, _)| keeps(name)) {
            if !new.files.contains_key(name) && self.path.join(name).exists() {
                new.files.insert(name.clone(), contents.clone());
            }
        }
        if !self.is_listed && !self.own.files.is_empty() {
            // Should moving be interrupted, these must be known for its own.
            self.own.write(&self.path)?;
        }
        new.write(&staged)?;
        sync_folder(&staged);
        rename(&staged, &self.path.join(clears.sealed()))?;
        self.roll_forward(clears, clear)?;
        (self.own, self.is_listed, self.is_new) = (new, true, false);
        Ok(())
    }

    /// Finishes what was sealed, removes what was not.
    fn recover(&mut self, clear: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        for clears in [Clears::Files, Clears::All] {
            if self.path.join(clears.sealed()).is_dir() {
                self.roll_forward(clears, clear)?;
            }
        }
        for name in names(&self.path)? {
            let path = self.path.join(&name);
            if name == UNFINISHED {
                remove_folder(&path)?;
            } else if is_temporary(&name) && path.is_file() {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Moves sealed files into place; what was moved before is not there any more.
    fn roll_forward(&self, clears: Clears, clear: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let sealed = self.path.join(clears.sealed());
        if let Some(new) = Manifest::read(&sealed)? {
            let old = Manifest::read(&self.path)?.unwrap_or_else(|| Manifest::new(&new.made_by));
            let is_configuration = |name: &&String| CONFIGURATIONS.contains(&name.as_str());
            let is_waiting = |name: &&String| sealed.join(name).exists();
            for name in old.files.keys().filter(is_configuration).filter(|name| !new.has(name) || is_waiting(name)) {
                remove_file(&self.path.join(name))?;
            }
            for name in old.files.keys().filter(|name| !new.has(name)) {
                remove_file(&self.path.join(name))?;
                if let Some(folder) = Path::new(name).parent().filter(|folder| !folder.as_os_str().is_empty()) {
                    remove_if_empty(&self.path.join(folder));
                }
            }
            if clears == Clears::All {
                clear()?;
            }
            let (last, first): (Vec<_>, Vec<_>) = new.files.keys().filter(is_waiting).partition(is_configuration);
            for name in first.into_iter().chain(last) {
                let to = self.path.join(name);
                if let Some(folder) = to.parent() {
                    create_folder(folder)?;
                }
                rename(&sealed.join(name), &to)?;
            }
            rename(&sealed.join(MANIFEST), &self.path.join(MANIFEST))?;
        }
        for name in names(&sealed)? {
            let path = sealed.join(&name);
            if !remove_if_empty(&path) {
                rename(&path, &self.path.join(&name))?;
            }
        }
        remove_folder(&sealed)?;
        sync_folder(&self.path);
        Ok(())
    }

    fn lock(&mut self) -> Result<()> {
        let io = |source| Error::Io { path: self.path.clone(), action: "open", source };
        // Systems other than Unix cannot lock a folder.
        #[cfg(unix)]
        let file = File::open(&self.path).map_err(io)?;
        #[cfg(not(unix))]
        let file = File::create(self.path.join(".peft-lock")).map_err(io)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let problem = "in use by another peft, which is still running; wait for it, or name another folder";
                return Err(self.refuse(problem.to_owned()));
            }
            // Some network file systems have no locks: then nothing is known of others.
            Err(TryLockError::Error(_)) | Ok(()) => self.lock = Some(file),
        }
        Ok(())
    }

    fn refuse(&self, problem: String) -> Error {
        Error::Output { path: self.path.clone(), problem }
    }
}

impl Drop for OutputFolder {
    /// Nothing stays of a result that was never whole.
    fn drop(&mut self) {
        if self.lock.is_none() || disk::is_stopped() {
            return;
        }
        let _removed = remove_folder(&self.staged());
        if self.is_new {
            remove_if_empty(&self.path);
        }
    }
}

/// A path without links; of one that is not there yet, as it would be.
fn resolved(path: &Path) -> Option<PathBuf> {
    let mut rest = Vec::new();
    let absolute = std::path::absolute(path).ok()?;
    let mut existing = absolute.as_path();
    loop {
        if let Ok(found) = existing.canonicalize() {
            return Some(rest.iter().rev().fold(found, |path: PathBuf, part| path.join(part)));
        }
        if let Some(part @ Component::Normal(_)) = existing.components().next_back() {
            rest.push(part.as_os_str().to_owned());
        }
        existing = existing.parent()?;
    }
}

/// Whether a name is one of a temporary file, of this version (`.peft-….tmp`) or an earlier one (`.peft-` and six characters).
fn is_temporary(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let random = rest.strip_suffix(".tmp").unwrap_or(rest);
    random.len() == 6 && random.chars().all(|letter| letter.is_ascii_alphanumeric())
}

/// The names in a folder.
fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let io = |source| Error::Io { path: folder.to_owned(), action: "read", source };
    let entries = fs::read_dir(folder).map_err(io)?;
    entries.map(|entry| Ok(entry.map_err(io)?.file_name().to_string_lossy().into_owned())).collect()
}

/// The files in a folder and those below, by their paths in it.
fn files(folder: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for name in names(folder)? {
        let path = folder.join(&name);
        if path.is_dir() {
            found.extend(files(&path)?.into_iter().map(|file| format!("{name}/{file}")));
        } else {
            found.insert(name);
        }
    }
    Ok(found)
}

fn several(names: &[&str]) -> String {
    const MOST: usize = 3;
    let shown: Vec<_> = names.iter().take(MOST).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > MOST { format!(" and {} more", names.len() - MOST) } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn nothing() -> Result<()> {
        Ok(())
    }

    fn open(path: &Path) -> OutputFolder {
        OutputFolder::open(path, "merge", &mut nothing).unwrap()
    }

    fn write(folder: &mut OutputFolder, files: &[(&str, &str)]) -> Result<()> {
        let staged = folder.stage()?;
        for (name, text) in files {
            let path = staged.join(name);
            create_folder(path.parent().unwrap())?;
            super::super::write_atomically(&path, text.as_bytes())?;
        }
        folder.publish(Clears::Files, |_| false, &[], None, &mut nothing)
    }

    fn contents(folder: &Path) -> Vec<(String, String)> {
        let text = |name: &String| fs::read_to_string(folder.join(name)).unwrap();
        files(folder).unwrap().into_iter().filter(|name| name != MANIFEST).map(|n| (n.clone(), text(&n))).collect()
    }

    const OLD: &[(&str, &str)] = &[("config.json", "1"), ("model.safetensors", "1"), ("1_Pooling/config.json", "1")];
    const NEW: &[(&str, &str)] = &[("config.json", "2"), ("merges.txt", "2"), ("model.safetensors", "2")];

    fn owned(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut owned: Vec<_> = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        owned.sort();
        owned
    }

    #[test]
    fn a_result_is_replaced_as_a_whole_and_files_of_others_stay() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("out");
        write(&mut open(&path), OLD).unwrap();
        fs::write(path.join("notes.txt"), "mine").unwrap();
        write(&mut open(&path), NEW).unwrap();
        assert_eq!(contents(&path), owned(&[NEW, &[("notes.txt", "mine")]].concat()));
    }

    #[test]
    fn a_kill_between_any_two_writes_leaves_the_old_result_or_a_folder_that_the_next_program_completes() {
        let place = tempfile::tempdir().unwrap();
        for operations in 0.. {
            let path = place.path().join(operations.to_string());
            write(&mut open(&path), OLD).unwrap();
            disk::stop_after(Some(operations));
            let done = OutputFolder::open(&path, "merge", &mut nothing).and_then(|mut folder| write(&mut folder, NEW));
            disk::stop_after(None);
            let there = contents(&path);
            let text = |wanted: &str| there.iter().find(|(name, _)| name == wanted).map(|(_, text)| text.as_str());
            assert!(text("config.json").is_none() || text("config.json") == text("model.safetensors"), "{there:?}");
            // Whoever opens it next finds one of both, whole, and nothing else.
            drop(open(&path));
            let there = contents(&path);
            assert!(there == owned(OLD) || there == owned(NEW), "after {operations} operations: {there:?}");
            if done.is_ok() {
                assert!(there == owned(NEW) && operations > 10);
                return;
            }
        }
    }

    #[test]
    fn a_folder_that_is_being_written_is_in_use() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("out");
        let mut first = open(&path);
        first.stage().unwrap();
        let message = OutputFolder::open(&path, "merge", &mut nothing).unwrap_err().to_string();
        assert!(message.contains("in use"), "{message}");
        drop(first);
        assert!(!path.exists(), "nothing stays of a result that was never whole");
    }

    #[test]
    fn files_of_others_and_edited_ones_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("out");
        write(&mut open(&path), OLD).unwrap();
        fs::write(path.join("config.json"), "edited").unwrap();
        let message = write(&mut open(&path), NEW).unwrap_err().to_string();
        assert!(message.contains("`config.json` changed"), "{message}");
        fs::write(path.join("config.json"), "1").unwrap();
        fs::write(path.join("merges.txt"), "mine").unwrap();
        let message = write(&mut open(&path), NEW).unwrap_err().to_string();
        assert!(message.contains("holds `merges.txt`"), "{message}");
        assert!(OutputFolder::look(&path, "train").unwrap_err().to_string().contains("`peft merge`"));
    }

    #[test]
    fn names_of_files_are_no_folders() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("file"), "").unwrap();
        for (name, says) in [("model.gguf", "GGUF"), ("model.safetensors", "names a file"), ("file", "is a file")] {
            let message = OutputFolder::look(&place.path().join(name), "merge").unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_protected_folder_is_found_through_links_and_from_above() {
        let place = tempfile::tempdir().unwrap();
        let model = place.path().join("models/base");
        create_folder(&model).unwrap();
        std::os::unix::fs::symlink(&model, place.path().join("link")).unwrap();
        for (output, is_refused) in [
            ("models/base", true),
            ("link", true),
            ("models", true),
            ("models/other", false),
            ("models/base/out", false),
        ] {
            let folder = OutputFolder::look(&place.path().join(output), "train").unwrap();
            assert_eq!(folder.protect("base model", &model).is_err(), is_refused, "{output}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_umask_decides_who_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let usual = place.path().join("usual");
        fs::write(&usual, "").unwrap();
        let path = place.path().join("out");
        write(&mut open(&path), OLD).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
        assert_eq!(mode(&path.join("config.json")), mode(&usual));
    }
}
