//! Parquet: typed columns in compressed pages, as data sets on the Hugging Face Hub are published.
//!
//! Classes that the file's own description of a data set names (`ClassLabel`) are read by their names. Numbers that are not
//! finite and bytes that are no text become null.

use std::{
    collections::HashSet,
    fs::File,
    io::{ErrorKind, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use parquet::{
    errors::ParquetError,
    file::{
        metadata::FileMetaData,
        reader::{FileReader, SerializedFileReader},
    },
    record::{Field, Row as Record},
};
use peft_core::{Error, Result, data::example::Row, files::refuse_lfs_pointer};
use serde_json::{Map, Number, Value};

use super::bad_rows::BadRows;

/// Where the `datasets` library describes the columns, in the file's metadata.
const DESCRIPTION: &str = "huggingface";

/// Bytes of rows that any file may unpack to, and how many times its own size beyond that: a page can say one long text a
/// million times in a few bytes.
const MOST_UNPACKED: u64 = 256 << 20;
const MOST_RATIO: u64 = 1000;

pub(super) fn parse(path: &Path) -> Result<Vec<Row>> {
    let io = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => Error::NotFound { path: path.to_owned(), what: "a data file".to_owned() },
        _ => Error::Io { path: path.to_owned(), action: "read", source },
    };
    let mut file = File::open(path).map_err(io)?;
    let mut start = Vec::new();
    (&mut file).take(1024).read_to_end(&mut start).map_err(io)?;
    refuse_lfs_pointer(path, &start)?;
    // The reader panics on some damaged files, and on column types that it has no value for.
    catch_unwind(AssertUnwindSafe(|| rows(path, file))).unwrap_or_else(|_| {
        let problem = "a damaged Parquet file, or one with a column of a type that is not read".to_owned();
        Err(Error::File { path: path.to_owned(), problem })
    })
}

fn rows(path: &Path, file: File) -> Result<Vec<Row>> {
    let broken = |problem: String| Error::File { path: path.to_owned(), problem };
    let bytes = file.metadata().map_or(0, |metadata| metadata.len());
    let mut room = MOST_UNPACKED.saturating_add(bytes.saturating_mul(MOST_RATIO));
    let whole = |error: ParquetError| broken(format!("not a whole Parquet file: {error}"));
    let reader = SerializedFileReader::new(file).map_err(whole)?;
    let metadata = reader.metadata().file_metadata();
    let mut names = HashSet::new();
    if let Some(twice) =
        metadata.schema().get_fields().iter().map(|field| field.name()).find(|name| !names.insert(*name))
    {
        return Err(broken(format!("column `{twice}` is there twice")));
    }
    let features = features(metadata);
    let file: Arc<Path> = path.into();
    let (mut rows, mut bad) = (Vec::new(), BadRows::new(Arc::clone(&file)));
    for (number, record) in (1..).zip(reader.get_row_iter(None).map_err(whole)?) {
        let record = record.map_err(|error| broken(format!("row {number}: {error}")))?;
        let mut fields = Map::new();
        for (name, field) in record.into_columns() {
            match named(value(field), features.get(&name).unwrap_or(&Value::Null)) {
                Ok(value) => {
                    room = room.checked_sub(size(&value)).ok_or_else(|| {
                        broken(format!(
                            "its {bytes} bytes unpack to more than {MOST_RATIO} times as much: no data set does"
                        ))
                    })?;
                    fields.insert(name, value);
                }
                Err(problem) => bad.push(number, format!("column `{name}`: {problem}")),
            }
        }
        rows.push(Row { file: Arc::clone(&file), line: number, fields });
    }
    bad.or(rows)
}

/// About how much memory a value takes.
fn size(value: &Value) -> u64 {
    let inside: u64 = match value {
        Value::String(text) => text.len() as u64,
        Value::Array(values) => values.iter().map(size).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() as u64 + size(value)).sum(),
        _ => 0,
    };
    inside + size_of::<Value>() as u64
}

/// What the file says of its columns, by their names.
fn features(metadata: &FileMetaData) -> Map<String, Value> {
    let entry = metadata.key_value_metadata().into_iter().flatten().find(|entry| entry.key == DESCRIPTION);
    let text = entry.and_then(|entry| entry.value.as_deref()).unwrap_or_default();
    let mut description: Value = serde_json::from_str(text).unwrap_or_default();
    match description.pointer_mut("/info/features").map(Value::take) {
        Some(Value::Object(features)) => features,
        _ => Map::new(),
    }
}

/// A value with the names of its classes for their numbers.
fn named(value: Value, feature: &Value) -> Result<Value, String> {
    let names = || feature.get("names").and_then(Value::as_array);
    match (value, feature.get("_type").and_then(Value::as_str)) {
        (Value::Number(class), Some("ClassLabel")) => match (class.as_i64(), names()) {
            // The mark of rows whose label is kept secret.
            (Some(-1), _) => Ok(Value::Null),
            (Some(at), Some(names)) => {
                let name = usize::try_from(at).ok().and_then(|at| names.get(at)).cloned();
                name.ok_or_else(|| format!("class {at} is none of the {} that the file names", names.len()))
            }
            _ => Ok(Value::Number(class)),
        },
        (Value::Array(values), kind) => {
            // A list's feature is the only entry of a list, or under a key of its own.
            let inner = if kind.is_some() { feature.get("feature") } else { feature.get(0) };
            let inner = inner.unwrap_or(&Value::Null);
            values.into_iter().map(|value| named(value, inner)).collect()
        }
        (Value::Object(fields), None) => {
            let inner = |name: &str| feature.get(name).unwrap_or(&Value::Null);
            let fields = fields.into_iter().map(|(name, value)| Ok((name.clone(), named(value, inner(&name))?)));
            fields.collect::<Result<_, String>>().map(Value::Object)
        }
        (other, _) => Ok(other),
    }
}

fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Double(value) => Number::from_f64(value).map_or(Value::Null, Value::Number),
        // By their shortest decimals: 0.1 stays 0.1.
        Field::Float(value) => number(&value.to_string()),
        Field::Float16(value) => number(&value.to_string()),
        field @ Field::Decimal(_) => number(&field.to_string()),
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => bytes.as_utf8().map_or(Value::Null, Value::from),
        Field::Group(record) => Value::Object(object(record)),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().cloned();
            Value::Object(entries.map(|(key, inner)| (text(&key), value(inner))).collect())
        }
        field @ (Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_)) => field.to_string().into(),
    }
}

fn object(record: Record) -> Map<String, Value> {
    record.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect()
}

fn number(text: &str) -> Value {
    text.parse().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

fn text(key: &Field) -> String {
    match key {
        Field::Str(text) => text.clone(),
        other => other.to_string(),
    }
}
