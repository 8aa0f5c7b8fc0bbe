//! Safetensors in memory and on disk.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use burn::tensor::{DType, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{not_a, read_bytes, write_atomically};
use crate::{Error, Result};

/// The tensors of a small file, read whole: adapters, inputs, outputs.
#[derive(Debug)]
pub struct TensorFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorData>,
}

impl TensorFile {
    /// Reads a safetensors file.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`], [`Error::File`] if it is truncated, not safetensors, or has a tensor of a type
    /// that is not supported.
    pub fn read(path: &Path, what: &str) -> Result<Self> {
        let bytes = read_bytes(path, what)?;
        let file = |problem: String| Error::File { path: path.to_owned(), problem };
        let parsed =
            SafeTensors::deserialize(&bytes).map_err(|error| file(not_a("safetensors file", &bytes, &error)))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in parsed.iter() {
            let data = from_view(&view).map_err(|problem| file(format!("tensor `{name}`: {problem}")))?;
            tensors.insert(name.to_owned(), data);
        }
        Ok(Self { path: path.to_owned(), tensors })
    }
}

/// Copies a tensor out of a safetensors view.
///
/// # Errors
/// With the type, if nothing here supports it.
pub fn from_view(view: &TensorView<'_>) -> Result<TensorData, String> {
    tensor_data(view.dtype(), view.shape(), view.data().to_vec())
}

/// A tensor of the bytes that a file has for it.
pub(super) fn tensor_data(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Result<TensorData, String> {
    let dtype = match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        other => return Err(format!("type {other:?} is not supported")),
    };
    Ok(TensorData::from_bytes_vec(bytes, shape.to_vec(), dtype))
}

/// Writes a safetensors file with PEFT's metadata, `{"format": "pt"}`.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] for a tensor of a type that the format lacks.
pub fn write_safetensors(path: &Path, tensors: &BTreeMap<String, TensorData>) -> Result<()> {
    let file = |problem: String| Error::File { path: path.to_owned(), problem };
    let mut views = Vec::with_capacity(tensors.len());
    for (name, data) in tensors {
        let dtype = match data.dtype() {
            DType::F64 => Dtype::F64,
            DType::F32 | DType::Flex32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::I8 => Dtype::I8,
            DType::U8 => Dtype::U8,
            other => return Err(file(format!("tensor `{name}`: type {other:?} cannot be written"))),
        };
        let view = TensorView::new(dtype, data.shape().to_vec(), data.bytes())
            .map_err(|e| file(format!("tensor `{name}`: {e}")))?;
        views.push((name.as_str(), view));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| file(e.to_string()))?;
    write_atomically(path, &bytes)
}
