//! `peft predict`: one JSON line an input.

use clap::Args;
use peft_train::{evaluate::predict, row_adapters::row_adapters};

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

  peft predict --model bert --adapter en=out-en --adapter de=out-de --adapter-column --data reviews.jsonl

With --adapter-column each row is answered by the adapter that it names, or by the base model alone (`__base__`); rows of
different ones run in one batch.

A model with a head for words writes an answer to each prompt or source; of whole texts it says how likely it finds them.
Lines stand in the order of the rows. With --json they are one array.")]
pub(crate) struct Predict {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// The column that names each row's adapter, `adapter` if nothing is said.
    #[arg(long, value_name = "COLUMN", num_args = 0..=1, require_equals = true, default_missing_value = "adapter", conflicts_with = "active")]
    adapter_column: Option<String>,
    #[command(flatten)]
    generation: GenerationArgs,
}

impl Predict {
    pub(crate) fn run(mut self, globals: &Globals) -> Result<(), CliError> {
        let mut model = self.model.open(globals)?;
        let opened = self.data.open(&self.model, &model, false)?;
        let writing = opened.writing(&self.model, &model, &self.generation)?;
        if writing.is_none() && !self.generation.is_empty() {
            return Err(CliError::Usage("options of generation have no effect: no row asks for a text".to_owned()));
        }
        let (context, batch_size) = (opened.context(), self.data.batch_size);
        let adapters = match &self.adapter_column {
            Some(column) => Some(row_adapters(&opened.data.rows, column, &model)?),
            None => None,
        };
        let (writing, adapters) = (writing.as_ref(), adapters.as_deref());
        let answers = predict(&mut model, &opened.data, &context, writing, adapters, batch_size, &mut Notes(globals))?;
        if globals.json {
            return terminal::json(&answers);
        }
        answers.iter().try_for_each(terminal::json)
    }
}
