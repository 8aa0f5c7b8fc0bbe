//! `peft inspect`: what an adapter or a checkpoint holds.

use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use clap::Args;
use peft::{
    Error,
    adapter::AdapterFolder,
    files::{ADAPTER_CONFIG, TensorFile},
    models::{GgufEntry, gguf_entries},
};
use serde_json::json;

use crate::{CliError, Globals, terminal};

/// Show what an adapter folder, a checkpoint folder or a file of tensors (safetensors, PyTorch, GGUF) holds
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  peft inspect out")]
pub(crate) struct Inspect {
    /// Folder or file.
    path: PathBuf,
}

impl Inspect {
    pub(crate) fn run(self, globals: &Globals) -> Result<(), CliError> {
        let mut facts = serde_json::Map::new();
        let mut files = Vec::new();
        let mut described = Vec::new();
        if self.path.join(ADAPTER_CONFIG).exists() {
            let folder = AdapterFolder::read(&self.path)?;
            facts.insert("kind".to_owned(), "adapter".into());
            facts.insert("peft_type".to_owned(), folder.config.peft_type.as_str().into());
            facts.insert("task_type".to_owned(), folder.config.task_type.as_ref().map(|t| t.as_str()).into());
            facts.insert("base_model".to_owned(), folder.config.base_model_name_or_path.clone().into());
            let unknown: Vec<_> = folder.config.unknown.keys().cloned().collect();
            facts.insert("unknown_keys".to_owned(), unknown.into());
            files.push(folder.tensors);
        } else if let Some(entries) = gguf_entries(&self.path)? {
            facts.insert("kind".to_owned(), "gguf".into());
            let config = peft::models::checkpoint::read_config(&self.path);
            facts.insert(
                "model_type".to_owned(),
                config.ok().and_then(|config| config.get("model_type").cloned()).into(),
            );
            described.extend(entries.into_iter().map(Row::of_header));
        } else if self.path.is_dir() {
            facts.insert("kind".to_owned(), "checkpoint".into());
            let config = peft::models::checkpoint::read_config(&self.path)?;
            facts.insert("model_type".to_owned(), config.get("model_type").cloned().into());
            let unreadable = |source| Error::Io { path: self.path.clone(), action: "list", source };
            let mut shards = Vec::new();
            for entry in std::fs::read_dir(&self.path).map_err(unreadable)? {
                shards.push(entry.map_err(unreadable)?.path());
            }
            let is_pickled = |path: &PathBuf| {
                let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
                name.starts_with("pytorch_model") && name.ends_with(".bin")
            };
            let (pickled, mut shards): (Vec<_>, Vec<_>) = shards.into_iter().partition(is_pickled);
            shards.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
            let mut shards = if shards.is_empty() { pickled } else { shards };
            shards.sort();
            for shard in shards {
                files.push(read(&shard, "a checkpoint")?.tensors);
            }
        } else {
            let kind = if is_pytorch(&self.path) { "pytorch" } else { "safetensors" };
            facts.insert("kind".to_owned(), kind.into());
            files.push(read(&self.path, "a file of tensors, an adapter or a checkpoint")?.tensors);
        }
        let read = files.into_iter().flatten().map(|(name, data)| Row::new(name, &data));
        let tensors: Vec<_> = read.chain(described).collect();
        let values: usize = tensors.iter().map(|t| t.values).sum();
        facts.insert("tensors".to_owned(), tensors.len().into());
        facts.insert("values".to_owned(), values.into());
        if globals.json {
            let rows: Vec<_> = tensors
                .iter()
                .map(|t| json!({ "name": t.name, "dtype": t.dtype, "shape": t.shape, "norm": t.norm, "finite": t.finite }))
                .collect();
            facts.insert("entries".to_owned(), rows.into());
            return terminal::json(&facts);
        }
        let mut lines: Vec<String> = facts.iter().map(|(key, value)| format!("{key:<13} {value}")).collect();
        for t in &tensors {
            let broken = if t.finite == Some(false) { "  NOT FINITE" } else { "" };
            let norm = t.norm.map(|norm| format!("norm {norm:.4}")).unwrap_or_default();
            let line = format!("{:<80} {:>5} {:<14} {norm}{broken}", t.name, t.dtype, format!("{:?}", t.shape));
            lines.push(line.trim_end().to_owned());
        }
        terminal::result(lines.join("\n"))
    }
}

/// Reads a safetensors file, or one of PyTorch's.
fn read(path: &Path, what: &str) -> Result<TensorFile, Error> {
    if is_pytorch(path) { TensorFile::read_pytorch(path, what) } else { TensorFile::read(path, what) }
}

fn is_pytorch(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["bin", "pt", "pth"].iter().any(|known| extension == *known))
}

struct Row {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    values: usize,
    /// None where the values were not read.
    norm: Option<f64>,
    finite: Option<bool>,
}

impl Row {
    fn new(name: String, data: &TensorData) -> Self {
        let shape = data.shape().to_vec();
        let numbers = data.clone().convert::<f64>().try_to_vec::<f64>().unwrap_or_default();
        Self {
            name,
            dtype: format!("{:?}", data.dtype()),
            values: numbers.len(),
            norm: Some(numbers.iter().map(|x| x * x).sum::<f64>().sqrt()),
            finite: Some(numbers.iter().all(|x| x.is_finite())),
            shape,
        }
    }

    fn of_header(entry: GgufEntry) -> Self {
        let GgufEntry { name, dtype, shape } = entry;
        let values = shape.iter().fold(1_usize, |product, size| product.saturating_mul(*size));
        Self { name, dtype: dtype.to_owned(), shape, values, norm: None, finite: None }
    }
}
