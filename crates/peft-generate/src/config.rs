//! What decides which tokens are written, by the names of Transformers' `GenerationConfig`.

use std::path::Path;

use peft_core::{Error, Result, files::read_text};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// The file beside a model that says how it likes to be asked.
const FILE: &str = "generation_config.json";

/// Options of generation. Keys that are not named here have no effect.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// Most tokens to write.
    pub max_new_tokens: Option<usize>,
    /// Most tokens of prompt and answer together; `max_new_tokens` has precedence. 20 new ones if neither is set.
    pub max_length: Option<usize>,
    /// Fewest tokens to write before an end is allowed.
    pub min_new_tokens: Option<usize>,
    /// Fewest tokens of prompt and answer together.
    pub min_length: usize,
    /// Whether tokens are drawn by their probability; otherwise the most probable one is taken.
    pub do_sample: bool,
    /// Divides the logits before drawing.
    pub temperature: f32,
    /// Only so many of the most probable tokens are drawn from; 0 for all.
    pub top_k: usize,
    /// Only the most probable tokens that reach this probability together are drawn from.
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable one are drawn from.
    pub min_p: Option<f32>,
    /// Above 1 tokens that occurred already become less likely.
    pub repetition_penalty: f32,
    /// No run of so many tokens occurs twice; 0 for no such rule.
    pub no_repeat_ngram_size: usize,
    /// How many continuations a beam search follows; 1 for none.
    pub num_beams: usize,
    /// A beam's score is divided by its length to the power of this.
    pub length_penalty: f64,
    /// When a beam search ends.
    pub early_stopping: EarlyStopping,
    /// Whether keys and values are kept from token to token; otherwise all is read again for each.
    pub use_cache: bool,
    /// How many answers to a prompt.
    pub num_return_sequences: usize,
    /// Tokens that end an answer.
    #[serde(deserialize_with = "one_or_many")]
    pub eos_token_id: Vec<u32>,
    /// Texts that end an answer.
    #[serde(deserialize_with = "one_or_many")]
    pub stop_strings: Vec<String>,
    /// The token that fills short rows.
    pub pad_token_id: Option<u32>,
    /// The token that begins a text, and a decoder's where there is no `decoder_start_token_id`.
    pub bos_token_id: Option<u32>,
    /// The token that a decoder beside an encoder reads first.
    pub decoder_start_token_id: Option<u32>,
    /// The first token of a decoder's answer.
    pub forced_bos_token_id: Option<u32>,
    /// The last token where an answer reaches its greatest length.
    #[serde(deserialize_with = "one_or_many")]
    pub forced_eos_token_id: Vec<u32>,
    /// Tokens that are never written.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that are not written first.
    pub begin_suppress_tokens: Vec<u32>,
    /// Runs of tokens that are never written.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Where random numbers begin: the same seed draws the same tokens.
    pub seed: u64,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: None,
            max_length: None,
            min_new_tokens: None,
            min_length: 0,
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: None,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::When(false),
            use_cache: true,
            num_return_sequences: 1,
            eos_token_id: Vec::new(),
            stop_strings: Vec::new(),
            pad_token_id: None,
            bos_token_id: None,
            decoder_start_token_id: None,
            forced_bos_token_id: None,
            forced_eos_token_id: Vec::new(),
            suppress_tokens: Vec::new(),
            begin_suppress_tokens: Vec::new(),
            bad_words_ids: Vec::new(),
            seed: 0,
        }
    }
}

/// When a beam search ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum EarlyStopping {
    /// True: as soon as there are `num_beams` answers. False: when a better one is unlikely.
    When(bool),
    /// `"never"`: when there can be no better one.
    Never(Never),
}

/// The word `never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Never {
    /// The word itself.
    Never,
}

impl GenerationConfig {
    /// What a model's folder says: `generation_config.json`, or without one the same keys of its configuration.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is no JSON object; [`Error::Config`] for a value that cannot be used.
    pub fn of_model(folder: &Path, config: &Map<String, Value>) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Self::default().with(config, "config.json");
        }
        let text = read_text(&path, "the options of generation")?;
        let broken = |error| Error::File { path: path.clone(), problem: format!("not a JSON object: {error}") };
        let map: Map<String, Value> = serde_json::from_str(&text).map_err(broken)?;
        Self::default().with(&map, &path.display().to_string())
    }

    /// The same with the keys of a map over it; those that are null change nothing.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn with(&self, map: &Map<String, Value>, origin: &str) -> Result<Self> {
        let failed =
            |key: &str, problem: String| Error::Config { origin: origin.to_owned(), key: key.to_owned(), problem };
        let mut all = match serde_json::to_value(self) {
            Ok(Value::Object(all)) => all,
            _ => Map::new(),
        };
        for (key, value) in
            map.iter().filter(|(key, value)| !value.is_null() && all.contains_key(*key)).collect::<Vec<_>>()
        {
            let alone = Map::from_iter([(key.clone(), value.clone())]);
            Self::deserialize(Value::Object(alone)).map_err(|error| failed(key, error.to_string()))?;
            all.insert(key.clone(), value.clone());
        }
        all.retain(|_, value| !value.is_null());
        let config = Self::deserialize(Value::Object(all)).map_err(|error| failed("generation", error.to_string()))?;
        config.check(origin)?;
        Ok(config)
    }

    /// Judges values that exclude each other.
    fn check(&self, origin: &str) -> Result<()> {
        let rules = [
            ("max_new_tokens", self.max_new_tokens == Some(0), "must be above 0"),
            (
                "temperature",
                self.temperature <= 0.0,
                "must be above 0; for the most probable token set do_sample to false",
            ),
            ("top_p", !(0.0..=1.0).contains(&self.top_p), "must lie between 0 and 1"),
            ("min_p", self.min_p.is_some_and(|p| !(0.0..=1.0).contains(&p)), "must lie between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty <= 0.0, "must be above 0; 1 is no penalty"),
            ("num_beams", self.num_beams == 0, "must be at least 1"),
            (
                "stop_strings",
                self.stop_strings.iter().any(String::is_empty),
                "has an empty text, which every answer holds",
            ),
            ("num_return_sequences", self.num_return_sequences == 0, "must be at least 1"),
            (
                "num_return_sequences",
                self.num_return_sequences > 1 && self.num_beams == 1 && !self.do_sample,
                "greedy search has one answer: set do_sample to true, or num_beams",
            ),
            (
                "num_return_sequences",
                self.num_beams > 1 && self.num_return_sequences > self.num_beams,
                "is more than num_beams: raise that",
            ),
            (
                "suppress_tokens",
                self.forced_bos_token_id.is_some_and(|token| self.suppress_tokens.contains(&token)),
                "holds the forced_bos_token_id, so that no token could come first: take it out",
            ),
        ];
        match rules.into_iter().find(|(_, is_broken, _)| *is_broken) {
            Some((key, _, problem)) => {
                Err(Error::Config { origin: origin.to_owned(), key: key.to_owned(), problem: problem.to_owned() })
            }
            None => Ok(()),
        }
    }
}

fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> std::result::Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "one, or a list of them")]
    enum All<T> {
        One(T),
        Many(Vec<T>),
    }
    Ok(match All::deserialize(deserializer)? {
        All::One(one) => vec![one],
        All::Many(many) => many,
    })
}
