//! The encoder and decoder of BART, mBART, Marian and others: attentions and a feed-forward, a residual around each, and a
//! norm before or after it.

use std::sync::Arc;

use burn::{
    module::{Module, Param, ParamId},
    nn::{Dropout, Embedding, Linear},
    tensor::{Device, Int, Tensor, TensorData},
};
use peft_core::{
    AdapterSet, AutoClass, BaseModel, DecoderStart, Forward, FreshValues, Inputs, ModelInfo, Outputs, Result,
    ShiftRight, adapted_embedding,
};
use serde_json::{Map, Value};

use super::{
    Activation, AttentionMask, AttentionSizes, CrossAttention, CrossContext, Fields, Heads, LayerNorm, Layers,
    Seq2SeqBackbone, Seq2SeqModel, adapted_linear, behind_prompt, clamp_f16, counted, dropout, past_length, run_layers,
    target_ids,
};

/// What one family has and another has not.
#[derive(Debug, Clone, Copy)]
pub struct BartFamily {
    /// The word in `model_type`.
    pub model_type: &'static str,
    /// What class names begin with: `Bart`.
    pub name: &'static str,
    /// The end of the name of the class that says words.
    pub conditional_generation: &'static str,
    /// What the class gives as its input embedding, of several tables that are one.
    pub input_words: &'static str,
    /// Whether the norm stands before an attention or feed-forward, inside the residual.
    pub norm_first: bool,
    /// Whether embeddings are normalised.
    pub embedding_norm: bool,
    /// Whether the states of the last layer are normalised.
    pub final_norm: bool,
    /// Where positions come from.
    pub positions: BartPositions,
    /// What the decoder reads first, where the configuration does not say.
    pub start: DecoderStart,
    /// `pad_token_id`, where the configuration does not say.
    pub pad_token_id: i64,
    /// `eos_token_id`, where the configuration does not say.
    pub eos_token_id: i64,
}

/// Where positions come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BartPositions {
    /// A stored table whose first two entries stand for no position.
    Learned,
    /// Sines in the first half and cosines in the second, worked out and not stored.
    Sinusoidal,
}

/// Positions whose sines are worked out at most: no file holds them, so that only the configuration says how many there are.
const MOST_COMPUTED: usize = 1 << 16;

/// Entries of a learned table that stand for no position.
const OFFSET: usize = 2;

const SEGMENTS: &[(&str, &str)] = &[("embeddings", ""), ("feed_forward", ""), ("output", "out_proj")];

/// The two halves; `shared` is the table of words that both begin with.
#[derive(Module, Debug)]
struct Bart {
    shared: Option<Embedding>,
    encoder: BartEncoder,
    decoder: BartDecoder,
    #[module(skip)]
    shift: ShiftRight,
}

#[derive(Module, Debug)]
struct BartEncoder {
    embeddings: BartEmbeddings,
    layers: Vec<BartEncoderLayer>,
    layer_norm: Option<LayerNorm>,
}

#[derive(Module, Debug)]
struct BartDecoder {
    embeddings: BartEmbeddings,
    layers: Vec<BartDecoderLayer>,
    layer_norm: Option<LayerNorm>,
}

#[derive(Module, Debug)]
struct BartEmbeddings {
    embed_tokens: Embedding,
    embed_positions: Embedding,
    layernorm_embedding: Option<LayerNorm>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
    #[module(skip)]
    offset: usize,
    #[module(skip)]
    pad_token_id: i64,
}

#[derive(Module, Debug)]
struct BartEncoderLayer {
    self_attn: CrossAttention,
    self_attn_layer_norm: LayerNorm,
    feed_forward: BartFeedForward,
    final_layer_norm: LayerNorm,
    dropout: Dropout,
    #[module(skip)]
    norm_first: bool,
}

#[derive(Module, Debug)]
struct BartDecoderLayer {
    self_attn: CrossAttention,
    self_attn_layer_norm: LayerNorm,
    encoder_attn: CrossAttention,
    encoder_attn_layer_norm: LayerNorm,
    feed_forward: BartFeedForward,
    final_layer_norm: LayerNorm,
    dropout: Dropout,
    #[module(skip)]
    norm_first: bool,
}

#[derive(Module, Debug)]
struct BartFeedForward {
    fc1: Linear,
    fc2: Linear,
    dropout: Dropout,
    #[module(skip)]
    activation: Activation,
}

impl BartEmbeddings {
    fn words(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let is_pad = ids.clone().equal_scalar(self.pad_token_id);
        let words = adapted_embedding(&self.embed_tokens, ids);
        // A trained copy leaves the padding token as it is, as in PyTorch; Marian's decoder begins with it.
        let is_copy = self.embed_tokens.weight.reparameterization::<AdapterSet>().is_some_and(AdapterSet::replaces);
        let words = if is_copy && words.is_autodiff() {
            let is_pad = is_pad.unsqueeze_dim::<3>(2).expand(words.dims());
            words.clone().mask_where(is_pad, words.detach())
        } else {
            words
        };
        if self.scale == 1.0 { words } else { words * self.scale }
    }

    /// Words at their positions behind `past` others.
    fn forward(&self, words: Tensor<3>, past: usize) -> Tensor<3> {
        let places = adapted_embedding(&self.embed_positions, counted(past + self.offset, &words));
        let hidden = words + places;
        let hidden = match &self.layernorm_embedding {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        };
        dropout(&self.dropout, hidden)
    }
}

/// A residual around `inner`, and the norm at its place.
fn residual(
    hidden: Tensor<3>,
    norm: &LayerNorm,
    norm_first: bool,
    drop: &Dropout,
    inner: impl FnOnce(Tensor<3>) -> Tensor<3>,
) -> Tensor<3> {
    if norm_first {
        hidden.clone() + dropout(drop, inner(norm.forward(hidden)))
    } else {
        norm.add(drop, inner(hidden.clone()), hidden)
    }
}

impl BartEncoderLayer {
    fn forward(&self, hidden: Tensor<3>, mask: &AttentionMask) -> Tensor<3> {
        let around = |hidden, norm, inner: &dyn Fn(Tensor<3>) -> Tensor<3>| {
            residual(hidden, norm, self.norm_first, &self.dropout, inner)
        };
        let hidden = around(hidden, &self.self_attn_layer_norm, &|x| self.self_attn.own(x, mask, None, None));
        clamp_f16(around(hidden, &self.final_layer_norm, &|x| self.feed_forward.forward(x)))
    }
}

impl BartDecoderLayer {
    fn forward(&self, hidden: Tensor<3>, states: &Tensor<3>, context: &CrossContext) -> Tensor<3> {
        let around = |hidden, norm, inner: &dyn Fn(Tensor<3>) -> Tensor<3>| {
            residual(hidden, norm, self.norm_first, &self.dropout, inner)
        };
        let past = context.past.as_ref();
        let hidden = around(hidden, &self.self_attn_layer_norm, &|x| self.self_attn.own(x, &context.own, past, None));
        let hidden = around(hidden, &self.encoder_attn_layer_norm, &|x| self.encoder_attn.across(x, states, context));
        around(hidden, &self.final_layer_norm, &|x| self.feed_forward.forward(x))
    }
}

impl BartFeedForward {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let inner = self.activation.forward(adapted_linear(&self.fc1, x));
        adapted_linear(&self.fc2, dropout(&self.dropout, inner))
    }
}

fn finished(norm: Option<&LayerNorm>, hidden: Tensor<3>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward(hidden),
        None => hidden,
    }
}

impl Seq2SeqBackbone for Bart {
    fn encode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let BartEncoder { embeddings, layers, layer_norm } = &self.encoder;
        let words = || inputs.input_ids.clone().map(|ids| embeddings.words(ids));
        let words = inputs.inputs_embeds.clone().or_else(words)?;
        let hidden = embeddings.forward(behind_prompt(inputs.prompt.as_ref(), words), 0);
        let mask = AttentionMask::bidirectional(inputs.attention_mask.as_ref(), &hidden);
        let mask = Arc::new(mask);
        let hidden = run_layers(layers, inputs.checkpointed_layers(), hidden, [], move |layer, _, hidden, []| {
            layer.forward(hidden, &mask)
        });
        Some(finished(layer_norm.as_ref(), hidden))
    }

    fn decode(&self, inputs: &Inputs, states: &Tensor<3>) -> Option<Tensor<3>> {
        let BartDecoder { embeddings, layers, layer_norm } = &self.decoder;
        let words = || target_ids(inputs, Some(&self.shift)).map(|ids| embeddings.words(ids));
        let words = inputs.decoder_inputs_embeds.clone().or_else(words)?;
        let words = behind_prompt(inputs.decoder_prompt.as_ref(), words);
        let hidden = embeddings.forward(words, past_length(inputs));
        let context = Arc::new(CrossContext::new(inputs, &hidden, states));
        let checkpointed = inputs.checkpointed_layers().saturating_sub(self.encoder.layers.len());
        let run = move |layer: &BartDecoderLayer, _, hidden, [states]: [Tensor<3>; 1]| {
            layer.forward(hidden, &states, &context)
        };
        let hidden = run_layers(layers, checkpointed, hidden, [states.clone()], run);
        Some(finished(layer_norm.as_ref(), hidden))
    }

    fn target_words(&self) -> &Embedding {
        &self.decoder.embeddings.embed_tokens
    }
}

impl Forward for Bart {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.last_hidden_state(inputs)
    }
}

impl BartFamily {
    /// Builds a model of this family.
    ///
    /// # Errors
    /// [`peft_core::Error::Config`] if the configuration cannot be used.
    pub fn build(&self, config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
        let fields = Fields(config);
        for key in ["encoder_layerdrop", "decoder_layerdrop"] {
            if fields.float_or(key, 0.0)? > 0.0 {
                return Err(Fields::error(key, "layers cannot be dropped here: set it to 0"));
            }
        }
        let std = fields.deviation_or("init_std", 0.02)?;
        let layers = Layers { device, std };
        let pad_token_id = fields.token_or("pad_token_id", self.pad_token_id)?;
        let padding = usize::try_from(pad_token_id).ok();
        let start = match self.start {
            DecoderStart::Token(token) => DecoderStart::Token(fields.token_or("decoder_start_token_id", token)?),
            DecoderStart::LastToken => DecoderStart::LastToken,
        };
        let shift = ShiftRight { start, pad_token_id };
        let is_shared = fields.flag_or("share_encoder_decoder_embeddings", true)?;
        let backbone = self.halves(fields, &layers, shift, is_shared)?;
        let embedding_scale = backbone.encoder.embeddings.scale;
        let decoder = Half::read("decoder", fields, fields.size("d_model")?)?;
        let model = Seq2SeqModel {
            backbone,
            info: ModelInfo {
                model_type: self.model_type.to_owned(),
                config: config.clone(),
                segments: SEGMENTS,
                ignored_tensors: &["encoder.version", "decoder.version"],
                computed: match self.positions {
                    BartPositions::Learned => &[],
                    BartPositions::Sinusoidal => &["embed_positions.weight"],
                },
                fresh: ["shared.weight", "embed_tokens.weight"]
                    .iter()
                    .fold(FreshValues::with_std(std), |fresh, words| fresh.with_zero_row(words, padding)),
                embedding_scale,
                past: Some(decoder.attention.heads.past(decoder.layers)),
                supports_checkpointing: true,
                max_positions: Some(fields.size("max_position_embeddings")?),
                shift_right: Some(shift),
                ..ModelInfo::custom()
            },
            family: self.name,
            conditional_generation: self.conditional_generation,
            words: if is_shared { "shared" } else { "encoder.embed_tokens" },
            input_words: if is_shared { self.input_words } else { "encoder.embed_tokens" },
            copies: if is_shared { &["encoder.embed_tokens", "decoder.embed_tokens"] } else { &[] },
            output_words: if is_shared { "shared" } else { "decoder.embed_tokens" },
            tied: fields.flag_or("tie_word_embeddings", true)?,
            scale: 1.0,
            logits_bias: true,
            eos_token_id: fields.token_or("eos_token_id", self.eos_token_id)?,
        };
        model.with_head(class, &layers)
    }

    fn halves(&self, fields: Fields<'_>, layers: &Layers<'_>, shift: ShiftRight, is_shared: bool) -> Result<Bart> {
        let width = fields.size("d_model")?;
        let vocab = fields.size("vocab_size")?;
        let shared = is_shared.then(|| layers.embedding(vocab, width));
        let words = |entries: usize| shared.clone().unwrap_or_else(|| layers.embedding(entries, width));
        let encoder_sizes = Half::read("encoder", fields, width)?;
        let decoder_sizes = Half::read("decoder", fields, width)?;
        let norm = || layers.layer_norm(width, 1e-5);
        let drop = layers.dropout(fields.probability_or("dropout", 0.1)?);
        let most = fields.size("max_position_embeddings")?;
        if self.positions == BartPositions::Sinusoidal {
            Fields::at_most("max_position_embeddings", most, MOST_COMPUTED)?;
        }
        let scale = if fields.flag_or("scale_embedding", false)? { (width as f64).sqrt() } else { 1.0 };
        let embeddings = |embed_tokens| BartEmbeddings {
            embed_tokens,
            embed_positions: match self.positions {
                BartPositions::Learned => layers.embedding(most + OFFSET, width),
                BartPositions::Sinusoidal => sinusoids(most, width, layers.device),
            },
            layernorm_embedding: self.embedding_norm.then(norm),
            dropout: drop.clone(),
            scale,
            offset: if self.positions == BartPositions::Learned { OFFSET } else { 0 },
            pad_token_id: shift.pad_token_id,
        };
        let encoder_layer = |layer| BartEncoderLayer {
            self_attn: CrossAttention::new(layers, &encoder_sizes.attention, layer),
            self_attn_layer_norm: norm(),
            feed_forward: encoder_sizes.feed_forward(layers, width),
            final_layer_norm: norm(),
            dropout: drop.clone(),
            norm_first: self.norm_first,
        };
        let decoder_layer = |layer| BartDecoderLayer {
            self_attn: CrossAttention::new(layers, &decoder_sizes.attention, layer),
            self_attn_layer_norm: norm(),
            encoder_attn: CrossAttention::new(layers, &decoder_sizes.attention, layer),
            encoder_attn_layer_norm: norm(),
            feed_forward: decoder_sizes.feed_forward(layers, width),
            final_layer_norm: norm(),
            dropout: drop.clone(),
            norm_first: self.norm_first,
        };
        Ok(Bart {
            encoder: BartEncoder {
                embeddings: embeddings(words(vocab)),
                layers: (0..encoder_sizes.layers).map(encoder_layer).collect(),
                layer_norm: self.final_norm.then(norm),
            },
            decoder: BartDecoder {
                embeddings: embeddings(words(fields.optional_size("decoder_vocab_size")?.unwrap_or(vocab))),
                layers: (0..decoder_sizes.layers).map(decoder_layer).collect(),
                layer_norm: self.final_norm.then(norm),
            },
            shared,
            shift,
        })
    }
}

/// The sizes of the encoder or the decoder.
struct Half {
    layers: usize,
    attention: AttentionSizes,
    inner: usize,
    activation: Activation,
    inner_dropout: f64,
}

impl Half {
    fn read(half: &str, fields: Fields<'_>, width: usize) -> Result<Self> {
        let key = format!("{half}_attention_heads");
        let count = fields.size(&key)?;
        if !width.is_multiple_of(count) {
            return Err(Fields::error(&key, format!("{count} heads do not divide the d_model {width}")));
        }
        Ok(Self {
            layers: fields.layers(&format!("{half}_layers"))?,
            attention: AttentionSizes {
                width,
                heads: Heads { count, dim: width / count },
                bias: true,
                dropout: fields.probability_or("attention_dropout", 0.0)?,
                scale: None,
            },
            inner: fields.size(&format!("{half}_ffn_dim"))?,
            activation: fields.activation_or("activation_function", "gelu")?,
            inner_dropout: fields.probability_or("activation_dropout", 0.0)?,
        })
    }

    fn feed_forward(&self, layers: &Layers<'_>, width: usize) -> BartFeedForward {
        BartFeedForward {
            fc1: layers.linear(width, self.inner, true),
            fc2: layers.linear(self.inner, width, true),
            dropout: layers.dropout(self.inner_dropout),
            activation: self.activation,
        }
    }
}

/// `sin(place / 10000^(2i / width))` for each `i` of the first half, the cosines in the second.
fn sinusoids(places: usize, width: usize, device: &Device) -> Embedding {
    let sines = width.div_ceil(2);
    let angle = move |place: usize, i: usize| place as f64 / 10000_f64.powf((2 * i) as f64 / width as f64);
    let value = move |place: usize, at: usize| match at.checked_sub(sines) {
        None => angle(place, at).sin(),
        Some(i) => angle(place, i).cos(),
    };
    let table = move |device: &Device, _: bool| {
        let values = (0..places).flat_map(|place| (0..width).map(move |at| value(place, at) as f32));
        Tensor::from_data(TensorData::new(values.collect::<Vec<_>>(), [places, width]), device)
    };
    let shape = [places, width].into();
    Embedding { weight: Param::uninitialized(ParamId::new(), table, device.clone(), false, shape) }
}
