//! The trunk of decoders with rotary positions: words, layers, a last norm, and what all layers of a pass share.

use std::sync::Arc;

use burn::{
    module::{Module, ModuleDisplay},
    nn::Embedding,
    tensor::Tensor,
};
use peft_core::{Forward, FreshValues, Inputs, ModelInfo, Outputs, PastKeyValues, PastShape, Result};

use super::{
    AttentionMask, CausalBackbone, CausalModel, Fields, Heads, LayerType, Layers, RmsNorm, Rotary, RotaryTables,
    embed_scaled, past_length, positions, positions_end, run_layers,
};

/// The sizes of a decoder, as the configurations of Llama and its kin have them.
#[derive(Debug, Clone, Copy)]
pub struct DecoderSizes {
    /// `vocab_size`.
    pub vocab: usize,
    /// `hidden_size`.
    pub hidden: usize,
    /// `intermediate_size`: the width inside a feed-forward block.
    pub inner: usize,
    /// `num_hidden_layers`.
    pub n_layers: usize,
    /// `num_attention_heads` of `head_dim`.
    pub heads: Heads,
    /// `num_key_value_heads` of `head_dim`.
    pub key_heads: Heads,
}

impl DecoderSizes {
    /// Reads the sizes; where there is no `head_dim` it is the family's, or the heads divide the hidden state.
    ///
    /// # Errors
    /// [`peft_core::Error::Config`] for a size that is missing or heads that do not divide.
    pub fn read(fields: Fields<'_>, head_dim: Option<usize>) -> Result<Self> {
        let hidden = fields.size("hidden_size")?;
        let count = fields.size("num_attention_heads")?;
        let key_count = fields.optional_size("num_key_value_heads")?.unwrap_or(count);
        if !count.is_multiple_of(key_count) {
            let problem = format!("{key_count} key heads do not divide the {count} num_attention_heads");
            return Err(Fields::error("num_key_value_heads", problem));
        }
        let dim = match fields.optional_size("head_dim")?.or(head_dim) {
            Some(dim) => dim,
            None if hidden.is_multiple_of(count) => hidden / count,
            None => {
                let problem = format!("{count} heads do not divide the hidden_size {hidden}, and there is no head_dim");
                return Err(Fields::error("num_attention_heads", problem));
            }
        };
        Ok(Self {
            vocab: fields.size("vocab_size")?,
            hidden,
            inner: fields.size("intermediate_size")?,
            n_layers: fields.layers("num_hidden_layers")?,
            heads: Heads { count, dim },
            key_heads: Heads { count: key_count, dim },
        })
    }
}

/// A layer of a [`Decoder`].
pub trait DecoderLayer: Module + ModuleDisplay + Sync + 'static {
    /// The next hidden state.
    ///
    /// # Shapes
    /// - `hidden`, returned: `[batch, sequence, hidden]`
    fn forward(&self, hidden: Tensor<3>, context: &DecoderContext) -> Tensor<3>;
}

/// The backbone: `LlamaModel` and its kin, by the names of their tensors.
#[derive(Module, Debug)]
pub struct Decoder<L: DecoderLayer> {
    embed_tokens: Embedding,
    layers: Vec<L>,
    norm: RmsNorm,
    embedding_scale: f64,
    #[module(skip)]
    sight: Sight,
    #[module(skip)]
    past: PastShape,
}

/// What a decoder's layers see of the tokens before, and how they tell their positions.
#[derive(Debug, Clone)]
pub struct Sight {
    /// Positions.
    pub rotary: Rotary,
    /// How many tokens a sliding layer sees, itself the last.
    pub window: Option<usize>,
    /// Positions in sliding layers, where they differ.
    pub sliding_rotary: Option<Rotary>,
}

impl Sight {
    /// Of a decoder that sees everything before.
    pub fn new(rotary: Rotary) -> Self {
        Self { rotary, window: None, sliding_rotary: None }
    }
}

impl<L: DecoderLayer> Decoder<L> {
    /// A decoder of these layers and this last norm.
    pub fn new(make: &Layers<'_>, sizes: &DecoderSizes, sight: Sight, layers: Vec<L>, norm: RmsNorm) -> Self {
        let past = sizes.key_heads.past(layers.len());
        Self {
            embed_tokens: make.embedding(sizes.vocab, sizes.hidden),
            layers,
            norm,
            embedding_scale: 1.0,
            sight,
            past,
        }
    }

    /// The same with words, but not embedded inputs, multiplied by a factor: `√hidden` in Gemma.
    #[must_use]
    pub fn with_word_scale(self, embedding_scale: f64) -> Self {
        Self { embedding_scale, ..self }
    }

    /// With what Llama and its kin say of themselves; what a family has otherwise, it sets in the result.
    ///
    /// # Errors
    /// [`peft_core::Error::Config`] if `max_position_embeddings` is missing or `tie_word_embeddings` is no truth value.
    pub fn into_model(self, model_type: &str, class_name: String, fields: Fields<'_>) -> Result<CausalModel<Self>> {
        let info = ModelInfo {
            model_type: model_type.to_owned(),
            class_name,
            config: fields.0.clone(),
            ignored_tensors: &["rotary_emb.inv_freq"],
            fresh: FreshValues::default().with_zero_row("embed_tokens.weight", fields.padding_row(None)?),
            embedding_scale: self.embedding_scale,
            past: Some(self.past),
            supports_checkpointing: true,
            max_positions: Some(self.sight.rotary.reach(fields.size("max_position_embeddings")?)),
            ..ModelInfo::custom()
        };
        let tied = fields.flag_or("tie_word_embeddings", false)?;
        Ok(CausalModel { backbone: self, info, words: "embed_tokens", tied, soft_cap: None })
    }
}

impl<L: DecoderLayer> CausalBackbone for Decoder<L> {
    fn decode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let hidden = embed_scaled(&self.embed_tokens, self.embedding_scale, inputs)?;
        let context = Arc::new(DecoderContext::new(&self.sight, inputs, &hidden));
        let hidden = run_layers(&self.layers, inputs.checkpointed_layers(), hidden, [], move |layer, _, hidden, []| {
            layer.forward(hidden, &context)
        });
        Some(self.norm.forward(hidden))
    }

    fn words(&self) -> &Embedding {
        &self.embed_tokens
    }
}

impl<L: DecoderLayer> Forward for Decoder<L> {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.last_hidden_state(inputs)
    }
}

/// What all layers of one forward pass share.
#[derive(Debug)]
pub struct DecoderContext {
    full: View,
    sliding: Option<View>,
    /// Keys and values of what stands before the input.
    pub past: Option<PastKeyValues>,
}

/// What a layer may look at, and where that is.
#[derive(Debug)]
pub struct View {
    /// Which tokens.
    pub mask: AttentionMask,
    /// The rotations of their positions.
    pub tables: RotaryTables,
}

impl DecoderContext {
    fn new(sight: &Sight, inputs: &Inputs, hidden: &Tensor<3>) -> Self {
        let places = positions(inputs, hidden);
        let tables = |rotary: &Rotary| {
            let end = || positions_end(inputs, hidden);
            rotary.tables(places.clone(), end, hidden.dtype(), &hidden.device().inner())
        };
        let full = View {
            mask: AttentionMask::causal(inputs.attention_mask.as_ref(), hidden, past_length(inputs)),
            tables: tables(&sight.rotary),
        };
        let sliding = sight.window.map(|window| View {
            mask: full.mask.within(window),
            tables: sight.sliding_rotary.as_ref().map_or_else(|| full.tables.clone(), tables),
        });
        Self { full, sliding, past: inputs.past_key_values.clone() }
    }

    /// What a layer of this type looks at.
    pub fn view(&self, layer_type: LayerType) -> &View {
        match (layer_type, &self.sliding) {
            (LayerType::Sliding, Some(sliding)) => sliding,
            _ => &self.full,
        }
    }
}
