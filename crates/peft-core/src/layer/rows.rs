//! Layers in batches whose rows use different adapters.
//!
//! All rows go through one product with the frozen weight, and then each row's own adapter is added. A layer finds out whose rows
//! are whose by the first dimension of its input, which has to be the batch.

use std::{ops::Range, sync::Arc};

use burn::{
    module::Param,
    tensor::{Int, Tensor, module},
};

use crate::{
    AdapterSet, FrozenWeight,
    adapter::rows::AdapterRows,
    plugins::{rows_part::RowsPart, tuner::LinearCall},
    weight::Product,
};

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
    let frozen = match sets.0.and_then(AdapterSet::quantized) {
        Some(quantized) => FrozenWeight::Quantized(quantized),
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

/// An embedding whose table has adapters that act on some of the rows.
///
/// # Shapes
/// - `ids`: `[batch, sequence]`
/// - returned: `[batch, sequence, dimensions]`
pub(crate) fn embedding(rows: &AdapterRows, weight: &Param<Tensor<2>>, ids: Tensor<2, Int>) -> Tensor<3> {
    let set = weight.reparameterization::<AdapterSet>();
    let base = weight.base();
    let dtype = base.dtype();
    let table = set.and_then(AdapterSet::quantized).map_or_else(|| FrozenWeight::Dense(base), FrozenWeight::Quantized);
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
