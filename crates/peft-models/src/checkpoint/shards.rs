//! The tensors of a checkpoint by name, mapped into memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    path::{Component, Path},
};

use peft_backends::MappedFile;
use peft_core::{Error, Result, files::read_text};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{INDEX, WEIGHTS};
use crate::gguf::{GgmlType, GgufFile, config, file_of, names};

/// What the length of a safetensors header takes.
const LENGTH_BYTES: usize = size_of::<u64>();

/// How the values of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum StoredType {
    /// One after the other.
    Plain(Dtype),
    /// In blocks, and in an order of their own.
    Ggml(GgmlType, names::Layout),
}

impl StoredType {
    /// Whether it is a type that a parameter can be filled with.
    pub(super) fn is_float(self) -> bool {
        !matches!(self, Self::Plain(dtype) if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64))
    }

    /// Its name.
    pub(super) fn label(self) -> String {
        match self {
            Self::Plain(dtype) => format!("{dtype:?}"),
            Self::Ggml(kind, _) => kind.label().to_owned(),
        }
    }
}

/// Where a tensor lies.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    file: usize,
    start: usize,
    end: usize,
    /// The type of its elements.
    pub(super) dtype: StoredType,
    /// Its shape in the file.
    pub(super) shape: Vec<usize>,
}

/// All tensors of a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Shards {
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Stored>,
}

impl Shards {
    /// Opens `model.safetensors`, the shards that `model.safetensors.index.json` names, or a GGUF file.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let mut shards = Self::default();
        if let Some(file) = file_of(folder)? {
            shards.add_gguf(GgufFile::open(&file)?)?;
            return Ok(shards);
        }
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
        let mapped = map_file(path)?;
        let (header, metadata) = SafeTensors::read_metadata(mapped.as_slice()).map_err(|e| Error::File {
            path: path.to_owned(),
            problem: format!("not a whole safetensors file: {e}"),
        })?;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let data = LENGTH_BYTES + header;
            let file = self.files.len();
            let (start, end) = (data + start, data + end);
            let dtype = StoredType::Plain(info.dtype);
            self.tensors.insert(name, Stored { file, start, end, dtype, shape: info.shape.clone() });
        }
        self.files.push(mapped);
        Ok(())
    }

    fn add_gguf(&mut self, gguf: GgufFile) -> Result<()> {
        let (architecture, config) = (gguf.architecture()?, config::read(&gguf)?);
        for (name, tensor) in &gguf.tensors {
            let (name, layout) = names::translate(name, architecture, &config)
                .unwrap_or_else(|| (name.clone(), names::Layout::default()));
            let dtype = StoredType::Ggml(tensor.kind, layout);
            let (start, end) = (tensor.place.start, tensor.place.end);
            let stored = Stored { file: self.files.len(), start, end, dtype, shape: tensor.shape.clone() };
            self.tensors.insert(name, stored);
        }
        self.files.push(gguf.bytes);
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
    pub(super) fn view(&self, name: &str) -> Option<View<'_>> {
        let stored = self.tensors.get(name)?;
        let bytes = self.files.get(stored.file)?.as_slice().get(stored.start..stored.end)?;
        Some(View { stored, bytes })
    }
}

/// A tensor in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    /// Its shape and type.
    pub(super) stored: &'a Stored,
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// Its values as they are stored.
    pub(super) fn data(&self) -> &'a [u8] {
        self.bytes
    }
}

/// Maps a file of weights into memory.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Io`].
pub(crate) fn map_file(path: &Path) -> Result<MappedFile> {
    MappedFile::open(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => Error::NotFound { path: path.to_owned(), what: "a model's weights".to_owned() },
        _ => Error::Io { path: path.to_owned(), action: "read", source },
    })
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
