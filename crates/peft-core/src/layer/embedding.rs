//! Embeddings that find an adapter on their own weight.

use burn::{
    nn::Embedding,
    tensor::{Int, Tensor, module},
};

use super::rows as by_rows;
use crate::{AdapterSet, FrozenWeight};

/// An embedding and the active adapters on its weight.
///
/// # Shapes
/// - `ids`: `[batch, sequence]`
/// - returned: `[batch, sequence, dimensions]`
pub fn adapted_embedding(embedding: &Embedding, ids: Tensor<2, Int>) -> Tensor<3> {
    if let Some(rows) = by_rows::rows_of(embedding.weight.reparameterization(), None) {
        return by_rows::embedding(&rows, &embedding.weight, ids);
    }
    match embedding.weight.reparameterization::<AdapterSet>() {
        None => module::embedding(embedding.weight.val(), ids),
        Some(set) if set.replaces() => module::embedding(embedding.weight.val(), ids),
        Some(set) => {
            let base = embedding.weight.base();
            let dtype = base.dtype();
            let weight = set.quantized().map_or_else(|| FrozenWeight::Dense(base), FrozenWeight::Quantized);
            let frozen = weight.embed(ids.clone(), dtype);
            set.tuned().fold(frozen, |out, (layer, tensors)| layer.embed(&tensors, &weight, ids.clone(), out))
        }
    }
}
