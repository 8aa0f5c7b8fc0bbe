//! RoBERTa and XLM-RoBERTa: BERT's layers, positions counted over the tokens that are no padding, a head of two layers.

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Forward, FreshValues, Inputs, ModelInfo, Outputs, Result, inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, BertEmbeddings, BertEncoder, BertPooler, BertSizes, Encoder, EncoderModel, Fields,
    FirstTokenClassifier, Layers, past_length, positions,
};

const CLASSES: &[AutoClass] = &[
    AutoClass::MODEL,
    AutoClass::SEQUENCE_CLASSIFICATION,
    AutoClass::TOKEN_CLASSIFICATION,
    AutoClass::QUESTION_ANSWERING,
];

inventory::submit! {
    ArchitecturePlugin {
        name: "roberta",
        classes: CLASSES,
        build: |config, class, device| build("Roberta", config, class, device),
        summary: "RoBERTa, DistilRoBERTa",
    }
}

inventory::submit! {
    ArchitecturePlugin {
        name: "xlm-roberta",
        classes: CLASSES,
        build: |config, class, device| build("XLMRoberta", config, class, device),
        summary: "XLM-RoBERTa: RoBERTa for a hundred languages; multilingual E5 and BGE",
    }
}

/// The backbone: `RobertaModel`.
#[derive(Module, Debug)]
struct Roberta {
    embeddings: BertEmbeddings,
    encoder: BertEncoder,
    pooler: Option<BertPooler>,
    #[module(skip)]
    padding_idx: i64,
}

impl Roberta {
    /// The inputs with their positions: tokens are counted from `padding_idx + 1` on, and padding is at `padding_idx`.
    fn placed(&self, inputs: &Inputs) -> Inputs {
        let places = match (&inputs.position_ids, &inputs.input_ids, &inputs.inputs_embeds) {
            (Some(places), _, _) => Some(places.clone()),
            // Behind a prompt the input is embedded already, and padding is counted like all else.
            (None, ids, embedded) if inputs.prompt.is_some() => {
                let length = ids.as_ref().map(|ids| ids.dims()[1]);
                let length = length.or_else(|| embedded.as_ref().map(|embedded| embedded.dims()[1]));
                inputs.prompt.as_ref().zip(length).map(|(prompt, length)| {
                    let first = self.padding_idx + 1;
                    let count = i64::try_from(prompt.dims()[1] + length).unwrap_or(i64::MAX);
                    Tensor::<1, Int>::arange(first..first + count, &prompt.device().inner()).unsqueeze()
                })
            }
            (None, _, Some(embedded)) => Some(positions(inputs, embedded) + (self.padding_idx + 1)),
            (None, Some(ids), None) => Some(self.counted(ids, past_length(inputs))),
            (None, None, None) => None,
        };
        Inputs { position_ids: places, ..inputs.clone() }
    }

    fn counted(&self, ids: &Tensor<2, Int>, past: usize) -> Tensor<2, Int> {
        let is_token = ids.clone().not_equal_scalar(self.padding_idx).int();
        let before = i64::try_from(past).unwrap_or(i64::MAX);
        (is_token.clone().cumsum(1) + before) * is_token + self.padding_idx
    }
}

impl Encoder for Roberta {
    fn encode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        Some(self.encoder.forward(self.embeddings.forward(&self.placed(inputs))?, inputs))
    }

    fn encode_first(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        Some(self.encoder.forward_first(self.embeddings.forward(&self.placed(inputs))?, inputs))
    }

    fn pool(&self, hidden: &Tensor<3>) -> Option<Tensor<2>> {
        self.pooler.as_ref().map(|pooler| pooler.forward(hidden))
    }
}

impl Forward for Roberta {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.outputs(inputs)
    }
}

fn build(family: &'static str, config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let layers = Layers::new(fields, device)?;
    let sizes = BertSizes::read(fields)?;
    let width = sizes.hidden;
    let padding_idx = fields.count_or("pad_token_id", 1)?;
    let first = padding_idx.saturating_add(1);
    let Some(positions) = sizes.positions.checked_sub(first).filter(|left| *left > 0) else {
        let problem = format!("{} leave none for tokens: they are counted from {first} on", sizes.positions);
        return Err(Fields::error("max_position_embeddings", problem));
    };
    let drop = fields.probability_or("classifier_dropout", sizes.dropout)?;
    let model = EncoderModel {
        family,
        backbone: Roberta {
            embeddings: BertEmbeddings::new(&layers, &sizes, width),
            encoder: BertEncoder::new(&layers, &sizes),
            pooler: (*class == AutoClass::MODEL).then(|| BertPooler::new(&layers, width)),
            padding_idx: i64::try_from(padding_idx).unwrap_or(i64::MAX),
        },
        info: ModelInfo {
            model_type: fields.text_or("model_type", "roberta")?.to_owned(),
            config: config.clone(),
            segments: const { &BertEncoder::segments("roberta") },
            base_model_prefix: "roberta",
            input_embedding: Some("embeddings.word_embeddings".to_owned()),
            ignored_tensors: &["position_ids"],
            fresh: FreshValues::default()
                .with_zero_row("word_embeddings.weight", Some(padding_idx))
                .with_zero_row("position_embeddings.weight", Some(padding_idx)),
            past: Some(sizes.past()),
            supports_checkpointing: true,
            max_positions: Some(positions),
            position_rows: Some(sizes.positions),
            ..ModelInfo::custom()
        },
        width,
        token_dropout: drop,
        span_dropout: 0.0,
    };
    Ok(model.with_head(class, &layers, &["classifier"], |roberta, labels| {
        FirstTokenClassifier::new(roberta, &layers, width, labels, drop, Activation::Tanh)
    }))
}
