//! Which adapter acts on which row of a batch: PEFT's `adapter_names`.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use crate::{Error, Result};

/// The name that selects no adapter for a row, as in PEFT.
pub const BASE: &str = "__base__";

/// Which adapter acts on each row of a batch.
#[derive(Debug)]
pub struct AdapterRows {
    /// None for a row that no adapter acts on.
    names: Vec<Option<Arc<str>>>,
    /// How often each row may come, side by side: beams.
    repeats: usize,
    /// What a layer met with that cannot differ by row.
    misfit: OnceLock<String>,
}

impl AdapterRows {
    /// For rows with these adapters, [`BASE`] for none, each of which may come once or `repeats` times.
    pub(crate) fn new(names: &[&str], repeats: usize) -> Self {
        let names = names.iter().map(|name| (*name != BASE).then(|| Arc::from(*name)));
        Self { names: names.collect(), repeats, misfit: OnceLock::new() }
    }

    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.names.len()
    }

    /// The rows of each adapter, in the order in which they first come; those of no adapter are left out.
    pub(crate) fn by_adapter(&self) -> Vec<(Arc<str>, Vec<usize>)> {
        let mut found: Vec<(Arc<str>, Vec<usize>)> = Vec::new();
        for (row, name) in self.names.iter().enumerate() {
            let Some(name) = name else { continue };
            match found.iter_mut().find(|(own, _)| own == name) {
                Some((_, rows)) => rows.push(row),
                None => found.push((Arc::clone(name), vec![row])),
            }
        }
        found
    }

    /// Rows side by side with the same adapter.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (Option<&str>, Range<usize>)> {
        let mut at = 0;
        self.names.chunk_by(|one, other| one == other).map(move |run| {
            let start = at;
            at += run.len();
            (run.first().and_then(Option::as_deref), start..at)
        })
    }

    /// Says that the result is wrong and why: the pass forward itself fails nowhere.
    pub(crate) fn refuse(&self, problem: impl FnOnce() -> String) {
        self.misfit.get_or_init(problem);
    }

    /// Whether a batch has as many rows as adapters are named.
    pub(crate) fn check(&self, batch: Option<usize>) -> Result<()> {
        match batch {
            Some(batch) if batch != self.count() && batch != self.count() * self.repeats => {
                Err(Error::Adapter(format!(
                    "{} adapters are named for a batch of {batch} rows: name one for each row, `{BASE}` for none",
                    self.count()
                )))
            }
            _ => Ok(()),
        }
    }

    /// Whether every adapted layer could tell the rows apart in the passes so far: what was computed is wrong if not.
    pub(crate) fn told_apart(&self) -> Result<()> {
        match self.misfit.get() {
            Some(misfit) => Err(Error::Adapter(format!("rows with different adapters: {misfit}"))),
            None => Ok(()),
        }
    }

    /// Whether one of the rows uses this adapter.
    pub(crate) fn has(&self, adapter: &str) -> bool {
        self.names.iter().flatten().any(|name| &**name == adapter)
    }

    /// Whether a layer's input is of these rows; if not, the result is wrong.
    pub(crate) fn takes(&self, first: usize) -> bool {
        let fits = first == self.count() || first == self.count() * self.repeats;
        if !fits {
            self.refuse(|| {
                format!(
                    "an adapted layer reads {first} rows where adapters are named for {}: it is not part of the rows, as position \
                     embeddings are not, and so cannot differ by row",
                    self.count()
                )
            });
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_side_by_side_make_runs_and_each_adapter_has_its_rows() {
        let rows = AdapterRows::new(&["a", "a", BASE, "b", "a"], 1);
        let runs: Vec<_> = rows.runs().collect();
        assert_eq!(runs, [(Some("a"), 0..2), (None, 2..3), (Some("b"), 3..4), (Some("a"), 4..5)]);
        let by_adapter = rows.by_adapter();
        assert_eq!(by_adapter, [(Arc::from("a"), vec![0, 1, 4]), (Arc::from("b"), vec![3])]);
    }

    #[test]
    fn an_input_of_other_rows_is_remembered() {
        let rows = AdapterRows::new(&["a", "b"], 3);
        assert!(rows.takes(2) && rows.takes(6) && rows.told_apart().is_ok());
        assert!(!rows.takes(1));
        let error = rows.told_apart().unwrap_err().to_string();
        assert!(error.contains("reads 1 rows"), "{error}");
    }
}
