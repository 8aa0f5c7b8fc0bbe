//! Qwen 2 and 2.5: Llama with biases on queries, keys and values, and sliding windows in the upper layers.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, ModelInfo, Result, inventory};
use serde_json::{Map, Value};

use crate::blocks::{
    AttentionOptions, CausalModel, Decoder, DecoderSizes, Fields, GatedMlp, LayerType, Layers, PreNormLayer, Rotary,
    RotaryAttention, Sight, class_name,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "qwen2",
        classes: &[
            AutoClass::MODEL,
            AutoClass::CAUSAL_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "Qwen 2 and 2.5",
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let make = Layers::new(fields, device)?;
    let sizes = DecoderSizes::read(fields, None)?;
    let epsilon = fields.float_or("rms_norm_eps", 1e-6)?;
    let attention = AttentionOptions {
        bias: true,
        dropout: fields.probability_or("attention_dropout", 0.0)?,
        ..AttentionOptions::default()
    };
    let activation = fields.activation_or("hidden_act", "silu")?;
    let rotary = Rotary::from_config(fields, sizes.heads.dim)?;
    let (window, layer_types) = windows(fields, sizes.n_layers)?;
    let layer = |(layer, layer_type)| PreNormLayer {
        self_attn: RotaryAttention::new(&make, &sizes, layer, &AttentionOptions { layer_type, ..attention }),
        mlp: GatedMlp::new(&make, &sizes, false, activation),
        input_layernorm: make.rms_norm(sizes.hidden, epsilon),
        post_attention_layernorm: make.rms_norm(sizes.hidden, epsilon),
    };
    let layers = layer_types.into_iter().enumerate().map(layer).collect();
    // Transformers names the backbone of this one head differently from all others of the family.
    let is_span = *class == AutoClass::QUESTION_ANSWERING;
    let info = ModelInfo {
        model_type: "qwen2".to_owned(),
        class_name: class_name("Qwen2", class),
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

/// The window and which layers have it: those from `max_window_layers` on, if `use_sliding_window` says so at all.
pub(crate) fn windows(fields: Fields<'_>, n_layers: usize) -> Result<(Option<usize>, Vec<LayerType>)> {
    let window = match fields.flag_or("use_sliding_window", false)? {
        true => Some(fields.optional_size("sliding_window")?.unwrap_or(4096)),
        false => None,
    };
    let first = fields.float_or("max_window_layers", 28.0)?;
    let by_default = |layer: usize| LayerType::sliding_if(window.is_some() && layer as f64 >= first);
    Ok((window, LayerType::read(fields, n_layers, window, by_default)?))
}
