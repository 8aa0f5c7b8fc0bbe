//! ModernBERT: an encoder with rotary positions, norms before each block, gated feed-forwards, and layers of which most look
//! at a window only.

use std::sync::Arc;

use burn::{
    module::Module,
    nn::{Dropout, Embedding, Linear},
    tensor::{Device, Tensor},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Forward, Fresh, FreshValues, Inputs, ModelInfo, Outputs, Result,
    inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, AttentionMask, Encoder, Fields, Heads, LayerNorm, LayerType, Layers, Rotary, RotaryTables, Scores,
    adapted_linear, attend, dropout, embed, first_token, of_class, positions, positions_end, run_layers,
    split_span_logits,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "modernbert",
        classes: &[
            AutoClass::MODEL,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "ModernBERT: long texts, rotary positions",
    }
}

/// The backbone: `ModernBertModel`.
#[derive(Module, Debug)]
struct ModernBert {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    #[module(skip)]
    full_rotary: Rotary,
    #[module(skip)]
    sliding_rotary: Rotary,
    /// How far a sliding layer looks to either side.
    #[module(skip)]
    reach: usize,
}

#[derive(Module, Debug)]
struct Embeddings {
    tok_embeddings: Embedding,
    norm: LayerNorm,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct Layer {
    /// The first layer has none: the embeddings are normalised already.
    attn_norm: Option<LayerNorm>,
    attn: Attention,
    mlp_norm: LayerNorm,
    mlp: Mlp,
    #[module(skip)]
    layer_type: LayerType,
}

#[derive(Module, Debug)]
struct Attention {
    wqkv: Linear,
    wo: Linear,
    dropout: Dropout,
    #[module(skip)]
    heads: Heads,
}

/// `Wo(activation(a) · b)` where `Wi(x)` is `a` and `b` side by side.
#[derive(Module, Debug)]
struct Mlp {
    wi: Linear,
    wo: Linear,
    dropout: Dropout,
    #[module(skip)]
    activation: Activation,
}

/// The backbone, a layer with a norm, and `classifier`, for all three tasks.
#[derive(Module, Debug)]
struct Classifier {
    backbone: ModernBert,
    head: PredictionHead,
    dropout: Dropout,
    classifier: Linear,
    #[module(skip)]
    reads: Reads,
}

#[derive(Module, Debug)]
struct PredictionHead {
    dense: Linear,
    norm: LayerNorm,
    #[module(skip)]
    activation: Activation,
}

/// What a head is put on.
#[derive(Debug, Clone, Copy)]
enum Reads {
    /// Each row's first token.
    First,
    /// The mean of each row's tokens.
    Mean,
    /// Each token, for its class.
    Tokens,
    /// Each token, for whether a span begins or ends there.
    Spans,
}

/// What the layers of one type share in a forward pass.
struct View {
    mask: AttentionMask,
    tables: RotaryTables,
}

impl Encoder for ModernBert {
    fn encode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let words = embed(&self.embeddings.tok_embeddings, inputs)?;
        let hidden = dropout(&self.embeddings.dropout, self.embeddings.norm.forward(words));
        let places = positions(inputs, &hidden);
        let tables = |rotary: &Rotary| {
            let end = || positions_end(inputs, &hidden);
            rotary.tables(places.clone(), end, hidden.dtype(), &hidden.device().inner())
        };
        let mask = AttentionMask::bidirectional(inputs.attention_mask.as_ref(), &hidden);
        let sliding = View { mask: mask.within(self.reach), tables: tables(&self.sliding_rotary) };
        let full = View { mask, tables: tables(&self.full_rotary) };
        let views = Arc::new((full, sliding));
        let hidden =
            run_layers(&self.layers, inputs.checkpointed_layers(), hidden, [], move |layer, _, hidden, []| match layer
                .layer_type
            {
                LayerType::Full => layer.forward(hidden, &views.0),
                LayerType::Sliding => layer.forward(hidden, &views.1),
            });
        Some(self.final_norm.forward(hidden))
    }
}

impl Layer {
    fn forward(&self, hidden: Tensor<3>, view: &View) -> Tensor<3> {
        let normed = match &self.attn_norm {
            Some(norm) => norm.forward(hidden.clone()),
            None => hidden.clone(),
        };
        let hidden = hidden + self.attn.forward(normed, view);
        hidden.clone() + self.mlp.forward(self.mlp_norm.forward(hidden))
    }
}

impl Attention {
    fn forward(&self, hidden: Tensor<3>, view: &View) -> Tensor<3> {
        let [batch, length, _] = hidden.dims();
        let Heads { count, dim } = self.heads;
        let all = adapted_linear(&self.wqkv, hidden).reshape([batch, length, 3 * count, dim]);
        let turned = view.tables.rotate(all.clone().narrow(2, 0, 2 * count)).swap_dims(1, 2);
        let (q, k) = (turned.clone().narrow(1, 0, count), turned.narrow(1, count, count));
        let v = all.narrow(2, 2 * count, count).swap_dims(1, 2);
        let attended = attend(q, k, v, &view.mask, &self.dropout, &Scores::default());
        dropout(&self.dropout, adapted_linear(&self.wo, self.heads.merge(attended)))
    }
}

impl Mlp {
    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let both = adapted_linear(&self.wi, hidden);
        let width = both.dims()[2] / 2;
        let (inner, gate) = (both.clone().narrow(2, 0, width), both.narrow(2, width, width));
        adapted_linear(&self.wo, dropout(&self.dropout, self.activation.forward(inner) * gate))
    }
}

impl PredictionHead {
    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.norm.forward(self.activation.forward(adapted_linear(&self.dense, x)))
    }
}

impl Classifier {
    fn logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        adapted_linear(&self.classifier, dropout(&self.dropout, self.head.forward(x)))
    }
}

impl Forward for ModernBert {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.outputs(inputs)
    }
}

impl Forward for Classifier {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.backbone.encode(inputs) else { return Outputs::new() };
        match self.reads {
            Reads::First => Outputs::new().with("logits", self.logits(first_token(&hidden))),
            Reads::Mean => Outputs::new().with("logits", self.logits(mean(hidden, inputs))),
            Reads::Tokens => Outputs::new().with("logits", self.logits(hidden)),
            Reads::Spans => {
                let (start, end) = split_span_logits(self.logits(hidden));
                Outputs::new().with("start_logits", start).with("end_logits", end)
            }
        }
    }
}

/// The mean of each row's tokens that are no padding, `[batch, hidden]`.
fn mean(hidden: Tensor<3>, inputs: &Inputs) -> Tensor<2> {
    let [batch, length, width] = hidden.dims();
    let Some(mask) = inputs.attention_mask_on(&hidden.device().inner()) else {
        return hidden.mean_dim(1).reshape([batch, width]);
    };
    let mask = mask.float().cast(hidden.dtype()).reshape([batch, length, 1]);
    let counts = mask.clone().sum_dim(1).reshape([batch, 1]);
    (hidden * mask).sum_dim(1).reshape([batch, width]) / counts
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let layers = Layers::new(fields, device)?;
    let info = ModelInfo {
        model_type: "modernbert".to_owned(),
        supports_checkpointing: true,
        config: config.clone(),
        segments: &[("backbone", "model"), ("wqkv", "Wqkv"), ("wi", "Wi"), ("wo", "Wo")],
        base_model_prefix: "model",
        input_embedding: Some("embeddings.tok_embeddings".to_owned()),
        fresh: fresh(fields, layers.std)?,
        max_positions: Some(fields.size("max_position_embeddings")?),
        ..ModelInfo::custom()
    };
    let backbone = backbone(fields, &layers)?;
    let reads = if *class == AutoClass::SEQUENCE_CLASSIFICATION {
        match fields.text_or("classifier_pooling", "cls")? {
            "cls" => Reads::First,
            "mean" => Reads::Mean,
            other => {
                let problem = format!("`{other}` is not supported (supported: cls, mean)");
                return Err(Fields::error("classifier_pooling", problem));
            }
        }
    } else if *class == AutoClass::TOKEN_CLASSIFICATION {
        Reads::Tokens
    } else if *class == AutoClass::QUESTION_ANSWERING {
        Reads::Spans
    } else {
        return Ok(of_class(info, "ModernBert", class, &[], backbone));
    };
    let width = fields.size("hidden_size")?;
    let labels = if matches!(reads, Reads::Spans) { 2 } else { info.num_labels() };
    let module = Classifier {
        backbone,
        head: PredictionHead {
            dense: layers.linear(width, width, fields.flag_or("classifier_bias", false)?),
            norm: norms(fields, &layers, width)?(),
            activation: fields.activation_or("classifier_activation", "gelu")?,
        },
        dropout: layers.dropout(fields.probability_or("classifier_dropout", 0.0)?),
        classifier: layers.linear(width, labels, true),
        reads,
    };
    Ok(of_class(info, "ModernBert", class, &["head", "classifier"], module))
}

/// Normal with its far values cut off; what a layer adds to the sum of all by their number, the classifier by its width.
fn fresh(fields: Fields<'_>, std: f64) -> Result<FreshValues> {
    let cutoff = fields.float_or("initializer_cutoff_factor", 2.0)?;
    if cutoff < 0.1 {
        let problem = format!("{cutoff} standard deviations cut off almost everything: it should be 0.1 at least");
        return Err(Fields::error("initializer_cutoff_factor", problem));
    }
    let added = Fresh::Normal(std / (2.0 * fields.layers("num_hidden_layers")? as f64).sqrt());
    let classifier = Fresh::Normal((fields.size("hidden_size")? as f64).powf(-0.5));
    Ok(FreshValues {
        cutoff: Some(cutoff),
        others: vec![("Wo.weight", added), ("head.dense.weight", added), ("classifier.weight", classifier)],
        ..FreshValues::default()
    })
}

fn backbone(fields: Fields<'_>, layers: &Layers<'_>) -> Result<ModernBert> {
    let width = fields.size("hidden_size")?;
    let inner = fields.size("intermediate_size")?;
    let count = fields.layers("num_hidden_layers")?;
    let heads = Heads::dividing(width, "hidden_size", fields, "num_attention_heads")?;
    let reach = fields.optional_size("local_attention")?.unwrap_or(128) / 2;
    let every = fields.optional_size("global_attn_every_n_layers")?.unwrap_or(3);
    let types = LayerType::read(fields, count, Some(reach), |at| LayerType::sliding_if(!at.is_multiple_of(every)))?;
    let norm = norms(fields, layers, width)?;
    let activation = fields.activation_or("hidden_activation", "gelu")?;
    let (attention_bias, mlp_bias) = (fields.flag_or("attention_bias", false)?, fields.flag_or("mlp_bias", false)?);
    let attention_drop = fields.probability_or("attention_dropout", 0.0)?;
    let mlp_drop = fields.probability_or("mlp_dropout", 0.0)?;
    let layer = |(at, layer_type)| Layer {
        attn_norm: (at > 0).then(&norm),
        attn: Attention {
            wqkv: layers.linear(width, 3 * width, attention_bias),
            wo: layers.linear(width, width, attention_bias),
            dropout: layers.dropout(attention_drop),
            heads,
        },
        mlp_norm: norm(),
        mlp: Mlp {
            wi: layers.linear(width, 2 * inner, mlp_bias),
            wo: layers.linear(inner, width, mlp_bias),
            dropout: layers.dropout(mlp_drop),
            activation,
        },
        layer_type,
    };
    Ok(ModernBert {
        embeddings: Embeddings {
            tok_embeddings: layers.embedding(fields.size("vocab_size")?, width),
            norm: norm(),
            dropout: layers.dropout(fields.probability_or("embedding_dropout", 0.0)?),
        },
        layers: types.into_iter().enumerate().map(layer).collect(),
        final_norm: norm(),
        full_rotary: rotary(fields, "full_attention", fields.float_or("global_rope_theta", 160_000.0)?, heads.dim)?,
        sliding_rotary: rotary(fields, "sliding_attention", fields.float_or("local_rope_theta", 10_000.0)?, heads.dim)?,
        reach,
    })
}

/// Makes norms without bias, unless `norm_bias` asks for one.
fn norms<'a>(fields: Fields<'_>, layers: &'a Layers<'_>, width: usize) -> Result<impl Fn() -> LayerNorm + 'a> {
    let epsilon = fields.epsilon_or("norm_eps", 1e-5)?;
    let has_bias = fields.flag_or("norm_bias", false)?;
    Ok(move || {
        let mut norm = layers.layer_norm(width, epsilon);
        norm.beta = norm.beta.filter(|_| has_bias);
        norm
    })
}

/// The rotations of one type of layer; older configurations have their base alone.
fn rotary(fields: Fields<'_>, layer_type: &str, theta: f64, dim: usize) -> Result<Rotary> {
    let of_type =
        fields.table("rope_parameters")?.map(|parameters| parameters.table(layer_type)).transpose()?.flatten();
    let (key, parameters) = match of_type {
        Some(parameters) => ("rope_parameters", Some(parameters)),
        None => ("rope_scaling", fields.table("rope_scaling")?),
    };
    Rotary::with_parameters(fields, key, parameters, theta, dim)
}
