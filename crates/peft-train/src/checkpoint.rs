//! `checkpoint-N/`: everything that a run needs to go on to the same bits as if it had never stopped.
//!
//! A checkpoint holds the adapter's files, the optimiser's moments (`optimizer.safetensors`), `trainer_state.json`, and in
//! `best/` the best adapter so far where that one is to be kept.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::TensorData;
use peft_core::{
    Error as PeftError, PeftConfig,
    adapter::AdapterFolder,
    files::{
        ADAPTER_CONFIG, ADAPTER_WEIGHTS, PROMPT_ENCODER_WEIGHTS, TensorFile, read_text, write_atomically,
        write_safetensors,
    },
    model::peft_model::DEFAULT_ADAPTER,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Result,
    best_model::{BestEvaluation, BestModel},
    exact::Exact,
    identity::Identity,
};

const PREFIX: &str = "checkpoint-";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "trainer_state.json";
const BEST: &str = "best";

/// All that a checkpoint may hold; below `best/` too.
const FILES: [&str; 7] = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, PROMPT_ENCODER_WEIGHTS, OPTIMIZER, STATE, "README.md", BEST];

/// Where a run stands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct TrainerState {
    /// Steps done; order, learning rate and seeds follow from it.
    pub(crate) global_step: usize,
    /// All steps.
    pub(crate) max_steps: usize,
    /// What must not differ when the run goes on.
    pub(crate) identity: Identity,
    /// The losses of the steps that no line of the log has yet.
    pub(crate) losses_since_log: Vec<Exact>,
    /// The sum of the losses of all steps.
    pub(crate) loss_sum: Exact,
    /// Input tokens seen.
    pub(crate) tokens: u64,
    /// Seconds of training.
    pub(crate) seconds: f64,
}

/// `trainer_state.json`.
#[derive(Serialize)]
struct StateFile<'a> {
    #[serde(flatten)]
    state: &'a TrainerState,
    best: Option<&'a BestEvaluation>,
}

#[derive(Deserialize)]
struct ReadStateFile {
    #[serde(flatten)]
    state: TrainerState,
    best: Option<BestEvaluation>,
}

/// What a checkpoint holds.
pub(crate) struct Snapshot<'a> {
    pub(crate) state: &'a TrainerState,
    pub(crate) config: &'a PeftConfig,
    pub(crate) adapter: &'a BTreeMap<String, TensorData>,
    /// As [`Optimizer::state`](crate::Optimizer) gives it.
    pub(crate) optimizer: &'a BTreeMap<String, TensorData>,
    pub(crate) best: Option<&'a BestModel>,
}

/// A checkpoint that was read.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) folder: PathBuf,
    pub(crate) state: TrainerState,
    pub(crate) adapter: BTreeMap<String, TensorData>,
    pub(crate) optimizer: TensorFile,
    pub(crate) best: Option<BestModel>,
}

/// The name of the checkpoint after a step.
pub(crate) fn name(step: usize) -> String {
    format!("{PREFIX}{step}")
}

/// The step of a checkpoint, by its name.
pub(crate) fn step_of(name: &str) -> Option<usize> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// The whole checkpoints of a folder by step.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(output_dir: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut found = named(output_dir)?;
    found.retain(|(_, path)| path.join(STATE).is_file());
    Ok(found)
}

/// Whatever is called as a checkpoint is, by step.
pub(crate) fn named(output_dir: &Path) -> Result<Vec<(usize, PathBuf)>> {
    if !output_dir.is_dir() {
        return Ok(Vec::new());
    }
    let read = |source| PeftError::Io { path: output_dir.to_owned(), action: "read", source };
    let mut found = Vec::new();
    for entry in fs::read_dir(output_dir).map_err(read)? {
        let entry = entry.map_err(read)?;
        found.extend(step_of(&entry.file_name().to_string_lossy()).map(|step| (step, entry.path())));
    }
    found.sort();
    Ok(found)
}

/// A file of the run that an adapter is of: in its folder, or where that is a checkpoint without one, in the run's own.
pub(crate) fn file_of_run(folder: &Path, name: &str) -> PathBuf {
    let own = folder.join(name);
    let is_checkpoint = folder.file_name().is_some_and(|name| step_of(&name.to_string_lossy()).is_some());
    match folder.parent().map(|run| run.join(name)) {
        Some(of_run) if is_checkpoint && !own.exists() && folder.join(STATE).is_file() => of_run,
        _ => own,
    }
}

/// Whether this program wrote a checkpoint, and nobody put anything into it since. Python's have another state.
///
/// # Errors
/// For a state that is damaged.
pub(crate) fn is_own(folder: &Path) -> Result<bool> {
    let path = folder.join(STATE);
    if folder.is_symlink() || !path.is_file() || !holds_only(folder, &FILES) || !holds_only(&folder.join(BEST), &FILES)
    {
        return Ok(false);
    }
    let text = read_text(&path, "the state of the run")?;
    let state: Value =
        serde_json::from_str(&text).map_err(|error| PeftError::File { path, problem: error.to_string() })?;
    Ok(state.get("identity").is_some())
}

fn holds_only(folder: &Path, names: &[&str]) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return true };
    entries.flatten().all(|entry| names.iter().any(|name| entry.file_name() == *name))
}

/// Writes the files of a checkpoint into a folder.
pub(crate) fn write(folder: &Path, snapshot: &Snapshot<'_>) -> Result<()> {
    AdapterFolder::write(folder, DEFAULT_ADAPTER, snapshot.config, snapshot.adapter)?;
    if let Some(best) = snapshot.best.and_then(|best| best.adapter.as_ref()) {
        AdapterFolder::write(&folder.join(BEST), DEFAULT_ADAPTER, snapshot.config, best)?;
    }
    write_safetensors(&folder.join(OPTIMIZER), snapshot.optimizer)?;
    let state = StateFile { state: snapshot.state, best: snapshot.best.map(|best| &best.evaluation) };
    let state = serde_json::to_string_pretty(&state).unwrap_or_default();
    Ok(write_atomically(&folder.join(STATE), state.as_bytes())?)
}

/// Reads a checkpoint.
///
/// # Errors
/// With the file that is damaged, or says what cannot be.
pub(crate) fn read(folder: &Path) -> Result<Checkpoint> {
    let path = folder.join(STATE);
    let text = read_text(&path, "the state of the run")?;
    let broken = |problem: String| PeftError::File { path: path.clone(), problem };
    let ReadStateFile { state, best } = serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
    let named = folder.file_name().and_then(|name| step_of(&name.to_string_lossy()));
    if let Some(problem) = impossible(&state, best.as_ref(), named) {
        return Err(
            broken(format!("{problem}: the checkpoint is damaged; remove it to go on from an earlier one")).into()
        );
    }
    let kept = folder.join(BEST);
    let is_there = kept.is_dir();
    let best = match best {
        None if is_there => {
            return Err(broken(
                "`best`: null, but there is a folder of that name: the checkpoint is damaged".to_owned(),
            )
            .into());
        }
        Some(evaluation) if evaluation.is_kept.is_some_and(|is_kept| is_kept != is_there) => {
            let problem = if is_there { "is there and should not be" } else { "is missing" };
            return Err(PeftError::File {
                path: kept,
                problem: format!("the adapter of the best evaluation {problem}: the checkpoint is damaged; remove it to go on from an earlier one"),
            }
            .into());
        }
        best => best,
    };
    let best = match best {
        Some(evaluation) => {
            let adapter = if is_there { Some(AdapterFolder::read(&kept)?.tensors) } else { None };
            Some(BestModel { evaluation, adapter })
        }
        None => None,
    };
    let optimizer = TensorFile::read(&folder.join(OPTIMIZER), "the state of the optimiser")?;
    let adapter = adapter(folder)?;
    Ok(Checkpoint { folder: folder.to_owned(), state, adapter, optimizer, best })
}

/// The adapter of a checkpoint.
pub(crate) fn adapter(folder: &Path) -> Result<BTreeMap<String, TensorData>> {
    Ok(AdapterFolder::read(folder)?.tensors)
}

/// What of a state cannot be.
fn impossible(state: &TrainerState, best: Option<&BestEvaluation>, named: Option<usize>) -> Option<String> {
    let step = state.global_step;
    if let Some(named) = named.filter(|named| *named != step) {
        return Some(format!("`global_step` is {step} in {}", name(named)));
    }
    if step == 0 || step > state.max_steps {
        return Some(format!("`global_step` is {step} of {} steps", state.max_steps));
    }
    if let Some(best) = best.filter(|best| best.step > step) {
        return Some(format!("`best` is of step {}, after `global_step` {step}", best.step));
    }
    if state.losses_since_log.len() > step {
        return Some(format!("`losses_since_log` has {} losses of {step} steps", state.losses_since_log.len()));
    }
    let is_finite = state.loss_sum.0.is_finite() && state.losses_since_log.iter().all(|loss| loss.0.is_finite());
    (!is_finite).then(|| "a loss is not finite".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn state(step: usize, max_steps: usize) -> TrainerState {
        TrainerState { global_step: step, max_steps, ..TrainerState::default() }
    }

    #[test]
    fn only_whole_checkpoints_count_in_the_order_of_their_steps() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["checkpoint-100", "checkpoint-20", ".checkpoint-300", "checkpoint-x"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join(STATE), "{}").unwrap();
        }
        fs::create_dir(folder.path().join("checkpoint-400")).unwrap();
        let steps = |folder: &Path| list(folder).unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
        assert_eq!(steps(folder.path()), [20, 100]);
        assert_eq!(steps(&folder.path().join("nowhere")), [0; 0]);
    }

    #[test]
    fn checkpoints_of_python_and_those_with_files_of_others_are_not_our_own() {
        let folder = tempfile::tempdir().unwrap();
        let text = serde_json::to_string(&state(7, 9)).unwrap();
        for (state, more, is_ours) in [
            (r#"{"global_step": 7, "epoch": 1.0, "log_history": []}"#, None, false),
            (&*text, None, true),
            (&*text, Some("optimizer.safetensors"), true),
            (&*text, Some("notes.txt"), false),
        ] {
            fs::write(folder.path().join(STATE), state).unwrap();
            more.into_iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
            assert_eq!(is_own(folder.path()).unwrap(), is_ours, "{state} {more:?}");
        }
    }

    #[test]
    fn a_state_that_cannot_be_is_said() {
        assert_eq!(impossible(&state(3, 3), None, Some(3)), None);
        for (state, named, says) in [
            (state(1_000_000, 2_000_000), 3, "`global_step` is 1000000 in checkpoint-3"),
            (state(4, 3), 4, "4 of 3 steps"),
            (state(0, 3), 0, "0 of 3 steps"),
            (TrainerState { losses_since_log: vec![Exact(1.0); 4], ..state(3, 3) }, 3, "4 losses of 3 steps"),
            (TrainerState { loss_sum: Exact(f64::NAN), ..state(3, 3) }, 3, "not finite"),
        ] {
            let problem = impossible(&state, None, Some(named)).unwrap();
            assert!(problem.contains(says), "{problem}");
        }
    }

    #[test]
    fn the_state_survives_its_file() {
        let state = TrainerState { losses_since_log: vec![Exact(f64::from(0.1_f32))], ..state(7, 9) };
        let text = serde_json::to_string(&StateFile { state: &state, best: None }).unwrap();
        let back: ReadStateFile = serde_json::from_str(&text).unwrap();
        assert_eq!((back.state.losses_since_log, back.state.global_step), (state.losses_since_log, 7));
        assert!(back.best.is_none());
    }
}
