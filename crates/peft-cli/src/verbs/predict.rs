//! `peft predict`: one JSON line an input.

use clap::Args;
use peft_train::evaluate::predict;

use super::eval::DataArgs;
use crate::{
    CliError, Globals,
    generation_args::GenerationArgs,
    session::ModelArgs,
    terminal::{self, Notes},
};

/// Answer every row of a file, one JSON line each
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peft predict --model bert --adapter out --data reviews.jsonl
  peft predict --model bert --adapter out --data reviews.csv --column text=review > answers.jsonl

  peft predict --model t5 --adapter out --data sources.txt num_beams=4 max_new_tokens=64

A model with a head for words writes an answer to each prompt or source; of whole texts it says how likely it finds them.
Lines stand in the order of the rows. With --json they are one array.")]
pub(crate) struct Predict {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    generation: GenerationArgs,
}

impl Predict {
    pub(crate) fn run(mut self, globals: &Globals) -> Result<(), CliError> {
        let model = self.model.open(globals)?;
        let opened = self.data.open(&self.model, &model, false)?;
        let writing = opened.writing(&self.model, &model, &self.generation)?;
        if writing.is_none() && !self.generation.is_empty() {
            return Err(CliError::Usage("options of generation have no effect: no row asks for a text".to_owned()));
        }
        let (context, batch_size) = (opened.context(), self.data.batch_size);
        let answers = predict(&model, &opened.data, &context, writing.as_ref(), batch_size, &mut Notes(globals))?;
        if globals.json {
            return terminal::json(&answers);
        }
        answers.iter().try_for_each(terminal::json)
    }
}
