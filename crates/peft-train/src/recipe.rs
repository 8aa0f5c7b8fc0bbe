//! Recipes: a TOML file that says what to train on what, strict about every key.
//!
//! Relative paths of models, data and configurations are looked for beside the recipe first and then in the working
//! directory, so that a recipe can travel with its data; `output_dir` is always relative to the working directory. A model that is
//! in neither place may be a Hub id: [`Recipe::fetch`] brings it into the Hub's cache, where everything else looks for it.

mod arguments;
mod document;
mod keys;
mod other_trainers;
mod several;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use peft_core::{
    Error as PeftError, PeftConfig, PeftType, TaskType, error::plain_types, files::read_text,
    model::peft_model::DEFAULT_ADAPTER, plugins::config::UnknownKeys,
};
use peft_models::hub::{Hub, HubId, Needed};
use serde_json::{Map, Value};

use crate::{Error, Result, checkpoint::file_of_run, data::is_data_file};
use document::{Document, Section, in_quotes, unquoted};
use several::several;

pub(crate) use arguments::FREE_ON_RESUME;
pub use arguments::{DataArguments, Init, ModelArguments, SchedulerType, Strategy, TrainingArguments, WeightType};
pub use document::Place;
pub use keys::override_for;
pub use several::OneOfSeveral;

/// The name of the resolved recipe in an output folder.
pub const RECIPE_FILE: &str = "recipe.toml";

const SECTIONS: &[&str] = &["model", "adapter", "data", "training"];
const LISTS: &[&str] = &["adapters"];

/// A recipe, every key resolved and in range.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The file it came from.
    pub path: PathBuf,
    /// The base model.
    pub model: ModelArguments,
    /// The adapter.
    pub adapter: PeftConfig,
    /// The rows.
    pub data: DataArguments,
    /// The training.
    pub training: TrainingArguments,
    /// The adapters that are trained together; empty where it is one.
    pub adapters: Vec<OneOfSeveral>,
}

impl Recipe {
    /// Reads a recipe and applies `section.key=value` overrides.
    ///
    /// # Errors
    /// With file, line, column, key and the nearest known key.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self> {
        no_other_kind(path)?;
        Self::parse(&read_text(path, "a recipe")?, path, overrides).map_err(|error| match error {
            Error::Syntax { .. } if path.extension().is_none_or(|extension| extension != "toml") => Error::NoRecipe {
                path: path.to_owned(),
                problem: format!("no recipe, which is a TOML file with sections ({error})"),
            },
            other => other,
        })
    }

    /// The recipe that an adapter was trained by: in its folder, or in the run's where that is a checkpoint. None if there is none.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn of_adapter(folder: &Path) -> Result<Option<Self>> {
        let path = file_of_run(folder, RECIPE_FILE);
        path.exists().then(|| Self::read(&path, &[])).transpose()
    }

    /// Reads a recipe's text; `path` is what messages call it and where relative paths start.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(text: &str, path: &Path, overrides: &[String]) -> Result<Self> {
        let mut document = Document::parse(text, path, SECTIONS, LISTS)?;
        for argument in overrides {
            document.set(argument, SECTIONS)?;
        }
        let section = document.section("model");
        let model: ModelArguments = section.read()?;
        model.check().map_err(|(key, problem)| section.error(key, problem))?;

        let own = document.list("adapters");
        let shared = document.section("adapter");
        let adapter = adapter(shared.clone(), path, &model)?;
        check_packed(&section, &model, &adapter)?;

        let mut section = document.section("data");
        let columns = take_columns(&mut section, &adapter)?;
        let data = DataArguments { columns, ..section.read()? };
        let of_data = section;

        let section = document.section("training");
        let training: TrainingArguments = section.read()?;
        training.check().map_err(|(key, problem)| section.error(key, problem))?;
        let recipe = Self { path: path.to_owned(), model, adapter, data, training, adapters: Vec::new() };
        if own.is_empty() {
            recipe.check(&of_data, &section)?;
            return Ok(recipe);
        }
        several(recipe, own, [&shared, &of_data, &section])
    }

    /// What can only be said of a recipe as a whole, with the sections that it is about.
    fn check(&self, data: &Section, training: &Section) -> Result<()> {
        self.data.check().map_err(|(key, problem)| data.error(key, problem))?;
        if self.training.load_best_model_at_end && self.data.eval.is_none() && self.data.eval_split.is_none() {
            let problem = "there is nothing to evaluate on: give `eval` or `eval_split` in [data]";
            return Err(training.error("load_best_model_at_end", problem));
        }
        Ok(())
    }

    /// The recipes by which each adapter would be trained alone, with the adapters' names: this one if there are not several.
    pub fn apart(&self) -> Vec<(&str, &Self)> {
        match self.adapters.as_slice() {
            [] => vec![(DEFAULT_ADAPTER, self)],
            several => several.iter().map(|one| (one.name.as_str(), &one.recipe)).collect(),
        }
    }

    /// Where a path of the recipe leads: beside the recipe if it exists there, else from the working directory.
    pub fn locate(&self, given: &str) -> PathBuf {
        locate(&self.path, given)
    }

    /// Fetches the model and the tokenizer that are named by Hub ids into the Hub's cache; what is local is left alone.
    ///
    /// `needed` says how much of the model; `report` is told of each download.
    ///
    /// # Errors
    /// As [`Hub::locate`].
    pub fn fetch(&self, hub: &Hub, needed: Needed, report: &mut dyn FnMut(String)) -> Result<()> {
        let is_new = self.model.init == Some(Init::Random);
        let needed = if is_new && needed == Needed::Model { Needed::Tokenizer } else { needed };
        let config = self.model.config.as_deref().unwrap_or_default();
        let tokenizer = self.model.tokenizer.as_deref().unwrap_or_default();
        let given =
            [(&*self.model.model_name_or_path, needed), (config, Needed::Config), (tokenizer, Needed::Tokenizer)];
        for (given, needed) in given {
            if hub_id(&self.path, given).is_some() {
                hub.locate(Path::new(given), needed, report)?;
            }
        }
        Ok(())
    }

    /// Where a model, a tokenizer or a configuration leads: as [`locate`](Self::locate), else into the Hub's cache.
    fn locate_model(&self, given: &str) -> PathBuf {
        Hub::from_env().cached(&self.locate(given))
    }

    /// The folder of the base model; of a new one that of its configuration.
    pub fn model_folder(&self) -> PathBuf {
        match &self.model.config {
            Some(config) if self.model.model_name_or_path.is_empty() => {
                let config = self.locate_model(config);
                if config.is_dir() { config } else { config.parent().map(Path::to_owned).unwrap_or_default() }
            }
            _ => self.locate_model(&self.model.model_name_or_path),
        }
    }

    /// Where the model's configuration is: its folder, or a file.
    pub fn model_config(&self) -> PathBuf {
        self.model.config.as_ref().map_or_else(|| self.model_folder(), |config| self.locate_model(config))
    }

    /// Where the tokenizer is.
    pub fn tokenizer(&self) -> PathBuf {
        self.model.tokenizer.as_ref().map_or_else(|| self.model_folder(), |tokenizer| self.locate_model(tokenizer))
    }

    /// The folder of the result.
    pub fn output_dir(&self) -> PathBuf {
        PathBuf::from(&self.training.output_dir)
    }

    /// Every key as it was resolved, by section.
    pub fn to_map(&self) -> Map<String, Value> {
        let section = |value: Result<Value, serde_json::Error>| value.unwrap_or_default();
        let mut adapter = self.adapter.to_map();
        // What the file will say of itself is no decision of the recipe.
        adapter.retain(|key, _| key != "peft_version" && key != "inference_mode");
        let mut map = Map::from_iter([
            ("model".to_owned(), section(serde_json::to_value(&self.model))),
            ("adapter".to_owned(), Value::Object(adapter)),
            ("data".to_owned(), section(serde_json::to_value(&self.data))),
            ("training".to_owned(), section(serde_json::to_value(&self.training))),
        ]);
        if !self.adapters.is_empty() {
            let given = self.adapters.iter().map(|one| Value::Object(one.given.clone())).collect();
            map.insert("adapters".to_owned(), Value::Array(given));
        }
        map
    }

    /// The recipe as resolved, defaults included, paths as they were found.
    pub fn to_toml(&self) -> String {
        let mut map = self.to_map();
        let paths = [
            ("model", "model_name_or_path"),
            ("model", "config"),
            ("model", "tokenizer"),
            ("data", "train"),
            ("data", "eval"),
        ];
        let found = |value: Option<&mut Value>| {
            if let Some(Value::String(given)) = value.filter(|given| **given != "") {
                *given = self.locate(given).display().to_string();
            }
        };
        for (section, key) in paths {
            found(map.get_mut(section).and_then(|section| section.get_mut(key)));
        }
        for one in map.get_mut("adapters").and_then(Value::as_array_mut).into_iter().flatten() {
            ["train", "eval"].into_iter().for_each(|key| found(one.get_mut(key)));
        }
        let mut recipe = Value::Object(map);
        drop_nulls(&mut recipe);
        toml::to_string(&recipe).unwrap_or_default()
    }

    /// Every key that decides the numbers, as `section.key`: what must not change when a run is resumed.
    pub(crate) fn decisive(&self) -> Map<String, Value> {
        let mut flat = self.deciding_keys();
        // A branch of the Hub may have moved on.
        let commit = hub_id(&self.path, &self.model.model_name_or_path).and_then(|id| Hub::from_env().commit(&id));
        flat.extend(commit.map(|commit| ("model.commit".to_owned(), commit.into())));
        flat
    }

    /// What the same keys are where a recipe says nothing of them: an earlier version may not have had them all.
    pub(crate) fn default_decisions(&self) -> Map<String, Value> {
        let adapter = PeftConfig::new(self.adapter.peft_type.clone(), self.adapter.task_type.clone());
        let silent = Self {
            path: self.path.clone(),
            model: ModelArguments::default(),
            adapter: adapter.unwrap_or_else(|_| self.adapter.clone()),
            data: DataArguments::default(),
            training: TrainingArguments::default(),
            adapters: Vec::new(),
        };
        silent.deciding_keys()
    }

    fn deciding_keys(&self) -> Map<String, Value> {
        let mut flat = Map::new();
        for (section, keys) in self.to_map() {
            let Value::Object(keys) = keys else { continue };
            for (key, value) in keys {
                let free = match section.as_str() {
                    "training" => FREE_ON_RESUME.contains(&key.as_str()),
                    // The rows themselves are compared.
                    "data" => matches!(key.as_str(), "train" | "eval"),
                    _ => false,
                };
                if !free && !value.is_null() {
                    flat.insert(format!("{section}.{key}"), value);
                }
            }
        }
        flat
    }
}

/// Refuses what is plainly something else than a recipe: data, or a folder.
fn no_other_kind(path: &Path) -> Result<()> {
    const RECIPE: &str = "a recipe is a TOML file with [model], [adapter], [data] and [training]";
    let no_recipe = |problem: String| Err(Error::NoRecipe { path: path.to_owned(), problem });
    if path.is_dir() {
        let inside = path.join(RECIPE_FILE);
        return match inside.exists() {
            true => no_recipe(format!("a folder, no recipe; did you mean {}?", inside.display())),
            false => no_recipe(format!("a folder, no recipe: {RECIPE}")),
        };
    }
    if path.exists() && is_data_file(path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        return no_recipe(format!(
            "a file of data, no recipe: {RECIPE}, and names its data by train = \"{name}\" in [data]"
        ));
    }
    Ok(())
}

fn locate(recipe: &Path, given: &str) -> PathBuf {
    let beside = recipe.parent().unwrap_or(Path::new("")).join(given);
    if beside.exists() { beside } else { PathBuf::from(given) }
}

/// The Hub id that a name is where no local path has it.
fn hub_id(recipe: &Path, given: &str) -> Option<HubId> {
    HubId::parse(given).filter(|_| !locate(recipe, given).exists())
}

/// `[adapter]`: the keys of `adapter_config.json`, or `config` with the name of such a file and keys that differ from it.
fn adapter(mut section: Section, recipe: &Path, model: &ModelArguments) -> Result<PeftConfig> {
    let file = section.text("config", "the name of a file")?.map(|file| locate(recipe, &file));
    section.entries.shift_remove("config");
    let from_file = file.as_deref().map(PeftConfig::from_file).transpose()?;
    let known = match &from_file {
        Some(config) => config.clone(),
        None => fresh(&section)?,
    };
    let defaults = known.to_map();
    let mut known: Vec<String> = defaults.keys().cloned().collect();
    // PEFT writes it into older files and reads past it.
    known.push("runtime_config".to_owned());
    section.check_keys(&known.iter().map(String::as_str).collect::<Vec<_>>())?;

    let (mut keys, unknown_keys) = match from_file {
        Some(config) => (config.to_map(), UnknownKeys::Keep),
        None => (Map::new(), UnknownKeys::Refuse),
    };
    for key in section.entries.keys() {
        let Some(value) = section.json(key)? else { continue };
        let wants_no_text = defaults.get(key).is_some_and(|default| default.is_number() || default.is_boolean());
        if let (Some(text), true) = (value.as_str(), wants_no_text)
            && let Some(bare) = unquoted(text)
        {
            return Err(section.error(key, in_quotes(key, text, &bare)));
        }
        keys.insert(key.clone(), value);
    }
    // A file says true whoever wrote it; what is about to be trained is judged strictly.
    keys.insert("inference_mode".to_owned(), false.into());
    let mut config = PeftConfig::from_map(keys, unknown_keys).map_err(|error| located(&section, error))?;
    config.base_model_name_or_path = Some(model.model_name_or_path.clone());
    // PEFT has the two parts of an id under two keys.
    if let Some(id) = hub_id(recipe, &model.model_name_or_path) {
        config.revision = id.named_revision().map(str::to_owned);
        config.base_model_name_or_path = Some(id.repo);
    }
    Ok(config)
}

/// The defaults of the tuner and task that the section names.
fn fresh(section: &Section) -> Result<PeftConfig> {
    let Some(word) = section.text("peft_type", "the name of a tuner")? else {
        return Err(section.error("peft_type", "missing; such as peft_type = \"LORA\""));
    };
    if let Some(hint) = other_trainers::peft_type(&word) {
        return Err(section.error("peft_type", format!("`{word}` is no tuner by itself; {hint}")));
    }
    PeftConfig::new(PeftType::from(word.to_uppercase()), None::<TaskType>).map_err(|error| located(section, error))
}

/// The same error with the place of the key that it is about.
fn located(section: &Section, error: PeftError) -> Error {
    match error {
        PeftError::Config { key, problem, .. } if key == "task_type" => {
            let word = section.text("task_type", "a task").ok().flatten().unwrap_or_default();
            let hint =
                other_trainers::task_type(&word).map(|task| format!("; did you mean `{task}`?")).unwrap_or_default();
            section.error(&key, format!("{problem}{hint}"))
        }
        PeftError::Config { key, problem, .. } => section.error(&key, plain_types(&problem)),
        other => other.into(),
    }
}

/// What is packed is there to stand still.
fn check_packed(section: &Section, model: &ModelArguments, adapter: &PeftConfig) -> Result<()> {
    let Some(key) = model.quantization.packing_key().map_err(|error| located(section, error))? else { return Ok(()) };
    let in_place = adapter.tuner().is_ok_and(|tuner| tuner.trains_in_place());
    let trains_all = model.init == Some(Init::Random) || in_place;
    let problem = "full fine-tuning needs unquantized weights: remove it, or train an adapter";
    if trains_all { Err(section.error(key, problem)) } else { Ok(()) }
}

/// Takes the keys that name columns out of `[data]`.
fn take_columns(section: &mut Section, adapter: &PeftConfig) -> Result<BTreeMap<String, String>> {
    let (roles, known) = (keys::roles(), keys::of_data());
    section.check_keys(&known.iter().map(String::as_str).collect::<Vec<_>>())?;

    let task = adapter.task()?;
    let mut columns = BTreeMap::new();
    for role in roles {
        let Some(column) = section.text(role, "the name of a column")? else { continue };
        if let Some(task) = task.filter(|task| task.task.columns().iter().all(|column| column.role != role)) {
            let used: Vec<_> = task.task.columns().iter().map(|column| column.role).collect();
            return Err(
                section.error(role, format!("{} has no such column; its columns: {}", task.name, used.join(", ")))
            );
        }
        columns.insert(role.to_owned(), column);
        section.entries.shift_remove(role);
    }
    Ok(columns)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(values) => values.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
