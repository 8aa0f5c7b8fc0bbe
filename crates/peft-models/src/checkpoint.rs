//! Checkpoints: a folder with `config.json` and weights, whole or in shards, or a GGUF file.
//!
//! Weights are `model.safetensors`, or PyTorch's `pytorch_model.bin` where there is no other.

mod bitsandbytes;
mod fingerprint;
mod fresh;
mod matching;
mod packed;
pub(crate) mod shards;
mod sizes;
mod values;
mod writing;

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Error, ModelInfo, Result,
    error::quoted,
    files::read_text,
    plugins::{registry, task::LabelSet},
};
use serde_json::{Map, Value};

use crate::{gguf, quantization::QuantizationConfig};

pub use fingerprint::fingerprint;
pub use writing::{save, stated_dtype, torch_name};

/// The configuration's file name.
pub const CONFIG: &str = "config.json";
/// The weights' file name, if they are one file.
pub const WEIGHTS: &str = "model.safetensors";
/// The file that says which shard holds which tensor, if they are several.
pub const INDEX: &str = "model.safetensors.index.json";
/// The weights' file name in PyTorch's own format, if they are one file.
pub const PYTORCH_WEIGHTS: &str = "pytorch_model.bin";
/// The file that says which shard of PyTorch's holds which tensor.
pub const PYTORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// The key that says how many words a model has.
const VOCAB_SIZE: &str = "vocab_size";

/// What may differ from what the checkpoint says.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The type of the parameters in memory; `f32` when absent, whatever the file has.
    pub dtype: Option<DType>,
    /// The classes of the data, where they replace those of the configuration.
    pub labels: Option<LabelSet>,
    /// What fresh heads are drawn from.
    pub seed: u64,
    /// Which weights are packed while they are loaded.
    pub quantization: QuantizationConfig,
    /// How many words the model is to have, in place of what its configuration says: Transformers' `resize_token_embeddings`.
    /// New rows are the mean of the old ones.
    pub vocab_size: Option<usize>,
    /// Whether a head whose shape is another in the checkpoint is drawn from the seed, in place of an error.
    pub ignore_mismatched_sizes: bool,
}

/// A loaded model and what was not simply taken over.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub base: BaseModel,
    /// Parameters of heads that the checkpoint lacks, drawn from the seed.
    pub initialised: Vec<String>,
    /// Tensors of the checkpoint that belong to heads which this model lacks.
    pub ignored: Vec<String>,
    /// Tensors of the checkpoint's own head, in whose place the model has another one.
    pub replaced: Vec<String>,
}

/// Reads a model's configuration, in its folder or the file itself; of a GGUF file what its metadata means.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Io`], [`Error::File`] if it is not a JSON object.
pub fn read_config(folder: &Path) -> Result<Map<String, Value>> {
    if let Some(file) = gguf::file_of(folder)? {
        return gguf::config::read(&gguf::GgufFile::open(&file)?);
    }
    let path = config_path(folder);
    let text = read_text(&path, "a model's configuration")?;
    serde_json::from_str(&text).map_err(|error| Error::File { path, problem: format!("not a JSON object: {error}") })
}

/// The file that describes a model: its configuration, or the GGUF file that has one.
fn described_by(model: &Path) -> Result<PathBuf> {
    Ok(gguf::file_of(model)?.unwrap_or_else(|| config_path(model)))
}

/// The configuration of a folder, or the file itself.
fn config_path(model: &Path) -> PathBuf {
    let is_file = model.is_file() || model.extension().is_some_and(|extension| extension == "json");
    if is_file { model.to_owned() } else { model.join(CONFIG) }
}

/// Builds the model that a folder's configuration describes, without reading weights: for planning and explaining.
///
/// # Errors
/// As [`read_config`]; [`Error::Config`] if the configuration cannot be used or the architecture has no such head;
/// also if no architecture of its `model_type` is linked.
pub fn skeleton(folder: &Path, class: &AutoClass, options: &LoadOptions, device: &Device) -> Result<BaseModel> {
    build(folder, &configured(folder, options)?, class, device)
}

/// The configuration with what the options say.
fn configured(folder: &Path, options: &LoadOptions) -> Result<Map<String, Value>> {
    let mut config = read_config(folder)?;
    if let Some(LabelSet { labels, problem_type }) = &options.labels {
        ModelInfo::set_labels(&mut config, labels, problem_type);
    }
    if let Some(words) = options.vocab_size {
        config.insert(VOCAB_SIZE.to_owned(), words.into());
    }
    Ok(config)
}

fn build(folder: &Path, config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let path = described_by(folder)?;
    let plugin = architecture(&path, config)?;
    sizes::check_labels(config).map_err(|error| error.in_file(&path))?;
    plugin.build(config, class, &device.clone().inner()).map_err(|error| error.in_file(&path))
}

/// The architecture of a model's configuration; `path` is what messages call it.
fn architecture(path: &Path, config: &Map<String, Value>) -> Result<&'static ArchitecturePlugin> {
    let wrong =
        |problem: String| Error::Config { origin: path.display().to_string(), key: "model_type".to_owned(), problem };
    let model_type = match config.get("model_type") {
        Some(Value::String(model_type)) => model_type.as_str(),
        Some(other) => return Err(wrong(format!("should be the name of an architecture, found {}", quoted(other)))),
        None => return Err(wrong("missing; it names the architecture".to_owned())),
    };
    registry::find::<ArchitecturePlugin>(model_type).map_err(|error| wrong(error.to_string()))
}

/// The classes that a model can be built as: those of its architecture.
///
/// # Errors
/// As [`skeleton`].
pub fn classes(folder: &Path) -> Result<&'static [AutoClass]> {
    let path = described_by(folder)?;
    Ok(architecture(&path, &read_config(folder)?)?.classes)
}

/// A new model of a configuration, which is a file or in a folder: every parameter is drawn from the seed.
///
/// Each by the rule of its architecture, [`ModelInfo::fresh`]. Nothing of it is packed: it is there to be trained.
///
/// # Errors
/// As [`skeleton`].
pub fn random(config: &Path, class: &AutoClass, options: &LoadOptions, device: &Device) -> Result<BaseModel> {
    let skeleton = skeleton(config, class, options, device)?;
    let nothing = shards::Shards::default();
    let plan = matching::Matching::new(&skeleton, &nothing, &matching::Leave::default());
    let dtype = options.dtype.unwrap_or(DType::F32);
    let packer = packed::Packer::default();
    values::fill(skeleton, &plan, &nothing, &packer, dtype, options.seed, &device.clone().inner())
}

/// Loads a model with the head of `class`.
///
/// Weights that are packed, in the checkpoint or as the options say, are so one by one: there is never a dense copy of the
/// model.
///
/// Backbone names match with and without the prefix that models with a head have. Parameters are plain tensors that never
/// require a gradient. The weights of linear layers are turned once, here: the processor's matrix product also takes them
/// as they lie in the file, but then turns them at every call, which costs a few rows five to ten times the product itself.
///
/// # Errors
/// As [`skeleton`]; [`Error::File`] if a file is truncated or not of its format; [`Error::Tensors`] that lists every
/// tensor that is missing, unexpected, of the wrong shape or of a type that holds no floats.
pub fn load(folder: &Path, class: &AutoClass, options: &LoadOptions, device: &Device) -> Result<Loaded> {
    let (config, built) = (read_config(folder)?, configured(folder, options)?);
    let shards = shards::Shards::open(folder);
    if let Ok(shards) = &shards {
        let path = described_by(folder)?;
        sizes::check(&built, shards).map_err(|error| error.in_file(&path))?;
    }
    // What is wrong with the configuration is said first.
    let skeleton = build(folder, &built, class, device)?;
    let shards = shards?;
    let leave = matching::Leave {
        saved_class: saved_class(&config).map(str::to_owned),
        mismatched_heads: options.ignore_mismatched_sizes,
        words: options.vocab_size.and_then(|words| {
            let own = config.get(VOCAB_SIZE)?.as_u64().and_then(|own| usize::try_from(own).ok())?;
            Some((own, words))
        }),
    };
    let plan = matching::Matching::new(&skeleton, &shards, &leave);
    if !plan.problems.is_empty() {
        return Err(Error::Tensors { origin: folder.display().to_string(), problems: plan.problems });
    }
    let dtype = options.dtype.unwrap_or(DType::F32);
    let packer = packed::Packer::new(&options.quantization, &plan, &skeleton.info)?;
    let base = values::fill(skeleton, &plan, &shards, &packer, dtype, options.seed, &device.clone().inner())?;
    Ok(Loaded { base, initialised: plan.initialised, ignored: plan.ignored, replaced: plan.replaced })
}

/// The class that a checkpoint was saved as: the first of `architectures`.
pub fn saved_class(config: &Map<String, Value>) -> Option<&str> {
    config.get("architectures")?.get(0)?.as_str()
}
