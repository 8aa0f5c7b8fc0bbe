//! DistilBERT: BERT without segments and without a pooler, under names of its own.

use std::sync::Arc;

use burn::{
    module::Module,
    nn::{Dropout, Linear},
    tensor::{Device, Tensor, activation::relu},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Forward, Fresh, FreshValues, Inputs, ModelInfo, Outputs, Result,
    inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, AttentionMask, BertEmbeddings, BertSizes, Encoder, EncoderModel, Fields, Heads, LayerNorm, Layers,
    adapted_linear, dropout, first_token, run_layers, self_attention,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "distilbert",
        classes: &[
            AutoClass::MODEL,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "DistilBERT: half of BERT's layers",
    }
}

/// The backbone: `DistilBertModel`.
#[derive(Module, Debug)]
struct DistilBert {
    embeddings: BertEmbeddings,
    transformer: Transformer,
}

#[derive(Module, Debug)]
struct Transformer {
    layer: Vec<TransformerBlock>,
}

#[derive(Module, Debug)]
struct TransformerBlock {
    attention: SelfAttention,
    sa_layer_norm: LayerNorm,
    ffn: FeedForward,
    output_layer_norm: LayerNorm,
}

#[derive(Module, Debug)]
struct SelfAttention {
    q_lin: Linear,
    k_lin: Linear,
    v_lin: Linear,
    out_lin: Linear,
    dropout: Dropout,
    #[module(skip)]
    heads: Heads,
}

#[derive(Module, Debug)]
struct FeedForward {
    lin1: Linear,
    lin2: Linear,
    dropout: Dropout,
    #[module(skip)]
    activation: Activation,
}

/// The head for sequences: the first token through two layers.
#[derive(Module, Debug)]
struct SequenceClassifier {
    backbone: DistilBert,
    pre_classifier: Linear,
    dropout: Dropout,
    classifier: Linear,
}

impl Encoder for DistilBert {
    fn encode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let hidden = self.embeddings.forward(inputs)?;
        let mask = AttentionMask::bidirectional(inputs.attention_mask.as_ref(), &hidden);
        let mask = Arc::new(mask);
        Some(run_layers(
            &self.transformer.layer,
            inputs.checkpointed_layers(),
            hidden,
            [],
            move |block, _, hidden, []| block.forward(hidden, &mask),
        ))
    }
}

impl TransformerBlock {
    fn forward(&self, hidden: Tensor<3>, mask: &AttentionMask) -> Tensor<3> {
        let attended = self.attention.forward(hidden.clone(), mask);
        let hidden = self.sa_layer_norm.add_undropped(attended, hidden);
        self.output_layer_norm.add_undropped(self.ffn.forward(hidden.clone()), hidden)
    }
}

impl SelfAttention {
    fn forward(&self, hidden: Tensor<3>, mask: &AttentionMask) -> Tensor<3> {
        let projections = [&self.q_lin, &self.k_lin, &self.v_lin];
        adapted_linear(&self.out_lin, self_attention(hidden, projections, self.heads, mask, &self.dropout, None))
    }
}

impl FeedForward {
    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let inner = self.activation.forward(adapted_linear(&self.lin1, hidden));
        dropout(&self.dropout, adapted_linear(&self.lin2, inner))
    }
}

impl Forward for DistilBert {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.outputs(inputs)
    }
}

impl Forward for SequenceClassifier {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.backbone.encode(inputs) else { return Outputs::new() };
        let inner = relu(adapted_linear(&self.pre_classifier, first_token(&hidden)));
        Outputs::new().with("logits", adapted_linear(&self.classifier, dropout(&self.dropout, inner)))
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let layers = Layers::new(fields, device)?;
    let sizes = sizes(fields)?;
    let width = sizes.hidden;
    let model = EncoderModel {
        family: "DistilBert",
        backbone: DistilBert {
            embeddings: BertEmbeddings::new(&layers, &sizes, width),
            transformer: Transformer { layer: (0..sizes.layers).map(|_| block(&layers, &sizes)).collect() },
        },
        info: ModelInfo {
            model_type: "distilbert".to_owned(),
            supports_checkpointing: true,
            config: config.clone(),
            segments: &[("backbone", "distilbert"), ("layer_norm", "LayerNorm")],
            base_model_prefix: "distilbert",
            input_embedding: Some("embeddings.word_embeddings".to_owned()),
            ignored_tensors: &["position_ids"],
            fresh: fresh(fields)?,
            max_positions: Some(sizes.positions),
            ..ModelInfo::custom()
        },
        width,
        token_dropout: sizes.dropout,
        span_dropout: fields.probability_or("qa_dropout", 0.1)?,
    };
    let drop = fields.probability_or("seq_classif_dropout", 0.2)?;
    Ok(model.with_head(class, &layers, &["pre_classifier", "classifier"], |backbone, labels| SequenceClassifier {
        backbone,
        pre_classifier: layers.linear(width, width, true),
        dropout: layers.dropout(drop),
        classifier: layers.linear(width, labels, true),
    }))
}

/// Positions that wave instead of being drawn, where the configuration asks for them.
fn fresh(fields: Fields<'_>) -> Result<FreshValues> {
    let mut fresh = FreshValues::default().with_zero_row("word_embeddings.weight", fields.padding_row(Some(0))?);
    if fields.flag_or("sinusoidal_pos_embds", false)? {
        fresh.others.push(("position_embeddings.weight", Fresh::Table(wave)));
    }
    Ok(fresh)
}

/// `sin(place / 10000^(2i / width))` in column `2i`, the cosine in the next.
fn wave(place: usize, column: usize, width: usize) -> f64 {
    let angle = place as f64 / 10000_f64.powf((2 * (column / 2)) as f64 / width as f64);
    if column.is_multiple_of(2) { angle.sin() } else { angle.cos() }
}

fn sizes(fields: Fields<'_>) -> Result<BertSizes> {
    let hidden = fields.size("dim")?;
    Ok(BertSizes {
        vocab: fields.size("vocab_size")?,
        positions: fields.size("max_position_embeddings")?,
        types: None,
        hidden,
        inner: fields.size("hidden_dim")?,
        layers: fields.layers("n_layers")?,
        heads: Heads::dividing(hidden, "dim", fields, "n_heads")?,
        activation: fields.activation_or("activation", "gelu")?,
        epsilon: 1e-12,
        dropout: fields.probability_or("dropout", 0.1)?,
        attention_dropout: fields.probability_or("attention_dropout", 0.1)?,
    })
}

fn block(layers: &Layers<'_>, sizes: &BertSizes) -> TransformerBlock {
    let width = sizes.hidden;
    let projection = || layers.linear(width, width, true);
    TransformerBlock {
        attention: SelfAttention {
            q_lin: projection(),
            k_lin: projection(),
            v_lin: projection(),
            out_lin: projection(),
            dropout: layers.dropout(sizes.attention_dropout),
            heads: sizes.heads,
        },
        sa_layer_norm: layers.layer_norm(width, sizes.epsilon),
        ffn: FeedForward {
            lin1: layers.linear(width, sizes.inner, true),
            lin2: layers.linear(sizes.inner, width, true),
            dropout: layers.dropout(sizes.dropout),
            activation: sizes.activation,
        },
        output_layer_norm: layers.layer_norm(width, sizes.epsilon),
    }
}
