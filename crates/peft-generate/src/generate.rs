//! From prompts to answers: lengths, padding, and the choice of the search.

use burn::tensor::Device;
use peft_core::{DynModule, Error, ModelInfo, Result};

use crate::{
    GenerationConfig, beam,
    decoder::{Decoder, Reader},
    sample,
};

/// What a model is to go on from, one row a prompt: its tokens, or the source's where there is an encoder.
pub type Prompts = [Vec<u32>];

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The tokens that were written, with the one that ended them.
    pub tokens: Vec<u32>,
    /// The score of a beam search.
    pub score: Option<f32>,
}

/// Looks on while answers are written.
pub trait Watch {
    /// A token was written for an answer, by the answer's place. Beam searches say nothing before they end.
    fn token(&mut self, _answer: usize, _token: u32) {}

    /// Whether an answer is to end after these tokens: stop strings.
    fn ends(&self, _tokens: &[u32]) -> bool {
        false
    }
}

impl Watch for () {}

/// Lengths and tokens of a run.
pub(crate) struct Run<'a> {
    pub(crate) config: &'a GenerationConfig,
    /// What each row's decoder has read at the start, padding included.
    pub(crate) read: Vec<Vec<u32>>,
    /// How many tokens of it are padding.
    pub(crate) padding: Vec<usize>,
    pub(crate) prompt: usize,
    pub(crate) max_length: usize,
}

/// Answers to prompts, `num_return_sequences` for each, in their order.
///
/// `module` is in evaluation mode ([`PeftModel::valid`](peft_core::PeftModel::valid)).
///
/// # Errors
/// [`Error::Data`] for an empty prompt, one that leaves no room, or ids outside the vocabulary; [`Error::Config`] where
/// nothing says what a decoder reads first.
pub fn generate(
    module: &dyn DynModule,
    info: &ModelInfo,
    device: &Device,
    prompts: &Prompts,
    config: &GenerationConfig,
    watch: &mut dyn Watch,
) -> Result<Vec<Generated>> {
    if prompts.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(row) = prompts.iter().position(Vec::is_empty) {
        return Err(Error::Data(format!("prompt {} has no tokens: give it some text", row + 1)));
    }
    let outside =
        |id: &&u32| info.number("vocab_size").is_some_and(|size| usize::try_from(**id).map_or(true, |id| id >= size));
    if let Some(id) = prompts.iter().flatten().find(outside) {
        return Err(Error::Data(format!(
            "token {id} lies outside the model's vocabulary: is the tokenizer another's?"
        )));
    }
    let is_crossed = info.config.get("is_encoder_decoder").and_then(serde_json::Value::as_bool).unwrap_or(false);
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let pad = config.pad_token_id.or(config.eos_token_id.first().copied()).unwrap_or(0);
    let fill = |row: &Vec<u32>| vec![pad; longest - row.len()];
    let flags = |row: &Vec<u32>, left: bool| {
        let (hidden, shown) = (vec![0; longest - row.len()], vec![1; row.len()]);
        if left { [hidden, shown].concat() } else { [shown, hidden].concat() }
    };
    let mask = |left: bool| prompts.iter().map(|row| flags(row, left)).collect::<Vec<Vec<i64>>>();
    let limits = |prompt: usize| max_length(config, info, prompt);
    let reader = Reader { module, info, device: device.clone().inner(), use_cache: config.use_cache };
    let (run, mut decoder, scores) = if is_crossed {
        let Some(start) = config.decoder_start_token_id.or(config.bos_token_id) else {
            return Err(Error::Config {
                origin: "generation_config.json".to_owned(),
                key: "decoder_start_token_id".to_owned(),
                problem: "missing: nothing says what the decoder reads first".to_owned(),
            });
        };
        let max_length = limits(1)?;
        let rows: Vec<Vec<u32>> = prompts.iter().map(|row| [row.clone(), fill(row)].concat()).collect();
        let (decoder, scores) = Decoder::crossed(reader, &rows, mask(false), start)?;
        let (read, padding) = (vec![vec![start]; prompts.len()], vec![0; prompts.len()]);
        (Run { config, read, padding, prompt: 1, max_length }, decoder, scores)
    } else {
        let max_length = limits(longest)?;
        let read: Vec<Vec<u32>> = prompts.iter().map(|row| [fill(row), row.clone()].concat()).collect();
        let padding = prompts.iter().map(|row| longest - row.len()).collect();
        let (decoder, scores) = Decoder::causal(reader, read.clone(), mask(true))?;
        (Run { config, read, padding, prompt: longest, max_length }, decoder, scores)
    };
    if config.num_beams > 1 {
        beam::search(&run, &mut decoder, scores, watch)
    } else {
        sample::search(&run, &mut decoder, scores, pad, watch)
    }
}

/// Most tokens a decoder may have read in the end.
fn max_length(config: &GenerationConfig, info: &ModelInfo, prompt: usize) -> Result<usize> {
    const NEW: usize = 20;
    let most = info.max_positions.unwrap_or(usize::MAX);
    let wanted = match (config.max_new_tokens, config.max_length) {
        (Some(new), _) => prompt.saturating_add(new),
        (None, Some(length)) if length != NEW => length,
        _ => (prompt + NEW).min(most),
    };
    if wanted <= prompt {
        return Err(Error::Data(format!(
            "a prompt of {prompt} tokens leaves no room for an answer in {wanted}: shorten it, or set max_new_tokens"
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
