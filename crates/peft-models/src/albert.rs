//! ALBERT: narrow embeddings, and groups of layers that are run several times with the same weights.

use burn::{
    module::Module,
    nn::{Dropout, Linear},
    tensor::{Device, Tensor},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Forward, FreshValues, Inputs, ModelInfo, Outputs, Result, inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, AttentionMask, BertEmbeddings, BertSizes, Encoder, EncoderModel, Fields, Heads, LayerNorm, Layers,
    PooledClassifier, adapted_linear, first_token, self_attention,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "albert",
        classes: &[
            AutoClass::MODEL,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "ALBERT: layers that share their weights",
    }
}

/// The backbone: `AlbertModel`.
#[derive(Module, Debug)]
struct Albert {
    embeddings: BertEmbeddings,
    encoder: AlbertTransformer,
    pooler: Option<Linear>,
}

#[derive(Module, Debug)]
struct AlbertTransformer {
    embedding_hidden_mapping_in: Linear,
    albert_layer_groups: Vec<AlbertLayerGroup>,
    /// How many layers are run: `num_hidden_layers`.
    #[module(skip)]
    depth: usize,
}

#[derive(Module, Debug)]
struct AlbertLayerGroup {
    albert_layers: Vec<AlbertLayer>,
}

#[derive(Module, Debug)]
struct AlbertLayer {
    full_layer_layer_norm: LayerNorm,
    attention: AlbertAttention,
    ffn: Linear,
    ffn_output: Linear,
    #[module(skip)]
    activation: Activation,
}

#[derive(Module, Debug)]
struct AlbertAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_dropout: Dropout,
    dense: Linear,
    output_dropout: Dropout,
    layer_norm: LayerNorm,
    #[module(skip)]
    heads: Heads,
}

impl Encoder for Albert {
    fn encode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let hidden = self.embeddings.forward(inputs)?;
        let mask = AttentionMask::bidirectional(inputs.attention_mask.as_ref(), &hidden);
        Some(self.encoder.forward(hidden, &mask))
    }

    fn pool(&self, hidden: &Tensor<3>) -> Option<Tensor<2>> {
        self.pooler.as_ref().map(|pooler| adapted_linear(pooler, first_token(hidden)).tanh())
    }
}

impl AlbertTransformer {
    fn forward(&self, embedded: Tensor<3>, mask: &AttentionMask) -> Tensor<3> {
        let groups = self.albert_layer_groups.len();
        let run = (0..self.depth).filter_map(|layer| self.albert_layer_groups.get(layer * groups / self.depth));
        let layers = run.flat_map(|group| &group.albert_layers);
        let hidden = adapted_linear(&self.embedding_hidden_mapping_in, embedded);
        layers.fold(hidden, |hidden, layer| layer.forward(hidden, mask))
    }
}

impl AlbertLayer {
    fn forward(&self, hidden: Tensor<3>, mask: &AttentionMask) -> Tensor<3> {
        let hidden = self.attention.forward(hidden, mask);
        let inner = self.activation.forward(adapted_linear(&self.ffn, hidden.clone()));
        self.full_layer_layer_norm.add_undropped(adapted_linear(&self.ffn_output, inner), hidden)
    }
}

impl AlbertAttention {
    fn forward(&self, hidden: Tensor<3>, mask: &AttentionMask) -> Tensor<3> {
        let projections = [&self.query, &self.key, &self.value];
        let attended = self_attention(hidden.clone(), projections, self.heads, mask, &self.attention_dropout, None);
        self.layer_norm.add(&self.output_dropout, adapted_linear(&self.dense, attended), hidden)
    }
}

impl Forward for Albert {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.outputs(inputs)
    }
}

/// Layers of all groups together at most.
const MOST_LAYERS: usize = 4096;

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let layers = Layers::new(fields, device)?;
    let sizes = BertSizes {
        activation: fields.activation_or("hidden_act", "gelu_new")?,
        dropout: fields.probability_or("hidden_dropout_prob", 0.0)?,
        attention_dropout: fields.probability_or("attention_probs_dropout_prob", 0.0)?,
        ..BertSizes::read(fields)?
    };
    let (width, narrow) = (sizes.hidden, fields.optional_size("embedding_size")?.unwrap_or(128));
    let is_pooled = [AutoClass::MODEL, AutoClass::SEQUENCE_CLASSIFICATION].contains(class);
    let drop = fields.probability_or("classifier_dropout_prob", 0.1)?;
    let layer = |_| albert_layer(&layers, &sizes);
    let inner = fields.optional_layers("inner_group_num")?.unwrap_or(1);
    let group = |_| AlbertLayerGroup { albert_layers: (0..inner).map(layer).collect() };
    let groups = fields.optional_layers("num_hidden_groups")?.unwrap_or(1);
    // Each group has as many layers.
    Fields::at_most("inner_group_num", groups.saturating_mul(inner), MOST_LAYERS)?;
    let model = EncoderModel {
        family: "Albert",
        backbone: Albert {
            embeddings: BertEmbeddings::new(&layers, &sizes, narrow),
            encoder: AlbertTransformer {
                embedding_hidden_mapping_in: layers.linear(narrow, width, true),
                albert_layer_groups: (0..groups).map(group).collect(),
                depth: sizes.layers,
            },
            pooler: is_pooled.then(|| layers.linear(width, width, true)),
        },
        info: ModelInfo {
            model_type: "albert".to_owned(),
            config: config.clone(),
            segments: &[("backbone", "albert"), ("layer_norm", "LayerNorm")],
            base_model_prefix: "albert",
            input_embedding: Some("embeddings.word_embeddings".to_owned()),
            ignored_tensors: &["position_ids"],
            fresh: FreshValues::default().with_zero_row("word_embeddings.weight", fields.padding_row(Some(0))?),
            max_positions: Some(sizes.positions),
            ..ModelInfo::custom()
        },
        width,
        token_dropout: drop,
        span_dropout: 0.0,
    };
    Ok(model.with_head(class, &layers, &["albert.pooler", "classifier"], |albert, labels| {
        PooledClassifier::new(albert, &layers, width, labels, drop)
    }))
}

fn albert_layer(layers: &Layers<'_>, sizes: &BertSizes) -> AlbertLayer {
    let width = sizes.hidden;
    let projection = || layers.linear(width, width, true);
    AlbertLayer {
        full_layer_layer_norm: layers.layer_norm(width, sizes.epsilon),
        attention: AlbertAttention {
            query: projection(),
            key: projection(),
            value: projection(),
            attention_dropout: layers.dropout(sizes.attention_dropout),
            dense: projection(),
            output_dropout: layers.dropout(sizes.dropout),
            layer_norm: layers.layer_norm(width, sizes.epsilon),
            heads: sizes.heads,
        },
        ffn: layers.linear(width, sizes.inner, true),
        ffn_output: layers.linear(sizes.inner, width, true),
        activation: sizes.activation,
    }
}
