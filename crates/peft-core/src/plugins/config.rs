//! `adapter_config.json` and its TOML twin: PEFT's keys, PEFT's defaults, and nothing lost on a round trip.

use std::{path::Path, sync::Arc};

use serde_json::{Map, Value};

use crate::{
    Error, PeftType, Result, TaskType,
    error::{nearest, quoted},
    plugins::{
        registry::{find, plugins},
        task::TaskPlugin,
        tuner::{Tuner, TunerPlugin},
    },
};

/// The PEFT release whose files are written.
pub const PEFT_VERSION: &str = "0.21.2";

const COMMON: [&str; 7] =
    ["peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"];

/// The configuration of one adapter.
///
/// The keys that every tuner shares are fields; the tuner's own are in [`options`](Self::options), complete with defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftConfig {
    /// The tuner.
    pub peft_type: PeftType,
    /// The task; none means the default wrapper.
    pub task_type: Option<TaskType>,
    /// The base model's name or folder.
    pub base_model_name_or_path: Option<String>,
    /// The base model's revision.
    pub revision: Option<String>,
    /// Whether the adapter is only for inference; files always say true.
    pub inference_mode: bool,
    /// The base model's class, kept where there is no task type.
    pub auto_mapping: Option<Value>,
    /// The release that wrote the file.
    pub peft_version: Option<String>,
    /// The tuner's own keys, every one of them present.
    pub options: Map<String, Value>,
    /// Keys of a newer or foreign file that nothing here knows; written back unchanged.
    pub unknown: Map<String, Value>,
}

/// What to do with a key that nothing knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownKeys {
    /// Keep it and report it through [`PeftConfig::unknown`]: for files, which newer releases write.
    Keep,
    /// Refuse it with the nearest known key: for what a person writes.
    Refuse,
}

impl PeftConfig {
    /// A configuration with the tuner's defaults.
    ///
    /// # Errors
    /// [`Error::Config`] if no such tuner is linked.
    pub fn new(peft_type: PeftType, task_type: Option<TaskType>) -> Result<Self> {
        let plugin = find::<TunerPlugin>(peft_type.as_str()).map_err(|error| error.at_key("peft_type"))?;
        Ok(Self {
            peft_type,
            task_type,
            base_model_name_or_path: None,
            revision: None,
            inference_mode: false,
            auto_mapping: None,
            peft_version: None,
            options: (plugin.defaults)(),
            unknown: Map::new(),
        })
    }

    /// Sets one of the tuner's options.
    ///
    /// # Errors
    /// [`Error::Config`] with the nearest key if the tuner has no such option.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Result<Self> {
        match self.options.get_mut(key) {
            Some(slot) => *slot = value.into(),
            None => return Err(unknown_key(key, &self.options)),
        }
        Ok(self)
    }

    /// Reads a configuration from keys and values.
    ///
    /// # Errors
    /// [`Error::Config`] names the key.
    pub fn from_map(mut keys: Map<String, Value>, unknown_keys: UnknownKeys) -> Result<Self> {
        let peft_type = match keys.remove("peft_type") {
            Some(Value::String(word)) => PeftType::from(constant(&word, "PeftType.")),
            Some(other) => {
                return Err(Error::config("peft_type", format!("expected a string, found {}", quoted(other))));
            }
            None => {
                let known: Vec<_> = plugins::<TunerPlugin>().iter().map(|p| p.name).collect();
                return Err(Error::config("peft_type", format!("missing; one of {}", known.join(", "))));
            }
        };
        let task_type = string(&mut keys, "task_type")?.map(|word| {
            let constant = constant(&word, "TaskType.");
            TaskType::from(if find::<TaskPlugin>(&constant).is_ok() { constant } else { word })
        });
        if let Some(task) = &task_type {
            find::<TaskPlugin>(task.as_str()).map_err(|error| error.at_key("task_type"))?;
        }
        let mut config = Self::new(peft_type, task_type)?;
        config.base_model_name_or_path = string(&mut keys, "base_model_name_or_path")?;
        config.revision = string(&mut keys, "revision")?;
        config.peft_version = string(&mut keys, "peft_version")?;
        config.auto_mapping = keys.remove("auto_mapping").filter(|value| !value.is_null());
        config.inference_mode = match keys.remove("inference_mode") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(value)) => value,
            Some(other) => {
                return Err(Error::config(
                    "inference_mode",
                    format!("expected true or false, found {}", quoted(other)),
                ));
            }
        };
        // PEFT never writes it and ignores it where it is found.
        keys.remove("runtime_config");
        for (key, value) in keys {
            match config.options.get_mut(&key) {
                Some(slot) => *slot = value,
                None if unknown_keys == UnknownKeys::Refuse => return Err(unknown_key(&key, &config.options)),
                None => {
                    config.unknown.insert(key, value);
                }
            }
        }
        let plugin = find::<TunerPlugin>(config.peft_type.as_str())?;
        // Building the tuner checks every option's type and range.
        (plugin.build)(&config)?;
        Ok(config)
    }

    /// Reads `adapter_config.json` text.
    ///
    /// # Errors
    /// As [`from_map`](Self::from_map), and if the text is not a JSON object.
    pub fn from_json(text: &str, unknown_keys: UnknownKeys) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(Value::Object(keys)) => Self::from_map(keys, unknown_keys),
            Ok(_) => Err(Error::config("", "should hold one JSON object")),
            Err(error) => Err(Error::config("", format!("not valid JSON: {error}"))),
        }
    }

    /// Reads a configuration written in TOML.
    ///
    /// # Errors
    /// As [`from_map`](Self::from_map), and if the text is not TOML.
    pub fn from_toml(text: &str) -> Result<Self> {
        let table: toml::Table = toml::from_str(text).map_err(|error| Error::config("", error.to_string()))?;
        match serde_json::to_value(table) {
            Ok(Value::Object(keys)) => Self::from_map(keys, UnknownKeys::Refuse),
            _ => Err(Error::config("", "not a table")),
        }
    }

    /// Reads a file: `.toml` as TOML, anything else as JSON.
    ///
    /// # Errors
    /// As [`from_map`](Self::from_map), with the file's name; [`Error::NotFound`] if there is none.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = crate::files::read_text(path, "an adapter configuration")?;
        let config = match path.extension() {
            Some(extension) if extension == "toml" => Self::from_toml(&text),
            _ => Self::from_json(&text, UnknownKeys::Keep),
        };
        config.map_err(|error| error.in_file(path))
    }

    /// All keys as PEFT writes them: sorted, nulls included, `inference_mode` true.
    pub fn to_map(&self) -> Map<String, Value> {
        let mut keys = self.options.clone();
        keys.extend(self.unknown.clone());
        let text = |value: &Option<String>| value.clone().map_or(Value::Null, Value::String);
        keys.insert("peft_type".to_owned(), self.peft_type.as_str().into());
        keys.insert("task_type".to_owned(), self.task_type.as_ref().map_or(Value::Null, |t| t.as_str().into()));
        keys.insert("base_model_name_or_path".to_owned(), text(&self.base_model_name_or_path));
        keys.insert("revision".to_owned(), text(&self.revision));
        keys.insert("inference_mode".to_owned(), true.into());
        let mapping = if self.task_type.is_none() { self.auto_mapping.clone() } else { None };
        keys.insert("auto_mapping".to_owned(), mapping.unwrap_or(Value::Null));
        keys.insert("peft_version".to_owned(), PEFT_VERSION.into());
        keys.sort_keys();
        keys
    }

    /// The text of `adapter_config.json`.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(&Value::Object(self.to_map())).unwrap_or_default()
    }

    /// The configuration as TOML, without nulls, which TOML does not have.
    pub fn to_toml(&self) -> String {
        let mut keys = self.to_map();
        keys.retain(|_, value| !value.is_null());
        let scalars_first = |value: &Value| value.is_object();
        let mut ordered: Vec<_> = keys.into_iter().collect();
        ordered.sort_by_key(|(_, value)| scalars_first(value));
        toml::to_string(&Map::from_iter(ordered)).unwrap_or_default()
    }

    /// The entries of `modules_to_save`, without repetitions.
    pub fn modules_to_save(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in self.options.get("modules_to_save").and_then(Value::as_array).into_iter().flatten() {
            match name.as_str() {
                Some(name) if !names.iter().any(|n| n == name) => names.push(name.to_owned()),
                _ => {}
            }
        }
        names
    }

    /// The class of the base model that `auto_mapping` names, if it is one of Transformers'.
    pub fn base_model_class(&self) -> Option<&str> {
        let mapping = self.auto_mapping.as_ref().filter(|_| self.task_type.is_none())?;
        let library = mapping.get("parent_library").and_then(Value::as_str).unwrap_or_default();
        let is_theirs = library.split('.').next() == Some("transformers");
        mapping.get("base_model_class").and_then(Value::as_str).filter(|_| is_theirs)
    }

    /// A remark for each key that nothing here knows, with the nearest that is known.
    pub fn unknown_notes(&self) -> Vec<String> {
        let known = || self.options.keys().map(String::as_str).chain(COMMON);
        let note = |key: &String| {
            let near = nearest(key, known()).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            format!("`{key}` is unknown here and has no effect{near}")
        };
        self.unknown.keys().map(note).collect()
    }

    /// The task plugin, or none for the default wrapper.
    ///
    /// # Errors
    /// [`Error::UnknownPlugin`] if the task is not linked.
    pub fn task(&self) -> Result<Option<&'static TaskPlugin>> {
        self.task_type.as_ref().map(|task| find::<TaskPlugin>(task.as_str())).transpose()
    }

    /// The tuner with these options.
    ///
    /// # Errors
    /// [`Error::UnknownPlugin`] if it is not linked, [`Error::Config`] for an option that it cannot read.
    pub fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        (find::<TunerPlugin>(self.peft_type.as_str())?.build)(self)
    }
}

/// A word as PEFT's enumerations have it, however it is written.
fn constant(word: &str, of: &str) -> String {
    word.strip_prefix(of).unwrap_or(word).replace('-', "_").to_uppercase()
}

fn string(keys: &mut Map<String, Value>, key: &str) -> Result<Option<String>> {
    match keys.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(value)) => Ok(Some(value)),
        Some(other) => Err(Error::config(key, format!("expected a string, found {}", quoted(other)))),
    }
}

fn unknown_key(key: &str, options: &Map<String, Value>) -> Error {
    let known = || options.keys().map(String::as_str).chain(COMMON);
    let problem = match nearest(key, known()) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => format!("unknown key; known: {}", known().collect::<Vec<_>>().join(", ")),
    };
    Error::config(key, problem)
}
