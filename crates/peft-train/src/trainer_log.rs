//! `trainer_log.jsonl`: one object for each logged step and each evaluation.

use std::path::{Path, PathBuf};

use peft_core::{
    files::{append, read_text, write_atomically},
    metrics::Metrics,
};
use serde::Serialize;
use serde_json::Value;

use crate::Result;

/// The file's name.
pub const LOG_FILE: &str = "trainer_log.jsonl";

/// What is said about the steps since the line before.
#[derive(Debug, Clone, Serialize)]
pub struct TrainLine {
    /// Which of several adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Steps done.
    pub step: usize,
    /// Passes over the data done.
    pub epoch: f64,
    /// Mean loss of the steps since the line before.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Norm of the step's gradients before clipping.
    pub grad_norm: Option<f64>,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Input tokens without padding, by second of training.
    pub tokens_per_second: f64,
}

/// What is said about an evaluation.
#[derive(Debug, Clone, Serialize)]
pub struct EvalLine<'a> {
    /// Steps done.
    pub step: usize,
    /// Passes over the data done.
    pub epoch: f64,
    /// `eval_loss` and the task's metrics.
    #[serde(flatten)]
    pub metrics: &'a Metrics,
    /// Seconds of the evaluation.
    pub eval_seconds: f64,
}

/// The log of a run, a line at a time.
#[derive(Debug)]
pub struct TrainerLog {
    path: PathBuf,
}

impl TrainerLog {
    /// The lines of the first `keep` steps of the log in a folder.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn lines_until(folder: &Path, keep: usize) -> Result<String> {
        let path = folder.join(LOG_FILE);
        let text = if keep > 0 && path.exists() { read_text(&path, "the log")? } else { String::new() };
        // A line that was being written when the run was killed is no JSON.
        let step = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("step")?.as_u64();
        let kept = text.lines().filter(|line| step(line).is_some_and(|step| step <= keep as u64));
        Ok(kept.flat_map(|line| [line, "\n"]).collect())
    }

    /// A log in a folder that begins with these lines.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn begin(folder: &Path, lines: &str) -> Result<Self> {
        let path = folder.join(LOG_FILE);
        write_atomically(&path, lines.as_bytes())?;
        Ok(Self { path })
    }

    /// Goes on in another folder, where the file was moved to.
    pub fn moved_to(&mut self, folder: &Path) {
        self.path = folder.join(LOG_FILE);
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line).unwrap_or_default();
        text.push('\n');
        Ok(append(&self.path, text.as_bytes())?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resumed_log_ends_at_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let log = TrainerLog::begin(folder.path(), "").unwrap();
        for step in 1..=4 {
            log.write(&json!({ "step": step })).unwrap();
        }
        append(&folder.path().join(LOG_FILE), b"{\"step\": 1, \"lo").unwrap();
        let kept = |steps| TrainerLog::lines_until(folder.path(), steps).unwrap();
        assert_eq!((kept(2), kept(0)), ("{\"step\":1}\n{\"step\":2}\n".to_owned(), String::new()));
    }
}
