//! Opening a model with its adapters, as the verbs that use one do.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use clap::Args;
use peft::{
    AutoClass, BaseModel, PeftConfig, PeftModel,
    files::{ADAPTER_CONFIG, AdapterFolder},
    model::{DEFAULT_ADAPTER, KEY_PREFIX, PROMPT_KEY_PREFIX},
    models::{
        checkpoint::{self, LoadOptions},
        hub::{Hub, Needed},
    },
    task::LabelSet,
};

use peft_train::Recipe;

use crate::{CliError, Globals, quantization_args::QuantizationArgs, terminal};

/// Which model and which adapters.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// Folder of the base model, a GGUF file, or an id on the Hub: org/name or org/name@revision.
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// Folder of an adapter or an id on the Hub, or NAME= and one of these; may be given several times.
    #[arg(long, value_name = "[NAME=]ADAPTER", required = true)]
    pub(crate) adapter: Vec<String>,
    /// Names of the adapters that act, comma separated; the first one given when absent.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) active: Vec<String>,
    #[command(flatten)]
    pub(crate) quantization: QuantizationArgs,
}

impl ModelArgs {
    /// Names and folders of the adapters.
    pub(crate) fn adapters(&self) -> Vec<(String, PathBuf)> {
        let split = |given: &String| match given.split_once('=') {
            Some((name, folder)) if !name.contains(['/', '\\']) => (name.to_owned(), PathBuf::from(folder)),
            _ => (DEFAULT_ADAPTER.to_owned(), PathBuf::from(given)),
        };
        self.adapter.iter().map(split).collect()
    }

    /// Loads the base model and the adapters, and makes the chosen ones active. Names of the Hub become folders of its cache.
    pub(crate) fn open(&mut self, globals: &Globals) -> Result<PeftModel, CliError> {
        let device = device(globals)?;
        for ((name, path), given) in self.adapters().into_iter().zip(&mut self.adapter) {
            *given = format!("{name}={}", locate(&path, Needed::Adapter, globals)?.display());
        }
        self.model = locate(&self.model, Needed::Model, globals)?;
        let mut folders = Vec::new();
        for (name, path) in self.adapters() {
            folders.push((name, AdapterFolder::read(&path)?));
        }
        let Some((_, first)) = folders.first() else {
            return Err(CliError::Usage("no adapter given: --adapter ADAPTER".to_owned()));
        };
        for (_, folder) in &folders {
            for note in folder.config.unknown_notes() {
                terminal::note(globals, format!("note: {}: {note}", folder.path.join(ADAPTER_CONFIG).display()));
            }
        }
        let class = auto_class(&first.config)?;
        let (dtype, labels) = (dtype(globals)?, labels(&self.model, first)?);
        let options = LoadOptions { dtype, labels, quantization: self.quantization.config(), ..LoadOptions::default() };
        let loaded = checkpoint::load(&self.model, &class, &options, &device)?;
        let heads = saved_heads(first);
        for head in loaded.initialised.iter().filter(|name| !heads.iter().any(|head| name.starts_with(head))) {
            terminal::note(globals, format!("note: the checkpoint has no `{head}`; it was initialised at random"));
        }
        let mut model = PeftModel::from_base(loaded.base, &device);
        let default_active = folders.first().map(|(name, _)| name.clone());
        for (name, folder) in folders {
            model.load_adapter(&name, folder)?;
        }
        let active: Vec<&str> = if self.active.is_empty() {
            default_active.iter().map(String::as_str).collect()
        } else {
            self.active.iter().map(String::as_str).collect()
        };
        model.set_active(&active)?;
        Ok(model)
    }
}

/// The folder or file of a path or of a Hub id, which is fetched.
pub(crate) fn locate(given: &Path, needed: Needed, globals: &Globals) -> Result<PathBuf, CliError> {
    Ok(Hub::from_env().locate(given, needed, &mut |line| terminal::note(globals, line))?)
}

/// Fetches what a recipe names by Hub ids.
pub(crate) fn fetch(recipe: &Recipe, needed: Needed, globals: &Globals) -> Result<(), CliError> {
    Ok(recipe.fetch(&Hub::from_env(), needed, &mut |line| terminal::note(globals, line))?)
}

/// The chosen device.
pub(crate) fn device(globals: &Globals) -> Result<Device, CliError> {
    Ok(peft::backends::device::parse(globals.device.as_deref())?)
}

/// The chosen type of the base model's weights.
pub(crate) fn dtype(globals: &Globals) -> Result<Option<DType>, CliError> {
    match globals.dtype.as_deref() {
        None => Ok(None),
        Some("f32") => Ok(Some(DType::F32)),
        Some("bf16") => Ok(Some(DType::BF16)),
        Some("f16") => Ok(Some(DType::F16)),
        Some(other) => Err(CliError::Usage(format!("--dtype {other}: one of f32, bf16, f16"))),
    }
}

/// The head that a configuration's task asks for.
pub(crate) fn auto_class(config: &PeftConfig) -> Result<AutoClass, CliError> {
    Ok(config.task()?.map_or(AutoClass::MODEL, |task| task.auto_class.clone()))
}

/// The model without weights, for `explain`.
pub(crate) fn skeleton(model: &Path, config: &PeftConfig, labels: Option<LabelSet>) -> Result<BaseModel, CliError> {
    let device = peft::backends::device::parse(Some("cpu"))?;
    let options = LoadOptions { labels, ..LoadOptions::default() };
    Ok(checkpoint::skeleton(model, &auto_class(config)?, &options, &device)?)
}

/// The classes an adapter was trained for: from its `labels.json`, else counted from its saved head where the base model
/// does not say.
pub(crate) fn labels(model: &Path, folder: &AdapterFolder) -> Result<Option<LabelSet>, CliError> {
    if let Some(labels) = peft_train::labels::read(&folder.path)? {
        return Ok(Some(labels));
    }
    let config = checkpoint::read_config(model)?;
    if config.contains_key("id2label") || config.contains_key("num_labels") {
        return Ok(None);
    }
    let heads = folder.config.task()?.map_or(&[][..], |task| task.heads);
    let rows =
        heads.iter().flat_map(|head| [format!("{head}.weight"), format!("{head}.out_proj.weight")]).find_map(|key| {
            let data = [KEY_PREFIX, PROMPT_KEY_PREFIX]
                .iter()
                .find_map(|prefix| folder.tensors.get(&format!("{prefix}{key}")))?;
            data.shape().as_slice().first().copied()
        });
    // Transformers' own default, and no head of classes for question answering.
    let counted = rows.filter(|rows| *rows != 2 && folder.config.task_type != Some(peft::TaskType::QUESTION_ANS));
    Ok(counted.map(|rows| LabelSet {
        labels: (0..rows).map(|row| format!("LABEL_{row}")).collect(),
        problem_type: if rows == 1 { "regression" } else { "single_label_classification" },
    }))
}

fn saved_heads(folder: &AdapterFolder) -> Vec<String> {
    folder.config.modules_to_save()
}
