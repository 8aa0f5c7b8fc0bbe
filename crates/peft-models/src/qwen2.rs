//! Qwen 2 and 2.5: Llama with biases on queries, keys and values, and sliding windows in the upper layers.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, Result, inventory};
use serde_json::{Map, Value};

use crate::blocks::{
    AttentionOptions, Decoder, DecoderSizes, Fields, GatedMlp, LayerType, Layers, PreNormLayer, Rotary,
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
    let epsilon = fields.epsilon_or("rms_norm_eps", 1e-6)?;
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
    let sight = Sight { window, ..Sight::new(rotary) };
    let norm = make.rms_norm(sizes.hidden, epsilon);
    let decoder = Decoder::new(&make, &sizes, sight, layers, norm);
    let mut model = decoder.into_model("qwen2", class_name("Qwen2", class), fields)?;
    if *class == AutoClass::QUESTION_ANSWERING {
        // Transformers names the backbone of this one head differently from all others of the family.
        model.info.segments = &[("model", "transformer")];
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_window_is_used_only_where_the_configuration_switches_it_on() {
        use LayerType::{Full, Sliding};
        let read = |config: Value| windows(Fields(config.as_object().unwrap()), 3);
        assert_eq!(read(json!({"sliding_window": 8, "max_window_layers": 1})).unwrap(), (None, vec![Full; 3]));
        let on = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1});
        assert_eq!(read(on).unwrap(), (Some(8), vec![Full, Sliding, Sliding]));
        let off = json!({"sliding_window": 8, "layer_types": vec!["sliding_attention"; 3]});
        assert!(read(off).unwrap_err().to_string().contains("no sliding_window"));
    }
}
