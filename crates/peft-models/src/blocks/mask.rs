//! Which positions a token may look at, worked out once for all layers of a forward pass.

use std::cell::OnceCell;

use burn::tensor::{Bool, DType, Device, Int, Tensor};
use peft_backends::device::is_host;

/// The mask of an attention, in the two forms that kernels take; each is built when the first layer asks for it.
#[derive(Debug)]
pub struct AttentionMask {
    /// True at padding, `[batch, keys]`.
    padding: Option<Tensor<2, Bool>>,
    causal: bool,
    batch: usize,
    queries: usize,
    keys: usize,
    device: Device,
    hidden: OnceCell<Option<Tensor<4, Bool>>>,
    additive: OnceCell<Option<Tensor<4>>>,
}

impl AttentionMask {
    /// Every token looks at every token that is no padding.
    ///
    /// # Shapes
    /// - `attention_mask`: `[batch, keys]`, 0 at padding
    pub fn bidirectional(attention_mask: Option<&Tensor<2, Int>>, hidden: &Tensor<3>) -> Self {
        Self::new(attention_mask, hidden, false)
    }

    /// A token looks at itself and what is before it, if that is no padding.
    ///
    /// # Shapes
    /// - `attention_mask`: `[batch, keys]`, 0 at padding; `keys` may exceed the queries by what stands before them
    pub fn causal(attention_mask: Option<&Tensor<2, Int>>, hidden: &Tensor<3>) -> Self {
        Self::new(attention_mask, hidden, true)
    }

    fn new(attention_mask: Option<&Tensor<2, Int>>, hidden: &Tensor<3>, causal: bool) -> Self {
        let [batch, queries, _] = hidden.dims();
        let device = hidden.device().inner();
        let keys = attention_mask.map_or(queries, |mask| mask.dims()[1]);
        let padding = attention_mask.map(|mask| mask.clone().equal_scalar(0));
        // Most batches of equal length have no padding. On a GPU asking would cost more than a mask that hides nothing.
        let padding = padding.filter(|padding| !is_host(&device) || padding.clone().any().into_scalar::<bool>());
        let (hidden, additive) = (OnceCell::new(), OnceCell::new());
        Self { padding, causal, batch, queries, keys, device, hidden, additive }
    }

    /// Whether a kernel should hide the future by itself, because nothing else is hidden.
    pub(super) fn only_causal(&self) -> bool {
        self.causal && self.padding.is_none()
    }

    /// True where a key is hidden, `[batch or 1, 1, queries, keys]`; none if nothing is.
    pub(super) fn hidden(&self) -> Option<Tensor<4, Bool>> {
        let build = || match (&self.padding, self.causal) {
            (None, false) => None,
            (None, true) => Some(self.future()),
            (Some(padding), causal) => {
                let keys = [self.batch, 1, self.queries, self.keys];
                let padding = padding.clone().reshape([self.batch, 1, 1, self.keys]).expand(keys);
                Some(if causal { padding.bool_or(self.future().expand(keys)) } else { padding })
            }
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
            let hidden = match &self.padding {
                Some(padding) if !self.causal => padding.clone().reshape([self.batch, 1, 1, self.keys]),
                _ => self.hidden()?,
            };
            let least = dtype.finfo().map_or(f64::from(f32::MIN), |info| info.min);
            Some(Tensor::zeros(hidden.dims(), (&self.device, dtype)).mask_fill(hidden, least))
        };
        self.additive.get_or_init(build).clone()
    }

    /// True where a key is later than the query, `[1, 1, queries, keys]`.
    fn future(&self) -> Tensor<4, Bool> {
        let count = |n: usize| Tensor::<1, Int>::arange(0..i64::try_from(n).unwrap_or(i64::MAX), &self.device);
        let before = i64::try_from(self.keys.saturating_sub(self.queries)).unwrap_or(i64::MAX);
        let queries = (count(self.queries) + before).reshape([1, 1, self.queries, 1]);
        let keys = count(self.keys).reshape([1, 1, 1, self.keys]);
        let all = [1, 1, self.queries, self.keys];
        keys.expand(all).greater(queries.expand(all))
    }
}
