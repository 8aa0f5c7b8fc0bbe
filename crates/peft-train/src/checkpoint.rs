//! `checkpoint-N/`: everything that a run needs to go on to the same bits as if it had never stopped.
//!
//! A checkpoint holds the adapter's files, the optimiser's moments (`optimizer.safetensors`), `trainer_state.json`, and in
//! `best/` the best adapter so far where that one is to be kept. It is written under another name and renamed, so that a
//! kill at any moment leaves whole checkpoints only.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::TensorData;
use indexmap::IndexMap;
use peft::{
    Error as PeftError, PeftConfig,
    files::{AdapterFolder, TensorFile, create_folder, read_text, write_atomically, write_safetensors},
    model::DEFAULT_ADAPTER,
    task::Metrics,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result, dataset::DataSummary, exact::Exact};

const PREFIX: &str = "checkpoint-";
const UNFINISHED: &str = ".checkpoint-";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "trainer_state.json";
const BEST: &str = "best";

/// Where a run stands: `trainer_state.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct TrainerState {
    /// Steps done; order, learning rate and seeds follow from it.
    pub(crate) global_step: usize,
    /// All steps.
    pub(crate) max_steps: usize,
    /// What must not differ when the run goes on.
    pub(crate) identity: Identity,
    /// The best evaluation so far.
    pub(crate) best: Option<BestEvaluation>,
    /// The losses of the steps that no line of the log has yet.
    pub(crate) losses_since_log: Vec<Exact>,
    /// The sum of the losses of all steps.
    pub(crate) loss_sum: Exact,
    /// Input tokens seen.
    pub(crate) tokens: u64,
    /// Seconds of training.
    pub(crate) seconds: f64,
}

/// What decides a run's numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The recipe's deciding keys, as `section.key`.
    pub(crate) recipe: Map<String, Value>,
    /// How much training data there is.
    pub(crate) data: DataSummary,
    /// A number that changes with any token or label.
    pub(crate) fingerprint: u64,
}

/// An evaluation that was better than all before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BestEvaluation {
    /// The step after which it was done.
    pub(crate) step: usize,
    /// The metric that it is the best by.
    pub(crate) metric: String,
    /// Its value.
    pub(crate) value: Exact,
    /// All metrics.
    pub(crate) metrics: IndexMap<String, Exact>,
}

impl BestEvaluation {
    pub(crate) fn metrics(&self) -> Metrics {
        self.metrics.iter().map(|(name, value)| (name.clone(), value.0)).collect()
    }
}

/// What a checkpoint holds besides the state.
pub(crate) struct Snapshot<'a> {
    pub(crate) state: &'a TrainerState,
    pub(crate) config: &'a PeftConfig,
    pub(crate) adapter: &'a BTreeMap<String, TensorData>,
    /// As [`Optimizer::state`](crate::Optimizer) gives it.
    pub(crate) optimizer: &'a BTreeMap<String, TensorData>,
    pub(crate) best: Option<&'a BTreeMap<String, TensorData>>,
}

/// A checkpoint that was read.
pub(crate) struct Checkpoint {
    pub(crate) folder: PathBuf,
    pub(crate) state: TrainerState,
    pub(crate) adapter: BTreeMap<String, TensorData>,
    pub(crate) optimizer: TensorFile,
    pub(crate) best: Option<BTreeMap<String, TensorData>>,
}

/// The whole checkpoints of a folder by step.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(output_dir: &Path) -> Result<Vec<(usize, PathBuf)>> {
    if !output_dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for path in entries(output_dir)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let step = name.strip_prefix(PREFIX).and_then(|step| step.parse().ok());
        if let Some(step) = step.filter(|_| path.join(STATE).is_file()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what a killed run left unfinished.
pub(crate) fn sweep(output_dir: &Path) -> Result<()> {
    for path in entries(output_dir)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(UNFINISHED) && path.is_dir() {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes all checkpoints but the last `keep`.
pub(crate) fn prune(output_dir: &Path, keep: usize) -> Result<()> {
    let all = list(output_dir)?;
    for (step, path) in all.iter().take(all.len().saturating_sub(keep)) {
        // Under another name first: a half removed folder must not pass for a checkpoint.
        let leaving = output_dir.join(format!("{UNFINISHED}{step}-removed"));
        fs::rename(path, &leaving).map_err(|source| io(path, "remove", source))?;
        remove(&leaving)?;
    }
    Ok(())
}

/// Writes `checkpoint-N`.
pub(crate) fn write(output_dir: &Path, snapshot: &Snapshot<'_>) -> Result<PathBuf> {
    let name = format!("{PREFIX}{}", snapshot.state.global_step);
    let folder = output_dir.join(&name);
    let unfinished = output_dir.join(format!("{UNFINISHED}{}", snapshot.state.global_step));
    if unfinished.exists() {
        remove(&unfinished)?;
    }
    create_folder(&unfinished)?;
    AdapterFolder::write(&unfinished, DEFAULT_ADAPTER, snapshot.config, snapshot.adapter)?;
    if let Some(best) = snapshot.best {
        AdapterFolder::write(&unfinished.join(BEST), DEFAULT_ADAPTER, snapshot.config, best)?;
    }
    write_safetensors(&unfinished.join(OPTIMIZER), snapshot.optimizer)?;
    let state = serde_json::to_string_pretty(snapshot.state).unwrap_or_default();
    write_atomically(&unfinished.join(STATE), state.as_bytes())?;
    if folder.exists() {
        remove(&folder)?;
    }
    fs::rename(&unfinished, &folder).map_err(|source| io(&folder, "create", source))?;
    // The rename itself must survive a power cut; not every system can sync a folder.
    if let Ok(parent) = fs::File::open(output_dir) {
        let _synced = parent.sync_all();
    }
    Ok(folder)
}

/// Reads a checkpoint.
pub(crate) fn read(folder: &Path) -> Result<Checkpoint> {
    let path = folder.join(STATE);
    let text = read_text(&path, "the state of the run")?;
    let state = serde_json::from_str(&text).map_err(|error| PeftError::File { path, problem: error.to_string() })?;
    let optimizer = TensorFile::read(&folder.join(OPTIMIZER), "the state of the optimiser")?;
    let best = folder.join(BEST);
    let best = if best.is_dir() { Some(AdapterFolder::read(&best)?.tensors) } else { None };
    let adapter = AdapterFolder::read(folder)?.tensors;
    Ok(Checkpoint { folder: folder.to_owned(), state, adapter, optimizer, best })
}

impl Checkpoint {
    /// Refuses to go on with a run whose numbers would be others.
    pub(crate) fn check(&self, now: &Identity) -> Result<()> {
        let then = &self.state.identity;
        let refuse = |problem: String| Err(Error::Resume { folder: self.folder.clone(), problem });
        let text = |value: Option<&Value>| value.map_or_else(|| "absent".to_owned(), Value::to_string);
        for key in then.recipe.keys().chain(now.recipe.keys()) {
            let (before, after) = (then.recipe.get(key), now.recipe.get(key));
            if before != after {
                return refuse(format!(
                    "`{key}` is {} now and was {} when this was written; resume with the same value, or start anew in another output_dir",
                    text(after),
                    text(before)
                ));
            }
        }
        if (&then.data, then.fingerprint) != (&now.data, now.fingerprint) {
            return refuse(format!(
                "the training examples are others than when this was written ({} with {} tokens now, {} with {} then)",
                now.data.examples, now.data.tokens, then.data.examples, then.data.tokens
            ));
        }
        Ok(())
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = |source| io(folder, "read", source);
    let entries = fs::read_dir(folder).map_err(read)?;
    Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(read)?)
}

fn remove(folder: &Path) -> Result<()> {
    Ok(fs::remove_dir_all(folder).map_err(|source| io(folder, "remove", source))?)
}

fn io(path: &Path, action: &'static str, source: std::io::Error) -> PeftError {
    PeftError::Io { path: path.to_owned(), action, source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn touch(folder: &Path, names: &[&str]) {
        for name in names {
            fs::create_dir_all(folder.join(name)).unwrap();
            fs::write(folder.join(name).join(STATE), "{}").unwrap();
        }
    }

    fn steps(folder: &Path) -> Vec<usize> {
        list(folder).unwrap().into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn only_whole_checkpoints_count() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), &["checkpoint-100", "checkpoint-20", ".checkpoint-300", "checkpoint-x"]);
        fs::create_dir(folder.path().join("checkpoint-400")).unwrap();
        assert_eq!(steps(folder.path()), [20, 100]);
        sweep(folder.path()).unwrap();
        assert!(!folder.path().join(".checkpoint-300").exists());
        assert_eq!(steps(&folder.path().join("nowhere")), [0; 0]);
    }

    #[test]
    fn the_oldest_checkpoints_go_first() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), &["checkpoint-9", "checkpoint-10", "checkpoint-11"]);
        prune(folder.path(), 2).unwrap();
        assert_eq!(steps(folder.path()), [10, 11]);
        assert_eq!(entries(folder.path()).unwrap().len(), 2);
    }

    #[test]
    fn a_changed_recipe_is_refused_with_its_key() {
        let identity = |rate: f64, fingerprint| Identity {
            recipe: Map::from_iter([("training.learning_rate".to_owned(), json!(rate))]),
            fingerprint,
            ..Identity::default()
        };
        let checkpoint = Checkpoint {
            folder: PathBuf::from("out/checkpoint-5"),
            state: TrainerState { identity: identity(0.1, 1), ..TrainerState::default() },
            adapter: BTreeMap::new(),
            optimizer: TensorFile { path: PathBuf::new(), tensors: BTreeMap::new() },
            best: None,
        };
        assert!(checkpoint.check(&identity(0.1, 1)).is_ok());
        for (now, says) in
            [(identity(0.2, 1), "`training.learning_rate` is 0.2"), (identity(0.1, 2), "training examples")]
        {
            let message = checkpoint.check(&now).unwrap_err().to_string();
            assert!(message.starts_with("out/checkpoint-5: ") && message.contains(says), "{message}");
        }
    }

    #[test]
    fn the_state_survives_its_file() {
        let state = TrainerState {
            global_step: 7,
            best: Some(BestEvaluation {
                step: 5,
                metric: "accuracy".to_owned(),
                value: Exact(1.0 / 3.0),
                metrics: IndexMap::from_iter([("accuracy".to_owned(), Exact(1.0 / 3.0))]),
            }),
            losses_since_log: vec![Exact(f64::from(0.1_f32))],
            ..TrainerState::default()
        };
        let text = serde_json::to_string(&state).unwrap();
        let back: TrainerState = serde_json::from_str(&text).unwrap();
        assert_eq!((back.best, back.losses_since_log, back.global_step), (state.best, state.losses_since_log, 7));
    }
}
