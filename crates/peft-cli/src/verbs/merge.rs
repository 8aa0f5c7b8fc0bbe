//! `peft merge`: a plain Hugging Face checkpoint with the adapter folded in.

use std::path::PathBuf;

use clap::Args;
use peft::models::{checkpoint, copy_tokenizer};

use crate::{CliError, Globals, session::ModelArgs, terminal};

/// Fold adapters into the base model and write a plain Hugging Face checkpoint
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  peft merge --model bert --adapter out --output merged")]
pub(crate) struct Merge {
    #[command(flatten)]
    model: ModelArgs,
    /// Pack weights that were packed again, which rounds the sums, in place of writing them dense.
    #[arg(long)]
    requantize: bool,
    /// Folder to write; it must not be the model's own.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

impl Merge {
    pub(crate) fn run(mut self, globals: &Globals) -> Result<(), CliError> {
        if self.model.adapters().is_empty() {
            return Err(CliError::Usage("there is nothing to merge: give --adapter ADAPTER".to_owned()));
        }
        let mut model = self.model.open(globals)?;
        if let (Ok(output), Ok(model)) = (self.output.canonicalize(), self.model.folder().canonicalize())
            && output == model
        {
            return Err(CliError::Usage("--output is the model's own folder: the base model would be lost".to_owned()));
        }
        let merged = if self.requantize { model.merge_repacked()? } else { model.merge()?.unpacked() };
        // Computed in single precision and rounded once, to what the base model says it is.
        let dtype = globals.dtype.is_none().then(|| checkpoint::stated_dtype(&merged.info)).flatten();
        let merged = match dtype {
            Some(dtype) => merged.cast(dtype),
            None => merged,
        };
        checkpoint::save(&merged, Some(self.model.folder()), &self.output)?;
        if self.model.tokenizer_folder() != self.model.folder() {
            copy_tokenizer(self.model.tokenizer_folder(), &self.output)?;
        }
        if globals.json {
            return terminal::json(&serde_json::json!({ "output": self.output, "merged": model.active() }));
        }
        let own = dtype.map_or_else(String::new, |dtype| {
            format!(
                " in {}, as the base model is (--dtype has others)",
                checkpoint::torch_name(dtype).unwrap_or("half precision")
            )
        });
        terminal::note(globals, format!("merged {} into {}{own}", model.active().join(", "), self.output.display()));
        Ok(())
    }
}
