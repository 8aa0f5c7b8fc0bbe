//! Options of generation on the command line, as all verbs that write take them.

use clap::Args;
use peft::{models::HfTokenizer, tokenizer::Tokenizer as _};
use peft_generate::GenerationConfig;
use serde_json::{Map, Value};

use crate::CliError;

/// What goes over the options that a model has.
#[derive(Debug, Clone, Args)]
pub(crate) struct GenerationArgs {
    /// A text that ends an answer and is left out of it; may be given several times.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// A token of the tokenizer that ends an answer; may be given several times.
    #[arg(long, value_name = "TOKEN")]
    stop_token: Vec<String>,
    /// Options of generation: max_new_tokens, do_sample, temperature, top_k, top_p, num_beams, seed, ….
    #[arg(value_name = "KEY=VALUE", value_parser = option)]
    options: Vec<(String, Value)>,
}

impl GenerationArgs {
    /// Whether nothing was given.
    pub(crate) fn is_empty(&self) -> bool {
        self.stop.is_empty() && self.stop_token.is_empty() && self.options.is_empty()
    }

    /// A model's options with these over them.
    pub(crate) fn over(
        &self,
        config: &GenerationConfig,
        tokenizer: &HfTokenizer,
    ) -> Result<GenerationConfig, CliError> {
        let given: Map<String, Value> = self.options.iter().cloned().collect();
        let mut config = config.with(&given, "the command line")?;
        if config.eos_token_id.is_empty() {
            config.eos_token_id.extend(tokenizer.eos_id());
        }
        config.stop_strings.extend(self.stop.iter().cloned());
        for token in &self.stop_token {
            let unknown = || CliError::Usage(format!("--stop-token {token}: the tokenizer has no such token"));
            config.eos_token_id.push(tokenizer.token_to_id(token).ok_or_else(unknown)?);
        }
        Ok(config)
    }
}

fn option(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "must be KEY=VALUE".to_owned())?;
    let known = serde_json::to_value(GenerationConfig::default()).unwrap_or_default();
    if known.get(key).is_none() {
        let known: Vec<_> = known.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
        return Err(format!("`{key}` is no option of generation (options: {})", known.join(", ")));
    }
    Ok((key.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}
