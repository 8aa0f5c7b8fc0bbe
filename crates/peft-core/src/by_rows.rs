//! Batches whose rows use different adapters: PEFT's `adapter_names`.
//!
//! All rows go through one product with the frozen weight, and then each row's own adapter is added. Layers find out whose rows
//! are whose by the first dimension of their input, which has to be the batch.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use burn::{
    module::Param,
    tensor::{Int, Tensor, module},
};

use crate::{
    AdapterSet, Error, FrozenWeight, Result,
    linear::Product,
    tuner::{LayerTuner, LinearCall, Tensors},
};

/// What stands for no adapter in a list of names, as in PEFT.
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

/// Rows side by side, or the tokens in them, and what acts on them.
#[derive(Debug)]
pub struct RowsPart<'a> {
    /// The adapter's number among those that act here, in the order in which they first come.
    pub adapter: usize,
    /// The rows of the layer's input `[tokens, d_in]`.
    pub rows: Range<usize>,
    /// The adapter's tuner on this layer.
    pub layer: &'a dyn LayerTuner,
    /// The adapter's tensors on this layer.
    pub tensors: Tensors<'a>,
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
    fn runs(&self) -> impl Iterator<Item = (Option<&str>, Range<usize>)> {
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
    fn takes(&self, first: usize) -> bool {
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

/// The rows that two parameters of a layer are adapted by, if one of them is.
pub(crate) fn rows_of(weight: Option<&AdapterSet>, bias: Option<&AdapterSet>) -> Option<Arc<AdapterRows>> {
    [weight, bias].into_iter().flatten().find_map(|set| set.differs_by_row().cloned())
}

/// A linear layer whose weight or bias has adapters that act on some of the rows.
///
/// # Shapes
/// - `input`: `[tokens, d_in]`, of `first` rows
/// - returned: `[tokens, d_out]`
pub(crate) fn linear(
    rows: &AdapterRows,
    first: usize,
    weight: &Param<Tensor<2>>,
    bias: Option<&Param<Tensor<1>>>,
    input: Tensor<2>,
    product: Product,
) -> Tensor<2> {
    let sets =
        (weight.reparameterization::<AdapterSet>(), bias.and_then(|bias| bias.reparameterization::<AdapterSet>()));
    let frozen = match sets.0.and_then(AdapterSet::packed) {
        Some(packed) => FrozenWeight::Packed(packed),
        None => FrozenWeight::Dense(weight.base()),
    };
    let bias_of = |adapter: Option<&str>| bias.map(|bias| row_value(sets.1, adapter, bias.base()));
    let training = sets.0.is_some_and(AdapterSet::is_training);
    let acts = [sets.0, sets.1].into_iter().flatten().any(AdapterSet::acts_on_rows);
    if !acts || !rows.takes(first) {
        return frozen.linear(product, input, bias_of(None));
    }
    // Of a row with all that stands in its place.
    let tokens = input.dims()[0] / rows.count().max(1);
    let in_tokens = |rows: Range<usize>| rows.start * tokens..rows.end * tokens;
    let bias = bias_of(None);
    // What the rows' layer is before low-rank adapters add to it: the frozen one, or the copy that their adapter saved.
    let output = if [sets.0, sets.1].into_iter().flatten().any(AdapterSet::has_copies) {
        let part = |(adapter, rows): (Option<&str>, Range<usize>)| {
            let rows = in_tokens(rows);
            let input = input.clone().narrow(0, rows.start, rows.len());
            let bias = bias_of(adapter);
            match sets.0.and_then(|set| set.copy_of(adapter)) {
                Some(copy) => product(input, copy, bias),
                None => frozen.linear(product, input, bias),
            }
        };
        Tensor::cat(rows.runs().map(part).collect(), 0)
    } else {
        frozen.linear(product, input.clone(), bias.clone())
    };
    let mut met: Vec<&str> = Vec::new();
    let mut parts: Vec<RowsPart<'_>> = Vec::new();
    for (name, rows) in rows.runs().filter(|_| tokens > 0) {
        let tuned = name.and_then(|name| Some((name, sets.0?.tuned_by(name)?)));
        let Some((name, (layer, tensors))) = tuned else { continue };
        let adapter = met.iter().position(|own| *own == name).unwrap_or_else(|| {
            met.push(name);
            met.len() - 1
        });
        parts.push(RowsPart { adapter, rows: in_tokens(rows), layer, tensors });
    }
    let Some(first) = parts.first() else { return output };
    let call = LinearCall { input, weight: frozen, bias, training };
    first.layer.forward_by_rows(&parts, &call, output)
}

/// Adds the contributions of adapters to their rows, each part by itself.
///
/// # Shapes
/// - `output`, returned: `[tokens, d_out]`
pub fn one_by_one(parts: &[RowsPart<'_>], call: &LinearCall, output: &Tensor<2>) -> Tensor<2> {
    let mut done = Vec::new();
    let mut at = 0;
    let total = output.dims()[0];
    for RowsPart { rows, layer, tensors, .. } in parts {
        done.extend((rows.start > at).then(|| output.clone().narrow(0, at, rows.start - at)));
        let narrow = |x: &Tensor<2>| x.clone().narrow(0, rows.start, rows.len());
        let call = LinearCall {
            input: narrow(&call.input),
            weight: call.weight.clone(),
            bias: call.bias.clone(),
            training: call.training,
        };
        done.push(layer.forward(tensors, &call, narrow(output)));
        at = rows.end;
    }
    done.extend((at < total).then(|| output.clone().narrow(0, at, total - at)));
    Tensor::cat(done, 0)
}

/// An embedding whose table has adapters that act on some of the rows.
///
/// # Shapes
/// - `ids`: `[batch, sequence]`
/// - returned: `[batch, sequence, dimensions]`
pub(crate) fn embedding(rows: &AdapterRows, weight: &Param<Tensor<2>>, ids: Tensor<2, Int>) -> Tensor<3> {
    let set = weight.reparameterization::<AdapterSet>();
    let base = weight.base();
    let dtype = base.dtype();
    let table = set.and_then(AdapterSet::packed).map_or_else(|| FrozenWeight::Dense(base), FrozenWeight::Packed);
    let plain = |ids: Tensor<2, Int>| table.embed(ids, dtype);
    if !set.is_some_and(AdapterSet::acts_on_rows) || !rows.takes(ids.dims()[0]) {
        return plain(ids);
    }
    let repeats = ids.dims()[0] / rows.count().max(1);
    let part = |(adapter, rows): (Option<&str>, Range<usize>)| {
        let ids = ids.clone().narrow(0, rows.start * repeats, rows.len() * repeats);
        if let Some(copy) = set.and_then(|set| set.copy_of(adapter)) {
            return module::embedding(copy, ids);
        }
        let words = plain(ids.clone());
        match set.zip(adapter).and_then(|(set, adapter)| set.tuned_by(adapter)) {
            Some((layer, tensors)) => layer.embed(&tensors, &table, ids, words),
            None => words,
        }
    };
    Tensor::cat(rows.runs().map(part).collect(), 0)
}

/// What a bias is for rows of an adapter: its copy, or a bias that was trained for all rows, or the base's own.
fn row_value(set: Option<&AdapterSet>, adapter: Option<&str>, base: Tensor<1>) -> Tensor<1> {
    let Some(set) = set else { return base };
    set.copy_of(adapter).or_else(|| set.trained_bias()).unwrap_or(base)
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
