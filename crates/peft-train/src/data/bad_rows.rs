//! The rows of one file that cannot be used.

use std::{fmt::Display, path::Path, sync::Arc};

use peft_core::{Result, data::example::Row};

/// Collects what is wrong with the rows of a file.
pub(super) struct BadRows {
    file: Arc<Path>,
    rows: peft_core::BadRows,
}

impl BadRows {
    pub(super) fn new(file: Arc<Path>) -> Self {
        Self { file, rows: peft_core::BadRows::default() }
    }

    pub(super) fn push(&mut self, line: usize, problem: impl Display) {
        self.rows.push(format_args!("{}:{line}: {problem}", self.file.display()));
    }

    /// The rows, if none of the file's was bad.
    pub(super) fn or(self, rows: Vec<Row>) -> Result<Vec<Row>> {
        self.rows.finish().map(|()| rows)
    }
}
