//! What a side is to do, and the batches that it does it with.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use burn::tensor::{DType, Device, Tensor, TensorData};
use peft::models::QuantizationConfig;
use peft::train::recipe::{TrainingArguments, WeightType};
use peft::{Batch, Error, Inputs, Labels, Result, files::TensorFile};
use serde::Deserialize;

/// A case file.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Case {
    /// Steps of training.
    Train(Box<Train>),
    /// Greedy generation.
    Generate(Generate),
}

/// Steps of training.
#[derive(Debug, Deserialize)]
pub(crate) struct Train {
    /// Folder of the base model.
    pub(crate) model: PathBuf,
    /// Folder of the adapter that training starts from.
    pub(crate) adapter: PathBuf,
    /// How many adapters act, all of them started from that one.
    pub(crate) adapters: usize,
    /// Whether each acts on its share of the rows instead of on all.
    #[serde(default)]
    pub(crate) by_rows: bool,
    /// Whose adapters.
    pub(crate) lora: Whose,
    /// Type of the base model's weights.
    pub(crate) dtype: WeightType,
    /// Which weights are packed.
    #[serde(default)]
    pub(crate) quantization: QuantizationConfig,
    /// Safetensors file with a tensor for each of the model's inputs, one batch in each place of its first dimension.
    pub(crate) batches: PathBuf,
    /// Steps; batches come round again where there are fewer.
    pub(crate) steps: usize,
    /// Learning rate, weight decay, largest norm.
    pub(crate) training: TrainingArguments,
    /// Where the trained adapter is written, if anywhere.
    pub(crate) save: Option<PathBuf>,
    /// Where it runs, as `--device` names it; the best device that works if it is not named.
    #[serde(default)]
    pub(crate) device: Option<String>,
    /// When the process was started, in seconds since 1970.
    pub(crate) started: f64,
}

/// Whose adapters are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Whose {
    /// This library's.
    Ours,
    /// Burn's own `Lora`.
    Burn,
    /// The same, with the model computed by Burn's operations alone.
    BurnPlain,
}

/// Greedy generation.
#[derive(Debug, Deserialize)]
pub(crate) struct Generate {
    /// Folder of the model.
    pub(crate) model: PathBuf,
    /// Type of its weights.
    pub(crate) dtype: WeightType,
    /// The tokens that it goes on from.
    pub(crate) prompt: Vec<u32>,
    /// How many it writes.
    pub(crate) max_new_tokens: usize,
    /// How often, the first time unmeasured.
    pub(crate) times: usize,
    /// Where it runs, as `--device` names it; the best device that works if it is not named.
    #[serde(default)]
    pub(crate) device: Option<String>,
    /// When the process was started, in seconds since 1970.
    pub(crate) started: f64,
}

/// The device of that name.
///
/// # Errors
/// If it is not built in or does not work.
pub(crate) fn device(name: Option<&str>) -> Result<Device> {
    peft::backends::device::parse(name).map_err(|error| Error::Data(error.to_string()))
}

/// Seconds since `started`.
pub(crate) fn seconds_since(started: f64) -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(f64::NAN, |now| now.as_secs_f64() - started)
}

/// The batches of a file.
///
/// # Errors
/// If the file cannot be read, or holds something that no model takes.
pub(crate) fn batches(path: &Path) -> Result<Vec<Batch>> {
    let file = TensorFile::read(path, "the batches")?;
    let mut batches: Vec<Batch> = Vec::new();
    for (name, data) in &file.tensors {
        let wrong = |problem: &str| Error::File { path: path.to_owned(), problem: format!("`{name}`: {problem}") };
        let Some((count, shape)) = data.shape().as_slice().split_first().map(|(count, rest)| (*count, rest.to_vec()))
        else {
            return Err(wrong("has no dimension of batches"));
        };
        let values = data.clone().convert::<i64>().try_to_vec::<i64>().map_err(|_| wrong("cannot be read"))?;
        batches.resize_with(count.max(batches.len()), Batch::default);
        for (batch, values) in batches.iter_mut().zip(values.chunks(shape.iter().product::<usize>().max(1))) {
            let data = TensorData::new(values.to_vec(), shape.clone());
            let ids = || Tensor::from_data(data.clone(), (&Device::flex(), DType::I64));
            match (name.as_str(), shape.len()) {
                ("input_ids", 2) => batch.inputs.input_ids = Some(ids()),
                ("attention_mask", 2) => batch.inputs.attention_mask = Some(ids()),
                ("labels", _) => batch.labels = Labels(BTreeMap::from([(name.clone(), data)])),
                _ => return Err(wrong("should be input_ids, attention_mask or labels")),
            }
        }
    }
    Ok(batches)
}

/// How many tokens a batch has, padding included.
pub(crate) fn tokens(inputs: &Inputs) -> usize {
    inputs.input_ids.as_ref().map_or(0, |ids| ids.dims().iter().product())
}
