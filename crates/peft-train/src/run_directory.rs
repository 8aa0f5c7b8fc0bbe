//! The output folder of a run: the only owner of what lies there.
//!
//! It writes over nothing that this program did not write. An earlier result stays until the first checkpoint or the result of the
//! new run is whole, and then all of it goes: what a new run writes before that lies apart.

mod earlier_version;
mod kind;

use std::{
    fs,
    path::{Path, PathBuf},
};

use peft_core::{
    Error as PeftError,
    files::{
        ADAPTER_CONFIG, ADAPTER_PYTORCH_WEIGHTS, ADAPTER_WEIGHTS, Clears, OutputFolder, PROMPT_ENCODER_WEIGHTS,
        create_folder, remove_folder, rename, sync_folder, write_atomically,
    },
};
use peft_models::{
    TOKENIZER_FILES,
    checkpoint::{CONFIG, WEIGHTS},
};
use serde::Serialize;

use crate::{
    Error, Recipe, Result,
    checkpoint::{self, Snapshot},
    labels::LABELS_FILE,
    recipe::RECIPE_FILE,
    trainer_log::{LOG_FILE, TrainerLog},
};

const MADE_BY: &str = "train";

/// Files of a result, and those by which one knows that of another program.
const RESULT: &[&str] = &[
    "README.md",
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ADAPTER_PYTORCH_WEIGHTS,
    PROMPT_ENCODER_WEIGHTS,
    LABELS_FILE,
    CONFIG,
    WEIGHTS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "generation_config.json",
    "trainer_state.json",
    "training_args.bin",
];

/// What checkpoints are called while they are written or removed.
const HIDDEN: &str = ".checkpoint-";

/// The output folder of one adapter.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    output: OutputFolder,
    log: Option<TrainerLog>,
    /// Whether an earlier result stands there, which goes when this run has something to show for it.
    replaces: bool,
}

impl RunDirectory {
    /// Judges the folder and locks it, if it is there.
    ///
    /// # Errors
    /// If it is the base model's, holds files of others, the edited ones of an earlier run or the result of a run of another kind, is in
    /// use, or without `resume` holds an unfinished run.
    pub(crate) fn open(recipe: &Recipe, resume: bool) -> Result<Self> {
        let path = recipe.output_dir();
        judge(recipe, &OutputFolder::look(&path, MADE_BY)?)?;
        let output = OutputFolder::open(&path, MADE_BY, &mut || clear(&path))?;
        let mut run = Self { output, log: None, replaces: false };
        if path.is_dir() {
            sweep(&path)?;
        }
        if let Some(own) = earlier_version::manifest(&path, MADE_BY)? {
            run.output.adopt(own);
        }
        judge(recipe, &run.output)?;
        run.refuse_foreign()?;
        let last = checkpoint::list(&path)?.pop();
        if run.is_finished() && (!resume || last.is_none()) {
            kind::refuse_other(&path, recipe)?;
        }
        if !resume
            && !run.is_finished()
            && let Some((step, _)) = last
        {
            let problem = format!(
                "holds a run that stopped after step {step}; go on with --resume, or remove its checkpoints to start anew"
            );
            return Err(Error::Resume { folder: path, problem });
        }
        Ok(run)
    }

    fn refuse_foreign(&self) -> Result<()> {
        let path = self.path();
        for (_, folder) in checkpoint::named(path)? {
            if !checkpoint::is_own(&folder)? {
                let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let problem = format!(
                    "holds `{name}`, which is no checkpoint of this program or has files of others in it; name another output_dir, \
                     or move it away"
                );
                return Err(PeftError::Output { path: path.to_owned(), problem }.into());
            }
        }
        let names = RESULT.iter().chain(TOKENIZER_FILES).copied().chain([RECIPE_FILE, LOG_FILE]);
        self.output.refuse_foreign(names)?;
        Ok(self.output.refuse_changed(|_| false)?)
    }

    pub(crate) fn path(&self) -> &Path {
        self.output.path()
    }

    /// Whether the result of an earlier run is there.
    pub(crate) fn is_finished(&self) -> bool {
        let is_there = |name: &&str| self.output.own().has(name) && self.path().join(name).exists();
        [CONFIG, ADAPTER_CONFIG].iter().any(is_there)
    }

    /// The steps of its whole checkpoints.
    pub(crate) fn steps(&self) -> Result<Vec<usize>> {
        Ok(checkpoint::list(self.path())?.into_iter().map(|(step, _)| step).collect())
    }

    /// Where the checkpoint of a step is.
    pub(crate) fn checkpoint(&self, step: usize) -> PathBuf {
        self.path().join(checkpoint::name(step))
    }

    /// Begins to write, after the steps that are `done` by an earlier run: the recipe, the log, and what `write` puts into a folder,
    /// by which the checkpoints are used.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub(crate) fn begin(
        &mut self,
        recipe: &Recipe,
        done: usize,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let log = TrainerLog::lines_until(self.path(), done)?;
        self.replaces = done == 0 && (self.is_finished() || !self.steps()?.is_empty());
        let staged = self.output.stage()?;
        write(&staged)?;
        write_atomically(&staged.join(RECIPE_FILE), recipe.to_toml().as_bytes())?;
        let mut log = TrainerLog::begin(&staged, &log)?;
        if !self.replaces {
            // What an earlier run wrote last stays until this one is done.
            self.output.publish(Clears::Files, |_| true, &[LOG_FILE], None, &mut || Ok(()))?;
            log.moved_to(self.path());
        }
        self.log = Some(log);
        Ok(())
    }

    /// Whether [`begin`](Self::begin) found an earlier result.
    pub(crate) fn replaces(&self) -> bool {
        self.replaces
    }

    /// Adds a line to the log.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn log(&self, line: &impl Serialize) -> Result<()> {
        self.log.as_ref().map_or(Ok(()), |log| log.write(line))
    }

    /// Writes `checkpoint-N`: under another name, which is changed when it is whole.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn save(&mut self, snapshot: &Snapshot<'_>) -> Result<PathBuf> {
        let step = snapshot.state.global_step;
        let folder = self.checkpoint(step);
        if self.replaces {
            let name = checkpoint::name(step);
            let staged = self.output.staged().join(&name);
            create_folder(&staged)?;
            checkpoint::write(&staged, snapshot)?;
            self.replace(Some(&name))?;
            return Ok(folder);
        }
        let unfinished = self.path().join(format!("{HIDDEN}{step}"));
        remove_folder(&unfinished)?;
        create_folder(&unfinished)?;
        if let Err(error) = checkpoint::write(&unfinished, snapshot) {
            // A full disk, most often: its space is given back. The error is the one to tell of.
            _ = remove_folder(&unfinished);
            return Err(error);
        }
        if folder.exists() {
            remove(&folder)?;
        }
        rename(&unfinished, &folder)?;
        // The new name must survive a power cut.
        sync_folder(self.path());
        Ok(folder)
    }

    /// Removes all checkpoints but the last `keep`, and those that somebody put files into.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub(crate) fn prune(&self, keep: usize) -> Result<()> {
        let all = checkpoint::list(self.path())?;
        for (_, folder) in all.iter().take(all.len().saturating_sub(keep)) {
            if checkpoint::is_own(folder)? {
                remove(folder)?;
            }
        }
        Ok(())
    }

    /// Writes the result, which replaces an earlier one as a whole; `write` puts its files into a folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn finish(&mut self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        if self.replaces {
            write(&self.output.staged())?;
            return self.replace(None);
        }
        write(&self.output.stage()?)?;
        let of_the_run =
            |name: &str| [RECIPE_FILE, LOG_FILE, LABELS_FILE].contains(&name) || TOKENIZER_FILES.contains(&name);
        Ok(self.output.publish(Clears::Files, of_the_run, &[], None, &mut || Ok(()))?)
    }

    /// Puts what this run has so far in place of the earlier one and its checkpoints.
    fn replace(&mut self, checkpoint: Option<&str>) -> Result<()> {
        let path = self.path().to_owned();
        self.output.publish(Clears::All, |_| false, &[LOG_FILE], checkpoint, &mut || clear(&path))?;
        self.replaces = false;
        if let Some(log) = &mut self.log {
            log.moved_to(&path);
        }
        Ok(())
    }
}

/// From which step each of the runs, of so many steps in all, goes on: the newest that all have a checkpoint of. Whoever has fewer
/// steps in all is done when the others are not. None if there is no checkpoint.
///
/// # Errors
/// If they have checkpoints, but none of one step.
pub(crate) fn common_steps(runs: &[RunDirectory], totals: &[usize]) -> Result<Option<Vec<usize>>> {
    let each = runs.iter().map(RunDirectory::steps).collect::<Result<Vec<_>>>()?;
    let at = |step: usize| totals.iter().map(|total| step.min(*total)).collect::<Vec<_>>();
    let mut candidates: Vec<usize> = each.iter().flatten().copied().collect();
    candidates.sort_unstable();
    let all_have = |step: &usize| each.iter().zip(at(*step)).all(|(steps, step)| steps.contains(&step));
    if let Some(step) = candidates.into_iter().rev().find(all_have) {
        return Ok(Some(at(step)));
    }
    // Killed while the first checkpoints were written.
    if each.iter().any(Vec::is_empty) && each.iter().all(|steps| steps.len() <= 1) {
        return Ok(None);
    }
    let there = runs.iter().zip(&each).map(|(run, steps)| {
        let steps: Vec<_> = steps.iter().map(ToString::to_string).collect();
        format!("{}: {}", run.path().display(), if steps.is_empty() { "none".to_owned() } else { steps.join(", ") })
    });
    let there = there.collect::<Vec<_>>().join("; ");
    let folder = runs.first().and_then(|run| run.path().parent()).unwrap_or(Path::new(".")).to_owned();
    let problem = format!(
        "the adapters have no checkpoint of one step to go on from ({there}); remove their checkpoints to start anew"
    );
    Err(Error::Resume { folder, problem })
}

/// Says whether a recipe's results may be written, without writing anything.
///
/// # Errors
/// If an output folder is the base model's or another verb's.
pub fn check_output_dir(recipe: &Recipe) -> Result<()> {
    for (_, one) in recipe.apart() {
        judge(one, &OutputFolder::look(&one.output_dir(), MADE_BY)?)?;
    }
    Ok(())
}

fn judge(recipe: &Recipe, output: &OutputFolder) -> Result<()> {
    output.protect("base model", &recipe.model_folder())?;
    output.protect("base model", &recipe.model_config())?;
    Ok(output.protect("tokenizer", &recipe.tokenizer())?)
}

/// Removes the checkpoints of an earlier run.
fn clear(path: &Path) -> peft_core::Result<()> {
    let result = || -> Result<()> {
        for (_, folder) in checkpoint::list(path)? {
            if checkpoint::is_own(&folder)? {
                remove(&folder)?;
            }
        }
        Ok(())
    };
    result().map_err(|error| match error {
        Error::Peft(error) => error,
        other => PeftError::Output { path: path.to_owned(), problem: other.to_string() },
    })
}

/// Under another name first: a half removed folder must not pass for a checkpoint.
fn remove(folder: &Path) -> Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let leaving = folder.with_file_name(format!(".{name}-removed"));
    remove_folder(&leaving)?;
    rename(folder, &leaving)?;
    Ok(remove_folder(&leaving)?)
}

/// Removes checkpoints that a killed run was writing or removing.
fn sweep(path: &Path) -> Result<()> {
    let read = |source| PeftError::Io { path: path.to_owned(), action: "read", source };
    for entry in fs::read_dir(path).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let step = name.strip_prefix(HIDDEN).map(|rest| rest.trim_end_matches("-removed"));
        let is_hidden = step.is_some_and(|step| step.parse::<usize>().is_ok());
        if is_hidden && entry.path().is_dir() {
            remove_folder(&entry.path())?;
        }
    }
    Ok(())
}
