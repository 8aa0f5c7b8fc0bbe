//! Rows that cannot be used, told of together.

use std::fmt::Display;

use crate::{Error, Result};

/// How many rows an error names.
const NAMED: usize = 10;

/// Collects what is wrong with rows, so that one error tells of all: the first ten, and how many more there are.
#[derive(Debug, Default)]
pub struct BadRows {
    named: Vec<String>,
    count: usize,
}

impl BadRows {
    /// Adds a problem, which says file and line itself.
    pub fn push(&mut self, problem: impl Display) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(problem.to_string());
        }
    }

    /// Takes the value of a result; adds its problem if it is one of data.
    ///
    /// # Errors
    /// Whatever is no [`Error::Data`].
    pub fn take<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Error::Data(problem)) => {
                self.push(problem);
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// Nothing, if no row was bad.
    ///
    /// # Errors
    /// [`Error::Data`] with a line for each problem.
    pub fn finish(mut self) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let unnamed = self.count - self.named.len();
        if unnamed > 0 {
            self.named.push(format!("and {unnamed} more"));
        }
        Err(Error::Data(self.named.join("\n")))
    }
}
