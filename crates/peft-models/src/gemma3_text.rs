//! Gemma 3 without its eyes: Gemma 2 with norms over queries and keys in place of the caps, and two bases of positions.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, ModelInfo, Result, inventory};
use serde_json::{Map, Value};

use crate::blocks::{
    AttentionOptions, CausalModel, Decoder, DecoderSizes, Fields, GatedMlp, LayerType, Layers, Rotary, RotaryAttention,
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
    let epsilon = fields.float_or("rms_norm_eps", 1e-6)?;
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
    let info = ModelInfo {
        model_type: "gemma3_text".to_owned(),
        // Only the head for words goes without `Text` in its name.
        class_name: class_name(if *class == AutoClass::CAUSAL_LM { "Gemma3" } else { "Gemma3Text" }, class),
        config: config.clone(),
        ignored_tensors: &["rotary_emb.inv_freq"],
        max_positions: Some(rotary.reach(fields.size("max_position_embeddings")?)),
        ..ModelInfo::custom()
    };
    let sight =
        Sight { word_scale: (sizes.hidden as f64).sqrt(), rotary, window, sliding_rotary: Some(sliding_rotary) };
    let model = CausalModel {
        backbone: Decoder::new(&make, &sizes, sight, layers, norm()),
        info,
        words: "embed_tokens",
        tied: fields.flag_or("tie_word_embeddings", true)?,
        soft_cap: fields.cap_or("final_logit_softcapping", None)?,
    };
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
