//! Regular expressions as Python's `re` reads them, and the per-module patterns built on them.

use fancy_regex::Regex;
use indexmap::IndexMap;
use peft_core::{Error, Result};

/// Compiles the pattern of a configuration key.
///
/// # Errors
/// [`Error::Config`] with the key and what is wrong with the pattern.
pub fn compile(key: &str, pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| Error::config(key, format!("`{pattern}` is not a regular expression: {error}")))
}

/// Compiles a pattern that must match a whole name, as `re.fullmatch`.
///
/// # Errors
/// As [`compile`].
pub fn full(key: &str, pattern: &str) -> Result<Regex> {
    compile(key, pattern)?;
    compile(key, &format!("^(?:{pattern})$"))
}

/// Whether the pattern matches; a pattern that runs away counts as not matching.
pub fn is_match(regex: &Regex, name: &str) -> bool {
    regex.is_match(name).unwrap_or(false)
}

/// Values by module name: `rank_pattern` and its like.
///
/// Keys are regular expressions that match the end of a module name at a dot, `(.*\.)?(key)$`; the first key that matches
/// wins.
#[derive(Debug)]
pub struct PatternMap<T> {
    entries: Vec<(String, Regex, T)>,
}

impl<T: Copy> PatternMap<T> {
    /// Compiles the keys.
    ///
    /// # Errors
    /// [`Error::Config`] for a key that is no regular expression.
    pub fn new(key: &str, patterns: &IndexMap<String, T>) -> Result<Self> {
        let entry = |(pattern, value): (&String, &T)| {
            compile(key, pattern)?;
            Ok((pattern.clone(), compile(key, &format!(r"^(?:.*\.)?(?:{pattern})$"))?, *value))
        };
        Ok(Self { entries: patterns.iter().map(entry).collect::<Result<_>>()? })
    }

    /// The value for a module, if a key matches it.
    pub fn get(&self, module: &str) -> Option<T> {
        self.entries.iter().find(|(_, regex, _)| is_match(regex, module)).map(|(_, _, value)| *value)
    }

    /// The keys that match none of the modules.
    pub fn unmatched<'a>(&'a self, modules: &'a [&str]) -> impl Iterator<Item = &'a str> {
        let idle = |regex: &Regex| !modules.iter().any(|module| is_match(regex, module));
        self.entries.iter().filter(move |(_, regex, _)| idle(regex)).map(|(pattern, _, _)| pattern.as_str())
    }
}
