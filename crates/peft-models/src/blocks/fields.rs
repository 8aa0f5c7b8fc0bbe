//! Reading `config.json`: keys with their defaults, and errors that name the key.

use peft_core::{Error, Result, error::quoted};
use serde_json::{Map, Value};

use super::Activation;

/// The largest size that a configuration may have: beyond any model's, and products of a few of them can be counted.
const LARGEST_SIZE: usize = 1 << 28;
/// The most layers.
const MOST_LAYERS: usize = 4096;

/// The keys of a model configuration; `null` counts as absent, as in Transformers.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// An error about a key.
    pub fn error(key: &str, problem: impl Into<String>) -> Error {
        Error::Config { origin: "config.json".to_owned(), key: key.to_owned(), problem: problem.into() }
    }

    /// The value of a key that is there and not `null`.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn read<T>(&self, key: &str, wanted: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| Self::error(key, format!("should be {wanted}, found {}", quoted(value))))
    }

    fn required<T>(key: &str, wanted: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Self::error(key, format!("missing; it should be {wanted}")))
    }

    /// A size that must be there, at least 1.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn size(&self, key: &str) -> Result<usize> {
        Self::required(key, "a whole number of at least 1", self.optional_size(key)?)
    }

    /// A size, at least 1.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let whole = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let size = self.read(key, "a whole number of at least 1", whole)?;
        size.map(|size| Self::at_most(key, size, LARGEST_SIZE)).transpose()
    }

    /// How many layers there are, at least 1. They are built before anything is read from a file.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn layers(&self, key: &str) -> Result<usize> {
        Self::at_most(key, self.size(key)?, MOST_LAYERS)
    }

    /// The same of a key that may be absent.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn optional_layers(&self, key: &str) -> Result<Option<usize>> {
        self.optional_size(key)?.map(|layers| Self::at_most(key, layers, MOST_LAYERS)).transpose()
    }

    /// The number itself, if it is no more than `most`.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn at_most(key: &str, found: usize, most: usize) -> Result<usize> {
        if found <= most {
            Ok(found)
        } else {
            Err(Self::error(key, format!("should be at most {most}, found {found}")))
        }
    }

    /// A whole number that may be 0, with a default.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        let whole = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        Self::at_most(key, self.read(key, "a whole number", whole)?.unwrap_or(default), LARGEST_SIZE)
    }

    /// A size where -1, or anything below 1, stands for none.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn positive(&self, key: &str) -> Result<Option<usize>> {
        let number = self.read(key, "a whole number", Value::as_i64)?;
        let size = number.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        size.map(|size| Self::at_most(key, size, LARGEST_SIZE)).transpose()
    }

    /// A token's id, or the first of several, with a default.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn token_or(&self, key: &str, default: i64) -> Result<i64> {
        let id = |value: &Value| value.as_array().and_then(|ids| ids.first()).unwrap_or(value).as_i64();
        Ok(self.read(key, "a token's id", id)?.unwrap_or(default))
    }

    /// The row of padding in tables of words, `pad_token_id`, with the default of a key that is absent; `null` is none.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn padding_row(&self, default: Option<usize>) -> Result<Option<usize>> {
        if !self.0.contains_key("pad_token_id") {
            return Ok(default);
        }
        let id = self.read("pad_token_id", "a token's id", Value::as_i64)?;
        Ok(id.and_then(|id| usize::try_from(id).ok()))
    }

    /// A finite number.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn float(&self, key: &str) -> Result<f64> {
        Self::required(key, "a number", self.optional_float(key)?)
    }

    /// A finite number with a default.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn float_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.optional_float(key)?.unwrap_or(default))
    }

    /// A finite number that may be absent.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn optional_float(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", Value::as_f64)
    }

    /// The bound of a soft cap, with the default of a key that is absent; `null` is none.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn cap_or(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        let positive = |value: &Value| value.as_f64().filter(|cap| *cap > 0.0);
        if self.0.contains_key(key) { self.read(key, "a number above 0", positive) } else { Ok(default) }
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn floats(&self, key: &str) -> Result<Vec<f64>> {
        let list = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect();
        Self::required(key, "a list of numbers", self.read(key, "a list of numbers", list)?)
    }

    /// A list of texts.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.read(key, "a list of texts", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// What a norm adds to a variance before its root is taken: a number from 0 on, with a default.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn epsilon_or(&self, key: &str, default: f64) -> Result<f64> {
        let from_zero = |value: &Value| value.as_f64().filter(|epsilon| *epsilon >= 0.0);
        Ok(self.read(key, "a number from 0 on, which a norm adds to a variance", from_zero)?.unwrap_or(default))
    }

    /// A standard deviation of fresh weights, or a factor of one, with a default.
    ///
    /// # Errors
    /// [`Error::Config`] if it is negative.
    pub fn deviation_or(&self, key: &str, default: f64) -> Result<f64> {
        let from_zero = |value: &Value| value.as_f64().filter(|deviation| *deviation >= 0.0);
        Ok(self.read(key, "a number from 0 on", from_zero)?.unwrap_or(default))
    }

    /// A number above 0 that may be absent.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn optional_positive(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number above 0", |value| value.as_f64().filter(|number| *number > 0.0))
    }

    /// A probability below 1, as dropout needs it, with a default.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn probability_or(&self, key: &str, default: f64) -> Result<f64> {
        let below_one = |value: &Value| value.as_f64().filter(|p| (0.0..1.0).contains(p));
        Ok(self.read(key, "a number from 0 to below 1", below_one)?.unwrap_or(default))
    }

    /// A truth value with a default.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.read(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A text with a default.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn text_or(&self, key: &str, default: &'a str) -> Result<&'a str> {
        Ok(self.read(key, "a text", Value::as_str)?.unwrap_or(default))
    }

    /// A table.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn table(&self, key: &str) -> Result<Option<Fields<'a>>> {
        Ok(self.read(key, "an object", Value::as_object)?.map(Fields))
    }

    /// An activation function by its name, with a default.
    ///
    /// # Errors
    /// [`Error::Config`] with the names that are known.
    pub fn activation_or(&self, key: &str, default: &'a str) -> Result<Activation> {
        let name = self.text_or(key, default)?;
        Activation::by_name(name).ok_or_else(|| {
            let known: Vec<_> = Activation::NAMES.iter().map(|(name, _)| *name).collect();
            Self::error(key, format!("`{}` is not supported (supported: {})", quoted(name), known.join(", ")))
        })
    }

    /// Refuses a setting that this implementation does not compute.
    ///
    /// # Errors
    /// [`Error::Config`] if the key has another value than `only`.
    pub fn only(&self, key: &str, only: &Value) -> Result<()> {
        match self.get(key) {
            Some(value) if value != only => {
                Err(Self::error(key, format!("{} is not supported (supported: {only})", quoted(value))))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn errors_name_the_key_and_what_would_be_right() {
        let config = json!({"layers": "six", "width": 0, "drop": 1.0, "act": "mish", "none": null, "huge": 1_u64 << 40, "many": 5000});
        let fields = Fields(config.as_object().unwrap());
        let check = |error: Error, parts: [&str; 2]| {
            let text = error.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        };
        check(fields.size("layers").unwrap_err(), ["`layers`", "found \"six\""]);
        check(fields.size("width").unwrap_err(), ["`width`", "at least 1"]);
        check(fields.size("heads").unwrap_err(), ["`heads`", "missing"]);
        check(fields.size("huge").unwrap_err(), ["`huge`", "at most"]);
        check(fields.layers("many").unwrap_err(), ["`many`", "at most 4096, found 5000"]);
        check(fields.probability_or("drop", 0.0).unwrap_err(), ["`drop`", "below 1"]);
        check(fields.activation_or("act", "gelu").unwrap_err(), ["`mish`", "gelu_new"]);
        assert_eq!(fields.optional_size("none").unwrap(), None);
    }
}
