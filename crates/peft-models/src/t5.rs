//! T5 and mT5: an encoder and a decoder without positions of their own; how far apart two tokens are is added to the scores
//! of every attention that looks at its own input.

mod relative_bias;

use std::sync::Arc;

use burn::{
    module::Module,
    nn::{Dropout, Embedding, Linear},
    tensor::{Device, Tensor},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, DecoderStart, Forward, Fresh, FreshValues, Inputs, ModelInfo, Outputs,
    PastKeyValues, Result, ShiftRight, adapted_embedding, inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, AttentionMask, AttentionSizes, CrossAttention, CrossContext, Fields, Heads, Layers, RmsNorm,
    Seq2SeqBackbone, Seq2SeqModel, adapted_linear, behind_prompt, clamp_f16, dropout, embed, past_length, run_layers,
    target_ids,
};
use relative_bias::Buckets;

const CLASSES: &[AutoClass] = &[
    AutoClass::MODEL,
    AutoClass::SEQ2SEQ_LM,
    AutoClass::SEQUENCE_CLASSIFICATION,
    AutoClass::TOKEN_CLASSIFICATION,
    AutoClass::QUESTION_ANSWERING,
];

inventory::submit! {
    ArchitecturePlugin {
        name: "t5",
        classes: CLASSES,
        build: |config, class, device| build(&T5, config, class, device),
        summary: "T5, T5 1.1 and Flan-T5",
    }
}

inventory::submit! {
    ArchitecturePlugin {
        name: "mt5",
        classes: CLASSES,
        build: |config, class, device| build(&MT5, config, class, device),
        summary: "mT5: T5 in many languages",
    }
}

/// What T5 and mT5 differ in.
struct Family {
    model_type: &'static str,
    name: &'static str,
    feed_forward_proj: &'static str,
    /// Whether the output layer may see scaled states.
    scales_output: bool,
}

const T5: Family = Family { model_type: "t5", name: "T5", feed_forward_proj: "relu", scales_output: true };
const MT5: Family = Family { model_type: "mt5", name: "MT5", feed_forward_proj: "gated-gelu", scales_output: false };

/// The two halves: `T5Model`.
#[derive(Module, Debug)]
struct T5Model {
    shared: Embedding,
    encoder: T5Encoder,
    decoder: T5Decoder,
    /// Where the source is read by the decoder as well.
    #[module(skip)]
    shift: Option<ShiftRight>,
}

/// The encoder by itself: `T5EncoderModel`.
#[derive(Module, Debug)]
struct T5EncoderModel {
    shared: Embedding,
    encoder: T5Encoder,
}

#[derive(Module, Debug)]
struct T5Encoder {
    embed_tokens: Embedding,
    block: Vec<T5EncoderBlock>,
    final_layer_norm: RmsNorm,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct T5Decoder {
    embed_tokens: Embedding,
    block: Vec<T5DecoderBlock>,
    final_layer_norm: RmsNorm,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct T5EncoderBlock {
    layer_0: T5SelfLayer,
    layer_1: T5FeedForward,
}

#[derive(Module, Debug)]
struct T5DecoderBlock {
    layer_0: T5SelfLayer,
    layer_1: T5CrossLayer,
    layer_2: T5FeedForward,
}

#[derive(Module, Debug)]
struct T5SelfLayer {
    self_attention: T5SelfAttention,
    layer_norm: RmsNorm,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct T5SelfAttention {
    projections: CrossAttention,
    /// In the first layer, for all.
    relative_attention_bias: Option<Embedding>,
    #[module(skip)]
    buckets: Buckets,
}

#[derive(Module, Debug)]
struct T5CrossLayer {
    enc_dec_attention: CrossAttention,
    layer_norm: RmsNorm,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct T5FeedForward {
    dense_relu_dense: T5Dense,
    layer_norm: RmsNorm,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct T5Dense {
    gate: Option<Linear>,
    up: Linear,
    wo: Linear,
    dropout: Dropout,
    #[module(skip)]
    activation: Activation,
}

#[derive(Module, Debug)]
struct T5ForTokenClassification {
    model: T5EncoderModel,
    dropout: Dropout,
    classifier: Linear,
}

impl T5Encoder {
    fn forward(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let hidden = dropout(&self.dropout, embed(&self.embed_tokens, inputs)?);
        let mask = AttentionMask::bidirectional(inputs.attention_mask.as_ref(), &hidden);
        let bias = bias(self.block.first().map(|block| &block.layer_0.self_attention), &hidden, 0);
        let mask = Arc::new(mask);
        let run = move |block: &T5EncoderBlock, _, hidden, [bias]: [Tensor<3>; 1]| {
            block.layer_1.forward(block.layer_0.forward(hidden, &mask, None, bias))
        };
        let hidden = run_layers(&self.block, inputs.checkpointed_layers(), hidden, [bias], run);
        Some(dropout(&self.dropout, self.final_layer_norm.forward(hidden)))
    }
}

impl T5Decoder {
    /// `checkpointed` of its layers keep their inputs alone.
    fn forward(&self, words: Tensor<3>, inputs: &Inputs, states: &Tensor<3>, checkpointed: usize) -> Tensor<3> {
        let hidden = dropout(&self.dropout, words);
        let context = Arc::new(CrossContext::new(inputs, &hidden, states));
        let first = self.block.first().map(|block| &block.layer_0.self_attention);
        let bias = bias(first, &hidden, past_length(inputs));
        let run = move |block: &T5DecoderBlock, _, hidden, [states, bias]: [Tensor<3>; 2]| {
            let hidden = block.layer_0.forward(hidden, &context.own, context.past.as_ref(), bias);
            block.layer_2.forward(block.layer_1.forward(hidden, &states, &context))
        };
        let hidden = run_layers(&self.block, checkpointed, hidden, [states.clone(), bias], run);
        dropout(&self.dropout, self.final_layer_norm.forward(hidden))
    }
}

impl T5SelfLayer {
    fn forward(
        &self,
        hidden: Tensor<3>,
        mask: &AttentionMask,
        past: Option<&PastKeyValues>,
        bias: Tensor<3>,
    ) -> Tensor<3> {
        let normed = self.layer_norm.forward(hidden.clone());
        let bias = Some(bias.unsqueeze());
        clamp_f16(hidden + dropout(&self.dropout, self.self_attention.projections.own(normed, mask, past, bias)))
    }
}

/// What each pair of tokens adds to the scores of all layers, `[heads, queries, past + queries]`, from the first one's table.
fn bias(first: Option<&T5SelfAttention>, hidden: &Tensor<3>, past: usize) -> Tensor<3> {
    let table = first.and_then(|first| Some((first.relative_attention_bias.as_ref()?, first.buckets)));
    let Some((table, buckets)) = table else { return Tensor::zeros([1, 1, 1], &hidden.device().inner()) };
    let buckets = buckets.of_pairs(past, hidden.dims()[1], &hidden.device().inner());
    adapted_embedding(table, buckets).permute([2, 0, 1])
}

impl T5CrossLayer {
    fn forward(&self, hidden: Tensor<3>, states: &Tensor<3>, context: &CrossContext) -> Tensor<3> {
        let normed = self.layer_norm.forward(hidden.clone());
        clamp_f16(hidden + dropout(&self.dropout, self.enc_dec_attention.across(normed, states, context)))
    }
}

impl T5FeedForward {
    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let inner = self.dense_relu_dense.forward(self.layer_norm.forward(hidden.clone()));
        clamp_f16(hidden + dropout(&self.dropout, inner))
    }
}

impl T5Dense {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let inner = match &self.gate {
            Some(gate) => self.activation.forward(adapted_linear(gate, x.clone())) * adapted_linear(&self.up, x),
            None => self.activation.forward(adapted_linear(&self.up, x)),
        };
        adapted_linear(&self.wo, dropout(&self.dropout, inner))
    }
}

impl Seq2SeqBackbone for T5Model {
    fn encode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        self.encoder.forward(inputs)
    }

    fn decode(&self, inputs: &Inputs, states: &Tensor<3>) -> Option<Tensor<3>> {
        let words = || target_ids(inputs, self.shift.as_ref()).map(|ids| adapted_embedding(self.target_words(), ids));
        let words = inputs.decoder_inputs_embeds.clone().or_else(words)?;
        let checkpointed = inputs.checkpointed_layers().saturating_sub(self.encoder.block.len());
        Some(self.decoder.forward(behind_prompt(inputs.decoder_prompt.as_ref(), words), inputs, states, checkpointed))
    }

    fn target_words(&self) -> &Embedding {
        &self.decoder.embed_tokens
    }
}

impl Forward for T5Model {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.last_hidden_state(inputs)
    }
}

impl Forward for T5ForTokenClassification {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.model.encoder.forward(inputs) else { return Outputs::new() };
        Outputs::new().with("logits", adapted_linear(&self.classifier, dropout(&self.dropout, hidden)))
    }
}

/// Names of fields in checkpoints, by where the halves stand in the model and whether the feed-forward is gated.
macro_rules! segments {
    ($model:literal, $up:literal) => {
        &[
            ("model", $model),
            ("layer_0", "layer.0"),
            ("layer_1", "layer.1"),
            ("layer_2", "layer.2"),
            ("self_attention", "SelfAttention"),
            ("enc_dec_attention", "EncDecAttention"),
            ("projections", ""),
            ("q_proj", "q"),
            ("k_proj", "k"),
            ("v_proj", "v"),
            ("out_proj", "o"),
            ("output", "out_proj"),
            ("dense_relu_dense", "DenseReluDense"),
            ("gate", "wi_0"),
            ("up", $up),
        ]
    };
}

fn build(family: &Family, config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let sizes = Sizes::read(fields, family)?;
    let layers = Layers { device, std: sizes.std(sizes.attention.width) };
    let is_inside = [AutoClass::SEQUENCE_CLASSIFICATION, AutoClass::TOKEN_CLASSIFICATION].contains(class);
    let pad_token_id = fields.token_or("pad_token_id", 0)?;
    let start = DecoderStart::Token(fields.token_or("decoder_start_token_id", pad_token_id)?);
    let shift = ShiftRight { start, pad_token_id };
    let mut config = config.clone();
    let is_tied = fields.flag_or("tie_word_embeddings", true)?;
    let is_scaled = family.scales_output && fields.flag_or("scale_decoder_outputs", is_tied)?;
    if family.scales_output {
        // Where it is absent `tie_word_embeddings` stands for it, which merging may change.
        config.insert("scale_decoder_outputs".to_owned(), is_scaled.into());
    }
    let info = ModelInfo {
        model_type: family.model_type.to_owned(),
        config,
        segments: match (is_inside, sizes.is_gated) {
            (true, true) => segments!("transformer", "wi_1"),
            (true, false) => segments!("transformer", "wi"),
            (false, true) => segments!("", "wi_1"),
            (false, false) => segments!("", "wi"),
        },
        ignored_tensors: &["EncDecAttention.relative_attention_bias.weight"],
        fresh: sizes.fresh(),
        past: Some(sizes.attention.heads.past(sizes.decoder_layers)),
        supports_checkpointing: true,
        shift_right: Some(shift),
        ..ModelInfo::custom()
    };
    let shared = layers.embedding(fields.size("vocab_size")?, sizes.attention.width);
    let encoder = sizes.encoder(&layers, shared.clone());
    if *class == AutoClass::TOKEN_CLASSIFICATION {
        let module = T5ForTokenClassification {
            model: T5EncoderModel { shared, encoder },
            dropout: layers.dropout(fields.probability_or("classifier_dropout", 0.0)?),
            classifier: layers.linear(sizes.attention.width, info.num_labels(), true),
        };
        let words = "transformer.shared".to_owned();
        let info = ModelInfo {
            class_name: format!("{}ForTokenClassification", family.name),
            base_model_prefix: "transformer",
            tied: vec![("transformer.encoder.embed_tokens.weight".to_owned(), format!("{words}.weight"))],
            input_embedding: Some(words),
            head_modules: vec!["classifier".to_owned()],
            shift_right: None,
            takes_prompt: true,
            past: None,
            ..info
        };
        return Ok(BaseModel::new(Box::new(module), info));
    }
    let reads_twice = [AutoClass::SEQUENCE_CLASSIFICATION, AutoClass::QUESTION_ANSWERING].contains(class);
    let model = Seq2SeqModel {
        backbone: T5Model {
            encoder,
            decoder: sizes.decoder(&layers, shared.clone()),
            shared,
            shift: reads_twice.then_some(shift),
        },
        info,
        family: family.name,
        conditional_generation: "ForConditionalGeneration",
        words: "shared",
        input_words: "shared",
        copies: &["encoder.embed_tokens", "decoder.embed_tokens"],
        output_words: "shared",
        // A checkpoint with an output layer of its own keeps it, as in Transformers.
        tied: true,
        scale: if is_scaled { (sizes.attention.width as f64).powf(-0.5) } else { 1.0 },
        logits_bias: false,
        eos_token_id: fields.token_or("eos_token_id", 1)?,
    };
    model.with_head(class, &layers)
}

struct Sizes {
    attention: AttentionSizes,
    encoder_layers: usize,
    decoder_layers: usize,
    inner: usize,
    is_gated: bool,
    activation: Activation,
    buckets: usize,
    max_distance: usize,
    epsilon: f64,
    dropout: f64,
    factor: f64,
}

impl Sizes {
    fn read(fields: Fields<'_>, family: &Family) -> Result<Self> {
        let width = fields.size("d_model")?;
        let dropout = fields.probability_or("dropout_rate", 0.1)?;
        let heads = Heads { count: fields.size("num_heads")?, dim: fields.size("d_kv")? };
        let projection = fields.text_or("feed_forward_proj", family.feed_forward_proj)?;
        let (is_gated, name) = match projection.strip_prefix("gated-") {
            // The form with the hyperbolic tangent, whatever the name says.
            Some("gelu") => (true, "gelu_new"),
            Some(name) => (true, name),
            None => (false, projection),
        };
        let activation = Activation::by_name(name).ok_or_else(|| {
            let known: Vec<_> = Activation::NAMES.iter().map(|(name, _)| *name).collect();
            let problem =
                format!("`{projection}` is not supported; supported, also behind `gated-`: {}", known.join(", "));
            Fields::error("feed_forward_proj", problem)
        })?;
        let buckets = fields.optional_size("relative_attention_num_buckets")?.unwrap_or(32);
        let max_distance = fields.optional_size("relative_attention_max_distance")?.unwrap_or(128);
        if buckets < 4 || max_distance <= buckets / 2 {
            let problem = format!(
                "{buckets} buckets up to distance {max_distance}: at least 4, and distances beyond half of them"
            );
            return Err(Fields::error("relative_attention_num_buckets", problem));
        }
        let encoder_layers = fields.layers("num_layers")?;
        Ok(Self {
            attention: AttentionSizes { width, heads, bias: false, dropout, scale: Some(1.0) },
            encoder_layers,
            decoder_layers: fields.optional_layers("num_decoder_layers")?.unwrap_or(encoder_layers),
            inner: fields.size("d_ff")?,
            is_gated,
            activation,
            buckets,
            max_distance,
            epsilon: fields.epsilon_or("layer_norm_epsilon", 1e-6)?,
            dropout,
            factor: fields.deviation_or("initializer_factor", 1.0)?,
        })
    }

    /// The standard deviation of a layer that reads this many values.
    fn std(&self, d_in: usize) -> f64 {
        self.factor * (d_in as f64).powf(-0.5)
    }

    /// Each layer by how much it reads; queries also make up for scores that are not divided by the root of a head's width.
    fn fresh(&self) -> FreshValues {
        let AttentionSizes { width, heads, .. } = self.attention;
        let table = Fresh::Normal(self.factor);
        FreshValues {
            norm: self.factor,
            others: vec![
                ("q.weight", Fresh::Normal(self.std(width * heads.dim))),
                ("o.weight", Fresh::Normal(self.std(heads.count * heads.dim))),
                ("wo.weight", Fresh::Normal(self.std(self.inner))),
                ("shared.weight", table),
                ("lm_head.weight", table),
                ("classifier.weight", table),
            ],
            ..FreshValues::with_std(self.std(width))
        }
    }

    fn norm(&self, layers: &Layers<'_>) -> RmsNorm {
        layers.rms_norm(self.attention.width, self.epsilon)
    }

    fn self_layer(&self, layers: &Layers<'_>, layer: usize, is_decoder: bool) -> T5SelfLayer {
        let Self { buckets, max_distance, .. } = *self;
        let table = || layers.embedding(buckets, self.attention.heads.count);
        T5SelfLayer {
            self_attention: T5SelfAttention {
                projections: CrossAttention::new(layers, &self.attention, layer),
                relative_attention_bias: (layer == 0).then(table),
                buckets: Buckets { count: buckets, max_distance, both_ways: !is_decoder },
            },
            layer_norm: self.norm(layers),
            dropout: layers.dropout(self.dropout),
        }
    }

    fn feed_forward(&self, layers: &Layers<'_>) -> T5FeedForward {
        let inwards = || layers.linear(self.attention.width, self.inner, false);
        T5FeedForward {
            dense_relu_dense: T5Dense {
                gate: self.is_gated.then(inwards),
                up: inwards(),
                wo: layers.linear(self.inner, self.attention.width, false),
                dropout: layers.dropout(self.dropout),
                activation: self.activation,
            },
            layer_norm: self.norm(layers),
            dropout: layers.dropout(self.dropout),
        }
    }

    fn encoder(&self, layers: &Layers<'_>, embed_tokens: Embedding) -> T5Encoder {
        let block = |layer| T5EncoderBlock {
            layer_0: self.self_layer(layers, layer, false),
            layer_1: self.feed_forward(layers),
        };
        T5Encoder {
            embed_tokens,
            block: (0..self.encoder_layers).map(block).collect(),
            final_layer_norm: self.norm(layers),
            dropout: layers.dropout(self.dropout),
        }
    }

    fn decoder(&self, layers: &Layers<'_>, embed_tokens: Embedding) -> T5Decoder {
        let block = |layer| T5DecoderBlock {
            layer_0: self.self_layer(layers, layer, true),
            layer_1: T5CrossLayer {
                enc_dec_attention: CrossAttention::new(layers, &self.attention, layer),
                layer_norm: self.norm(layers),
                dropout: layers.dropout(self.dropout),
            },
            layer_2: self.feed_forward(layers),
        };
        T5Decoder {
            embed_tokens,
            block: (0..self.decoder_layers).map(block).collect(),
            final_layer_norm: self.norm(layers),
            dropout: layers.dropout(self.dropout),
        }
    }
}
