//! The tensors of a checkpoint by name, mapped into memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    path::{Component, Path},
};

use peft_backends::MappedFile;
use peft_core::{Error, Result, files::read_text};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

use super::{INDEX, WEIGHTS};

/// What the length of a safetensors header takes.
const LENGTH_BYTES: usize = size_of::<u64>();

/// Where a tensor lies.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    file: usize,
    start: usize,
    end: usize,
    /// The type of its elements.
    pub(super) dtype: Dtype,
    /// Its shape in the file.
    pub(super) shape: Vec<usize>,
}

/// All tensors of a checkpoint.
#[derive(Debug)]
pub(super) struct Shards {
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Stored>,
}

impl Shards {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let mut shards = Self { files: Vec::new(), tensors: BTreeMap::new() };
        let whole = folder.join(WEIGHTS);
        let index = folder.join(INDEX);
        if whole.exists() || !index.exists() {
            shards.add(&whole)?;
            return Ok(shards);
        }
        let weight_map = read_index(&index)?;
        for file in weight_map.values().collect::<BTreeSet<_>>() {
            shards.add(&folder.join(file))?;
        }
        match weight_map.iter().find(|(name, _)| !shards.tensors.contains_key(*name)) {
            Some((name, file)) => Err(Error::File {
                path: index,
                problem: format!("tensor `{name}` should be in `{file}` and is not there"),
            }),
            None => Ok(shards),
        }
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let mapped = MappedFile::open(path).map_err(|source| match source.kind() {
            ErrorKind::NotFound => Error::NotFound { path: path.to_owned(), what: "a model's weights".to_owned() },
            _ => Error::Io { path: path.to_owned(), action: "read", source },
        })?;
        let (header, metadata) = SafeTensors::read_metadata(mapped.as_slice()).map_err(|e| Error::File {
            path: path.to_owned(),
            problem: format!("not a whole safetensors file: {e}"),
        })?;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let data = LENGTH_BYTES + header;
            let file = self.files.len();
            let (start, end) = (data + start, data + end);
            self.tensors.insert(name, Stored { file, start, end, dtype: info.dtype, shape: info.shape.clone() });
        }
        self.files.push(mapped);
        Ok(())
    }

    /// Names in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// The tensor's shape, type and bytes.
    pub(super) fn view(&self, name: &str) -> Option<TensorView<'_>> {
        let stored = self.tensors.get(name)?;
        let bytes = self.files.get(stored.file)?.as_slice().get(stored.start..stored.end)?;
        TensorView::new(stored.dtype, stored.shape.clone(), bytes).ok()
    }
}

/// The file of each tensor, all of them inside the folder.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let file = |problem: String| Error::File { path: path.to_owned(), problem };
    let text = read_text(path, "a checkpoint's index")?;
    let index: Value = serde_json::from_str(&text).map_err(|error| file(format!("not JSON: {error}")))?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| file("`weight_map` should map tensor names to file names".to_owned()))?;
    map.iter()
        .map(|(name, value)| match value.as_str() {
            Some(shard) if Path::new(shard).components().eq([Component::Normal(shard.as_ref())]) => {
                Ok((name.clone(), shard.to_owned()))
            }
            _ => Err(file(format!("`weight_map`: `{name}` should name a file in this folder, found {value}"))),
        })
        .collect()
}
