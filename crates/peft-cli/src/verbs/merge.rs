//! `peft merge`: a plain Hugging Face checkpoint with the adapter folded in.

use std::path::{Path, PathBuf};

use clap::Args;
use peft::{
    Error,
    files::{ADAPTER_CONFIG, ADAPTER_PYTORCH_WEIGHTS, ADAPTER_WEIGHTS, Clears, OutputFolder},
    models::{TOKENIZER_FILES, checkpoint, copy_tokenizer},
};

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
    /// Folder to write: a new one, or that of an earlier merge, which is replaced.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

impl Merge {
    pub(crate) fn run(mut self, globals: &Globals) -> Result<(), CliError> {
        if self.model.adapters().is_empty() {
            return Err(CliError::Usage("there is nothing to merge: give --adapter ADAPTER".to_owned()));
        }
        // What cannot be written is said before anything is loaded, and again where the Hub's files are.
        refuse_adapter(&self.output)?;
        let mut output = OutputFolder::open(&self.output, "merge", &mut || Ok(()))?;
        check(&output, self.model.folder())?;
        let mut model = self.model.open(globals)?;
        check(&output, self.model.folder())?;
        let merged = if self.requantize { model.merge_requantized()? } else { model.merge()?.dequantized() };
        // Computed in single precision and rounded once, to what the base model says it is.
        let dtype = globals.dtype.is_none().then(|| checkpoint::stated_dtype(&merged.info)).flatten();
        let merged = match dtype {
            Some(dtype) => merged.cast(dtype),
            None => merged,
        };
        let staged = output.stage()?;
        checkpoint::save(&merged, Some(self.model.folder()), &staged)?;
        if self.model.tokenizer_folder() != self.model.folder() {
            copy_tokenizer(self.model.tokenizer_folder(), &staged)?;
        }
        output.publish(Clears::Files, |_| false, &[], None, &mut || Ok(()))?;
        if globals.json {
            return terminal::json(&serde_json::json!({ "output": self.output, "merged": model.active() }));
        }
        let own = dtype.map_or_else(String::new, |dtype| {
            format!(
                " in {}, as the base model is (--dtype has others)",
                checkpoint::torch_name(dtype).unwrap_or("half precision")
            )
        });
        terminal::note(globals, format!("merged {} → {}{own}", model.active().join(", "), self.output.display()));
        Ok(())
    }
}

fn refuse_adapter(output: &Path) -> Result<(), Error> {
    if !output.join(ADAPTER_CONFIG).exists() {
        return Ok(());
    }
    let problem = format!(
        "holds an adapter ({ADAPTER_CONFIG}), which Transformers would load on top of the merged weights; name another folder"
    );
    Err(Error::Output { path: output.to_owned(), problem })
}

/// Refuses a folder that is the model's or above it, or has files of others that would be replaced or stand beside the model.
fn check(output: &OutputFolder, model: &Path) -> Result<(), Error> {
    output.protect("base model", model)?;
    let weights = ["model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];
    let others = [ADAPTER_WEIGHTS, ADAPTER_PYTORCH_WEIGHTS, "generation_config.json"];
    let own = [checkpoint::CONFIG, checkpoint::WEIGHTS];
    output.refuse_foreign(own.into_iter().chain(weights).chain(others).chain(TOKENIZER_FILES.iter().copied()))?;
    output.refuse_changed(|_| false)
}
