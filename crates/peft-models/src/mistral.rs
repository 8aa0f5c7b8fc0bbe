//! Mistral: Llama whose layers may all look at a sliding window only.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, Result, inventory};
use serde_json::{Map, Value};

use crate::blocks::{
    AttentionOptions, Decoder, DecoderSizes, Fields, GatedMlp, LayerType, Layers, PreNormLayer, Rotary,
    RotaryAttention, Sight, class_name,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "mistral",
        classes: &[
            AutoClass::MODEL,
            AutoClass::CAUSAL_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "Mistral: Llama with a sliding window",
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let make = Layers::new(fields, device)?;
    let sizes = DecoderSizes::read(fields, None)?;
    let epsilon = fields.epsilon_or("rms_norm_eps", 1e-6)?;
    let window = fields.optional_size("sliding_window")?;
    let attention = AttentionOptions {
        dropout: fields.probability_or("attention_dropout", 0.0)?,
        layer_type: LayerType::sliding_if(window.is_some()),
        ..AttentionOptions::default()
    };
    let activation = fields.activation_or("hidden_act", "silu")?;
    let rotary = Rotary::from_config(fields, sizes.heads.dim)?;
    let layer = |layer| PreNormLayer {
        self_attn: RotaryAttention::new(&make, &sizes, layer, &attention),
        mlp: GatedMlp::new(&make, &sizes, false, activation),
        input_layernorm: make.rms_norm(sizes.hidden, epsilon),
        post_attention_layernorm: make.rms_norm(sizes.hidden, epsilon),
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let sight = Sight { window, ..Sight::new(rotary) };
    let norm = make.rms_norm(sizes.hidden, epsilon);
    let decoder = Decoder::new(&make, &sizes, sight, layers, norm);
    decoder.into_model("mistral", class_name("Mistral", class), fields)?.with_head(class, &make)
}
