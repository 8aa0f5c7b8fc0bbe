//! What decides which tokens are written, by the names of Transformers' `GenerationConfig`.

use std::path::Path;

use peft_core::{Error, Result, files::read_text};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// The file beside a model that says how it likes to be asked.
const FILE: &str = "generation_config.json";
/// How many tokens are written where nothing says how many.
pub const DEFAULT_NEW_TOKENS: usize = 20;

/// Options of generation. Keys that are not named here have no effect.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// Most tokens to write.
    pub max_new_tokens: Option<usize>,
    /// Most tokens of prompt and answer together; `max_new_tokens` has precedence. 20 new ones if neither is set. A model's
    /// file with 20, which Transformers writes where nobody chose a length, sets nothing.
    pub max_length: Option<usize>,
    /// Fewest tokens to write before an end is allowed.
    pub min_new_tokens: Option<usize>,
    /// Fewest tokens of prompt and answer together.
    pub min_length: usize,
    /// Whether tokens are drawn by their probability; otherwise the most probable one is taken.
    pub do_sample: bool,
    /// Divides the logits before drawing; has no effect without `do_sample`, and neither have `top_k`, `top_p` and `min_p`.
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
    #[serde(deserialize_with = "tokens")]
    pub eos_token_id: Vec<u32>,
    /// Texts that end an answer.
    #[serde(deserialize_with = "one_or_many")]
    pub stop_strings: Vec<String>,
    /// The token that fills short rows.
    #[serde(deserialize_with = "token")]
    pub pad_token_id: Option<u32>,
    /// The token that begins a text, and a decoder's where there is no `decoder_start_token_id`.
    #[serde(deserialize_with = "token")]
    pub bos_token_id: Option<u32>,
    /// The token that a decoder beside an encoder reads first.
    #[serde(deserialize_with = "token")]
    pub decoder_start_token_id: Option<u32>,
    /// The first token of a decoder's answer.
    #[serde(deserialize_with = "token")]
    pub forced_bos_token_id: Option<u32>,
    /// The last token where an answer reaches its greatest length.
    #[serde(deserialize_with = "tokens")]
    pub forced_eos_token_id: Vec<u32>,
    /// Tokens that are never written.
    #[serde(deserialize_with = "tokens")]
    pub suppress_tokens: Vec<u32>,
    /// Tokens that are not written first.
    #[serde(deserialize_with = "tokens")]
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
    /// What a model's folder says: `generation_config.json`, or without one the same keys of its configuration. Values
    /// that exclude each other are not judged: what a user gives goes over them first.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is no JSON object; [`Error::Config`] for a value of another type.
    pub fn of_model(folder: &Path, config: &Map<String, Value>) -> Result<Self> {
        let path = folder.join(FILE);
        if path.exists() {
            let text = read_text(&path, "the options of generation")?;
            let broken = |error| Error::File { path: path.clone(), problem: format!("not a JSON object: {error}") };
            let map: Map<String, Value> = serde_json::from_str(&text).map_err(broken)?;
            return Self::default().over(&map, &path.display().to_string());
        }
        let mut found = Self::default().over(config, "config.json")?;
        // Configurations of models had the default written out.
        found.max_length = found.max_length.filter(|length| *length != DEFAULT_NEW_TOKENS);
        Ok(found)
    }

    /// The same with the keys of a map over it; those that are null change nothing.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn with(&self, map: &Map<String, Value>, origin: &str) -> Result<Self> {
        let config = self.over(map, origin)?;
        config.check(|key| if map.contains_key(key) { origin } else { FILE })?;
        Ok(config)
    }

    /// Whether nothing says how long an answer may become.
    pub fn has_default_length(&self) -> bool {
        self.max_new_tokens.is_none() && self.max_length.is_none()
    }

    fn over(&self, map: &Map<String, Value>, origin: &str) -> Result<Self> {
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
        Self::deserialize(Value::Object(all)).map_err(|error| failed("generation", error.to_string()))
    }

    /// Judges values that exclude each other.
    fn check<'a>(&self, origin: impl Fn(&str) -> &'a str) -> Result<()> {
        let rules = [
            ("max_new_tokens", self.max_new_tokens == Some(0), "must be above 0"),
            (
                "temperature",
                self.do_sample && self.temperature <= 0.0,
                "must be above 0; for the most probable token set do_sample to false",
            ),
            ("top_p", self.do_sample && !(0.0..=1.0).contains(&self.top_p), "must lie between 0 and 1"),
            (
                "min_p",
                self.do_sample && self.min_p.is_some_and(|p| !(0.0..=1.0).contains(&p)),
                "must lie between 0 and 1",
            ),
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
                Err(Error::Config { origin: origin(key).to_owned(), key: key.to_owned(), problem: problem.to_owned() })
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

/// A token's id; a negative one, such as -1, means that there is none.
fn token<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<u32>, D::Error> {
    match Option::<i64>::deserialize(deserializer)? {
        Some(id) if id >= 0 => u32::try_from(id).map(Some).map_err(serde::de::Error::custom),
        _ => Ok(None),
    }
}

fn tokens<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u32>, D::Error> {
    let ids: Vec<i64> = one_or_many(deserializer)?;
    ids.into_iter().filter(|id| *id >= 0).map(|id| u32::try_from(id).map_err(serde::de::Error::custom)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn of_file(text: &str) -> Result<GenerationConfig> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), text).unwrap();
        GenerationConfig::of_model(folder.path(), &Map::new())
    }

    #[test]
    fn a_token_of_minus_one_is_none() {
        let config = of_file(r#"{"pad_token_id": -1, "eos_token_id": [2, -1], "bos_token_id": 1}"#).unwrap();
        assert_eq!((config.pad_token_id, config.bos_token_id), (None, Some(1)));
        assert_eq!(config.eos_token_id, [2]);
        assert!(of_file(r#"{"eos_token_id": -1}"#).unwrap().eos_token_id.is_empty());
    }

    #[test]
    fn what_is_typed_goes_over_a_file_that_would_be_refused_alone() {
        let file = of_file(r#"{"do_sample": true, "temperature": 0.0}"#).unwrap();
        let typed = |text: &str| file.with(&serde_json::from_str(text).unwrap(), "the command line");
        assert!(typed("{}").unwrap_err().to_string().contains("generation_config.json"));
        assert_eq!(typed(r#"{"temperature": 0.5}"#).unwrap().temperature, 0.5);
        assert!(!typed(r#"{"do_sample": false}"#).unwrap().do_sample);
    }

    #[test]
    fn twenty_is_a_limit_where_it_was_chosen() {
        let config = Map::from_iter([("max_length".to_owned(), 20.into())]);
        let file = GenerationConfig::of_model(Path::new("nowhere"), &config).unwrap();
        assert!(file.has_default_length());
        assert_eq!(of_file(r#"{"max_length": 20}"#).unwrap().max_length, Some(20));
        let typed = file.with(&Map::from_iter([("max_length".to_owned(), 20.into())]), "typed").unwrap();
        assert_eq!(typed.max_length, Some(20));
        assert_eq!(of_file(r#"{"max_length": 21}"#).unwrap().max_length, Some(21));
    }
}
