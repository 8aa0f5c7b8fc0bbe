//! Options of generation on the command line, as all verbs that write take them.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, error::ErrorKind};
use peft::generate::GenerationConfig;
use peft::{data::tokenizer::Tokenizer as _, models::HfTokenizer};
use serde_json::{Map, Value};

use crate::{CliError, Globals, terminal};

/// What goes over the options that a model has.
#[derive(Debug, Clone, Args)]
pub(crate) struct GenerationArgs {
    /// A text that ends an answer and is left out of it; may be given several times.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// A token of the tokenizer that ends an answer; may be given several times.
    #[arg(long, value_name = "TOKEN")]
    stop_token: Vec<String>,
    /// Options of generation: max_new_tokens, do_sample, temperature, top_k, top_p, num_beams, seed, …; max_new_tokens=8 and
    /// --max-new-tokens 8 are the same.
    #[arg(value_name = "KEY=VALUE", value_parser = option)]
    options: Vec<(String, Value)>,
    #[command(flatten)]
    flags: Flags,
}

impl GenerationArgs {
    /// Whether nothing was given.
    pub(crate) fn is_empty(&self) -> bool {
        self.stop.is_empty() && self.stop_token.is_empty() && self.options.is_empty() && self.flags.0.is_empty()
    }

    /// The same with one option more.
    pub(crate) fn and(mut self, key: &str, value: Option<Value>) -> Self {
        self.options.extend(value.map(|value| (key.to_owned(), value)));
        self
    }

    /// A model's options with these over them. A note names those that change nothing.
    pub(crate) fn over(
        &self,
        config: &GenerationConfig,
        tokenizer: &HfTokenizer,
        globals: &Globals,
    ) -> Result<GenerationConfig, CliError> {
        let given: Map<String, Value> = self.options.iter().chain(&self.flags.0).cloned().collect();
        let mut config = config.clone();
        if given.contains_key("max_length") {
            // The model's own limit would go before it.
            config.max_new_tokens = None;
        }
        let mut config = config.with(&given, "the command line")?;
        note_idle(&given, &config, globals);
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

/// Says which of the given options change nothing.
fn note_idle(given: &Map<String, Value>, config: &GenerationConfig, globals: &Globals) {
    let rules: [(&[&str], bool, &str); 2] = [
        (&["temperature", "top_k", "top_p", "min_p"], config.do_sample, "do_sample=true"),
        (&["length_penalty", "early_stopping"], config.num_beams > 1, "num_beams above 1"),
    ];
    for (keys, counts, needs) in rules {
        let idle: Vec<&str> = keys.iter().copied().filter(|key| !counts && given.contains_key(*key)).collect();
        if !idle.is_empty() {
            let verb = if idle.len() > 1 { "have" } else { "has" };
            terminal::note(globals, format!("note: {} {verb} no effect without {needs}", idle.join(", ")));
        }
    }
}

/// Options of generation as flags, `--max-new-tokens 8`. They are hidden: the help lists them once, as `KEY=VALUE`.
#[derive(Debug, Clone, Default)]
struct Flags(Vec<(String, Value)>);

/// Each option with its flag. `max_length` has none: to verbs with examples `--max-length` is their length.
const FLAGS: &[(&str, &str)] = &[
    ("max_new_tokens", "max-new-tokens"),
    ("min_new_tokens", "min-new-tokens"),
    ("min_length", "min-length"),
    ("do_sample", "do-sample"),
    ("temperature", "temperature"),
    ("top_k", "top-k"),
    ("top_p", "top-p"),
    ("min_p", "min-p"),
    ("repetition_penalty", "repetition-penalty"),
    ("no_repeat_ngram_size", "no-repeat-ngram-size"),
    ("num_beams", "num-beams"),
    ("length_penalty", "length-penalty"),
    ("early_stopping", "early-stopping"),
    ("use_cache", "use-cache"),
    ("num_return_sequences", "num-return-sequences"),
    ("eos_token_id", "eos-token-id"),
    ("stop_strings", "stop-strings"),
    ("pad_token_id", "pad-token-id"),
    ("bos_token_id", "bos-token-id"),
    ("decoder_start_token_id", "decoder-start-token-id"),
    ("forced_bos_token_id", "forced-bos-token-id"),
    ("forced_eos_token_id", "forced-eos-token-id"),
    ("suppress_tokens", "suppress-tokens"),
    ("begin_suppress_tokens", "begin-suppress-tokens"),
    ("bad_words_ids", "bad-words-ids"),
    ("seed", "seed"),
];

/// Options that a flag without a value turns on.
const SWITCHES: &[&str] = &["do_sample", "early_stopping", "use_cache"];

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, (key, flag)| {
            let arg = Arg::new(*key).long(*flag).hide(true).action(ArgAction::Append);
            // `--max_new_tokens` as well; what has no line is spelled alike.
            let arg = if key == flag { arg } else { arg.alias(*key) };
            command.arg(if SWITCHES.contains(key) {
                arg.num_args(0..=1).default_missing_value("true")
            } else {
                arg.num_args(1).allow_negative_numbers(true)
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for (key, _) in FLAGS {
            for text in matches.get_many::<String>(key).into_iter().flatten() {
                if SWITCHES.contains(key) && text.contains('=') {
                    // `--do-sample temperature=0.8`: a switch and another option.
                    self.0.push(((*key).to_owned(), true.into()));
                    self.0.push(option(text).map_err(|problem| {
                        clap::Error::raw(ErrorKind::ValueValidation, format!("{text}: {problem}\n"))
                    })?);
                } else {
                    self.0.push(((*key).to_owned(), value(text)));
                }
            }
        }
        Ok(())
    }
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

fn option(text: &str) -> Result<(String, Value), String> {
    let (key, given) = text.split_once('=').ok_or_else(|| "must be KEY=VALUE".to_owned())?;
    let known = serde_json::to_value(GenerationConfig::default()).unwrap_or_default();
    if known.get(key).is_none() {
        let known: Vec<_> = known.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
        return Err(format!("`{key}` is not a generation option (options: {})", known.join(", ")));
    }
    Ok((key.to_owned(), value(given)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn every_option_but_max_length_has_a_flag() {
        let known = serde_json::to_value(GenerationConfig::default()).unwrap();
        let mut keys: Vec<&str> = known.as_object().unwrap().keys().map(String::as_str).collect();
        let mut flags: Vec<&str> = FLAGS.iter().map(|(key, _)| *key).chain(["max_length"]).collect();
        keys.sort_unstable();
        flags.sort_unstable();
        assert_eq!(keys, flags);
        assert!(FLAGS.iter().all(|(key, flag)| *flag == key.replace('_', "-")));
    }
}
