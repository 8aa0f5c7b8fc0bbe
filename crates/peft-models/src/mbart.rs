//! mBART: BART for many languages, with norms before each block and after the last; targets begin with their language.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, DecoderStart, Result, inventory};
use serde_json::{Map, Value};

use crate::blocks::{BartFamily, BartPositions};

inventory::submit! {
    ArchitecturePlugin {
        name: "mbart",
        classes: &[
            AutoClass::MODEL,
            AutoClass::SEQ2SEQ_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "mBART: translation between many languages",
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let family = BartFamily {
        model_type: "mbart",
        name: "MBart",
        conditional_generation: "ForConditionalGeneration",
        input_words: "shared",
        norm_first: true,
        embedding_norm: true,
        final_norm: true,
        positions: BartPositions::Learned,
        start: DecoderStart::LastToken,
        pad_token_id: 1,
        eos_token_id: 2,
    };
    family.build(config, class, device)
}
