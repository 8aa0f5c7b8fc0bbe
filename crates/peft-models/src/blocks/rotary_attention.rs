//! Self-attention with rotary positions and grouped key heads.

use burn::{
    module::Module,
    nn::{Dropout, Linear},
    tensor::Tensor,
};
use peft_backends::ops::Normed;

use super::{
    DecoderContext, DecoderSizes, Heads, LayerType, Layers, RmsNorm, Scores, adapted_linear, attend,
    linear::adapted_linear_of,
};

/// The part of an attention without parameters: which layer it is of, its heads and its scores.
#[derive(Debug, Clone)]
pub struct RotaryHeads {
    /// The index of its layer: where its past keys and values are.
    pub layer: usize,
    /// What it looks at.
    pub layer_type: LayerType,
    /// Heads of the queries.
    pub queries: Heads,
    /// Heads of the keys and values.
    pub keys: Heads,
    /// How its scores differ from the plain ones.
    pub scores: Scores,
}

impl RotaryHeads {
    /// Turns queries and keys to their positions, puts the past before the keys, and attends.
    ///
    /// # Shapes
    /// - `q`: `[batch, sequence, heads, dim]`
    /// - `k`, `v`: `[batch, sequence, key heads, dim]`
    /// - returned: `[batch, sequence, heads · dim]`
    pub fn attend(
        &self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        drop: &Dropout,
        context: &DecoderContext,
    ) -> Tensor<3> {
        let view = context.view(self.layer_type);
        let rotated = |x| view.tables.rotate(x).swap_dims(1, 2);
        let (q, k, v) = (rotated(q), rotated(k), v.swap_dims(1, 2));
        let (k, v) = match &context.past {
            Some(past) => past.extend(self.layer, k, v),
            None => (k, v),
        };
        self.queries.merge(attend(q, k, v, &view.mask, drop, &self.scores))
    }
}

/// The attention of Llama and its kin, by the names of their tensors.
#[derive(Module, Debug)]
pub struct RotaryAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    dropout: Dropout,
    #[module(skip)]
    heads: RotaryHeads,
}

/// In what the attention of a family differs from Llama's.
#[derive(Debug, Clone, Copy)]
pub struct AttentionOptions {
    /// Whether queries, keys and values have a bias.
    pub bias: bool,
    /// Whether the output has one.
    pub output_bias: bool,
    /// Dropout of the attention weights: `attention_dropout`.
    pub dropout: f64,
    /// What it looks at.
    pub layer_type: LayerType,
    /// The factor of the scores in place of `1 / √dim`.
    pub scale: Option<f64>,
    /// The bound of the scores.
    pub soft_cap: Option<f64>,
}

impl Default for AttentionOptions {
    fn default() -> Self {
        let layer_type = LayerType::Full;
        Self { bias: false, output_bias: false, dropout: 0.0, layer_type, scale: None, soft_cap: None }
    }
}

impl RotaryAttention {
    /// The attention of layer `layer` of a decoder of these sizes.
    pub fn new(make: &Layers<'_>, sizes: &DecoderSizes, layer: usize, options: &AttentionOptions) -> Self {
        let DecoderSizes { hidden, heads, key_heads, .. } = *sizes;
        let scores = Scores { scale: options.scale, soft_cap: options.soft_cap, bias: None };
        Self {
            q_proj: make.linear(hidden, heads.width(), options.bias),
            k_proj: make.linear(hidden, key_heads.width(), options.bias),
            v_proj: make.linear(hidden, key_heads.width(), options.bias),
            o_proj: make.linear(heads.width(), hidden, options.output_bias),
            q_norm: None,
            k_norm: None,
            dropout: make.dropout(options.dropout),
            heads: RotaryHeads { layer, layer_type: options.layer_type, queries: heads, keys: key_heads, scores },
        }
    }

    /// The same with a norm over each head's queries and keys, before they are turned.
    #[must_use]
    pub fn with_head_norms(mut self, norm: impl Fn() -> RmsNorm) -> Self {
        self.q_norm = Some(norm());
        self.k_norm = Some(norm());
        self
    }

    /// # Shapes
    /// - `hidden`, returned: `[batch, sequence, hidden]`
    pub fn forward(&self, hidden: Normed<3>, context: &DecoderContext) -> Tensor<3> {
        let [batch, length, _] = hidden.value.dims();
        let project = |linear, heads: Heads, norm: Option<&RmsNorm>| {
            let x = adapted_linear_of(linear, hidden.clone()).reshape([batch, length, heads.count, heads.dim]);
            match norm {
                Some(norm) => norm.forward(x),
                None => x,
            }
        };
        let q = project(&self.q_proj, self.heads.queries, self.q_norm.as_ref());
        let k = project(&self.k_proj, self.heads.keys, self.k_norm.as_ref());
        let v = project(&self.v_proj, self.heads.keys, None);
        adapted_linear(&self.o_proj, self.heads.attend(q, k, v, &self.dropout, context))
    }
}
