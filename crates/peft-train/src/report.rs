//! What a run came to: the last line of `peft train --json`.

pub use peft_backends::memory::peak_resident as peak_rss_bytes;
use std::path::PathBuf;

use peft_core::metrics::Metrics;
use serde::Serialize;

use crate::dataset::DataSummary;

/// What a run came to. Serialises flat: metrics stand beside the other keys.
#[derive(Debug, Clone, Serialize)]
pub struct TrainReport {
    /// Which of several adapters this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Mean training loss over all steps.
    pub train_loss: f64,
    /// `eval_loss` and the task's metrics of the adapter that was written; empty without evaluation rows.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Optimiser steps.
    pub steps: usize,
    /// Input tokens without padding, by second of training.
    pub tokens_per_second: f64,
    /// Median duration of an optimiser step.
    pub step_seconds_median: f64,
    /// Largest resident memory of the process; none where the system does not say.
    pub peak_rss_bytes: Option<u64>,
    /// Values that were trained.
    pub trainable_params: usize,
    /// The training rows; absent where several adapters have each their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<DataSummary>,
    /// The evaluation rows, if there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<DataSummary>,
    /// The step whose adapter was written: the last, or the best.
    pub written_step: usize,
    /// Folder of the result; of several the one that holds theirs.
    pub output_dir: PathBuf,
    /// What several adapters came to, each by itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<Self>,
}

/// The middle of the values; the mean of the two middle ones for an even number, 0 for none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (Some(value), 1) => *value,
        (Some(value), _) => (value + values.get(middle.wrapping_sub(1)).unwrap_or(value)) / 2.0,
        (None, _) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0]), 3.0);
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_says_how_much_memory_was_resident() {
        assert!(peak_rss_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
