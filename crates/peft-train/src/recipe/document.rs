//! A recipe's text as sections of located values: what an error needs to point at.

use std::{fmt, path::Path, sync::Arc};

use indexmap::IndexMap;
use peft_core::error::plain_types;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::{keys, other_trainers};
use crate::{Error, Result};

/// Where a value of a recipe stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file.
    File {
        /// The file.
        path: Arc<Path>,
        /// Its line, from 1.
        line: usize,
        /// The character in the line, from 1.
        column: usize,
    },
    /// In an override.
    CommandLine {
        /// The whole argument.
        argument: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::CommandLine { argument } => write!(f, "command line: {argument}"),
        }
    }
}

/// A value, where its key stands and where it stands itself.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key_place: Place,
    pub(crate) place: Place,
    pub(crate) value: toml::Value,
    /// The text of an override, which is what a key that holds text gets.
    text: Option<String>,
}

/// A section by name.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) entries: IndexMap<String, Entry>,
}

/// All sections of a recipe, with the overrides applied.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    top: Place,
    sections: IndexMap<String, Section>,
    /// Sections of which there may be several: `[[name]]`.
    lists: IndexMap<String, Vec<Section>>,
}

impl Document {
    /// Reads the text of a recipe whose sections are `known`, and those of which there may be several `lists`.
    pub(crate) fn parse(text: &str, path: &Path, known: &[&str], lists: &[&str]) -> Result<Self> {
        let path: Arc<Path> = Arc::from(path);
        let place = |at: usize| {
            let before = text.get(..at).unwrap_or(text);
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            let column = before.get(line_start..).map_or(0, |line| line.chars().count()) + 1;
            Place::File { path: Arc::clone(&path), line: before.matches('\n').count() + 1, column }
        };
        let syntax = |error: toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start);
            Error::Syntax {
                place: Box::new(place(at)),
                problem: format!("{}{}", error.message(), python_hint(text, at)),
            }
        };
        let section = |name: &str, at: Place, keys: &DeTable<'_>, mut table: toml::Table| {
            let entries = keys.iter().filter_map(|(key, value)| {
                let found = table.remove(key.get_ref().as_ref())?;
                let (key_place, place) = (place(key.span().start), place(value.span().start));
                Some((key.get_ref().to_string(), Entry { key_place, place, value: found, text: None }))
            });
            Section { name: name.to_owned(), entries: entries.collect(), place: at }
        };
        let located = DeTable::parse(text).map_err(syntax)?;
        let mut values: toml::Table = toml::from_str(text).map_err(syntax)?;
        let mut document = Self { top: place(0), sections: IndexMap::new(), lists: IndexMap::new() };
        for (name, found) in located.get_ref() {
            let at = place(name.span().start);
            let name: &str = name.get_ref();
            if !known.contains(&name) && !lists.contains(&name) {
                return Err(unknown_section(name, at, &[known, lists].concat()));
            }
            let wrong = |at: Place, what: &DeValue<'_>, write: String| Error::Value {
                place: Box::new(at),
                section: name.to_owned(),
                key: name.to_owned(),
                problem: format!("expected a section, found a {}; write {write}", what.type_str()),
            };
            match (found.get_ref(), values.remove(name)) {
                (DeValue::Table(keys), Some(toml::Value::Table(table))) if known.contains(&name) => {
                    document.sections.insert(name.to_owned(), section(name, at, keys, table));
                }
                (DeValue::Array(items), Some(toml::Value::Array(tables))) if lists.contains(&name) => {
                    let mut list = Vec::with_capacity(tables.len());
                    for (item, table) in items.iter().zip(tables) {
                        let at = place(item.span().start);
                        let (DeValue::Table(keys), toml::Value::Table(table)) = (item.get_ref(), table) else {
                            return Err(wrong(at, item.get_ref(), format!("[[{name}]]")));
                        };
                        list.push(section(name, at, keys, table));
                    }
                    document.lists.insert(name.to_owned(), list);
                }
                (other, _) if lists.contains(&name) => return Err(wrong(at, other, format!("[[{name}]]"))),
                (other, _) => return Err(wrong(at, other, format!("[{name}]"))),
            }
        }
        Ok(document)
    }

    /// Applies `section.key=value`, or `list.name.key=value` for the section of a list that has that `name`; a key that one section
    /// alone has needs no section. The value is read as TOML, or as one of Python's truth values, and taken as text where it is neither.
    pub(crate) fn set(&mut self, argument: &str, known: &[&str]) -> Result<()> {
        const FORM: &str = "write section.key=value, such as training.learning_rate=1e-4";
        let wrong = |hint: &str| Error::Override { argument: argument.to_owned(), hint: hint.to_owned() };
        let (path, text) = argument.split_once('=').ok_or_else(|| wrong(FORM))?;
        let path = path.trim();
        let (section, key) = match path.split_once('.') {
            Some(both) => both,
            None => match keys::sections_of(path).as_slice() {
                [section] if other_trainers::key(path).is_none() => (*section, path),
                [] | [_] => return Err(wrong(&keys::override_for(path, text).unwrap_or_else(|| FORM.to_owned()))),
                several => {
                    let forms: Vec<_> = several.iter().map(|section| format!("{section}.{argument}")).collect();
                    return Err(wrong(&format!("several sections have that key: write {}", forms.join(" or "))));
                }
            },
        };
        if section.is_empty() || key.is_empty() {
            return Err(wrong(FORM));
        }
        let place = Place::CommandLine { argument: argument.to_owned() };
        let (section, key) = match self.lists.get_mut(section) {
            Some(list) => named(list, section, key, &place)?,
            None if known.contains(&section) => {
                let empty = || Section { name: section.to_owned(), place: place.clone(), entries: IndexMap::new() };
                (self.sections.entry(section.to_owned()).or_insert_with(empty), key)
            }
            None => {
                let known: Vec<&str> = known.iter().copied().chain(self.lists.keys().map(String::as_str)).collect();
                return Err(unknown_section(section, place, &known));
            }
        };
        let parsed = toml::from_str::<toml::Table>(&format!("value = {text}"));
        let parsed = parsed.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
        let value = parsed.unwrap_or_else(|| match text {
            "True" => toml::Value::Boolean(true),
            "False" => toml::Value::Boolean(false),
            _ => toml::Value::String(text.to_owned()),
        });
        let entry = Entry { key_place: place.clone(), place, value, text: Some(text.to_owned()) };
        section.entries.insert(key.to_owned(), entry);
        Ok(())
    }

    /// Takes the sections of a list out; none if the recipe lacks it.
    pub(crate) fn list(&mut self, name: &str) -> Vec<Section> {
        self.lists.shift_remove(name).unwrap_or_default()
    }

    /// Takes a section out; an empty one if the recipe lacks it.
    pub(crate) fn section(&mut self, name: &str) -> Section {
        let empty = || Section { name: name.to_owned(), place: self.top.clone(), entries: IndexMap::new() };
        self.sections.shift_remove(name).unwrap_or_else(empty)
    }
}

impl Section {
    /// An error about a key's value; points at the section where the key is absent.
    pub(crate) fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        let place = self.entries.get(key).map_or(&self.place, |entry| &entry.place).clone();
        Error::Value {
            place: Box::new(place),
            section: self.name.clone(),
            key: key.to_owned(),
            problem: problem.into(),
        }
    }

    /// Refuses a key that is not among `known`.
    pub(crate) fn check_keys(&self, known: &[&str]) -> Result<()> {
        match self.entries.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, entry)) => Err(Error::UnknownKey {
                place: Box::new(entry.key_place.clone()),
                section: self.name.clone(),
                key: key.clone(),
                hint: keys::hint(&self.name, key, known),
            }),
        }
    }

    /// The text of a key; `what` is what it should be. Whatever an override says is text.
    pub(crate) fn text(&self, key: &str, what: &str) -> Result<Option<String>> {
        let Some(entry) = self.entries.get(key) else { return Ok(None) };
        match (&entry.value, &entry.text) {
            (toml::Value::String(text), _) | (_, Some(text)) => Ok(Some(text.clone())),
            (other, None) => Err(self.error(key, format!("expected {what}, found {other}"))),
        }
    }

    /// The value of a key as JSON.
    pub(crate) fn json(&self, key: &str) -> Result<Option<Value>> {
        let Some(entry) = self.entries.get(key) else { return Ok(None) };
        // JSON would quietly turn them into null.
        if !all_finite(&entry.value) {
            return Err(self.error(key, format!("{} is not finite", entry.value)));
        }
        serde_json::to_value(&entry.value).map(Some).map_err(|error| self.error(key, error.to_string()))
    }

    /// Reads the section into a type whose `Default` gives the defaults and whose fields are the known keys.
    pub(crate) fn read<T: Serialize + DeserializeOwned + Default>(&self) -> Result<T> {
        let Ok(Value::Object(defaults)) = serde_json::to_value(T::default()) else { return Ok(T::default()) };
        self.check_keys(&defaults.keys().map(String::as_str).collect::<Vec<_>>())?;
        let mut resolved = defaults.clone();
        for (key, entry) in &self.entries {
            let Some(value) = self.json(key)? else { continue };
            // One key at a time, so that the message names it.
            let fits = |value: &Value| {
                let mut one = defaults.clone();
                one.insert(key.clone(), value.clone());
                serde_json::from_value::<T>(Value::Object(one)).map(drop)
            };
            let text = || entry.text.clone().map(Value::String).filter(|text| fits(text).is_ok());
            let value = match fits(&value) {
                Ok(_) => value,
                Err(error) => match text() {
                    Some(text) => text,
                    None => return Err(self.error(key, unfit(key, &value, &error, &fits))),
                },
            };
            resolved.insert(key.clone(), value);
        }
        serde_json::from_value(Value::Object(resolved)).map_err(|error| self.error("", error.to_string()))
    }
}

/// The section of a list that `path` begins with the name of, and the key after it.
fn named<'a, 'b>(
    list: &'a mut [Section],
    of: &str,
    path: &'b str,
    place: &Place,
) -> Result<(&'a mut Section, &'b str)> {
    let name = |section: &Section| section.text("name", "a name").ok().flatten();
    let names: Vec<String> = list.iter().filter_map(name).collect();
    let found = path
        .split_once('.')
        .and_then(|(wanted, key)| Some((list.iter_mut().find(|one| name(one).as_deref() == Some(wanted))?, key)));
    found.ok_or_else(|| Error::Value {
        place: Box::new(place.clone()),
        section: of.to_owned(),
        key: path.to_owned(),
        problem: format!("write {of}.NAME.key=value with one of these names: {}", names.join(", ")),
    })
}

fn unknown_section(section: &str, place: Place, known: &[&str]) -> Error {
    Error::UnknownSection {
        place: Box::new(place),
        section: section.to_owned(),
        hint: keys::section_hint(section, known),
    }
}

/// What is wrong with the value of a key: above all that it is a text where the same without quotes would do.
fn unfit(
    key: &str,
    value: &Value,
    error: &serde_json::Error,
    fits: &dyn Fn(&Value) -> Result<(), serde_json::Error>,
) -> String {
    let bare = value.as_str().and_then(|text| Some((text, unquoted(text)?)));
    match bare.filter(|(_, bare)| fits(bare).is_ok()) {
        Some((text, bare)) => in_quotes(key, text, &bare),
        None => plain_types(&error.to_string()),
    }
}

/// The number or truth value that a text would be without quotes.
pub(super) fn unquoted(text: &str) -> Option<Value> {
    let text = text.trim();
    match text {
        "True" | "true" => Some(true.into()),
        "False" | "false" => Some(false.into()),
        _ => {
            let number = text.parse::<i64>().map(Value::from).ok();
            number.or_else(|| text.parse().ok().and_then(serde_json::Number::from_f64).map(Value::Number))
        }
    }
}

/// That a value should stand without quotes.
pub(super) fn in_quotes(key: &str, text: &str, bare: &Value) -> String {
    let kind = if bare.is_boolean() { "true or false" } else { "a number" };
    let written = if bare.is_boolean() { bare.to_string() } else { text.trim().to_owned() };
    format!("\"{text}\" is a text, and {kind} is wanted: write {key} = {written} without quotes")
}

/// What to write for one of Python's words, if one stands where a recipe stops to be TOML.
fn python_hint(text: &str, at: usize) -> &'static str {
    let start = text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
    let line = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let value = line.split_once('=').map_or("", |(_, value)| value.split('#').next().unwrap_or_default().trim());
    match value {
        "True" | "False" => "; truth values are written true and false",
        "None" | "null" | "none" | "" => "; a key without a value is left out",
        _ => "",
    }
}

fn all_finite(value: &toml::Value) -> bool {
    match value {
        toml::Value::Float(number) => number.is_finite(),
        toml::Value::Array(values) => values.iter().all(all_finite),
        toml::Value::Table(table) => table.values().all(all_finite),
        _ => true,
    }
}
