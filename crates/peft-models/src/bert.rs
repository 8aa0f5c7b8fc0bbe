//! BERT: a bidirectional encoder with learned positions and a norm after each residual.

use std::sync::Arc;

use burn::{
    module::Module,
    nn::{Dropout, Embedding, LayerNorm, Linear},
    tensor::{Device, Int, Tensor},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Forward, Inputs, ModelInfo, Outputs, Result, adapted_embedding,
    adapted_linear, inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, AttentionMask, Fields, Heads, Layers, Scores, attend, dropout, embed, positions, split_span_logits,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "bert",
        classes: &[
            AutoClass::MODEL,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "BERT and its kin: MiniLM, sentence encoders",
    }
}

/// The backbone: `BertModel`.
#[derive(Module, Debug)]
struct Bert {
    embeddings: BertEmbeddings,
    encoder: BertEncoder,
    pooler: Option<BertPooler>,
}

#[derive(Module, Debug)]
struct BertEmbeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    layer_norm: LayerNorm,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct BertEncoder {
    layer: Vec<BertLayer>,
}

#[derive(Module, Debug)]
struct BertLayer {
    attention: BertAttention,
    intermediate: BertIntermediate,
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

#[derive(Module, Debug)]
struct BertIntermediate {
    dense: Linear,
    #[module(skip)]
    activation: Activation,
}

/// The end of a block: back to the hidden size, and the residual.
#[derive(Module, Debug)]
struct BertOutput {
    dense: Linear,
    layer_norm: LayerNorm,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct BertPooler {
    dense: Linear,
}

#[derive(Module, Debug)]
struct BertForSequenceClassification {
    bert: Bert,
    dropout: Dropout,
    classifier: Linear,
}

#[derive(Module, Debug)]
struct BertForTokenClassification {
    bert: Bert,
    dropout: Dropout,
    classifier: Linear,
}

#[derive(Module, Debug)]
struct BertForQuestionAnswering {
    bert: Bert,
    qa_outputs: Linear,
}

impl Bert {
    /// The last hidden state, `[batch, sequence, hidden]`; none without input.
    fn encode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let words = embed(&self.embeddings.word_embeddings, inputs)?;
        let hidden = self.embeddings.forward(words, inputs);
        let mask = AttentionMask::bidirectional(inputs.attention_mask.as_ref(), &hidden);
        Some(self.encoder.layer.iter().fold(hidden, |hidden, layer| layer.forward(hidden, &mask)))
    }
}

impl BertEmbeddings {
    fn forward(&self, words: Tensor<3>, inputs: &Inputs) -> Tensor<3> {
        let places = adapted_embedding(&self.position_embeddings, positions(inputs, &words));
        let types = inputs.token_type_ids.clone();
        let types = types.unwrap_or_else(|| Tensor::<2, Int>::zeros([1, 1], &words.device().inner()));
        let types = adapted_embedding(&self.token_type_embeddings, types);
        dropout(&self.dropout, self.layer_norm.forward(words + (places + types)))
    }
}

impl BertLayer {
    fn forward(&self, hidden: Tensor<3>, mask: &AttentionMask) -> Tensor<3> {
        let attended = self.attention.self_attention.forward(hidden.clone(), mask);
        let hidden = self.attention.output.forward(attended, hidden);
        let inner = adapted_linear(&self.intermediate.dense, hidden.clone());
        self.output.forward(self.intermediate.activation.forward(inner), hidden)
    }
}

impl BertSelfAttention {
    fn forward(&self, hidden: Tensor<3>, mask: &AttentionMask) -> Tensor<3> {
        let project = |linear| self.heads.split(adapted_linear(linear, hidden.clone()));
        let (q, k, v) = (project(&self.query), project(&self.key), project(&self.value));
        self.heads.merge(attend(q, k, v, mask, &self.dropout, &Scores::default()))
    }
}

impl BertOutput {
    fn forward(&self, inner: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        let inner = dropout(&self.dropout, adapted_linear(&self.dense, inner));
        self.layer_norm.forward(inner + residual)
    }
}

impl BertPooler {
    /// The first token's state, `[batch, hidden]`.
    fn forward(&self, hidden: &Tensor<3>) -> Tensor<2> {
        let [batch, _, width] = hidden.dims();
        let first = hidden.clone().slice([0..batch, 0..1, 0..width]).reshape([batch, width]);
        adapted_linear(&self.dense, first).tanh()
    }
}

impl Forward for Bert {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.encode(inputs) else { return Outputs::new() };
        let pooled = self.pooler.as_ref().map(|pooler| pooler.forward(&hidden));
        let outputs = Outputs::new().with("last_hidden_state", hidden);
        match pooled {
            Some(pooled) => outputs.with("pooler_output", pooled),
            None => outputs,
        }
    }
}

impl Forward for BertForSequenceClassification {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let hidden = self.bert.encode(inputs);
        let Some((hidden, pooler)) = hidden.as_ref().zip(self.bert.pooler.as_ref()) else { return Outputs::new() };
        let pooled = dropout(&self.dropout, pooler.forward(hidden));
        Outputs::new().with("logits", adapted_linear(&self.classifier, pooled))
    }
}

impl Forward for BertForTokenClassification {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.bert.encode(inputs) else { return Outputs::new() };
        Outputs::new().with("logits", adapted_linear(&self.classifier, dropout(&self.dropout, hidden)))
    }
}

impl Forward for BertForQuestionAnswering {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.bert.encode(inputs) else { return Outputs::new() };
        let (start, end) = split_span_logits(adapted_linear(&self.qa_outputs, hidden));
        Outputs::new().with("start_logits", start).with("end_logits", end)
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    fields.only("position_embedding_type", &"absolute".into())?;
    fields.only("is_decoder", &false.into())?;
    let std = fields.float_or("initializer_range", 0.02)?;
    let layers = Layers { device, std };
    let hidden = fields.size("hidden_size")?;
    let drop = fields.probability_or("hidden_dropout_prob", 0.1)?;
    let head_drop = fields.probability_or("classifier_dropout", drop)?;
    let mut info = ModelInfo {
        model_type: "bert".to_owned(),
        config: config.clone(),
        segments: &[("self_attention", "self"), ("layer_norm", "LayerNorm")],
        base_model_prefix: "bert",
        ignored_tensors: &["position_ids"],
        max_positions: Some(fields.size("max_position_embeddings")?),
        ..ModelInfo::custom()
    };
    let labels = info.num_labels();
    let mut finish = |class_name: &str, prefix: &str, heads: &[&str]| {
        info.class_name = class_name.to_owned();
        info.input_embedding = Some(format!("{prefix}embeddings.word_embeddings"));
        info.head_modules = heads.iter().map(|head| (*head).to_owned()).collect();
        Arc::new(info.clone())
    };
    if *class == AutoClass::SEQUENCE_CLASSIFICATION {
        let module = BertForSequenceClassification {
            bert: backbone(fields, &layers, true)?,
            dropout: layers.dropout(head_drop),
            classifier: layers.linear(hidden, labels, true),
        };
        let info = finish("BertForSequenceClassification", "bert.", &["bert.pooler", "classifier"]);
        Ok(BaseModel { module: Box::new(module), info })
    } else if *class == AutoClass::TOKEN_CLASSIFICATION {
        let module = BertForTokenClassification {
            bert: backbone(fields, &layers, false)?,
            dropout: layers.dropout(head_drop),
            classifier: layers.linear(hidden, labels, true),
        };
        let info = finish("BertForTokenClassification", "bert.", &["classifier"]);
        Ok(BaseModel { module: Box::new(module), info })
    } else if *class == AutoClass::QUESTION_ANSWERING {
        let bert = backbone(fields, &layers, false)?;
        let module = BertForQuestionAnswering { bert, qa_outputs: layers.linear(hidden, 2, true) };
        let info = finish("BertForQuestionAnswering", "bert.", &["qa_outputs"]);
        Ok(BaseModel { module: Box::new(module), info })
    } else {
        let module = backbone(fields, &layers, true)?;
        Ok(BaseModel { module: Box::new(module), info: finish("BertModel", "", &["pooler"]) })
    }
}

fn backbone(fields: Fields<'_>, layers: &Layers<'_>, pooled: bool) -> Result<Bert> {
    let hidden = fields.size("hidden_size")?;
    let inner = fields.size("intermediate_size")?;
    let count = fields.size("num_attention_heads")?;
    if !hidden.is_multiple_of(count) {
        let problem = format!("{count} heads do not divide the hidden_size {hidden}");
        return Err(Fields::error("num_attention_heads", problem));
    }
    let heads = Heads { count, dim: hidden / count };
    let epsilon = fields.float_or("layer_norm_eps", 1e-12)?;
    let drop = fields.probability_or("hidden_dropout_prob", 0.1)?;
    let attention_drop = fields.probability_or("attention_probs_dropout_prob", 0.1)?;
    let activation = fields.activation_or("hidden_act", "gelu")?;
    let output = |d_in| BertOutput {
        dense: layers.linear(d_in, hidden, true),
        layer_norm: layers.layer_norm(hidden, epsilon),
        dropout: layers.dropout(drop),
    };
    let layer = |_| BertLayer {
        attention: BertAttention {
            self_attention: BertSelfAttention {
                query: layers.linear(hidden, hidden, true),
                key: layers.linear(hidden, hidden, true),
                value: layers.linear(hidden, hidden, true),
                dropout: layers.dropout(attention_drop),
                heads,
            },
            output: output(hidden),
        },
        intermediate: BertIntermediate { dense: layers.linear(hidden, inner, true), activation },
        output: output(inner),
    };
    Ok(Bert {
        embeddings: BertEmbeddings {
            word_embeddings: layers.embedding(fields.size("vocab_size")?, hidden),
            position_embeddings: layers.embedding(fields.size("max_position_embeddings")?, hidden),
            token_type_embeddings: layers.embedding(fields.optional_size("type_vocab_size")?.unwrap_or(2), hidden),
            layer_norm: layers.layer_norm(hidden, epsilon),
            dropout: layers.dropout(drop),
        },
        encoder: BertEncoder { layer: (0..fields.size("num_hidden_layers")?).map(layer).collect() },
        pooler: pooled.then(|| BertPooler { dense: layers.linear(hidden, hidden, true) }),
    })
}
