//! Qwen 3: Qwen 2 with a norm over each head's queries and keys in place of the biases.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, Result, inventory};
use serde_json::{Map, Value};

use crate::{
    blocks::{
        AttentionOptions, Decoder, DecoderSizes, Fields, GatedMlp, Layers, PreNormLayer, Rotary, RotaryAttention,
        Sight, class_name,
    },
    qwen2::windows,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "qwen3",
        classes: &[
            AutoClass::MODEL,
            AutoClass::CAUSAL_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "Qwen 3, dense",
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let make = Layers::new(fields, device)?;
    let sizes = DecoderSizes::read(fields, Some(128))?;
    let epsilon = fields.epsilon_or("rms_norm_eps", 1e-6)?;
    let bias = fields.flag_or("attention_bias", false)?;
    let attention = AttentionOptions {
        bias,
        output_bias: bias,
        dropout: fields.probability_or("attention_dropout", 0.0)?,
        ..AttentionOptions::default()
    };
    let activation = fields.activation_or("hidden_act", "silu")?;
    let rotary = Rotary::from_config(fields, sizes.heads.dim)?;
    let (window, layer_types) = windows(fields, sizes.n_layers)?;
    let layer = |(layer, layer_type)| PreNormLayer {
        self_attn: RotaryAttention::new(&make, &sizes, layer, &AttentionOptions { layer_type, ..attention })
            .with_head_norms(|| make.rms_norm(sizes.heads.dim, epsilon)),
        mlp: GatedMlp::new(&make, &sizes, false, activation),
        input_layernorm: make.rms_norm(sizes.hidden, epsilon),
        post_attention_layernorm: make.rms_norm(sizes.hidden, epsilon),
    };
    let layers = layer_types.into_iter().enumerate().map(layer).collect();
    let sight = Sight { window, ..Sight::new(rotary) };
    let norm = make.rms_norm(sizes.hidden, epsilon);
    let decoder = Decoder::new(&make, &sizes, sight, layers, norm);
    let mut model = decoder.into_model("qwen3", class_name("Qwen3", class), fields)?;
    if *class == AutoClass::QUESTION_ANSWERING {
        // Transformers names the backbone of this one head differently from all others of the family.
        model.info.segments = &[("model", "transformer")];
    }
    model.with_head(class, &make)
}
