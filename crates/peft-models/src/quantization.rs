//! Weights in four or eight bits: which of a model's are packed while it is loaded, in the names of Transformers'
//! `BitsAndBytesConfig`.

mod stored;
mod weight;

use peft_backends::ops::{FourBit, Packing};
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::blocks::Fields;

pub(crate) use stored::{ABSMAX, FORMAT, NESTED_ABSMAX, NESTED_MAP, QUANT_MAP, QUANT_STATE, QuantState, SCB};
pub use weight::QuantizedMatrix;

/// The key of a model's `config.json` that says how its weights are packed.
pub const QUANTIZATION_CONFIG: &str = "quantization_config";

/// The key that packs the table of words.
pub(crate) const EMBEDDINGS_KEY: &str = "load_embeddings_in_8bit";

/// How the weights of linear layers are packed, and the table of words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QuantizationConfig {
    /// Four bits a value.
    pub load_in_4bit: bool,
    /// Eight bits a value.
    pub load_in_8bit: bool,
    /// What codes of four bits stand for.
    pub bnb_4bit_quant_type: QuantType,
    /// Whether their scales are packed as well.
    pub bnb_4bit_use_double_quant: bool,
    /// Whether weights and tables that a GGUF file has packed stay as they are there.
    pub keep_gguf_packed: bool,
    /// Whether the table of words and the output layer are packed too, in blocks of 32 values of eight bits. Not a key of
    /// `BitsAndBytesConfig`, which leaves both as they are.
    pub load_embeddings_in_8bit: bool,
    /// Linear layers that are not packed, by their names or the ends of their names. Heads never are.
    pub llm_int8_skip_modules: Option<Vec<String>>,
}

/// What codes of four bits stand for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantType {
    /// Small floats.
    #[default]
    Fp4,
    /// Quantiles of a normal distribution.
    Nf4,
}

impl QuantizationConfig {
    /// How weights are packed; none if they are not.
    ///
    /// # Errors
    /// [`Error::Config`] if both widths are asked for, or an option of one without it.
    pub fn packing(&self) -> Result<Option<Packing>> {
        let codes = match self.bnb_4bit_quant_type {
            QuantType::Fp4 => FourBit::Fp4,
            QuantType::Nf4 => FourBit::Nf4,
        };
        match (self.load_in_4bit, self.load_in_8bit) {
            (true, true) => Err(Error::config("load_in_8bit", "load_in_4bit is true as well: keep one of the two")),
            (true, false) => Ok(Some(Packing::FourBit { codes, nested: self.bnb_4bit_use_double_quant })),
            (false, true) => Ok(Some(Packing::Int8)),
            (false, false) => {
                let needs = |key: &str| Err(Error::config(key, "has no effect without load_in_4bit = true"));
                match self {
                    Self { bnb_4bit_quant_type: QuantType::Nf4, .. } => needs("bnb_4bit_quant_type"),
                    Self { bnb_4bit_use_double_quant: true, .. } => needs("bnb_4bit_use_double_quant"),
                    Self { llm_int8_skip_modules: Some(_), .. } => needs("llm_int8_skip_modules"),
                    _ => Ok(None),
                }
            }
        }
    }

    /// The key that has weights packed, by which a training of all of them is refused; none if there is none.
    ///
    /// # Errors
    /// As [`packing`](Self::packing).
    pub fn packing_key(&self) -> Result<Option<&'static str>> {
        Ok(match self.packing()? {
            Some(Packing::Int8) => Some("load_in_8bit"),
            Some(_) => Some("load_in_4bit"),
            None => self.load_embeddings_in_8bit.then_some(EMBEDDINGS_KEY),
        })
    }

    /// What a model's configuration says of its own weights; none if they are not packed.
    ///
    /// # Errors
    /// [`Error::Config`] for another method than bitsandbytes'.
    pub fn of_model(config: &Map<String, Value>) -> Result<Option<Self>> {
        let Some(found) = config.get(QUANTIZATION_CONFIG).filter(|found| !found.is_null()) else { return Ok(None) };
        let method = found.get("quant_method").and_then(Value::as_str).unwrap_or("bitsandbytes");
        if method != "bitsandbytes" {
            let problem = format!("weights quantized by {method} cannot be read; supported is bitsandbytes");
            return Err(Fields::error(QUANTIZATION_CONFIG, problem));
        }
        let parsed = serde_json::from_value(found.clone());
        parsed.map(Some).map_err(|error| Fields::error(QUANTIZATION_CONFIG, error.to_string()))
    }

    /// What `config.json` says of weights that are packed so.
    pub(crate) fn to_value(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Value::Object(map) = &mut value {
            map.retain(|key, _| !["keep_gguf_packed", EMBEDDINGS_KEY].contains(&key.as_str()));
            map.insert("quant_method".to_owned(), "bitsandbytes".into());
            map.insert("bnb_4bit_quant_storage".to_owned(), "uint8".into());
        }
        value
    }

    /// Whether a skipped module's name is meant: the whole, its beginning or its end.
    pub(crate) fn is_skipped_as(entry: &str, module: &str) -> bool {
        let at_start = module.strip_prefix(entry).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        at_start || module.ends_with(entry)
    }
}
