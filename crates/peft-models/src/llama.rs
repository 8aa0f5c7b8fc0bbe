//! Llama: a causal decoder with rotary positions, grouped key heads, a gated feed-forward and norms before each block.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, Result, inventory};
use serde_json::{Map, Value};

use crate::blocks::{
    AttentionOptions, Decoder, DecoderSizes, Fields, GatedMlp, Layers, PreNormLayer, Rotary, RotaryAttention, Sight,
    class_name,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "llama",
        classes: &[
            AutoClass::MODEL,
            AutoClass::CAUSAL_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "Llama, SmolLM, TinyLlama",
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let make = Layers::new(fields, device)?;
    let sizes = DecoderSizes::read(fields, None)?;
    let epsilon = fields.epsilon_or("rms_norm_eps", 1e-6)?;
    let bias = fields.flag_or("attention_bias", false)?;
    let attention = AttentionOptions {
        bias,
        output_bias: bias,
        dropout: fields.probability_or("attention_dropout", 0.0)?,
        ..AttentionOptions::default()
    };
    let mlp_bias = fields.flag_or("mlp_bias", false)?;
    let activation = fields.activation_or("hidden_act", "silu")?;
    let rotary = Rotary::from_config(fields, sizes.heads.dim)?;
    let layer = |layer| PreNormLayer {
        self_attn: RotaryAttention::new(&make, &sizes, layer, &attention),
        mlp: GatedMlp::new(&make, &sizes, mlp_bias, activation),
        input_layernorm: make.rms_norm(sizes.hidden, epsilon),
        post_attention_layernorm: make.rms_norm(sizes.hidden, epsilon),
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let norm = make.rms_norm(sizes.hidden, epsilon);
    let decoder = Decoder::new(&make, &sizes, Sight::new(rotary), layers, norm);
    let mut model = decoder.into_model("llama", class_name("Llama", class), fields)?;
    if *class == AutoClass::QUESTION_ANSWERING {
        // Transformers names the backbone of this one head differently from all others of the family.
        model.info.segments = &[("model", "transformer")];
    }
    model.with_head(class, &make)
}
