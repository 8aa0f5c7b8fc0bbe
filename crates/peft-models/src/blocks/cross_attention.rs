//! The attention of encoders and decoders: a layer that looks at its own input or at the encoder's states.

use burn::{
    module::Module,
    nn::{Dropout, Linear},
    tensor::Tensor,
};
use peft_core::{PastKeyValues, batch::past::KeyValues};

use super::{AttentionMask, CrossContext, Heads, Layers, Scores, adapted_linear, attend};

/// What all attentions of a half have in common.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSizes {
    /// Dimensions of a hidden state.
    pub width: usize,
    /// How it divides; together the heads may be narrower or wider.
    pub heads: Heads,
    /// Whether projections have a bias.
    pub bias: bool,
    /// Probability of dropping an attention weight.
    pub dropout: f64,
    /// The factor of the scores in place of `1 / √dim`.
    pub scale: Option<f64>,
}

/// Queries from the input; keys and values from the input as well, or from the encoder's states.
#[derive(Module, Debug)]
pub struct CrossAttention {
    k_proj: Linear,
    v_proj: Linear,
    q_proj: Linear,
    out_proj: Linear,
    dropout: Dropout,
    #[module(skip)]
    layer: usize,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    scale: Option<f64>,
}

impl CrossAttention {
    /// The attention of layer `layer`.
    pub fn new(layers: &Layers<'_>, sizes: &AttentionSizes, layer: usize) -> Self {
        let AttentionSizes { width, heads, bias, .. } = *sizes;
        let inner = heads.count * heads.dim;
        let project = || layers.linear(width, inner, bias);
        Self {
            k_proj: project(),
            v_proj: project(),
            q_proj: project(),
            out_proj: layers.linear(inner, width, bias),
            dropout: layers.dropout(sizes.dropout),
            layer,
            heads,
            scale: sizes.scale,
        }
    }

    /// Looks at its own input and what stands before it; `bias` is added to the scores.
    ///
    /// # Shapes
    /// - `hidden`, returned: `[batch, sequence, width]`
    /// - `bias`: `[1, heads, sequence, past + sequence]`
    pub fn own(
        &self,
        hidden: Tensor<3>,
        mask: &AttentionMask,
        past: Option<&PastKeyValues>,
        bias: Option<Tensor<4>>,
    ) -> Tensor<3> {
        let (keys, values) = self.keys_and_values(&hidden);
        let (keys, values) = match past {
            Some(past) => past.extend(self.layer, keys, values),
            None => (keys, values),
        };
        self.look(hidden, (keys, values), mask, bias)
    }

    /// Looks at the encoder's states, whose keys and values are made once and kept with the past.
    ///
    /// # Shapes
    /// - `hidden`, returned: `[batch, target, width]`
    /// - `states`: `[batch, sequence, width]`
    pub fn across(&self, hidden: Tensor<3>, states: &Tensor<3>, context: &CrossContext) -> Tensor<3> {
        let make = || self.keys_and_values(states);
        let seen = match &context.past {
            Some(past) => past.cross(self.layer, make),
            None => make(),
        };
        self.look(hidden, seen, &context.across, None)
    }

    fn keys_and_values(&self, states: &Tensor<3>) -> KeyValues {
        let project = |linear| self.heads.split(adapted_linear(linear, states.clone()));
        (project(&self.k_proj), project(&self.v_proj))
    }

    fn look(
        &self,
        hidden: Tensor<3>,
        (keys, values): KeyValues,
        mask: &AttentionMask,
        bias: Option<Tensor<4>>,
    ) -> Tensor<3> {
        let queries = self.heads.split(adapted_linear(&self.q_proj, hidden));
        let scores = Scores { scale: self.scale, bias, ..Scores::default() };
        let attended = attend(queries, keys, values, mask, &self.dropout, &scores);
        adapted_linear(&self.out_proj, self.heads.merge(attended))
    }
}
