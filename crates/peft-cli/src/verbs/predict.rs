//! `peft predict`: one JSON line an input.

use clap::Args;
use peft_train::{Silent, evaluate::predict};

use super::eval::DataArgs;
use crate::{CliError, Globals, session::ModelArgs, terminal};

/// Answer every row of a file, one JSON line each
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peft predict --model bert --adapter out --data reviews.jsonl
  peft predict --model bert --adapter out --data reviews.csv --column text=review > answers.jsonl

Lines stand in the order of the rows. With --json they are one array.")]
pub(crate) struct Predict {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
}

impl Predict {
    pub(crate) fn run(self, globals: &Globals) -> Result<(), CliError> {
        let model = self.model.open(globals)?;
        let opened = self.data.open(&self.model, &model, false)?;
        let answers = predict(&model, &opened.data, &opened.context(), self.data.batch_size, &mut Silent)?;
        if globals.json {
            return terminal::json(&answers);
        }
        answers.iter().try_for_each(terminal::json)
    }
}
