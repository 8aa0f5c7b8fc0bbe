//! Qwen 3: Qwen 2 with a norm over each head's queries and keys in place of the biases.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, ModelInfo, Result, inventory};
use serde_json::{Map, Value};

use crate::{
    blocks::{
        AttentionOptions, CausalModel, Decoder, DecoderSizes, Fields, GatedMlp, Layers, PreNormLayer, Rotary,
        RotaryAttention, Sight, class_name,
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
    let epsilon = fields.float_or("rms_norm_eps", 1e-6)?;
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
    // Transformers names the backbone of this one head differently from all others of the family.
    let is_span = *class == AutoClass::QUESTION_ANSWERING;
    let info = ModelInfo {
        model_type: "qwen3".to_owned(),
        class_name: class_name("Qwen3", class),
        config: config.clone(),
        segments: if is_span { &[("model", "transformer")] } else { &[] },
        ignored_tensors: &["rotary_emb.inv_freq"],
        max_positions: Some(rotary.reach(fields.size("max_position_embeddings")?)),
        ..ModelInfo::custom()
    };
    let sight = Sight { window, ..Sight::new(rotary) };
    let norm = make.rms_norm(sizes.hidden, epsilon);
    let model = CausalModel {
        backbone: Decoder::new(&make, &sizes, sight, layers, norm),
        info,
        words: "embed_tokens",
        tied: fields.flag_or("tie_word_embeddings", false)?,
        soft_cap: None,
    };
    model.with_head(class, &make)
}
