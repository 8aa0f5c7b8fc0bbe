//! One adapter's folder: `adapter_config.json`, `adapter_model.safetensors` (or the older `.bin`), `README.md`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::TensorData;

use super::{TensorFile, create_folder, model_card, write_atomically, write_safetensors};
use crate::{
    Error, PeftConfig, Result,
    prompt::{PROMPT_EMBEDDINGS, PROMPT_ENCODER},
};

/// The configuration's file name.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The tensors' file name.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// The tensors' file name in PyTorch's own format: read where there is no other, never written.
pub const ADAPTER_PYTORCH_WEIGHTS: &str = "adapter_model.bin";
/// The file of what only the training of a prompt needs; PEFT ignores it.
pub const PROMPT_ENCODER_WEIGHTS: &str = "prompt_encoder.safetensors";

/// The contents of an adapter folder, read and parsed but not yet fitted to a model.
#[derive(Debug)]
pub struct AdapterFolder {
    /// The folder.
    pub path: PathBuf,
    /// The configuration.
    pub config: PeftConfig,
    /// Tensors by their keys in the file.
    pub tensors: BTreeMap<String, TensorData>,
}

impl AdapterFolder {
    /// Reads a folder, or the folder of a file inside it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no adapter; whatever is wrong with its files.
    pub fn read(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Err(Error::NotFound { path: path.to_owned(), what: "an adapter folder".to_owned() });
        }
        let config = PeftConfig::from_file(&path.join(ADAPTER_CONFIG))?;
        let (weights, pickled) = (path.join(ADAPTER_WEIGHTS), path.join(ADAPTER_PYTORCH_WEIGHTS));
        let what = "the adapter's tensors";
        let file = if !weights.exists() && pickled.exists() {
            TensorFile::read_pytorch(&pickled, what)?
        } else {
            TensorFile::read(&weights, what)?
        };
        let mut tensors = file.tensors;
        let encoder = path.join(PROMPT_ENCODER_WEIGHTS);
        if tensors.contains_key(PROMPT_EMBEDDINGS) && encoder.exists() {
            let own = TensorFile::read(&encoder, "the prompt's encoder")?.tensors;
            tensors.extend(own.into_iter().map(|(key, data)| (format!("{PROMPT_ENCODER}{key}"), data)));
        }
        Ok(Self { path: path.to_owned(), config, tensors })
    }

    /// Where an adapter of that name is written below `folder`: `default` directly, any other in a folder of its name.
    pub fn place(folder: &Path, adapter_name: &str) -> PathBuf {
        if adapter_name == "default" { folder.to_owned() } else { folder.join(adapter_name) }
    }

    /// Writes the files, the configuration last: a folder with one is complete.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(
        folder: &Path,
        adapter_name: &str,
        config: &PeftConfig,
        tensors: &BTreeMap<String, TensorData>,
    ) -> Result<()> {
        if folder.is_file() {
            let source = std::io::Error::new(std::io::ErrorKind::NotADirectory, "it is a file");
            return Err(Error::Io { path: folder.to_owned(), action: "write an adapter folder", source });
        }
        let place = Self::place(folder, adapter_name);
        create_folder(&place)?;
        let (encoder, published): (Vec<_>, Vec<_>) =
            tensors.iter().partition(|(key, _)| key.starts_with(PROMPT_ENCODER));
        let own =
            encoder.into_iter().map(|(key, data)| (key.trim_start_matches(PROMPT_ENCODER).to_owned(), data.clone()));
        let (own, published) = (own.collect::<BTreeMap<_, _>>(), published.into_iter());
        let path = place.join(PROMPT_ENCODER_WEIGHTS);
        if !own.is_empty() {
            write_safetensors(&path, &own)?;
        } else if path.exists() {
            // Of another adapter that stood here before.
            std::fs::remove_file(&path).map_err(|source| Error::Io { path, action: "remove", source })?;
        }
        let published = published.map(|(key, data)| (key.clone(), data.clone())).collect();
        write_safetensors(&place.join(ADAPTER_WEIGHTS), &published)?;
        write_atomically(&folder.join("README.md"), model_card(config).as_bytes())?;
        write_atomically(&place.join(ADAPTER_CONFIG), config.to_json().as_bytes())
    }
}
