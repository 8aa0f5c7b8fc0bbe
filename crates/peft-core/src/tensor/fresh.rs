//! How parameters begin that no checkpoint fills: what an architecture says of itself, as data.

/// The rule of a family. Where it says nothing else matrices are normal around zero, norms one and biases zero.
#[derive(Debug, Clone)]
pub struct FreshValues {
    /// Standard deviation of matrices; the configuration's `initializer_range` when absent, or 0.02.
    pub std: Option<f64>,
    /// Matrices are drawn again where they are further from zero than so many standard deviations.
    pub cutoff: Option<f64>,
    /// Weight of norms.
    pub norm: f64,
    /// Parameters that begin otherwise, by the ending of their name; the first that fits counts.
    pub others: Vec<(&'static str, Fresh)>,
    /// Tables with a row that begins at zero, that of padding, by the ending of their name.
    pub zero_rows: Vec<(&'static str, usize)>,
}

/// How one parameter begins.
#[derive(Debug, Clone, Copy)]
pub enum Fresh {
    /// Normal around zero, with this standard deviation.
    Normal(f64),
    /// A table that follows from its width: the value at a row and a column.
    Table(fn(row: usize, column: usize, width: usize) -> f64),
}

impl Default for FreshValues {
    fn default() -> Self {
        Self { std: None, cutoff: None, norm: 1.0, others: Vec::new(), zero_rows: Vec::new() }
    }
}

impl FreshValues {
    /// Matrices with this standard deviation.
    pub fn with_std(std: f64) -> Self {
        Self { std: Some(std), ..Self::default() }
    }

    /// Sets one row of an embedding to zero: that of the padding token.
    #[must_use]
    pub fn with_zero_row(mut self, ending: &'static str, row: Option<usize>) -> Self {
        self.zero_rows.extend(row.map(|row| (ending, row)));
        self
    }

    /// What this parameter begins with besides the rule for all; none where that holds.
    pub fn other(&self, parameter: &str) -> Option<Fresh> {
        self.others.iter().find(|(ending, _)| is_ending(parameter, ending)).map(|(_, fresh)| *fresh)
    }

    /// The row of a table that begins at zero.
    pub fn zero_row(&self, parameter: &str) -> Option<usize> {
        self.zero_rows.iter().find(|(ending, _)| is_ending(parameter, ending)).map(|(_, row)| *row)
    }
}

/// Whether a dotted name ends with whole segments.
pub(crate) fn is_ending(name: &str, ending: &str) -> bool {
    name.strip_suffix(ending).is_some_and(|outer| outer.is_empty() || outer.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_whole_segments() {
        let values = FreshValues { zero_rows: vec![("q.weight", 3)], ..FreshValues::default() };
        assert_eq!(values.zero_row("layer.0.q.weight"), Some(3));
        assert_eq!(values.zero_row("q.weight"), Some(3));
        assert_eq!(values.zero_row("layer.0.seq.weight"), None);
    }
}
