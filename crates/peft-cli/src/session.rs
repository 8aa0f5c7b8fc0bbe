//! Opening a model with its adapters, as the verbs that use one do.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device};
use clap::{
    Args,
    builder::{OsStringValueParser, TypedValueParser as _},
};
use peft::train::Recipe;
use peft::{
    AutoClass, Error as PeftError, PeftConfig, PeftModel,
    adapter::AdapterFolder,
    files::ADAPTER_CONFIG,
    model::peft_model::DEFAULT_ADAPTER,
    models::{
        BaseFor,
        checkpoint::LoadOptions,
        hub::{Hub, HubId, Needed},
    },
    plugins::task::LabelSet,
};

use crate::{CliError, Globals, quantization_args::QuantizationArgs, terminal};

/// Which model and which adapters.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// Folder of the base model, a GGUF file, or an id on the Hub: org/name or org/name@revision. When absent, the base model
    /// that the adapter's configuration names.
    #[arg(long, value_name = "MODEL", required_unless_present = "adapter")]
    model: Option<PathBuf>,
    /// Folder of an adapter or an id on the Hub, or NAME= and one of these; may be given several times. When absent, the model
    /// as it was saved.
    #[arg(long, value_name = "[NAME=]ADAPTER", value_parser = OsStringValueParser::new().map(NamedAdapter::from))]
    adapter: Vec<NamedAdapter>,
    /// Names of the adapters that act, comma separated; the first one given when absent.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) active: Vec<String>,
    #[command(flatten)]
    pub(crate) quantization: QuantizationArgs,
    /// What the model was built as, once it is open.
    #[arg(skip)]
    base: Option<BaseFor>,
}

/// An adapter of the command line: `NAME=PATH`, or a path alone.
#[derive(Debug, Clone)]
pub(crate) struct NamedAdapter {
    /// Its name in the model.
    pub(crate) name: String,
    /// Its folder, or what names it on the Hub.
    pub(crate) path: PathBuf,
}

impl From<OsString> for NamedAdapter {
    fn from(given: OsString) -> Self {
        match split_name(&given) {
            Some((name, path)) if !name.contains(['/', '\\']) => Self { name, path },
            _ => Self { name: DEFAULT_ADAPTER.to_owned(), path: given.into() },
        }
    }
}

/// What stands before the first `=` and after it, whether that is UTF-8 or not.
fn split_name(given: &OsStr) -> Option<(String, PathBuf)> {
    if let Some(given) = given.to_str() {
        return given.split_once('=').map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let mut parts = given.as_bytes().splitn(2, |byte| *byte == b'=');
        let (name, path) = (parts.next()?, parts.next()?);
        Some((str::from_utf8(name).ok()?.to_owned(), OsStr::from_bytes(path).into()))
    }
    #[cfg(not(unix))]
    None
}

impl ModelArgs {
    /// The adapters as given; once the model is open, with their folders.
    pub(crate) fn adapters(&self) -> &[NamedAdapter] {
        &self.adapter
    }

    /// The folder or file of the base model, once it is open.
    pub(crate) fn folder(&self) -> &Path {
        self.model.as_deref().unwrap_or(Path::new(""))
    }

    /// What the base model was built as, once it is open.
    pub(crate) fn base(&self) -> Option<&BaseFor> {
        self.base.as_ref()
    }

    /// The folder whose tokenizer is the model's: the adapter's own where it was trained with another vocabulary.
    pub(crate) fn tokenizer_folder(&self) -> &Path {
        let resized = self.base.as_ref().is_some_and(|base| base.options.vocab_size.is_some());
        let own = self.adapter.iter().map(|adapter| adapter.path.as_path()).filter(|_| resized);
        own.into_iter().find(|folder| folder.join("tokenizer.json").exists()).unwrap_or(self.folder())
    }

    /// Loads the base model and the adapters, and makes the chosen ones active. Names of the Hub become folders of its cache.
    pub(crate) fn open(&mut self, globals: &Globals) -> Result<PeftModel, CliError> {
        self.open_as(None, globals)
    }

    /// The same; without an adapter as this class, if one is given, in place of what it was saved as.
    pub(crate) fn open_as(&mut self, class: Option<AutoClass>, globals: &Globals) -> Result<PeftModel, CliError> {
        let device = device(globals)?;
        let folders = self.read_adapters(globals)?;
        folders.iter().try_for_each(|(_, folder)| folder.check_finite())?;
        let model = self.locate_model(&folders, Needed::Model, globals)?;
        let labels = labels(&model, &folders)?;
        let dtype = dtype(globals)?;
        let options = LoadOptions { dtype, labels, quantization: self.quantization.config(), ..LoadOptions::default() };
        let mut base = BaseFor::adapters(&model, &folders, options)?;
        if let Some(class) = class.filter(|_| folders.is_empty()) {
            base.class.class = class;
        }
        let loaded = base.load(&model, &device)?;
        let heads: Vec<String> = folders.first().map(|(_, first)| first.config.modules_to_save()).unwrap_or_default();
        for head in loaded.initialised.iter().filter(|name| !heads.iter().any(|head| name.starts_with(head))) {
            terminal::note(globals, format!("note: the checkpoint has no `{head}`; it is newly initialized"));
        }
        self.base = Some(base);
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

    /// Reads the adapters by name, and says what of their configurations has no effect.
    fn read_adapters(&mut self, globals: &Globals) -> Result<Vec<(String, AdapterFolder)>, CliError> {
        let mut folders = Vec::new();
        for adapter in &mut self.adapter {
            let folder = AdapterFolder::read(&locate(&adapter.path, Needed::Adapter, globals)?)?;
            for note in folder.config.unknown_notes() {
                terminal::note(globals, format!("note: {}: {note}", folder.path.join(ADAPTER_CONFIG).display()));
            }
            adapter.path.clone_from(&folder.path);
            folders.push((adapter.name.clone(), folder));
        }
        Ok(folders)
    }

    /// The folder or file of a model without an adapter, before it is opened.
    pub(crate) fn locate(&mut self, globals: &Globals) -> Result<PathBuf, CliError> {
        self.locate_model(&[], Needed::Model, globals)
    }

    fn locate_model(
        &mut self,
        folders: &[(String, AdapterFolder)],
        needed: Needed,
        globals: &Globals,
    ) -> Result<PathBuf, CliError> {
        let model = match &self.model {
            Some(model) => locate(model, needed, globals)?,
            None => base_model(folders.iter().map(|(_, folder)| (&folder.config, &*folder.path)), needed, globals)?,
        };
        self.model = Some(model.clone());
        Ok(model)
    }
}

/// The base model that adapters were trained on, as their configurations name it; each comes with its folder.
pub(crate) fn base_model<'a>(
    adapters: impl Iterator<Item = (&'a PeftConfig, &'a Path)>,
    needed: Needed,
    globals: &Globals,
) -> Result<PathBuf, CliError> {
    let mut found: Option<(PathBuf, &Path)> = None;
    for (config, folder) in adapters {
        let Some(name) = config.base_model_name_or_path.as_deref().filter(|name| !name.is_empty()) else {
            let problem = format!("{}: names no base model; give --model MODEL", folder.join(ADAPTER_CONFIG).display());
            return Err(CliError::Usage(problem));
        };
        let base = named_base(name, config.revision.as_deref(), folder);
        match &found {
            Some((other, first)) if *other != base => {
                let problem = format!(
                    "{} was trained on `{}`, {} on `{}`; give --model MODEL",
                    first.display(),
                    other.display(),
                    folder.display(),
                    base.display()
                );
                return Err(CliError::Usage(problem));
            }
            _ => found = Some((base, folder)),
        }
    }
    let Some((base, folder)) = found else {
        return Err(CliError::Usage("give --model MODEL, or --adapter ADAPTER".to_owned()));
    };
    Hub::from_env().locate(&base, needed, &mut |line| terminal::note(globals, line)).map_err(|error| match error {
        PeftError::NotFound { path, what } => {
            let by = folder.join(ADAPTER_CONFIG);
            let what =
                format!("{what}; {} names it as the base model: give --model MODEL if it is elsewhere", by.display());
            PeftError::NotFound { path, what }.into()
        }
        other => other.into(),
    })
}

/// A base model by its name in a configuration: from the working directory, else as the recipe beside the adapter found it, else an
/// id on the Hub.
fn named_base(name: &str, revision: Option<&str>, folder: &Path) -> PathBuf {
    let given = PathBuf::from(name);
    if given.exists() {
        return given;
    }
    let recipe = Recipe::of_adapter(folder).ok().flatten();
    if let Some(found) =
        recipe.map(|recipe| recipe.locate(&recipe.model.model_name_or_path)).filter(|found| found.exists())
    {
        return found;
    }
    match revision.filter(|revision| !revision.is_empty() && HubId::parse(name).is_some() && !name.contains('@')) {
        Some(revision) => PathBuf::from(format!("{name}@{revision}")),
        None => given,
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

/// The classes that `labels.json` names, of an adapter or of a model without one; none where the base model's own names hold.
pub(crate) fn labels(model: &Path, adapters: &[(String, AdapterFolder)]) -> Result<Option<LabelSet>, CliError> {
    let folder = adapters.first().map_or(model, |(_, folder)| &folder.path);
    Ok(peft::train::labels::read(folder)?)
}
