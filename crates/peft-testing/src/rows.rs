//! Rows of data and the classes of a model, without a file for either.

use std::{path::Path, sync::Arc};

use peft_core::{ModelInfo, data::example::Row};
use serde_json::Value;

/// A row that stands on a line of a data file; fields that are not an object are a row without fields.
pub fn row(file: &str, line: usize, fields: Value) -> Row {
    let fields = match fields {
        Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    Row { file: Arc::from(Path::new(file)), line, fields }
}

/// A model with these labels and this `problem_type`.
pub fn classes(labels: &[&str], problem_type: &str) -> ModelInfo {
    let mut info = ModelInfo::custom();
    let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
    ModelInfo::set_labels(&mut info.config, &labels, problem_type);
    info
}
