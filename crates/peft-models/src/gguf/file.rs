//! The header of a GGUF file: metadata, and where each tensor lies. Every length is checked before it is used.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::{Path, PathBuf},
};

use peft_backends::MappedFile;
use peft_core::{Error, Result};
use serde_json::Value;

use super::GgmlType;
use crate::checkpoint::shards::map_file;

/// An opened GGUF file; its tensors are not read.
#[derive(Debug)]
pub(crate) struct GgufFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: MappedFile,
    pub(crate) metadata: Metadata,
    pub(crate) tensors: BTreeMap<String, GgufTensor>,
}

/// Where a tensor lies, and how.
#[derive(Debug, Clone)]
pub(crate) struct GgufTensor {
    pub(crate) kind: GgmlType,
    /// In PyTorch's order, the outermost dimension first.
    pub(crate) shape: Vec<usize>,
    pub(crate) place: Range<usize>,
}

/// The keys and values of the header. Lists stay in the file until they are asked for: in memory they would take many times as
/// much, and most of them nobody asks for.
#[derive(Debug, Default)]
pub(crate) struct Metadata(HashMap<String, Entry>);

#[derive(Debug)]
enum Entry {
    One(Value),
    List(List),
}

/// A list of values of one type, and where they are in the file.
#[derive(Debug, Clone)]
struct List {
    kind: u32,
    count: u64,
    place: Range<usize>,
}

impl Metadata {
    /// A single value.
    fn one(&self, key: &str) -> Option<&Value> {
        match self.0.get(key)? {
            Entry::One(value) => Some(value),
            Entry::List(_) => None,
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.one(key)?.as_str()
    }
}

/// The type of texts.
const TEXT: u32 = 8;
/// Values of a list that are looked at where a single value should be.
const FIRST: u64 = 100;

/// Most dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 4;

impl GgufFile {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`], [`Error::File`] if it is not a whole GGUF file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let bytes = map_file(path)?;
        let (metadata, tensors) = parse(bytes.as_slice()).map_err(|problem| broken(path, &problem))?;
        Ok(Self { path: path.to_owned(), bytes, metadata, tensors })
    }

    /// An error about the file.
    pub(crate) fn error(&self, problem: impl Into<String>) -> Error {
        Error::File { path: self.path.clone(), problem: problem.into() }
    }

    /// The value of a key; of a list the first ones.
    pub(crate) fn get(&self, key: &str) -> Option<Value> {
        match self.metadata.0.get(key)? {
            Entry::One(value) => Some(value.clone()),
            Entry::List(list) => Some(self.values(list).take(FIRST as usize).collect()),
        }
    }

    /// The texts of a list; none if it is one of something else.
    pub(crate) fn texts(&self, key: &str) -> Option<Vec<String>> {
        let list = self.list(key).filter(|list| list.kind == TEXT)?;
        let text = |value| match value {
            Value::String(text) => text,
            _ => String::new(),
        };
        Some(self.values(list).map(text).collect())
    }

    /// The numbers of a list; none if it is one of something else.
    pub(crate) fn numbers(&self, key: &str) -> Option<Vec<f64>> {
        let list = self.list(key).filter(|list| list.kind != TEXT)?;
        Some(self.values(list).map(|value| value.as_f64().unwrap_or_default()).collect())
    }

    fn list(&self, key: &str) -> Option<&List> {
        match self.metadata.0.get(key)? {
            Entry::List(list) => Some(list),
            Entry::One(_) => None,
        }
    }

    fn values(&self, list: &List) -> impl Iterator<Item = Value> {
        let bytes = self.bytes.as_slice().get(list.place.clone()).unwrap_or_default();
        let mut cursor = Cursor { bytes, at: 0 };
        // They were all there when the header was read.
        (0..list.count).map_while(move |_| cursor.value(list.kind).ok())
    }

    /// The name of the architecture.
    pub(crate) fn architecture(&self) -> Result<&str> {
        self.metadata.text("general.architecture").ok_or_else(|| self.error("`general.architecture`: missing"))
    }
}

fn broken(path: &Path, problem: &str) -> Error {
    Error::File { path: path.to_owned(), problem: format!("not a whole GGUF file: {problem}") }
}

type Parsed<T> = std::result::Result<T, String>;

fn parse(bytes: &[u8]) -> Parsed<(Metadata, BTreeMap<String, GgufTensor>)> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != b"GGUF" {
        return Err("it does not begin with `GGUF`".to_owned());
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("version {version}; supported are 2 and 3, little-endian"));
    }
    let (tensor_count, key_count) = (cursor.u64()?, cursor.u64()?);
    let mut metadata = HashMap::new();
    for _ in 0..key_count {
        let key = cursor.text()?;
        let kind = cursor.u32()?;
        let entry = cursor.entry(kind).map_err(|problem| format!("`{key}`: {problem}"))?;
        metadata.insert(key, entry);
    }
    let mut heads = Vec::new();
    for _ in 0..tensor_count {
        let name = cursor.text()?;
        let head = tensor_head(&mut cursor).map_err(|problem| format!("tensor `{name}`: {problem}"))?;
        heads.push((name, head));
    }
    let metadata = Metadata(metadata);
    let alignment = metadata.one("general.alignment").and_then(Value::as_u64).unwrap_or(32);
    let alignment = usize::try_from(alignment).ok().filter(|alignment| *alignment > 0 && alignment.is_multiple_of(8));
    let alignment = alignment.ok_or("`general.alignment` should be a multiple of 8")?;
    let data = cursor.at.checked_next_multiple_of(alignment).ok_or("alignment too large")?;
    let mut tensors = BTreeMap::new();
    for (name, (kind, shape, offset)) in heads {
        let place = || {
            let count = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size))?;
            let start = data.checked_add(usize::try_from(offset).ok()?)?;
            let end = start.checked_add(kind.bytes(count)?)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(kind.block()) {
            return Err(format!("tensor `{name}`: rows of {row} values are no whole blocks of {}", kind.label()));
        }
        if !offset.is_multiple_of(alignment as u64) {
            return Err(format!("tensor `{name}`: offset {offset} is not a multiple of the alignment {alignment}"));
        }
        let place = place().ok_or_else(|| format!("tensor `{name}` {shape:?} reaches beyond the end"))?;
        tensors.insert(name, GgufTensor { kind, shape, place });
    }
    let mut places: Vec<_> = tensors.iter().map(|(name, tensor)| (&tensor.place, name)).collect();
    places.sort_unstable_by_key(|(place, _)| place.start);
    for pair in places.windows(2) {
        if let [(first, name), (second, other)] = pair
            && first.end > second.start
        {
            return Err(format!("tensors `{name}` and `{other}` overlap"));
        }
    }
    Ok((metadata, tensors))
}

/// A tensor's type, shape and offset.
fn tensor_head(cursor: &mut Cursor<'_>) -> Parsed<(GgmlType, Vec<usize>, u64)> {
    let dimensions = cursor.u32()?;
    if dimensions > MOST_DIMENSIONS {
        return Err(format!("{dimensions} dimensions"));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(usize::try_from(cursor.u64()?).map_err(|_| "a dimension too large".to_owned())?);
    }
    shape.reverse();
    let kind = GgmlType::from_id(cursor.u32()?)?;
    Ok((kind, shape, cursor.u64()?))
}

/// Reads little-endian values from the front.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Parsed<&'a [u8]> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("it ends within {count} bytes at {}", self.at))?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        self.take(N)?.first_chunk::<N>().copied().ok_or_else(|| "it ends too early".to_owned())
    }

    fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Parsed<String> {
        let length = usize::try_from(self.u64()?).map_err(|_| "a text too long".to_owned())?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn entry(&mut self, kind: u32) -> Parsed<Entry> {
        const LIST: u32 = 9;
        if kind != LIST {
            return self.value(kind).map(Entry::One);
        }
        let (kind, count) = (self.u32()?, self.u64()?);
        let from = self.at;
        match width(kind) {
            Some(width) => {
                let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(width));
                self.take(bytes.ok_or("a list too long")?)?;
            }
            None if kind == TEXT => {
                for _ in 0..count {
                    let length = usize::try_from(self.u64()?).map_err(|_| "a text too long".to_owned())?;
                    self.take(length)?;
                }
            }
            None => return Err(format!("a list of values of type {kind}, which is unknown here")),
        }
        Ok(Entry::List(List { kind, count, place: from..self.at }))
    }

    fn value(&mut self, kind: u32) -> Parsed<Value> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array()?).into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            6 => f64::from(f32::from_le_bytes(self.array()?)).into(),
            7 => (u8::from_le_bytes(self.array()?) != 0).into(),
            TEXT => self.text()?.into(),
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            12 => f64::from_le_bytes(self.array()?).into(),
            other => return Err(format!("value type {other} is unknown here")),
        })
    }
}

/// Bytes of a value of a type whose values are all as long.
fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
