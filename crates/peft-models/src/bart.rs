//! BART: an encoder and a decoder with learned positions, norms after the residuals.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, DecoderStart, Result, inventory};
use serde_json::{Map, Value};

use crate::blocks::{BartFamily, BartPositions};

inventory::submit! {
    ArchitecturePlugin {
        name: "bart",
        classes: &[
            AutoClass::MODEL,
            AutoClass::SEQ2SEQ_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "BART: summaries",
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let family = BartFamily {
        model_type: "bart",
        name: "Bart",
        conditional_generation: "ForConditionalGeneration",
        input_words: "shared",
        norm_first: false,
        embedding_norm: true,
        final_norm: false,
        positions: BartPositions::Learned,
        start: DecoderStart::Token(2),
        pad_token_id: 1,
        eos_token_id: 2,
    };
    family.build(config, class, device)
}
