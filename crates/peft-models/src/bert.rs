//! BERT: a bidirectional encoder with learned positions and a norm after each residual.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Forward, FreshValues, Inputs, ModelInfo, Outputs, Result, inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    BertEmbeddings, BertEncoder, BertPooler, BertSizes, Encoder, EncoderModel, Fields, Layers, PooledClassifier,
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
        summary: "BERT, MiniLM, sentence encoders",
    }
}

/// The backbone: `BertModel`.
#[derive(Module, Debug)]
struct Bert {
    embeddings: BertEmbeddings,
    encoder: BertEncoder,
    pooler: Option<BertPooler>,
}

impl Encoder for Bert {
    fn encode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        Some(self.encoder.forward(self.embeddings.forward(inputs)?, inputs))
    }

    fn encode_first(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        Some(self.encoder.forward_first(self.embeddings.forward(inputs)?, inputs))
    }

    fn pool(&self, hidden: &Tensor<3>) -> Option<Tensor<2>> {
        self.pooler.as_ref().map(|pooler| pooler.forward(hidden))
    }
}

impl Forward for Bert {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.outputs(inputs)
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let layers = Layers::new(fields, device)?;
    let sizes = BertSizes::read(fields)?;
    let width = sizes.hidden;
    let is_pooled = [AutoClass::MODEL, AutoClass::SEQUENCE_CLASSIFICATION].contains(class);
    let drop = fields.probability_or("classifier_dropout", sizes.dropout)?;
    let model = EncoderModel {
        family: "Bert",
        backbone: Bert {
            embeddings: BertEmbeddings::new(&layers, &sizes, width),
            encoder: BertEncoder::new(&layers, &sizes),
            pooler: is_pooled.then(|| BertPooler::new(&layers, width)),
        },
        info: ModelInfo {
            model_type: "bert".to_owned(),
            config: config.clone(),
            segments: const { &BertEncoder::segments("bert") },
            base_model_prefix: "bert",
            input_embedding: Some("embeddings.word_embeddings".to_owned()),
            ignored_tensors: &["position_ids"],
            fresh: FreshValues::default().with_zero_row("word_embeddings.weight", fields.padding_row(Some(0))?),
            past: Some(sizes.past()),
            supports_checkpointing: true,
            max_positions: Some(sizes.positions),
            ..ModelInfo::custom()
        },
        width,
        token_dropout: drop,
        span_dropout: 0.0,
    };
    Ok(model.with_head(class, &layers, &["bert.pooler", "classifier"], |bert, labels| {
        PooledClassifier::new(bert, &layers, width, labels, drop)
    }))
}
