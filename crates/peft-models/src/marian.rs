//! Marian: BART's layers with sinusoidal positions; the decoder begins with padding.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, DecoderStart, Result, inventory};
use serde_json::{Map, Value};

use crate::blocks::{BartFamily, BartPositions};

inventory::submit! {
    ArchitecturePlugin {
        name: "marian",
        classes: &[AutoClass::MODEL, AutoClass::SEQ2SEQ_LM],
        build,
        summary: "Marian: translation between two languages, OPUS-MT",
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let family = BartFamily {
        model_type: "marian",
        name: "Marian",
        conditional_generation: "MTModel",
        input_words: "encoder.embed_tokens",
        norm_first: false,
        embedding_norm: false,
        final_norm: false,
        positions: BartPositions::Sinusoidal,
        start: DecoderStart::Token(58100),
        pad_token_id: 58100,
        eos_token_id: 0,
    };
    family.build(config, class, device)
}
