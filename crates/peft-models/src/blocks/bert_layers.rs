//! The layers of BERT, of which RoBERTa, XLM-RoBERTa and ELECTRA are made as well; the embeddings also serve ALBERT and
//! DistilBERT.

use std::sync::Arc;

use burn::{
    module::Module,
    nn::{Dropout, Embedding, Linear},
    tensor::{Int, Tensor},
};
use peft_core::{Inputs, PastKeyValues, PastShape, Result, adapted_embedding};

use super::{
    Activation, AttentionMask, Fields, Heads, LayerNorm, Layers, adapted_linear, attention_of, dropout, embed,
    first_token, past_length, positions, run_layers,
};

/// The numbers of `config.json` that the layers are built from.
#[derive(Debug, Clone, Copy)]
pub struct BertSizes {
    /// Words: `vocab_size`.
    pub vocab: usize,
    /// Positions: `max_position_embeddings`.
    pub positions: usize,
    /// Segments: `type_vocab_size`; none where the model knows none.
    pub types: Option<usize>,
    /// Width of a hidden state: `hidden_size`.
    pub hidden: usize,
    /// Width inside the feed-forward block: `intermediate_size`.
    pub inner: usize,
    /// Layers: `num_hidden_layers`.
    pub layers: usize,
    /// Heads of the attention: `num_attention_heads`.
    pub heads: Heads,
    /// Between the matrices of the feed-forward block: `hidden_act`.
    pub activation: Activation,
    /// `layer_norm_eps`.
    pub epsilon: f64,
    /// `hidden_dropout_prob`.
    pub dropout: f64,
    /// `attention_probs_dropout_prob`.
    pub attention_dropout: f64,
}

impl BertSizes {
    /// The keys and values that can stand before the input.
    pub fn past(&self) -> PastShape {
        self.heads.past(self.layers)
    }

    /// From a configuration with the keys and defaults of BERT.
    ///
    /// # Errors
    /// [`peft_core::Error::Config`] for a size that is missing or unfit, or for what the layers do not compute.
    pub fn read(fields: Fields<'_>) -> Result<Self> {
        fields.only("position_embedding_type", &"absolute".into())?;
        fields.only("is_decoder", &false.into())?;
        let hidden = fields.size("hidden_size")?;
        Ok(Self {
            vocab: fields.size("vocab_size")?,
            positions: fields.size("max_position_embeddings")?,
            types: Some(fields.count_or("type_vocab_size", 2)?).filter(|types| *types > 0),
            hidden,
            inner: fields.size("intermediate_size")?,
            layers: fields.layers("num_hidden_layers")?,
            heads: Heads::dividing(hidden, "hidden_size", fields, "num_attention_heads")?,
            activation: fields.activation_or("hidden_act", "gelu")?,
            epsilon: fields.epsilon_or("layer_norm_eps", 1e-12)?,
            dropout: fields.probability_or("hidden_dropout_prob", 0.1)?,
            attention_dropout: fields.probability_or("attention_probs_dropout_prob", 0.1)?,
        })
    }
}

/// Words, learned positions and segments, added up and normalised.
#[derive(Module, Debug)]
pub struct BertEmbeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Option<Embedding>,
    layer_norm: LayerNorm,
    dropout: Dropout,
}

impl BertEmbeddings {
    /// Tables of vectors of this width.
    pub fn new(layers: &Layers<'_>, sizes: &BertSizes, width: usize) -> Self {
        Self {
            word_embeddings: layers.embedding(sizes.vocab, width),
            position_embeddings: layers.embedding(sizes.positions, width),
            token_type_embeddings: sizes.types.map(|types| layers.embedding(types, width)),
            layer_norm: layers.layer_norm(width, sizes.epsilon),
            dropout: layers.dropout(sizes.dropout),
        }
    }

    /// The embedded input, `[batch, sequence, width]`; none without input.
    pub fn forward(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let words = embed(&self.word_embeddings, inputs)?;
        let places = adapted_embedding(&self.position_embeddings, positions(inputs, &words));
        let added = match &self.token_type_embeddings {
            Some(table) => {
                let types = inputs.token_type_ids.clone();
                let types = types.unwrap_or_else(|| Tensor::<2, Int>::zeros([1, 1], &words.device().inner()));
                places + adapted_embedding(table, types)
            }
            None => places,
        };
        Some(dropout(&self.dropout, self.layer_norm.forward(words + added)))
    }
}

/// A stack of layers with a norm after each residual.
#[derive(Module, Debug)]
pub struct BertEncoder {
    layer: Vec<BertLayer>,
}

#[derive(Module, Debug)]
struct BertLayer {
    attention: BertAttention,
    intermediate: BertFeedForward,
    output: BertOutput,
}

#[derive(Module, Debug)]
struct BertAttention {
    self_attention: BertSelfAttention,
    output: BertOutput,
}

#[derive(Module, Debug)]
struct BertSelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    dropout: Dropout,
    #[module(skip)]
    heads: Heads,
}

/// The first half of a feed-forward block: `activation(dense(x))`.
#[derive(Module, Debug)]
pub struct BertFeedForward {
    dense: Linear,
    #[module(skip)]
    activation: Activation,
}

/// The end of a block: back to the hidden size, and the residual.
#[derive(Module, Debug)]
pub struct BertOutput {
    dense: Linear,
    layer_norm: LayerNorm,
    dropout: Dropout,
}

impl BertEncoder {
    /// What a model with these layers lists in [`peft_core::ModelInfo::segments`], with the backbone's own name.
    pub const fn segments(backbone: &'static str) -> [(&'static str, &'static str); 3] {
        [("self_attention", "self"), ("layer_norm", "LayerNorm"), ("backbone", backbone)]
    }

    /// As many layers as `sizes` says.
    pub fn new(layers: &Layers<'_>, sizes: &BertSizes) -> Self {
        let projection = || layers.linear(sizes.hidden, sizes.hidden, true);
        let layer = |_| BertLayer {
            attention: BertAttention {
                self_attention: BertSelfAttention {
                    query: projection(),
                    key: projection(),
                    value: projection(),
                    dropout: layers.dropout(sizes.attention_dropout),
                    heads: sizes.heads,
                },
                output: BertOutput::new(layers, sizes, sizes.hidden),
            },
            intermediate: BertFeedForward::new(layers, sizes),
            output: BertOutput::new(layers, sizes, sizes.inner),
        };
        Self { layer: (0..sizes.layers).map(layer).collect() }
    }

    /// The last hidden state.
    ///
    /// # Shapes
    /// - `hidden`, returned: `[batch, sequence, hidden]`
    pub fn forward(&self, hidden: Tensor<3>, inputs: &Inputs) -> Tensor<3> {
        self.first(self.layer.len(), hidden, inputs)
    }

    /// The last hidden state of each row's first token: in the last layer the others are looked at and ask nothing.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, sequence, hidden]`
    /// - returned: `[batch, 1, hidden]`
    pub fn forward_first(&self, hidden: Tensor<3>, inputs: &Inputs) -> Tensor<3> {
        // Before the layers run: they add their own keys to the past.
        let keys = past_length(inputs) + hidden.dims()[1];
        let last = self.layer.len().saturating_sub(1);
        let hidden = self.first(last, hidden, inputs);
        let asking = hidden.clone().narrow(1, 0, 1);
        let Some(layer) = self.layer.last() else { return asking };
        let mask = AttentionMask::cross(inputs.attention_mask.as_ref(), &asking, keys);
        layer.answer(asking, hidden, &mask, inputs.past_key_values.as_ref().map(|past| (past, last)))
    }

    /// What the first `count` layers make of a hidden state.
    fn first(&self, count: usize, hidden: Tensor<3>, inputs: &Inputs) -> Tensor<3> {
        let mask = AttentionMask::bidirectional(inputs.attention_mask.as_ref(), &hidden);
        let (mask, past) = (Arc::new(mask), inputs.past_key_values.clone());
        let layers = self.layer.get(..count).unwrap_or(&self.layer);
        run_layers(layers, inputs.checkpointed_layers(), hidden, [], move |layer, at, hidden, []| {
            layer.forward(hidden, &mask, past.as_ref().map(|past| (past, at)))
        })
    }
}

impl BertLayer {
    fn forward(&self, hidden: Tensor<3>, mask: &AttentionMask, past: Option<(&PastKeyValues, usize)>) -> Tensor<3> {
        self.answer(hidden.clone(), hidden, mask, past)
    }

    /// The next hidden states of the tokens that ask.
    fn answer(
        &self,
        asking: Tensor<3>,
        hidden: Tensor<3>,
        mask: &AttentionMask,
        past: Option<(&PastKeyValues, usize)>,
    ) -> Tensor<3> {
        let attended = self.attention.self_attention.forward(asking.clone(), hidden, mask, past);
        let hidden = self.attention.output.forward(attended, asking);
        self.output.forward(self.intermediate.forward(hidden.clone()), hidden)
    }
}

impl BertSelfAttention {
    fn forward(
        &self,
        asking: Tensor<3>,
        hidden: Tensor<3>,
        mask: &AttentionMask,
        past: Option<(&PastKeyValues, usize)>,
    ) -> Tensor<3> {
        let projections = [&self.query, &self.key, &self.value];
        attention_of(asking, hidden, projections, self.heads, mask, &self.dropout, past)
    }
}

impl BertFeedForward {
    /// From the hidden size to the inner one.
    pub fn new(layers: &Layers<'_>, sizes: &BertSizes) -> Self {
        Self { dense: layers.linear(sizes.hidden, sizes.inner, true), activation: sizes.activation }
    }

    /// # Shapes
    /// - `hidden`: `[batch, sequence, hidden]`
    /// - returned: `[batch, sequence, inner]`
    pub fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.activation.forward(adapted_linear(&self.dense, hidden))
    }
}

impl BertOutput {
    /// From `d_in` to the hidden size.
    pub fn new(layers: &Layers<'_>, sizes: &BertSizes, d_in: usize) -> Self {
        Self {
            dense: layers.linear(d_in, sizes.hidden, true),
            layer_norm: layers.layer_norm(sizes.hidden, sizes.epsilon),
            dropout: layers.dropout(sizes.dropout),
        }
    }

    /// # Shapes
    /// - `inner`: `[batch, sequence, d_in]`
    /// - `residual`, returned: `[batch, sequence, hidden]`
    pub fn forward(&self, inner: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        self.layer_norm.add(&self.dropout, adapted_linear(&self.dense, inner), residual)
    }
}

/// `tanh(dense(first token))`.
#[derive(Module, Debug)]
pub struct BertPooler {
    dense: Linear,
}

impl BertPooler {
    /// A pooler of hidden states of this width.
    pub fn new(layers: &Layers<'_>, width: usize) -> Self {
        Self { dense: layers.linear(width, width, true) }
    }

    /// # Shapes
    /// - `hidden`: `[batch, sequence, hidden]`
    /// - returned: `[batch, hidden]`
    pub fn forward(&self, hidden: &Tensor<3>) -> Tensor<2> {
        adapted_linear(&self.dense, first_token(hidden)).tanh()
    }
}
