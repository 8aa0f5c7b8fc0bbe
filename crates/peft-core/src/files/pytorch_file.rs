//! PyTorch's own files (`.bin`, `.pt`), read without running what is in them.
//!
//! Such a file is a pickle: a program that Python runs to make objects again, and that may do anything. The reader behind this
//! calls nothing. It follows only what describes tensors, and reads a tensor's bytes when they are asked for.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use pytorch_reader::{DType, PytorchError, PytorchReader};
use safetensors::Dtype;

use super::{TensorFile, recognise, refuse_lfs_pointer, safetensors_file::tensor_data};
use crate::{Error, Result};

/// A PyTorch file whose tensors are known and not yet read.
#[derive(Debug)]
pub struct PytorchFile {
    /// The tensors by name.
    pub tensors: BTreeMap<String, PytorchTensor>,
}

impl PytorchFile {
    /// Opens a file in any of the formats that PyTorch has had: zip, the old pickle, tar.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`], [`Error::File`] if it is truncated, none of these, or holds no tensor.
    pub fn open(path: &Path, what: &str) -> Result<Self> {
        let broken = |problem: String| Error::File { path: path.to_owned(), problem };
        let start = first_bytes(path);
        refuse_lfs_pointer(path, &start)?;
        let reader = PytorchReader::new(path).map_err(|error| match error {
            PytorchError::Io(error) if error.kind() == ErrorKind::NotFound => {
                Error::NotFound { path: path.to_owned(), what: what.to_owned() }
            }
            PytorchError::Io(source) if source.raw_os_error().is_some() => {
                Error::Io { path: path.to_owned(), action: "read", source }
            }
            error => {
                broken(match recognise(&start).filter(|_| !PICKLED.iter().any(|magic| start.starts_with(magic))) {
                    Some(is) => format!("not a PyTorch file of tensors but {is}"),
                    None => format!("not a whole PyTorch file of tensors: {error}"),
                })
            }
        })?;
        if reader.is_empty() {
            return Err(broken("a PyTorch file without tensors".to_owned()));
        }
        let path: Arc<Path> = path.into();
        let with_path = |(name, tensor)| (name, PytorchTensor { path: Arc::clone(&path), tensor });
        Ok(Self { tensors: reader.into_tensors().into_iter().map(with_path).collect() })
    }
}

/// How PyTorch's own files begin: a zip archive, or a pickle.
const PICKLED: [&[u8]; 2] = [b"PK", b"\x80"];

/// What a file begins with; nothing where it cannot be read, which its reader then says.
fn first_bytes(path: &Path) -> Vec<u8> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(1024).read_to_end(&mut start));
    if read.is_ok() { start } else { Vec::new() }
}

/// A tensor in a PyTorch file.
#[derive(Debug, Clone)]
pub struct PytorchTensor {
    path: Arc<Path>,
    tensor: pytorch_reader::Tensor,
}

impl PytorchTensor {
    /// The type of its elements, by the name that it has in safetensors files.
    pub fn dtype(&self) -> Dtype {
        match self.tensor.dtype() {
            DType::F64 => Dtype::F64,
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::I16 => Dtype::I16,
            DType::I8 => Dtype::I8,
            DType::U64 => Dtype::U64,
            DType::U32 => Dtype::U32,
            DType::U16 => Dtype::U16,
            DType::U8 => Dtype::U8,
            DType::Bool => Dtype::BOOL,
        }
    }

    /// Its shape, the slowest dimension first.
    pub fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    /// Reads its values, row by row whatever the layout in the file.
    ///
    /// # Errors
    /// [`Error::File`] with the tensor's name if the file is damaged there, [`Error::Io`].
    pub fn read(&self) -> Result<Vec<u8>> {
        self.tensor.read().map_err(|source| match source.kind() {
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => self.broken(&source.to_string()),
            _ => Error::Io { path: self.path.to_path_buf(), action: "read", source },
        })
    }

    fn broken(&self, problem: &str) -> Error {
        Error::File { path: self.path.to_path_buf(), problem: problem.to_owned() }
    }
}

impl TensorFile {
    /// Reads a PyTorch file whole: an adapter saved without safetensors.
    ///
    /// # Errors
    /// As [`PytorchFile::open`] and [`PytorchTensor::read`]; [`Error::File`] for a tensor of a type that is not supported.
    pub fn read_pytorch(path: &Path, what: &str) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in PytorchFile::open(path, what)?.tensors {
            let data = tensor_data(tensor.dtype(), tensor.shape(), tensor.read()?)
                .map_err(|problem| tensor.broken(&format!("tensor `{name}`: {problem}")))?;
            tensors.insert(name, data);
        }
        Ok(Self { path: PathBuf::from(path), tensors })
    }
}
