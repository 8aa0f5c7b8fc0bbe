//! Which rows of a batch each low-rank adapter acts on.

use std::ops::Range;

use crate::kernels::dropout_mask::Keep;

/// Rows side by side that one adapter acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The rows.
    pub rows: Range<usize>,
    /// The adapter's number.
    pub adapter: usize,
}

/// All rows in the order of their adapters, those of none last.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) rows: Vec<usize>,
    /// How many rows each adapter has.
    pub(crate) counts: Vec<usize>,
}

impl Order {
    pub(crate) fn new(runs: &[Run], adapters: usize, rows: usize) -> Self {
        let mut order: Vec<usize> = Vec::with_capacity(rows);
        let mut counts = Vec::with_capacity(adapters);
        for adapter in 0..adapters {
            let before = order.len();
            order.extend(runs.iter().filter(|run| run.adapter == adapter).flat_map(|run| run.rows.clone()));
            counts.push(order.len() - before);
        }
        let mut at = 0;
        for run in runs {
            order.extend(at..run.rows.start);
            at = run.rows.end;
        }
        order.extend(at..rows);
        Self { rows: order, counts }
    }
}

/// Where an adapter's factors lie in the pools, and what their product is multiplied with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factor {
    pub(crate) from: usize,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    pub(crate) keep: Option<Keep>,
}
