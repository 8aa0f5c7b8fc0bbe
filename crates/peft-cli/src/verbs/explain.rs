//! `peft explain`: what PEFT decides for a model and a configuration, and why.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use clap::Args;
use peft::train::Recipe;
use peft::{
    BaseModel, Explanation, ModuleKind, PeftConfig, TaskPlugin,
    adapter::AdapterFolder,
    files::{ADAPTER_CONFIG, ADAPTER_PYTORCH_WEIGHTS, ADAPTER_WEIGHTS, read_text},
    model::peft_model::DEFAULT_ADAPTER,
    models::{
        BaseFor, ClassSource,
        checkpoint::{self, LoadOptions},
        hub::Needed,
    },
    plugins::registry::plugins,
};
use serde_json::json;

use crate::{CliError, Globals, session, terminal};

/// Show what is adapted, trained and frozen, and why
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peft explain --adapter out
  peft explain --model bert --adapter out
  peft explain --model bert --config adapter_config.json --json
  peft explain --config recipe.toml
  peft explain --model bert")]
pub(crate) struct Explain {
    /// Folder of the base model or an id on the Hub: org/name or org/name@revision; only its configuration is read. When absent,
    /// the base model that the adapter's configuration or the recipe names.
    #[arg(long, value_name = "MODEL", required_unless_present_any = ["adapter", "config"])]
    model: Option<PathBuf>,
    /// Folder of a saved adapter, or an id on the Hub.
    #[arg(long, value_name = "ADAPTER", conflicts_with = "config")]
    adapter: Option<PathBuf>,
    /// An adapter configuration, as JSON or TOML, or a recipe.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What is explained.
struct Subject {
    config: PeftConfig,
    /// The file that it is from.
    file: PathBuf,
    base: BaseFor,
    model: PathBuf,
}

impl Explain {
    pub(crate) fn run(self, globals: &Globals) -> Result<(), CliError> {
        let subject = match (&self.adapter, &self.config) {
            (Some(adapter), _) => self.adapter(adapter, globals)?,
            (None, Some(file)) => self.config(file, globals)?,
            (None, None) => {
                let model = self.model.clone().unwrap_or_default();
                return explain_model(&session::locate(&model, Needed::Config, globals)?, globals);
            }
        };
        let skeleton = subject.base.skeleton(&subject.model)?;
        let explanation = Explanation::new(&skeleton, &subject.config).map_err(|error| error.in_file(&subject.file))?;
        if globals.json {
            let mut document = json!(explanation);
            document["class_from"] = json!(subject.base.class.source);
            return terminal::json(&document);
        }
        // Of a task and of none the sentence below tells.
        if matches!(subject.base.class.source, ClassSource::AutoMapping | ClassSource::Keys) {
            terminal::result(class_line(&subject.base, &skeleton))?;
        }
        terminal::result(prose(&explanation, &skeleton, &subject.config)?)
    }

    /// An adapter, with its tensors where it has some.
    fn adapter(&self, adapter: &Path, globals: &Globals) -> Result<Subject, CliError> {
        let folder = AdapterFolder::find(&session::locate(adapter, Needed::Adapter, globals)?)?;
        let file = folder.join(ADAPTER_CONFIG);
        let has_weights = [ADAPTER_WEIGHTS, ADAPTER_PYTORCH_WEIGHTS].iter().any(|name| folder.join(name).exists());
        let config = PeftConfig { inference_mode: true, ..PeftConfig::from_file(&file)? };
        let model = match &self.model {
            Some(model) => session::locate(model, Needed::Config, globals)?,
            None => session::base_model([(&config, &*folder)].into_iter(), Needed::Config, globals)?,
        };
        if !has_weights {
            let base = BaseFor::config(&model, &config, LoadOptions::default())?;
            return Ok(Subject { config, file, base, model });
        }
        let folders = [(DEFAULT_ADAPTER.to_owned(), AdapterFolder::read(&folder)?)];
        let options = LoadOptions { labels: session::labels(&model, &folders)?, ..LoadOptions::default() };
        let base = BaseFor::adapters(&model, &folders, options)?;
        Ok(Subject { config, file, base, model })
    }

    /// A configuration, or the adapter of a recipe.
    fn config(&self, file: &Path, globals: &Globals) -> Result<Subject, CliError> {
        let is_toml = file.extension().is_some_and(|extension| extension == "toml");
        let (config, named) = match is_toml && is_recipe(file)? {
            true => {
                let recipe = Recipe::read(file, &[])?;
                session::fetch(&recipe, Needed::Config, globals)?;
                (recipe.adapter.clone(), Some(recipe.model_config()))
            }
            false => (PeftConfig::from_file(file)?, None),
        };
        let model = match (&self.model, named) {
            (Some(model), _) => session::locate(model, Needed::Config, globals)?,
            (None, Some(named)) => named,
            (None, None) => session::base_model([(&config, file)].into_iter(), Needed::Config, globals)?,
        };
        let base = BaseFor::config(&model, &config, LoadOptions::default())?;
        Ok(Subject { config, file: file.to_owned(), base, model })
    }
}

/// Whether a file has the sections of a recipe.
fn is_recipe(file: &Path) -> Result<bool, CliError> {
    let text = read_text(file, "an adapter configuration or a recipe")?;
    Ok(text.lines().any(|line| line.trim_start().starts_with("[adapter") || line.trim() == "[model]"))
}

/// Which class the base model is, and what says so.
fn class_line(base: &BaseFor, skeleton: &BaseModel) -> String {
    let says = match base.class.source {
        ClassSource::TaskType => "from task_type",
        ClassSource::AutoMapping => "from auto_mapping of the adapter's configuration",
        ClassSource::Keys => "from the names in the adapter's file, which has no task_type and no auto_mapping",
        ClassSource::Architectures => "from `architectures` of its configuration",
        ClassSource::Backbone => "the backbone: nothing names a class",
    };
    format!("base model: {}, {says}", skeleton.info.class_name)
}

/// A model without an adapter: what it is, and what can be made of it.
fn explain_model(model: &Path, globals: &Globals) -> Result<(), CliError> {
    let base = BaseFor::alone(model, LoadOptions::default())?;
    let skeleton = base.skeleton(model)?;
    let (tree, class) = (skeleton.tree(), &skeleton.info.class_name);
    let classes = checkpoint::classes(model)?;
    let tasks: Vec<&TaskPlugin> =
        plugins::<TaskPlugin>().into_iter().filter(|task| classes.contains(&task.auto_class)).collect();
    let candidates: Vec<&str> =
        tree.modules.iter().filter(|module| module.kind.is_linear()).map(|module| module.name.as_str()).collect();
    if globals.json {
        let tasks: Vec<&str> = tasks.iter().map(|task| task.name).collect();
        return terminal::json(&json!({
            "base_model_class": class,
            "class_from": base.class.source,
            "model_type": skeleton.info.model_type,
            "tasks": tasks,
            "candidates": candidates,
            "all_params": tree.num_params(),
        }));
    }
    let mut out =
        vec![class_line(&base, &skeleton), String::new(), "adapters of these tasks can be trained on it:".to_owned()];
    out.extend(tasks.iter().map(|task| format!("  {:<20} {} on an {}", task.name, task.wrapper, task.auto_class)));
    out.push("\nmodules; those marked can be named in target_modules:".to_owned());
    out.extend(tree.modules.iter().map(|module| {
        let mark = if module.kind.is_linear() { module.kind.label() } else { "" };
        outline(&module.name, mark)
    }));
    out.push(format!("\nall params: {}", tree.num_params()));
    out.push("give --adapter ADAPTER or --config FILE for what an adapter of it decides".to_owned());
    terminal::result(out.join("\n"))
}

/// A module's line in the tree.
fn outline(name: &str, mark: &str) -> String {
    let last = name.rsplit('.').next().unwrap_or_default();
    let indent = "  ".repeat(name.matches('.').count() + 1);
    format!("{:<40} {mark}", format!("{indent}{last}")).trim_end().to_owned()
}

/// The explanation for a person.
pub(crate) fn prose(e: &Explanation, base: &BaseModel, config: &PeftConfig) -> Result<String, CliError> {
    let mut out = Vec::new();
    out.push(match config.task()? {
        Some(task) => {
            let heads = if e.saved.is_empty() {
                "no head is trained in full".to_owned()
            } else {
                format!("{} is kept out of the adapter and trained in full", e.saved.join(", "))
            };
            let count = e.num_transformer_submodules.unwrap_or(task.num_transformer_submodules);
            format!(
                "task_type {} makes this {} a {}: {heads}; {}{count} transformer sub-module{} {} virtual tokens.",
                task.name,
                e.base_model_class,
                e.wrapper,
                if e.prompt.is_empty() { "under prompt learning " } else { "" },
                if count == 1 { "" } else { "s" },
                match (e.prompt.is_empty(), count) {
                    (true, _) => "would get",
                    (false, 1) => "gets",
                    (false, _) => "get",
                },
            )
        }
        None => {
            let heads = match e.saved.is_empty() {
                true => "no head is trained and there is no loss".to_owned(),
                false => format!("{} is trained in full", e.saved.join(", ")),
            };
            format!(
                "No task_type: this {} gets the default wrapper {}, which only forwards; {heads}.",
                e.base_model_class, e.wrapper
            )
        }
    });
    out.push(String::new());
    if e.prompt.is_empty() {
        out.push(format!(
            "{} adapts {} of {} candidates:",
            e.tuner,
            e.targeted.len(),
            e.targeted.len() + e.skipped.len()
        ));
    } else {
        let frozen =
            if e.saved.is_empty() { "the model stays as it is" } else { "the model stays as it is but for its head" };
        out.push(format!("{} adapts no module, and {frozen}:", e.tuner));
        out.extend(e.prompt.iter().map(|sentence| format!("  {sentence}")));
        out.extend(e.saved.iter().map(|module| format!("  saved: {module}, trained in full")));
    }
    let modules = if e.prompt.is_empty() { base.tree().modules } else { Vec::new() };
    let adapted: HashMap<&str, _> = e.adapted.iter().map(|a| (a.name.as_str(), a)).collect();
    let skipped: HashMap<&str, _> = e.skipped.iter().map(|s| (s.name.as_str(), s)).collect();
    let saved: HashSet<&str> = e.saved.iter().map(String::as_str).collect();
    for module in modules {
        let mark = if let Some(a) = adapted.get(module.name.as_str()) {
            format!("adapted  {} ({})", a.summary, a.reason)
        } else if saved.contains(module.name.as_str()) {
            "saved    trained in full".to_owned()
        } else if let Some(s) = skipped.get(module.name.as_str()) {
            format!("skipped  {}", s.reason)
        } else if matches!(module.kind, ModuleKind::Other(_)) {
            String::new()
        } else {
            "frozen".to_owned()
        };
        out.push(outline(&module.name, &mark));
    }
    if !e.biases.is_empty() {
        out.push(format!("\n{} biases of the base model are trained.", e.biases.len()));
    }
    for note in &e.notes {
        out.push(format!("\nnote: {note}"));
    }
    out.push(String::new());
    out.push(e.trainable_sentence());
    Ok(out.join("\n"))
}
