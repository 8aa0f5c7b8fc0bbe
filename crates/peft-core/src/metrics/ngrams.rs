//! Runs of words or of characters that two texts share.

use std::{collections::HashMap, hash::Hash};

/// How many runs of one length there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Overlap {
    /// In the first.
    pub(super) first: usize,
    /// In the second.
    pub(super) second: usize,
    /// In both, each as often as in the one that has it less.
    pub(super) common: usize,
}

/// Counts the runs of `n` elements.
pub(super) fn overlap<T: Eq + Hash>(n: usize, first: &[T], second: &[T]) -> Overlap {
    let runs = |all: &[T]| (all.len() + 1).saturating_sub(n);
    let mut left: HashMap<&[T], usize> = HashMap::new();
    for run in second.windows(n) {
        *left.entry(run).or_default() += 1;
    }
    let mut common = 0;
    for run in first.windows(n) {
        if let Some(count) = left.get_mut(run).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    Overlap { first: runs(first), second: runs(second), common }
}

/// The words of a text as Python's `str.split` has them.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// Python counts four more control characters as space than Unicode does.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}
