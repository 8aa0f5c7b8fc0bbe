//! Who answers a row: the active adapters, or the adapter that the row names.

use peft_core::{
    BadRows, CheckedInputs, Labels, Outputs, PeftModel, RunningModel, Task,
    adapter::rows::BASE,
    data::{example::Row, loss::Loss},
};

use crate::{Result, columns};

/// The model that rows of a data set are run through, in evaluation mode.
pub(crate) enum Runner<'a> {
    /// One for all rows.
    Whole(RunningModel),
    /// Each row with its own adapter.
    ByRow {
        /// The model with all adapters.
        model: &'a mut PeftModel,
        /// The adapter of each row of the data set.
        names: &'a [String],
        /// As it is for the rows of the batch that runs.
        running: RunningModel,
    },
}

impl<'a> Runner<'a> {
    /// With each row's own adapter where `names` are given.
    pub(crate) fn new(model: &'a mut PeftModel, names: Option<&'a [String]>) -> Self {
        let running = model.valid();
        match names {
            Some(names) => Self::ByRow { model, names, running },
            None => Self::Whole(running),
        }
    }

    /// The model for a batch of these rows, each of which may come `beams` times.
    pub(crate) fn model(&mut self, rows: &[usize], beams: usize) -> Result<&RunningModel> {
        match self {
            Self::Whole(running) => Ok(running),
            Self::ByRow { model, names, running } => {
                let of: Vec<&str> = rows.iter().map(|row| names.get(*row).map_or(BASE, String::as_str)).collect();
                model.set_rows_of_beams(&of, beams)?;
                *running = model.valid();
                Ok(running)
            }
        }
    }

    /// The loss of the labels of the batch that ran last.
    pub(crate) fn loss_for<'l>(&'l self, task: &dyn Task, labels: &'l Labels) -> Result<Loss<'l>> {
        let (Self::Whole(running) | Self::ByRow { running, .. }) = self;
        Ok(running.loss_for(task, labels)?)
    }

    /// Runs a batch of these rows.
    pub(crate) fn forward(&mut self, rows: &[usize], inputs: &CheckedInputs) -> Result<Outputs> {
        Ok(self.model(rows, 1)?.forward(inputs)?)
    }
}

/// The adapter that each row names in a column, each of which the model has.
///
/// # Errors
/// [`Error::Data`](peft_core::Error::Data) with file and line of the first ten rows without a name, or with another.
pub fn row_adapters(rows: &[Row], column: &str, model: &PeftModel) -> Result<Vec<String>> {
    named_adapters(rows, column, &model.adapter_names().chain([BASE]).collect::<Vec<_>>())
}

/// The same of adapters that have these names.
pub(crate) fn named_adapters(rows: &[Row], column: &str, known: &[&str]) -> Result<Vec<String>> {
    columns::has(rows, column, "adapter_column in [data] of the recipe, or --adapter-column=NAME on the command line")?;
    let mut bad = BadRows::default();
    let mut names = Vec::with_capacity(rows.len());
    for row in rows {
        let named =
            row.text(column).and_then(|name| match known.contains(&name) {
                true => Ok(name.to_owned()),
                false => Err(row
                    .error(format!("column `{column}`: no adapter named `{name}` (there are: {})", known.join(", ")))),
            });
        names.extend(bad.take(named)?);
    }
    bad.finish()?;
    Ok(names)
}
