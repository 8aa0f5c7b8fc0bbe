//! ELECTRA: BERT's layers over embeddings that may be narrower, without a pooler.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Device, Tensor},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Forward, FreshValues, Inputs, ModelInfo, Outputs, Result, inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, BertEmbeddings, BertEncoder, BertSizes, Encoder, EncoderModel, Fields, FirstTokenClassifier, Layers,
    adapted_linear,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "electra",
        classes: &[
            AutoClass::MODEL,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "ELECTRA, the discriminator",
    }
}

/// The backbone: `ElectraModel`.
#[derive(Module, Debug)]
struct Electra {
    embeddings: BertEmbeddings,
    embeddings_project: Option<Linear>,
    encoder: BertEncoder,
}

impl Electra {
    /// What the layers begin with, in their width.
    fn embedded(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let embedded = self.embeddings.forward(inputs)?;
        Some(match &self.embeddings_project {
            Some(project) => adapted_linear(project, embedded),
            None => embedded,
        })
    }
}

impl Encoder for Electra {
    fn encode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        Some(self.encoder.forward(self.embedded(inputs)?, inputs))
    }

    fn encode_first(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        Some(self.encoder.forward_first(self.embedded(inputs)?, inputs))
    }
}

impl Forward for Electra {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.outputs(inputs)
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let layers = Layers::new(fields, device)?;
    let sizes = BertSizes::read(fields)?;
    let width = sizes.hidden;
    let narrow = fields.optional_size("embedding_size")?.unwrap_or(128);
    let drop = fields.probability_or("classifier_dropout", sizes.dropout)?;
    let model = EncoderModel {
        family: "Electra",
        backbone: Electra {
            embeddings: BertEmbeddings::new(&layers, &sizes, narrow),
            embeddings_project: (narrow != width).then(|| layers.linear(narrow, width, true)),
            encoder: BertEncoder::new(&layers, &sizes),
        },
        info: ModelInfo {
            model_type: "electra".to_owned(),
            config: config.clone(),
            segments: const { &BertEncoder::segments("electra") },
            base_model_prefix: "electra",
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
    Ok(model.with_head(class, &layers, &["classifier"], |electra, labels| {
        FirstTokenClassifier::new(electra, &layers, width, labels, drop, Activation::Gelu)
    }))
}
