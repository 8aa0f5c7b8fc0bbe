//! One adapter's folder: `adapter_config.json`, `adapter_model.safetensors` (or the older `.bin`), `README.md`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::TensorData;

use super::{KEY_PREFIX, PROMPT_KEY_PREFIX, model_card};
use crate::{
    Error, PeftConfig, Result,
    files::{
        ADAPTER_CONFIG, ADAPTER_PYTORCH_WEIGHTS, ADAPTER_WEIGHTS, PROMPT_ENCODER_WEIGHTS, TensorFile, create_folder,
        remove_file, write_atomically, write_safetensors,
    },
    plugins::prompt::{PROMPT_EMBEDDINGS, PROMPT_ENCODER},
    tensor::finite::first_not_finite,
};

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
    /// The folder of the adapter: the given one, or the only one below it that has an adapter, as PEFT writes those that have a
    /// name and trainers write checkpoints.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none, or several below it: with their names.
    pub fn find(path: &Path) -> Result<PathBuf> {
        if !path.is_dir() {
            return Err(Error::NotFound { path: path.to_owned(), what: "an adapter folder".to_owned() });
        }
        if path.join(ADAPTER_CONFIG).exists() {
            return Ok(path.to_owned());
        }
        let below = std::fs::read_dir(path)
            .map_err(|source| Error::Io { path: path.to_owned(), action: "read", source })?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|folder| folder.join(ADAPTER_CONFIG).is_file());
        let mut below: Vec<PathBuf> = below.collect();
        below.sort();
        if let [only] = below.as_slice() {
            return Ok(only.clone());
        }
        let named = below.iter().filter_map(|folder| folder.file_name()).map(|name| format!("`{}`", name.display()));
        let what = match below.is_empty() {
            false => format!(
                "an adapter configuration; each of these below has one: {}; name one",
                named.collect::<Vec<_>>().join(", ")
            ),
            true if path.join("config.json").exists() => {
                "an adapter configuration; this is the folder of a model".to_owned()
            }
            true => "an adapter configuration, here or in a folder below".to_owned(),
        };
        Err(Error::NotFound { path: path.join(ADAPTER_CONFIG), what })
    }

    /// Reads the adapter in a folder, or in the only one below it.
    ///
    /// It is for inference, whatever its configuration says: PEFT decides that when it reads.
    ///
    /// # Errors
    /// As [`find`](Self::find); whatever is wrong with its files.
    pub fn read(path: &Path) -> Result<Self> {
        let path = &Self::find(path)?;
        let config = PeftConfig::from_file(&path.join(ADAPTER_CONFIG)).map_err(|error| match error {
            // Not a configuration that somebody wrote wrongly, but a file that is damaged.
            Error::Config { key, problem, .. } if key.is_empty() => {
                Error::File { path: path.join(ADAPTER_CONFIG), problem }
            }
            other => other,
        })?;
        let config = PeftConfig { inference_mode: true, ..config };
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
        // Adapters that were put straight into a model have no wrapper in their names.
        let is_bare = !config.options.contains_key("num_virtual_tokens")
            && !tensors.is_empty()
            && !tensors.keys().any(|key| key.starts_with(PROMPT_KEY_PREFIX));
        if is_bare {
            tensors = tensors.into_iter().map(|(key, data)| (format!("{KEY_PREFIX}{key}"), data)).collect();
        }
        Ok(Self { path: path.to_owned(), config, tensors })
    }

    /// That all of its values are numbers: attention may hide where they are not, so that wrong answers look like answers.
    ///
    /// # Errors
    /// [`Error::NotFiniteOutput`], with the folder, for the first tensor that holds NaN or an infinity.
    pub fn check_finite(&self) -> Result<()> {
        let Some(key) = first_not_finite(&self.tensors) else { return Ok(()) };
        let error = Box::new(Error::NotFiniteOutput { output: key.to_owned() });
        Err(Error::InFile { path: self.path.clone(), error })
    }

    /// What stands before the names of the base model's modules in the file; the longer one first.
    pub(crate) fn prefixes(&self) -> [&'static str; 2] {
        [KEY_PREFIX, PROMPT_KEY_PREFIX]
    }

    /// The tensors by the names of the file without what PEFT's wrappers add; none of a prompt's own.
    pub fn named_tensors(&self) -> impl Iterator<Item = (&str, &TensorData)> {
        self.tensors.iter().filter_map(|(key, data)| {
            Some((self.prefixes().into_iter().find_map(|prefix| key.strip_prefix(prefix))?, data))
        })
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
            remove_file(&path)?;
        }
        let published = published.map(|(key, data)| (key.clone(), data.clone())).collect();
        write_safetensors(&place.join(ADAPTER_WEIGHTS), &published)?;
        write_atomically(&folder.join("README.md"), model_card(config).as_bytes())?;
        write_atomically(&place.join(ADAPTER_CONFIG), config.to_json().as_bytes())
    }
}
