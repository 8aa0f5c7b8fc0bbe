//! From prompts to answers: lengths, padding, and the choice of the search.

use burn::tensor::Device;
use peft_core::{Error, ModelInfo, Result, RunningModel, data::tokenizer::Tokenizer};

use crate::{
    GenerationConfig, beam,
    config::DEFAULT_NEW_TOKENS,
    decoder::{Decoder, Reader},
    sample,
    stop::Stops,
};

/// What a model is to go on from, one row a prompt: its tokens, or the source's where there is an encoder.
pub type Prompts = [Vec<u32>];

/// A model that writes.
#[derive(Debug, Clone, Copy)]
pub struct Generator<'a> {
    /// The model ([`PeftModel::valid`](peft_core::PeftModel::valid)).
    pub model: &'a RunningModel,
    /// Where it computes.
    pub device: &'a Device,
    /// Its tokenizer, which only `stop_strings` need.
    pub tokenizer: Option<&'a dyn Tokenizer>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The tokens that were written, with the one that ended them.
    pub tokens: Vec<u32>,
    /// The score of a beam search.
    pub score: Option<f32>,
    /// Whether it came to an end; otherwise it reached the greatest length.
    pub ended: bool,
}

/// Looks on while answers are written.
pub trait Watch {
    /// A token was written for an answer, by the answer's place. Beam searches say nothing before they end.
    fn token(&mut self, _answer: usize, _token: u32) {}
}

impl Watch for () {}

/// Lengths and tokens of a run.
pub(crate) struct Run<'a> {
    pub(crate) config: &'a GenerationConfig,
    pub(crate) stops: Option<Stops<'a>>,
    /// What each row's decoder has read at the start, padding included.
    pub(crate) read: Vec<Vec<u32>>,
    /// How many tokens of it are padding.
    pub(crate) padding: Vec<usize>,
    pub(crate) prompt: usize,
    pub(crate) max_length: usize,
}

impl Run<'_> {
    /// Whether an answer ends with the last of the tokens that were read and written for it.
    pub(crate) fn ends(&self, tokens: &[u32]) -> bool {
        tokens.last().is_some_and(|last| self.config.eos_token_id.contains(last))
            || self.stops.is_some_and(|stops| stops.ends(tokens))
    }
}

impl Generator<'_> {
    /// Answers to prompts, `num_return_sequences` for each, in their order.
    ///
    /// # Errors
    /// As [`check`]; [`Error::Config`] for `stop_strings` without a tokenizer.
    pub fn generate(
        &self,
        prompts: &Prompts,
        config: &GenerationConfig,
        watch: &mut dyn Watch,
    ) -> Result<Vec<Generated>> {
        let info = self.model.info();
        for (row, prompt) in prompts.iter().enumerate() {
            check(info, prompt, config).map_err(|error| match error {
                Error::Data(problem) if prompts.len() > 1 => Error::Data(format!("prompt {}: {problem}", row + 1)),
                other => other,
            })?;
        }
        let Some(longest) = prompts.iter().map(Vec::len).max() else { return Ok(Vec::new()) };
        let stops = match self.tokenizer {
            _ if config.stop_strings.is_empty() => None,
            Some(tokenizer) => Some(Stops::new(tokenizer, &config.stop_strings)),
            None => return Err(unfit("stop_strings", "need a tokenizer, to know what the tokens say")),
        };
        let pad = config.pad_token_id.or(config.eos_token_id.first().copied()).unwrap_or(0);
        let fill = |row: &Vec<u32>| vec![pad; longest - row.len()];
        let flags = |row: &Vec<u32>, left: bool| {
            let (hidden, shown) = (vec![0; longest - row.len()], vec![1; row.len()]);
            if left { [hidden, shown].concat() } else { [shown, hidden].concat() }
        };
        let mask = |left: bool| prompts.iter().map(|row| flags(row, left)).collect::<Vec<Vec<i64>>>();
        let device = self.device.clone().inner();
        let reader = Reader { model: self.model, device, use_cache: config.use_cache };
        let (run, mut decoder, scores) = if is_crossed(info) {
            let start = start(config)?;
            let max_length = max_length(config, info, 1)?;
            let rows: Vec<Vec<u32>> = prompts.iter().map(|row| [row.clone(), fill(row)].concat()).collect();
            let (decoder, scores) = Decoder::crossed(reader, &rows, mask(false), start)?;
            let (read, padding) = (vec![vec![start]; prompts.len()], vec![0; prompts.len()]);
            (Run { config, stops, read, padding, prompt: 1, max_length }, decoder, scores)
        } else {
            let max_length = max_length(config, info, longest)?;
            let read: Vec<Vec<u32>> = prompts.iter().map(|row| [fill(row), row.clone()].concat()).collect();
            let padding = prompts.iter().map(|row| longest - row.len()).collect();
            let (decoder, scores) = Decoder::causal(reader, read.clone(), mask(true))?;
            (Run { config, stops, read, padding, prompt: longest, max_length }, decoder, scores)
        };
        if config.num_beams > 1 {
            beam::search(&run, &mut decoder, scores, watch)
        } else {
            sample::search(&run, &mut decoder, scores, pad, watch)
        }
    }
}

/// Judges a prompt before anything is computed.
///
/// # Errors
/// [`Error::Data`] for an empty prompt, one that leaves no room, or ids outside the vocabulary; [`Error::Config`] where
/// nothing says what a decoder reads first.
pub fn check(info: &ModelInfo, prompt: &[u32], config: &GenerationConfig) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::Data("the prompt has no tokens: give it some text".to_owned()));
    }
    let outside =
        |id: &&u32| info.number("vocab_size").is_some_and(|size| usize::try_from(**id).map_or(true, |id| id >= size));
    if let Some(id) = prompt.iter().find(outside) {
        return Err(Error::Data(format!(
            "token {id} lies outside the model's vocabulary: is the tokenizer another's?"
        )));
    }
    if !is_crossed(info) {
        return max_length(config, info, prompt.len()).map(|_| ());
    }
    start(config)?;
    max_length(config, info, 1)?;
    match info.room().filter(|most| prompt.len() > *most) {
        Some(most) => Err(Error::Data(format!(
            "a source of {} tokens is longer than the model's {most} positions: shorten it",
            prompt.len()
        ))),
        None => Ok(()),
    }
}

fn is_crossed(info: &ModelInfo) -> bool {
    info.config.get("is_encoder_decoder").and_then(serde_json::Value::as_bool).unwrap_or(false)
}

/// What a decoder beside an encoder reads first.
fn start(config: &GenerationConfig) -> Result<u32> {
    let start = config.decoder_start_token_id.or(config.bos_token_id);
    start.ok_or_else(|| unfit("decoder_start_token_id", "missing: nothing says what the decoder reads first"))
}

fn unfit(key: &str, problem: &str) -> Error {
    Error::Config { origin: "generation_config.json".to_owned(), key: key.to_owned(), problem: problem.to_owned() }
}

/// Most tokens a decoder may have read in the end.
fn max_length(config: &GenerationConfig, info: &ModelInfo, prompt: usize) -> Result<usize> {
    let most = info.room().unwrap_or(usize::MAX);
    let wanted = match (config.max_new_tokens, config.max_length) {
        (Some(new), _) => prompt.saturating_add(new),
        (None, Some(length)) => length,
        (None, None) => prompt.saturating_add(DEFAULT_NEW_TOKENS).min(most),
    };
    if wanted <= prompt {
        return Err(Error::Data(format!(
            "a prompt of {prompt} tokens leaves no room for an answer in {wanted}: shorten it, or raise the length"
        )));
    }
    if wanted > most {
        return Err(Error::Data(format!(
            "a prompt of {prompt} tokens and its answer make {wanted}, more than the model's {most} positions: lower \
             max_new_tokens or shorten the prompt"
        )));
    }
    Ok(wanted)
}
