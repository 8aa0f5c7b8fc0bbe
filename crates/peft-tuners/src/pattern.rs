//! Regular expressions as Python's `re` reads them, and the per-module patterns built on them.

use fancy_regex::Regex;
use indexmap::IndexMap;
use peft_core::{Error, Result, error::quoted};

/// A regular expression of a configuration key.
///
/// One with look-around or back references is tried by going back and forth, which some do without end: Python then takes
/// hours, and here the search gives up. Nobody knows what such a pattern matches, so that is an error and no answer.
#[derive(Debug)]
pub struct Pattern {
    key: String,
    given: String,
    regex: Regex,
}

impl Pattern {
    /// Compiles the pattern of a configuration key, inside another one or by itself: `{}` stands for it in `around`.
    ///
    /// # Errors
    /// [`Error::Config`] with the key and what is wrong with the pattern.
    fn within(key: &str, given: &str, around: &str) -> Result<Self> {
        let wrong = |error| {
            let problem = format!("`{}` is not a regular expression: {}", quoted(given), quoted(error));
            Error::config(key, problem)
        };
        // By itself first: a bracket too many must not end the one around it.
        Regex::new(given).map_err(wrong)?;
        let regex = Regex::new(&around.replace("{}", given)).map_err(wrong)?;
        Ok(Self { key: key.to_owned(), given: given.to_owned(), regex })
    }

    /// A pattern that must match a whole name, as `re.fullmatch`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not a regular expression.
    pub fn full(key: &str, given: &str) -> Result<Self> {
        Self::within(key, given, "^(?:{})$")
    }

    /// A pattern that stands at the place of `{}` in another.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not a regular expression.
    pub fn inside(key: &str, given: &str, around: &str) -> Result<Self> {
        Self::within(key, given, around)
    }

    /// Whether the pattern matches.
    ///
    /// # Errors
    /// [`Error::Config`] if the search gives up.
    pub fn is_match(&self, name: &str) -> Result<bool> {
        self.regex.is_match(name).map_err(|error| self.gave_up(name, &error))
    }

    /// What the pattern's first group matches.
    ///
    /// # Errors
    /// As [`is_match`](Self::is_match).
    pub fn first_group<'n>(&self, name: &'n str) -> Result<Option<&'n str>> {
        let captures = self.regex.captures(name).map_err(|error| self.gave_up(name, &error))?;
        Ok(captures.and_then(|captures| captures.get(1)).map(|group| group.as_str()))
    }

    fn gave_up(&self, name: &str, error: &fancy_regex::Error) -> Error {
        let problem = format!(
            "whether `{}` matches `{}` takes too many steps to find out ({error}); write it without nested repetitions",
            quoted(&self.given),
            quoted(name)
        );
        Error::config(&self.key, problem)
    }
}

/// Values by module name: `rank_pattern` and its like.
///
/// Keys are regular expressions that match the end of a module name at a dot, `(.*\.)?(key)$`; the first key that matches
/// wins.
#[derive(Debug)]
pub struct PatternMap<T> {
    entries: Vec<(Pattern, T)>,
}

impl<T: Copy> PatternMap<T> {
    /// Compiles the keys.
    ///
    /// # Errors
    /// [`Error::Config`] for a key that is not a regular expression.
    pub fn new(key: &str, patterns: &IndexMap<String, T>) -> Result<Self> {
        let entry =
            |(pattern, value): (&String, &T)| Ok((Pattern::within(key, pattern, r"^(?:.*\.)?(?:{})$")?, *value));
        Ok(Self { entries: patterns.iter().map(entry).collect::<Result<_>>()? })
    }

    /// The value for a module, if a key matches it.
    ///
    /// # Errors
    /// As [`Pattern::is_match`].
    pub fn get(&self, module: &str) -> Result<Option<T>> {
        for (pattern, value) in &self.entries {
            if pattern.is_match(module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }

    /// The keys that match none of the modules.
    ///
    /// # Errors
    /// As [`Pattern::is_match`].
    pub fn unmatched(&self, modules: &[&str]) -> Result<Vec<&str>> {
        let mut idle = Vec::new();
        for (pattern, _) in &self.entries {
            let mut is_idle = true;
            for module in modules {
                if pattern.is_match(module)? {
                    is_idle = false;
                    break;
                }
            }
            idle.extend(is_idle.then_some(pattern.given.as_str()));
        }
        Ok(idle)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_runs_away_is_an_error_and_no_answer() {
        let pattern = Pattern::full("exclude_modules", r"(?=x*)(.*.*.*.*)*=never\1").unwrap();
        let error = pattern.is_match(&"model.layers.0.self_attn.q_proj".repeat(4)).unwrap_err().to_string();
        assert!(error.contains("`exclude_modules`") && error.contains("too many steps"), "{error}");
        assert!(Pattern::full("k", r"(?!a)b.*").unwrap().is_match("bc").unwrap());
    }
}
