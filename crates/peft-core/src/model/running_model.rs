//! A model that only answers: what evaluation and generation run.

use std::sync::Arc;

use crate::{
    CheckedInputs, DynModule, Inputs, Labels, ModelInfo, Outputs, PromptTuner, Result, Task,
    adapter::rows::AdapterRows, data::loss::Loss,
};

/// A model in evaluation mode without autodiff, from [`BaseModel::running`](crate::BaseModel::running) or
/// [`PeftModel::valid`](crate::PeftModel::valid).
#[derive(Debug)]
pub struct RunningModel {
    pub(crate) module: Box<dyn DynModule>,
    pub(crate) info: Arc<ModelInfo>,
    /// The adapters of the rows of a batch, where each row has its own.
    pub(crate) rows: Option<Arc<AdapterRows>>,
    pub(crate) task: Option<&'static dyn Task>,
    /// The prompt before the input, which may have a loss of its own.
    pub(crate) prompt: Option<Arc<dyn PromptTuner>>,
}

impl RunningModel {
    /// A module and what it says of itself.
    pub fn new(module: Box<dyn DynModule>, info: impl Into<Arc<ModelInfo>>) -> Self {
        Self { module, info: info.into(), rows: None, task: None, prompt: None }
    }

    /// What it says of itself.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The inputs, checked for this model.
    ///
    /// # Errors
    /// As [`CheckedInputs::new`].
    pub fn check(&self, inputs: Inputs) -> Result<CheckedInputs> {
        CheckedInputs::new(inputs, &self.info)
    }

    /// Runs the model.
    ///
    /// # Errors
    /// As [`PeftModel::forward`](crate::PeftModel::forward).
    pub fn forward(&self, inputs: &CheckedInputs) -> Result<Outputs> {
        run(&*self.module, &self.info, self.rows.as_deref(), self.task, inputs)
    }

    /// The loss of labels: the task's, or the prompt's own.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) if the labels are unfit.
    pub fn loss_for<'a>(&'a self, task: &dyn Task, labels: &'a Labels) -> Result<Loss<'a>> {
        loss_for(self.prompt.as_deref(), task, labels, &self.info)
    }
}

/// The loss of labels for training and evaluation alike.
pub(crate) fn loss_for<'a>(
    prompt: Option<&'a dyn PromptTuner>,
    task: &dyn Task,
    labels: &'a Labels,
    info: &'a ModelInfo,
) -> Result<Loss<'a>> {
    prompt.and_then(|prompt| prompt.loss(labels)).unwrap_or_else(|| task.loss(labels, info))
}

/// Runs a module on inputs that suit it, and asks whether it could do what its rows want.
pub(crate) fn run(
    module: &dyn DynModule,
    info: &ModelInfo,
    rows: Option<&AdapterRows>,
    task: Option<&'static dyn Task>,
    inputs: &CheckedInputs,
) -> Result<Outputs> {
    inputs.for_model(info)?;
    if let Some(rows) = rows {
        rows.check(inputs.batch())?;
    }
    let outputs = match task {
        Some(task) => module.forward(&inputs.clone().map(|inputs| task.prepare(inputs))),
        None => module.forward(inputs),
    };
    match rows {
        Some(rows) => rows.told_apart().map(|()| outputs),
        None => Ok(outputs),
    }
}
