//! What queries see.

use std::sync::Arc;
#[cfg(feature = "gpu")]
use std::sync::OnceLock;

#[cfg(feature = "gpu")]
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// Which keys a query sees: of all those that no field hides.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// Keys later than the query are hidden; the last query stands where the last key does.
    pub causal: bool,
    /// How many positions before and after its own it sees.
    pub window: Option<[usize; 2]>,
    /// Which keys are hidden from all, `[batch · keys]`.
    pub hidden: Option<Arc<[bool]>>,
    /// To which of several examples in a row a position belongs, `[batch · keys]`: a query sees its own, and queries are keys.
    pub examples: Option<Arc<[i64]>>,
    /// What a GPU has of the rest, so that all layers that see the same share it; empty to begin with.
    pub marks: Marks,
}

/// What a GPU has of a [`Sight`] and its copies. It goes with the last of them.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    #[cfg(feature = "gpu")]
    first: Arc<OnceLock<(Case, OnDevice)>>,
}

#[cfg(all(test, feature = "gpu"))]
impl Marks {
    pub(crate) fn is_there(&self) -> bool {
        self.first.get().is_some()
    }
}

/// Marks, and whether they say of a query that it sees nothing.
#[cfg(feature = "gpu")]
type OnDevice = (Tensor<1, Int>, bool);

/// What marks are of, beside what is hidden.
#[cfg(feature = "gpu")]
#[derive(Debug, Clone, PartialEq)]
struct Case {
    device: Device,
    sizes: [usize; 3],
    causal: bool,
    window: Option<[usize; 2]>,
}

impl Sight {
    /// What is hidden of the keys of a row of the batch.
    pub(crate) fn keys_of_row(&self, batch: usize, keys: usize) -> KeysOfRow<'_> {
        let part = batch * keys..(batch + 1) * keys;
        KeysOfRow {
            hidden: self.hidden.as_deref().and_then(|hidden| hidden.get(part.clone())),
            examples: self.examples.as_deref().and_then(|examples| examples.get(part)),
        }
    }

    /// The keys that a query at this place may see, as far as causality and the window say.
    pub(crate) fn range(&self, query: usize, queries: usize, keys: usize) -> [usize; 2] {
        let place = query + keys.saturating_sub(queries);
        let mut range = [0, keys];
        if self.causal {
            range[1] = keys.min(place + 1);
        }
        if let Some([before, after]) = self.window {
            range[0] = place.saturating_sub(before);
            range[1] = range[1].min(place.saturating_add(after).saturating_add(1));
        }
        range
    }

    /// The queries of each row of the batch that see nothing.
    pub(crate) fn blind(&self, batch: usize, queries: usize, keys: usize) -> Vec<bool> {
        let row = self.keys_of_row(batch, keys);
        let Some(hidden) = row.hidden else { return Vec::new() };
        let mut seen = Vec::with_capacity(keys + 1);
        let mut sum = 0_usize;
        seen.push(sum);
        for hidden in hidden {
            sum += usize::from(!hidden);
            seen.push(sum);
        }
        let blind = |query: usize| {
            // Of packed examples every query that is no padding sees itself.
            let own = row.examples.is_some() && hidden.get(query) == Some(&true);
            let [from, to] = self.range(query, queries, keys);
            own || from >= to || seen.get(from) == seen.get(to)
        };
        (0..queries).map(blind).collect()
    }
}

#[cfg(feature = "gpu")]
impl Sight {
    /// What is not the same for all queries, in one piece as a GPU's kernels take it: to which example each key belongs,
    /// `[batch · keys]`, or `none` if it is hidden, and which queries see nothing, `[batch · queries]`. One number if that is all.
    /// Beside it whether there is a query that sees nothing.
    ///
    /// They are worked out and brought there for the first layer that asks.
    pub(crate) fn marks_on(&self, device: &Device, sizes: [usize; 3], none: i32) -> OnDevice {
        let case = Case { device: device.clone(), sizes, causal: self.causal, window: self.window };
        let bring = || {
            if self.hidden.is_none() && self.examples.is_none() {
                // Made there: a computation that is recorded gets nothing from the host.
                return (Tensor::zeros([1], (device, DType::I32)), false);
            }
            let [batch, queries, keys] = sizes;
            let marks = self.marks(batch, queries, keys, none);
            let blind = marks.iter().skip(batch * keys).any(|mark| *mark != 0);
            let count = marks.len();
            (Tensor::from_data(TensorData::new(marks, [count]), (device, DType::I32)), blind)
        };
        let (of, marks) = self.marks.first.get_or_init(|| (case.clone(), bring()));
        if *of == case { marks.clone() } else { bring() }
    }

    pub(crate) fn marks(&self, batch: usize, queries: usize, keys: usize, none: i32) -> Vec<i32> {
        let hides = |at: usize| self.hidden.as_deref().is_some_and(|hidden| hidden.get(at) == Some(&true));
        let example = |at: usize| {
            let example = self.examples.as_deref().and_then(|examples| examples.get(at)).copied().unwrap_or_default();
            i32::try_from(example).unwrap_or(i32::MAX)
        };
        let mut marks: Vec<i32> = (0..batch * keys).map(|at| if hides(at) { none } else { example(at) }).collect();
        for row in 0..batch {
            let mut blind = self.blind(row, queries, keys);
            blind.resize(queries, false);
            marks.extend(blind.into_iter().map(i32::from));
        }
        marks
    }
}

/// What is hidden of the keys of one row of the batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeysOfRow<'a> {
    pub(crate) hidden: Option<&'a [bool]>,
    pub(crate) examples: Option<&'a [i64]>,
}
