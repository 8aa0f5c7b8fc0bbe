//! What a task is: decisions about heads, losses, labels, metrics and answers, without machinery.

use std::fmt::Debug;

use serde_json::Value;

use crate::{
    AutoClass, Batch, Inputs, Labels, ModelInfo, Outputs, Result,
    data::{
        example::{EncodeContext, Example, Row},
        loss::Loss,
    },
    metrics::{Metrics, Scores},
    plugins::registry::{Plugin, plugins},
};

/// PEFT's class name of the wrapper that a model without a task type gets.
pub const DEFAULT_WRAPPER: &str = "PeftModel";

/// One row of data with all examples made from it and the model's scores for each.
#[derive(Debug)]
pub struct Scored<'a> {
    /// The row.
    pub row: &'a Row,
    /// Its examples: one, or one for each window of a long text.
    pub examples: Vec<(&'a Example, &'a Scores)>,
}

/// What generation starts from for one row, and what its text is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationPrompt {
    /// Token ids of the prompt, or of the source where there is an encoder.
    pub prompt: Vec<u32>,
    /// The reference text, where the row has one.
    pub reference: Option<String>,
}

/// The classes that a data set has, and what kind of problem they make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSet {
    /// Class names in the order of their ids; one name for a regression.
    pub labels: Vec<String>,
    /// `single_label_classification`, `multi_label_classification` or `regression`.
    pub problem_type: &'static str,
}

/// A task: how rows become examples, what the loss is, what is measured and what is answered.
pub trait Task: Debug + Send + Sync {
    /// The roles that columns play, the required ones first, with what each holds.
    fn columns(&self) -> &'static [Column];

    /// The roles of which a row needs one, where what is read may stand in several columns.
    fn alternatives(&self) -> &'static [&'static str] {
        &[]
    }

    /// What the labels of the training data say about the head; none where the task has no classes.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) with file and line.
    fn labels(&self, _rows: &[Row], _label_column: &str) -> Result<Option<LabelSet>> {
        Ok(None)
    }

    /// Turns a row into examples: none if it is dropped, several if it is cut into windows.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) with file and line.
    fn encode(&self, row: &Row, context: &EncodeContext<'_>) -> Result<Vec<Example>>;

    /// Judges the rows together, before any is encoded: whether they are all of one shape.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) with file and line of the first ten rows that differ.
    fn check_rows(&self, _rows: &[Row], _context: &EncodeContext<'_>) -> Result<()> {
        Ok(())
    }

    /// Checks the examples together, before the first step.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) with what is missing from the loss.
    fn check_examples(&self, _examples: &[Example], _context: &EncodeContext<'_>) -> Result<()> {
        Ok(())
    }

    /// Whether examples may be packed into one sequence: only where every label belongs to a token.
    fn packs(&self) -> bool {
        false
    }

    /// Whether it pools vectors, so that what a sentence encoder's files say of its texts counts.
    fn pools(&self) -> bool {
        false
    }

    /// The batch with the inputs that follow from its labels: those of a decoder that is to say them.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) if the labels are unfit.
    fn complete(&self, batch: Batch, _info: &ModelInfo) -> Result<Batch> {
        Ok(batch)
    }

    /// The inputs as the wrapper hands them to the base model.
    fn prepare(&self, inputs: Inputs) -> Inputs {
        inputs
    }

    /// Whether the wrapper hands segments on when virtual tokens stand before the input; else they are dropped.
    fn keeps_token_types(&self) -> bool {
        false
    }

    /// How many consecutive examples belong together and must stay in one batch.
    fn group_size(&self) -> usize {
        1
    }

    /// The loss of a batch, as Transformers computes it: its weight, and its mean given the outputs.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) if the labels are absent or unfit.
    fn loss<'a>(&self, labels: &'a Labels, info: &'a ModelInfo) -> Result<Loss<'a>>;

    /// The class that each of a row's `length` positions should be, row after row, [`IGNORE`](crate::batch::IGNORE) where nothing
    /// counts, if the loss is their mean cross-entropy by `logits` and nothing else: then they are all that it takes of a batch.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) if the labels are absent or more than the positions.
    fn targets(&self, _labels: &Labels, _length: usize) -> Result<Option<Vec<i64>>> {
        Ok(None)
    }

    /// Reads what is needed of the model's outputs back to the host, one entry an example.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) if the model lacks an output.
    fn scores(&self, outputs: &Outputs, examples: &[&Example], info: &ModelInfo) -> Result<Vec<Scores>>;

    /// What is to be written for a row, for a task whose answers are texts; none for a row that asks for nothing.
    ///
    /// Of labelled rows it says what is wanted.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) with file and line.
    fn asks(&self, _row: &Row, _context: &EncodeContext<'_>) -> Result<Option<GenerationPrompt>> {
        Ok(None)
    }

    /// The task's metrics over labelled rows.
    ///
    /// Which there are follows from the rows: before a run that wants a certain one, they are asked for with scores that are
    /// empty, and only the names are looked at.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) with file and line of a row whose label cannot be read.
    fn metrics(&self, rows: &[Scored<'_>], context: &EncodeContext<'_>) -> Result<Metrics>;

    /// The answer for one row, as a JSON object.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) with file and line.
    fn answer(&self, row: &Scored<'_>, context: &EncodeContext<'_>) -> Result<Value>;
}

/// A role that a column of the data plays for a task.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// The key in `[data]`, and the column's name unless the recipe says otherwise.
    pub role: &'static str,
    /// Whether every row must have it.
    pub required: bool,
    /// Whether it holds labels, which only training and evaluation need.
    pub learnt: bool,
    /// What it holds.
    pub holds: &'static str,
}

/// A task as a plugin: what the word in `task_type` decides.
pub struct TaskPlugin {
    /// The word in `task_type`.
    pub name: &'static str,
    /// PEFT's class name of the wrapper.
    pub wrapper: &'static str,
    /// The head that the base model is built with.
    pub auto_class: AutoClass,
    /// Names added to `modules_to_save`: kept out of the tuner and trained in full.
    pub heads: &'static [&'static str],
    /// How many transformer sub-modules get virtual tokens under prompt learning.
    pub num_transformer_submodules: usize,
    /// The task's behaviour.
    pub task: &'static dyn Task,
    /// One line for `peft plugins`.
    pub summary: &'static str,
}

inventory::collect!(TaskPlugin);

impl TaskPlugin {
    /// The task of models of that class; none if no such task is linked.
    pub fn of_class(class: &AutoClass) -> Option<&'static Self> {
        plugins::<Self>().into_iter().find(|task| task.auto_class == *class)
    }
}

impl Plugin for TaskPlugin {
    const KIND: &'static str = "task";

    fn name(&self) -> &'static str {
        self.name
    }
}
