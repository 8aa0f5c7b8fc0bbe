//! JSON lines: an object a line; empty lines are skipped.

use peft_core::{Result, data::example::Row};
use serde_json::Value;

use super::{Source, json::kind};

pub(super) fn parse(source: &Source<'_>) -> Result<Vec<Row>> {
    let (mut rows, mut bad) = (Vec::new(), source.bad_rows());
    for (line, text) in source.lines().filter(|(_, text)| !text.trim().is_empty()) {
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => rows.push(source.row(line, fields)),
            Ok(other) => bad.push(line, format!("a line should hold a JSON object, found {}", kind(&other))),
            // The parser's own line number is that inside the one line it was given.
            Err(error) => {
                let problem = error.to_string();
                let problem = problem.split(" at line ").next().unwrap_or_default();
                bad.push(line, format!("not valid JSON: {problem} (column {})", error.column()));
            }
        }
    }
    bad.or(rows)
}
