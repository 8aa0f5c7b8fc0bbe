//! Gemma 3 without its eyes: Gemma 2 with norms over queries and keys in place of the caps, and two bases of positions.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, FreshValues, Result, inventory};
use serde_json::{Map, Value};

use crate::blocks::{
    AttentionOptions, Decoder, DecoderSizes, Fields, GatedMlp, LayerType, Layers, Rotary, RotaryAttention,
    SandwichLayer, Sight, class_name,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "gemma3_text",
        classes: &[AutoClass::MODEL, AutoClass::CAUSAL_LM, AutoClass::SEQUENCE_CLASSIFICATION],
        build,
        summary: "Gemma 3, text only",
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    fields.only("use_bidirectional_attention", &false.into())?;
    let make = Layers::new(fields, device)?;
    let sizes = DecoderSizes::read(fields, Some(256))?;
    let epsilon = fields.epsilon_or("rms_norm_eps", 1e-6)?;
    let norm = || make.rms_norm_around_one(sizes.hidden, epsilon);
    let bias = fields.flag_or("attention_bias", false)?;
    let attention = AttentionOptions {
        bias,
        output_bias: bias,
        dropout: fields.probability_or("attention_dropout", 0.0)?,
        scale: Some(fields.float_or("query_pre_attn_scalar", 256.0)?.powf(-0.5)),
        ..AttentionOptions::default()
    };
    let activation = fields.activation_or("hidden_activation", "gelu_pytorch_tanh")?;
    let (rotary, sliding_rotary) = rotaries(fields, sizes.heads.dim)?;
    let window = Some(fields.optional_size("sliding_window")?.unwrap_or(4096));
    let pattern = fields.optional_size("sliding_window_pattern")?.unwrap_or(6);
    let all_but_each_last = |layer: usize| LayerType::sliding_if(!(layer + 1).is_multiple_of(pattern));
    let layer_types = LayerType::read(fields, sizes.n_layers, window, all_but_each_last)?;
    let layer = |(layer, layer_type)| SandwichLayer {
        self_attn: RotaryAttention::new(&make, &sizes, layer, &AttentionOptions { layer_type, ..attention })
            .with_head_norms(|| make.rms_norm_around_one(sizes.heads.dim, epsilon)),
        mlp: GatedMlp::new(&make, &sizes, false, activation),
        input_layernorm: norm(),
        post_attention_layernorm: norm(),
        pre_feedforward_layernorm: norm(),
        post_feedforward_layernorm: norm(),
    };
    let layers = layer_types.into_iter().enumerate().map(layer).collect();
    let sight = Sight { rotary, window, sliding_rotary: Some(sliding_rotary) };
    let decoder = Decoder::new(&make, &sizes, sight, layers, norm()).with_word_scale((sizes.hidden as f64).sqrt());
    // Only the head for words goes without `Text` in its name.
    let family = if *class == AutoClass::CAUSAL_LM { "Gemma3" } else { "Gemma3Text" };
    let mut model = decoder.into_model("gemma3_text", class_name(family, class), fields)?;
    // Norms are stored as their distance from 1.
    model.info.fresh = FreshValues { norm: 0.0, ..FreshValues::default() }
        .with_zero_row("embed_tokens.weight", fields.padding_row(Some(0))?);
    model.tied = fields.flag_or("tie_word_embeddings", true)?;
    model.soft_cap = fields.cap_or("final_logit_softcapping", None)?;
    model.with_head(class, &make)
}

/// The positions of full and of sliding layers: `rope_parameters` by layer type, or the older `rope_theta` with
/// `rope_scaling`, which is for the full layers alone, and `rope_local_base_freq`.
fn rotaries(fields: Fields<'_>, dim: usize) -> Result<(Rotary, Rotary)> {
    let nested = fields.table("rope_parameters")?;
    let of = |layer_type: &str| nested.map_or(Ok(None), |nested| nested.table(layer_type));
    let (full, sliding) = match fields.table("rope_scaling")? {
        Some(scaling) => (Some(scaling), of("sliding_attention")?),
        None => (of("full_attention")?, of("sliding_attention")?),
    };
    let (theta, local) = (fields.float_or("rope_theta", 1e6)?, fields.float_or("rope_local_base_freq", 1e4)?);
    Ok((
        Rotary::with_parameters(fields, "rope_parameters", full, theta, dim)?,
        Rotary::with_parameters(fields, "rope_parameters", sliding, local, dim)?,
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn old_and_new_keys_mean_the_same() {
        let read = |config: Value| rotaries(Fields(config.as_object().unwrap()), 4).unwrap();
        let old = json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 7e3});
        let new = json!({"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 7e3},
        }});
        assert_eq!(read(old), read(new));
        let by_default = json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4});
        assert_eq!(read(json!({})), read(by_default.clone()));
        let (full, sliding) = read(by_default);
        assert_ne!(full, sliding);
    }
}
