//! What happens during training, for whoever shows it.

use std::path::Path;

use peft_core::{Explanation, metrics::Metrics};

use crate::{Prepared, trainer_log::TrainLine};

/// Something that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A remark that nobody should miss: a head that starts at random, examples left out.
    Note(&'a str),
    /// Everything is resolved; what the rows came to.
    Prepared(&'a Prepared),
    /// What the configuration decided for the model.
    Adapted(&'a Explanation),
    /// Training starts.
    Started {
        /// Steps done by an earlier run.
        done: usize,
        /// All steps.
        total: usize,
    },
    /// An optimiser step was done.
    Step {
        /// How many were done.
        step: usize,
        /// All steps.
        total: usize,
    },
    /// A line of the log was written.
    Logged(&'a TrainLine),
    /// Evaluation goes on.
    Evaluating {
        /// Examples done.
        done: usize,
        /// All examples.
        total: usize,
    },
    /// An evaluation was done.
    Evaluated {
        /// Which of several adapters.
        adapter: Option<&'a str>,
        /// The step after which it was done.
        step: usize,
        /// `eval_loss` and the task's metrics.
        metrics: &'a Metrics,
        /// Whether none was better so far.
        best: bool,
    },
    /// A checkpoint was written.
    Saved(&'a Path),
}

/// Shows what happens.
pub trait Observer {
    /// Something happened.
    fn observe(&mut self, event: &Event<'_>);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _event: &Event<'_>) {}
}
