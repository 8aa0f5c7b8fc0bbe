//! Which positions a token may look at, worked out once for all layers of a forward pass.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Bool, DType, Device, Element, Int, Tensor, kind::Basic};
use peft_backends::{device::is_host, ops::Sight};

/// The mask of an attention, in the two forms that kernels take; each is built when the first layer asks for it.
///
/// An attention mask may lie on the host, whatever the model's device. One that lies on a GPU is waited for.
#[derive(Debug)]
pub struct AttentionMask {
    /// True at padding, `[batch, keys]`.
    padding: Option<Tensor<2, Bool>>,
    /// Which of the packed examples each position belongs to, `[batch, keys]`; none where there is one a row.
    examples: Option<Tensor<2, Int>>,
    causal: bool,
    /// How many positions a token sees: of itself and what is before it, or to either side.
    window: Option<Window>,
    batch: usize,
    queries: usize,
    keys: usize,
    device: Device,
    hidden: OnceLock<Option<Tensor<4, Bool>>>,
    additive: OnceLock<Option<Tensor<4>>>,
    sight: OnceLock<Sight>,
}

impl AttentionMask {
    /// Every token looks at every token that is no padding.
    ///
    /// # Shapes
    /// - `attention_mask`: `[batch, keys]`, 0 at padding
    pub fn bidirectional(attention_mask: Option<&Tensor<2, Int>>, hidden: &Tensor<3>) -> Self {
        Self::new(attention_mask, hidden, false, 0)
    }

    /// A token looks at itself and what is before it, if that is no padding.
    ///
    /// # Shapes
    /// - `attention_mask`: `[batch, past + queries]`, 0 at padding; packed examples are numbered from 1
    /// - `past`: how many positions stand before the input
    pub fn causal(attention_mask: Option<&Tensor<2, Int>>, hidden: &Tensor<3>, past: usize) -> Self {
        let mut mask = Self::new(attention_mask, hidden, true, past);
        let is_packed = |mask: &Tensor<2, Int>| mask.clone().greater_scalar(1).any().into_scalar::<bool>();
        mask.examples = attention_mask.filter(|mask| past == 0 && is_packed(mask)).cloned();
        mask
    }

    /// The tokens of `hidden` look at the states of an encoder, `[batch, keys]`, that are no padding.
    pub fn cross(attention_mask: Option<&Tensor<2, Int>>, hidden: &Tensor<3>, keys: usize) -> Self {
        let queries = hidden.dims()[1];
        Self { keys, ..Self::new(attention_mask, hidden, false, keys.saturating_sub(queries)) }
    }

    /// The same with a sliding window over it: of a causal mask a token sees `window` positions, itself the last; of another
    /// those at most `window` away on either side.
    #[must_use]
    pub fn within(&self, window: usize) -> Self {
        let window = i64::try_from(window).unwrap_or(i64::MAX);
        let window = if self.causal {
            Window { before: window.saturating_sub(1), after: 0 }
        } else {
            Window { before: window, after: window }
        };
        Self {
            padding: self.padding.clone(),
            examples: self.examples.clone(),
            window: Some(window),
            device: self.device.clone(),
            hidden: OnceLock::new(),
            additive: OnceLock::new(),
            sight: OnceLock::new(),
            ..*self
        }
    }

    fn new(attention_mask: Option<&Tensor<2, Int>>, hidden: &Tensor<3>, causal: bool, past: usize) -> Self {
        let [batch, queries, _] = hidden.dims();
        let device = hidden.device().inner();
        let keys = attention_mask.map_or(past + queries, |mask| mask.dims()[1]);
        let padding = attention_mask.map(|mask| mask.clone().equal_scalar(0));
        // Most batches of equal length have no padding. Asking a GPU would cost more than a mask that hides nothing.
        let is_far = |padding: &Tensor<2, Bool>| !is_host(&padding.device().inner());
        let padding = padding.filter(|padding| is_far(padding) || padding.clone().any().into_scalar::<bool>());
        let (hidden, additive, sight) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { padding, examples: None, causal, window: None, batch, queries, keys, device, hidden, additive, sight }
    }

    /// Whether a kernel should hide the future by itself, because nothing else is hidden.
    pub(super) fn only_causal(&self) -> bool {
        self.causal && self.padding.is_none() && self.window.is_none() && self.examples.is_none()
    }

    /// Whether there may be a query that sees no key.
    pub(super) fn may_hide_all(&self) -> bool {
        self.padding.is_some() && (self.window.is_some() || self.causal && self.queries > 1)
    }

    /// True where a key is hidden, `[batch or 1, 1, queries, keys]`; none if nothing is.
    pub(super) fn hidden(&self) -> Option<Tensor<4, Bool>> {
        let build = || {
            let unseen = (self.causal && self.queries > 1 || self.window.is_some()).then(|| self.unseen());
            let unseen = match (unseen, self.of_others()) {
                (Some(unseen), Some(others)) => Some(unseen.expand(others.dims()).bool_or(others)),
                (unseen, others) => unseen.or(others),
            };
            let Some(padding) = self.padding_of_keys() else { return unseen };
            let all = [self.batch, 1, self.queries, self.keys];
            let padding = padding.expand(all);
            Some(match unseen {
                Some(unseen) => padding.bool_or(unseen.expand(all)),
                None => padding,
            })
        };
        self.hidden.get_or_init(build).clone()
    }

    /// What is added to the scores: 0, or the least finite number where a key is hidden. With an infinity a row that
    /// sees nothing would be no number.
    ///
    /// # Shapes
    /// - returned: `[batch or 1, 1, queries or 1, keys]`
    pub(super) fn additive(&self, dtype: DType) -> Option<Tensor<4>> {
        let build = || {
            let hidden = match self.padding_of_keys() {
                Some(padding) if !self.causal && self.window.is_none() => padding,
                _ => self.hidden()?,
            };
            let least = dtype.finfo().map_or(f64::from(f32::MIN), |info| info.min);
            Some(Tensor::zeros(hidden.dims(), (&self.device, dtype)).mask_fill(hidden, least))
        };
        self.additive.get_or_init(build).clone()
    }

    /// The same for the fused attention, which works the mask out as it goes.
    pub(super) fn sight(&self) -> &Sight {
        self.sight.get_or_init(|| {
            let size = |n: i64| usize::try_from(n).unwrap_or(usize::MAX);
            Sight {
                causal: self.causal,
                window: self.window.map(|Window { before, after }| [size(before), size(after)]),
                hidden: self.padding.clone().map(values),
                examples: self.examples.clone().map(values),
                ..Sight::default()
            }
        })
    }

    /// True at padding, `[batch, 1, 1, keys]`, on the model's device.
    fn padding_of_keys(&self) -> Option<Tensor<4, Bool>> {
        let padding = on(&self.device, self.padding.clone()?);
        Some(padding.reshape([self.batch, 1, 1, self.keys]))
    }

    /// True where a key belongs to another of the packed examples, `[batch, 1, queries, keys]`.
    fn of_others(&self) -> Option<Tensor<4, Bool>> {
        let examples = on(&self.device, self.examples.clone()?);
        let all = [self.batch, 1, self.queries, self.keys];
        let queries = examples.clone().reshape([self.batch, 1, self.keys, 1]).expand(all);
        Some(queries.not_equal(examples.reshape([self.batch, 1, 1, self.keys]).expand(all)))
    }

    /// True where a key is later than the query or outside its window, `[1, 1, queries, keys]`.
    fn unseen(&self) -> Tensor<4, Bool> {
        let count = |n: usize| Tensor::<1, Int>::arange(0..i64::try_from(n).unwrap_or(i64::MAX), &self.device);
        let before = i64::try_from(self.keys.saturating_sub(self.queries)).unwrap_or(i64::MAX);
        let all = [1, 1, self.queries, self.keys];
        let queries = (count(self.queries) + before).reshape([1, 1, self.queries, 1]).expand(all);
        let keys = count(self.keys).reshape([1, 1, 1, self.keys]).expand(all);
        let distance = keys - queries;
        match self.window {
            None => distance.greater_scalar(0),
            Some(Window { before, after }) => {
                distance.clone().lower_scalar(-before).bool_or(distance.greater_scalar(after))
            }
        }
    }
}

/// The table on the device, its numbers of the type that the device has for them.
fn on<K: Basic>(device: &Device, table: Tensor<2, K>) -> Tensor<2, K> {
    if table.device().inner() == *device { table } else { Tensor::from_data(table.into_data(), device) }
}

/// What a table holds, whatever type its device has for it: a GPU keeps a truth value in a word.
fn values<K: Basic, E: Element>(table: Tensor<2, K>) -> Arc<[E]> {
    match table.into_data().try_into_vec_as() {
        Ok(values) => values.into(),
        Err(error) => unreachable!("numbers and truth values convert: {error:?}"),
    }
}

#[derive(Debug, Clone, Copy)]
struct Window {
    before: i64,
    after: i64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn seen(mask: &AttentionMask) -> Vec<String> {
        let hidden = mask.hidden().unwrap();
        let keys = hidden.dims()[3];
        let rows = hidden.into_data().try_to_vec::<bool>().unwrap();
        rows.chunks(keys).map(|row| row.iter().map(|hidden| if *hidden { '.' } else { 'x' }).collect()).collect()
    }

    #[test]
    fn windows_past_and_padding_hide_together() {
        let hidden = Tensor::<3>::zeros([1, 3, 2], &Device::flex());
        let causal = AttentionMask::causal(None, &hidden, 2);
        assert_eq!(seen(&causal), ["xxx..", "xxxx.", "xxxxx"]);
        assert_eq!(seen(&causal.within(2)), [".xx..", "..xx.", "...xx"]);
        let padded = Tensor::from_data([[0, 1, 1, 1, 1]], &Device::flex());
        assert_eq!(seen(&AttentionMask::causal(Some(&padded), &hidden, 2)), [".xx..", ".xxx.", ".xxxx"]);
        let hidden = Tensor::<3>::zeros([1, 4, 2], &Device::flex());
        let packed = Tensor::from_data([[1, 1, 2, 2]], &Device::flex());
        assert_eq!(seen(&AttentionMask::causal(Some(&packed), &hidden, 0)), ["x...", "xx..", "..x.", "..xx"]);
        let hidden = Tensor::<3>::zeros([1, 3, 2], &Device::flex());
        assert_eq!(seen(&AttentionMask::bidirectional(None, &hidden).within(1)), ["xx.", "xxx", ".xx"]);
    }
}
