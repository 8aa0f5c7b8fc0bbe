//! Past keys and values: the cache of generation, and the prompt of prefix tuning.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Int, Tensor};

/// Keys and values of one attention, each `[batch, key heads, past, head dim]`.
pub type KeyValues = (Tensor<4>, Tensor<4>);

/// Keys and values of the tokens before the input, for each attention of a model; a handle, so copies share them.
///
/// Made empty for generation, where each forward pass appends its own for the next; made full by prefix tuning.
/// Decoder layer `n` has slot `n`. The attention over an encoder's states has slots of its own ([`cross`](Self::cross)).
#[derive(Debug, Clone, Default)]
pub struct PastKeyValues {
    slots: Arc<Mutex<Slots>>,
}

#[derive(Debug, Default)]
struct Slots {
    own: Vec<Option<KeyValues>>,
    cross: Vec<Option<KeyValues>>,
}

impl PastKeyValues {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What layers are to find before their input, from the first layer on.
    pub fn filled(layers: Vec<KeyValues>) -> Self {
        let slots = Slots { own: layers.into_iter().map(Some).collect(), cross: Vec::new() };
        Self { slots: Arc::new(Mutex::new(slots)) }
    }

    /// Fills a handle that others hold already.
    pub fn fill(&self, layers: Vec<KeyValues>) {
        self.with(|slots| slots.own = layers.into_iter().map(Some).collect());
    }

    /// How many positions the cache holds; read it before the first layer appends.
    pub fn length(&self) -> usize {
        self.with(|slots| slots.own.iter().flatten().next().map_or(0, |(keys, _)| keys.dims()[2]))
    }

    /// Appends this input's keys and values to the layer's past and returns both.
    pub fn extend(&self, layer: usize, keys: Tensor<4>, values: Tensor<4>) -> KeyValues {
        self.with(|slots| {
            let slot = at(&mut slots.own, layer);
            let (keys, values) = match slot.take() {
                // A prefix is kept in single precision, whatever the model computes in.
                Some((k, v)) => {
                    let (k, v) = (k.cast(keys.dtype()), v.cast(values.dtype()));
                    (Tensor::cat(vec![k, keys], 2), Tensor::cat(vec![v, values], 2))
                }
                None => (keys, values),
            };
            *slot = Some((keys.clone(), values.clone()));
            (keys, values)
        })
    }

    /// The layer's keys and values of the encoder's states, made at the first pass and kept.
    pub fn cross(&self, layer: usize, make: impl FnOnce() -> KeyValues) -> KeyValues {
        self.with(|slots| at(&mut slots.cross, layer).get_or_insert_with(make).clone())
    }

    /// Puts other rows in the place of the rows, as a beam search chooses them, `[new batch]`.
    pub fn select(&self, rows: &Tensor<1, Int>) {
        self.with(|slots| {
            for (keys, values) in slots.own.iter_mut().chain(&mut slots.cross).flatten() {
                *keys = keys.clone().select(0, rows.clone());
                *values = values.clone().select(0, rows.clone());
            }
        });
    }

    fn with<T>(&self, f: impl FnOnce(&mut Slots) -> T) -> T {
        f(&mut self.slots.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn at(slots: &mut Vec<Option<KeyValues>>, layer: usize) -> &mut Option<KeyValues> {
    if slots.len() <= layer {
        slots.resize(layer + 1, None);
    }
    &mut slots[layer]
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn keys(rows: [[f32; 2]; 2]) -> Tensor<4> {
        Tensor::<2>::from_data(rows, &Device::flex()).reshape([2, 1, 2, 1])
    }

    #[test]
    fn each_layer_grows_by_itself() {
        let past = PastKeyValues::new();
        assert_eq!(past.length(), 0);
        past.extend(1, keys([[1.0, 2.0], [3.0, 4.0]]), keys([[0.0; 2]; 2]));
        let (grown, _) = past.extend(1, keys([[5.0, 6.0], [7.0, 8.0]]), keys([[0.0; 2]; 2]));
        assert_eq!(grown.into_data().try_to_vec::<f32>().ok(), Some(vec![1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]));
        assert_eq!(past.length(), 4);
        assert_eq!(past.extend(0, keys([[0.0; 2]; 2]), keys([[0.0; 2]; 2])).0.dims(), [2, 1, 2, 1]);
    }

    #[test]
    fn rows_are_chosen_for_all_layers() {
        let past = PastKeyValues::filled(vec![(keys([[1.0, 2.0], [3.0, 4.0]]), keys([[5.0, 6.0], [7.0, 8.0]]))]);
        past.cross(0, || (keys([[9.0; 2], [8.0; 2]]), keys([[0.0; 2]; 2])));
        past.select(&Tensor::from_data([1, 1, 0], &Device::flex()));
        let (crossed, _) = past.cross(0, || (keys([[0.0; 2]; 2]), keys([[0.0; 2]; 2])));
        assert_eq!(crossed.into_data().try_to_vec::<f32>().ok(), Some(vec![8.0, 8.0, 8.0, 8.0, 9.0, 9.0]));
        assert_eq!(
            past.extend(0, Tensor::zeros([3, 1, 1, 1], &Device::flex()), Tensor::zeros([3, 1, 1, 1], &Device::flex()))
                .0
                .dims(),
            [3, 1, 3, 1]
        );
    }
}
