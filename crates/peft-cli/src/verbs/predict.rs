//! `peft predict`: one JSON line an input.

use clap::Args;
use peft::train::{evaluate::Predict as Answers, row_adapters::row_adapters};

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
Lines stand in the order of the rows, and come while later rows are still being answered; ctrl-C ends behind a whole line. With --json
they are one array. --data - reads JSON lines from standard input.")]
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
        let writing = opened.writing(&self.model, &model, &self.generation, globals)?;
        if writing.is_none() && !self.generation.is_empty() {
            return Err(CliError::Usage("options of generation have no effect: no row asks for a text".to_owned()));
        }
        let (context, batch_size) = (opened.context(), self.data.batch_size);
        let adapters = match &self.adapter_column {
            Some(column) => Some(row_adapters(&opened.data.rows, column, &model)?),
            None => None,
        };
        opened.notes().for_each(|note| terminal::note(globals, format!("note: {note}")));
        terminal::end_between_lines_on_ctrl_c()?;
        let answers =
            Answers { context: &context, writing: writing.as_ref(), adapters: adapters.as_deref(), batch_size };
        let mut all = Vec::new();
        answers.run(&mut model, &opened.data, &mut Notes(globals), &mut |answer| {
            if globals.json {
                all.push(answer);
                return Ok(());
            }
            terminal::json(&answer)
        })?;
        if globals.json { terminal::json(&all) } else { Ok(()) }
    }
}
