//! The rows of a file that cannot be used, told of together.

use std::{fmt::Display, path::Path, sync::Arc};

use peft::{Error, Result, example::Row};

/// How many rows an error names.
const NAMED: usize = 10;

/// Collects what is wrong with the rows of a file.
pub(super) struct BadRows {
    file: Arc<Path>,
    named: Vec<String>,
    count: usize,
}

impl BadRows {
    pub(super) fn new(file: Arc<Path>) -> Self {
        Self { file, named: Vec::new(), count: 0 }
    }

    pub(super) fn push(&mut self, line: usize, problem: impl Display) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(format!("{}:{line}: {problem}", self.file.display()));
        }
    }

    /// The rows, if none of the file's was bad.
    pub(super) fn or(mut self, rows: Vec<Row>) -> Result<Vec<Row>> {
        if self.count == 0 {
            return Ok(rows);
        }
        let unnamed = self.count - self.named.len();
        if unnamed > 0 {
            self.named.push(format!("and {unnamed} more"));
        }
        Err(Error::Data(self.named.join("\n")))
    }
}
