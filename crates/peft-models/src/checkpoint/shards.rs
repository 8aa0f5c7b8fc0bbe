//! The tensors of a checkpoint by name: mapped into memory, or read from the file one at a time.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    ops::Range,
    path::{Component, Path},
};

use peft_backends::MappedFile;
use peft_core::{
    Error, Result,
    files::{PytorchFile, PytorchTensor, not_a, read_text, refuse_lfs_pointer},
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{
    INDEX, PYTORCH_INDEX, PYTORCH_WEIGHTS, WEIGHTS,
    bitsandbytes::{self, PackedInfo},
};
use crate::gguf::{GgmlType, GgufFile, config, file_of, names};

/// What the length of a safetensors header takes.
const LENGTH_BYTES: usize = size_of::<u64>();

/// How the values of a tensor are stored.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum StoredType {
    /// One after the other.
    Plain(Dtype),
    /// In blocks, and in an order of their own.
    Ggml(GgmlType, names::Layout),
    /// By bitsandbytes, in several tensors.
    Packed(PackedInfo),
}

impl StoredType {
    /// Whether it is a type that a parameter can be filled with.
    pub(super) fn is_float(&self) -> bool {
        !matches!(self, Self::Plain(dtype) if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64))
    }

    /// Its name.
    pub(super) fn label(&self) -> String {
        match self {
            Self::Plain(dtype) => format!("{dtype:?}"),
            Self::Ggml(kind, _) => kind.label().to_owned(),
            Self::Packed(info) => format!("{:?}", info.packing),
        }
    }
}

/// Where a tensor's bytes are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// A part of a mapped file.
    Mapped(usize, Range<usize>),
    /// In a PyTorch file, which is read when the tensor is needed.
    Pickled(PytorchTensor),
}

/// A tensor in its file.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// Where its bytes are.
    pub(super) place: Place,
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
    /// Those that are part of another.
    sides: BTreeMap<String, Stored>,
    /// What messages call the checkpoint.
    pub(super) origin: String,
}

impl Shards {
    /// Opens a GGUF file, or the first that there is of `model.safetensors`, the shards of its index, `pytorch_model.bin`
    /// and the shards of its index: the order of Transformers.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let mut shards = Self::open_files(folder)?;
        shards.origin = folder.display().to_string();
        let (packed, problems) = bitsandbytes::gather(&shards);
        if !problems.is_empty() {
            return Err(Error::Tensors { origin: shards.origin, problems });
        }
        for (weight, info) in packed {
            for side in PackedInfo::sides(&weight) {
                shards.sides.extend(shards.tensors.remove_entry(&side));
            }
            if let Some(stored) = shards.tensors.get_mut(&weight) {
                (stored.shape, stored.dtype) = (info.shape(), StoredType::Packed(info));
            }
        }
        Ok(shards)
    }

    fn open_files(folder: &Path) -> Result<Self> {
        let mut shards = Self::default();
        if let Some(file) = file_of(folder)? {
            shards.add_gguf(GgufFile::open(&file)?)?;
            return Ok(shards);
        }
        type Add = fn(&mut Shards, &Path) -> Result<()>;
        let formats: [(_, _, Add); 2] =
            [(WEIGHTS, INDEX, Self::add), (PYTORCH_WEIGHTS, PYTORCH_INDEX, Self::add_pytorch)];
        let is_there = |(whole, index, _): &&(&str, &str, _)| [whole, index].iter().any(|f| folder.join(f).exists());
        let Some((whole, index, add)) = formats.iter().find(is_there) else {
            let what = format!("a model's weights; neither are {INDEX}, {PYTORCH_WEIGHTS}, {PYTORCH_INDEX}");
            return Err(Error::NotFound { path: folder.join(WEIGHTS), what });
        };
        let (whole, index) = (folder.join(whole), folder.join(index));
        if whole.exists() {
            add(&mut shards, &whole)?;
            return Ok(shards);
        }
        let weight_map = read_index(&index)?;
        for file in weight_map.values().collect::<BTreeSet<_>>() {
            add(&mut shards, &folder.join(file))?;
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
        let (header, metadata) = SafeTensors::read_metadata(mapped.as_slice()).map_err(|error| Error::File {
            path: path.to_owned(),
            problem: not_a("safetensors file", mapped.as_slice(), &error),
        })?;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let data = LENGTH_BYTES + header;
            let place = Place::Mapped(self.files.len(), data + start..data + end);
            let dtype = StoredType::Plain(info.dtype);
            self.tensors.insert(name, Stored { place, dtype, shape: info.shape.clone() });
        }
        self.files.push(mapped);
        Ok(())
    }

    fn add_pytorch(&mut self, path: &Path) -> Result<()> {
        for (name, tensor) in PytorchFile::open(path, "a model's weights")?.tensors {
            let (dtype, shape) = (StoredType::Plain(tensor.dtype()), tensor.shape().to_vec());
            self.tensors.insert(name, Stored { place: Place::Pickled(tensor), dtype, shape });
        }
        Ok(())
    }

    fn add_gguf(&mut self, gguf: GgufFile) -> Result<()> {
        let (architecture, config) = (gguf.architecture()?, config::read(&gguf)?);
        for (name, tensor) in &gguf.tensors {
            let (name, layout) = names::translate(name, architecture, &config)
                .unwrap_or_else(|| (name.clone(), names::Layout::default()));
            let dtype = StoredType::Ggml(tensor.kind, layout);
            let place = Place::Mapped(self.files.len(), tensor.place.clone());
            self.tensors.insert(name, Stored { place, dtype, shape: tensor.shape.clone() });
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

    /// A tensor that is part of another.
    pub(super) fn side(&self, name: &str) -> Option<&Stored> {
        self.sides.get(name)
    }

    /// Gives back the memory of a tensor's values, and of what belongs to it, after they were read.
    pub(super) fn forget(&self, name: &str) {
        let sides = PackedInfo::sides(name);
        for name in sides.iter().map(String::as_str).chain([name]) {
            let stored = self.tensors.get(name).or_else(|| self.sides.get(name));
            if let Some(Place::Mapped(file, range)) = stored.map(|stored| &stored.place)
                && let Some(file) = self.files.get(*file)
            {
                file.forget(range.clone());
            }
        }
    }

    /// The tensor's values as they are stored; nothing for a name that is not in the checkpoint.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Io`] for a PyTorch file whose tensor cannot be read.
    pub(super) fn values(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>> {
        match self.tensors.get(name).or_else(|| self.sides.get(name)).map(|stored| &stored.place) {
            Some(Place::Mapped(file, range)) => {
                let file = self.files.get(*file).map(MappedFile::as_slice);
                Ok(file.and_then(|bytes| bytes.get(range.clone())).map(Cow::Borrowed))
            }
            Some(Place::Pickled(tensor)) => tensor.read().map(|bytes| Some(Cow::Owned(bytes))),
            None => Ok(None),
        }
    }
}

/// Maps a file of weights into memory.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Io`]; [`Error::File`] for a Git LFS pointer.
pub(crate) fn map_file(path: &Path) -> Result<MappedFile> {
    let mapped = MappedFile::open(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => Error::NotFound { path: path.to_owned(), what: "a model's weights".to_owned() },
        _ => Error::Io { path: path.to_owned(), action: "read", source },
    })?;
    refuse_lfs_pointer(path, mapped.as_slice())?;
    Ok(mapped)
}

/// The file of each tensor, all of them inside the folder.
pub(crate) fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
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
