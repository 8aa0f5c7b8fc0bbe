//! Gemma 2: norms around both blocks of a layer, scaled words, capped scores and logits, a window in every other layer.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, FreshValues, Result, inventory};
use serde_json::{Map, Value};

use crate::blocks::{
    AttentionOptions, Decoder, DecoderSizes, Fields, GatedMlp, LayerType, Layers, Rotary, RotaryAttention,
    SandwichLayer, Sight, class_name,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "gemma2",
        classes: &[
            AutoClass::MODEL,
            AutoClass::CAUSAL_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
        ],
        build,
        summary: "Gemma 2",
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
        soft_cap: fields.cap_or("attn_logit_softcapping", Some(50.0))?,
        ..AttentionOptions::default()
    };
    let activation = fields.activation_or("hidden_activation", "gelu_pytorch_tanh")?;
    let rotary = Rotary::from_config(fields, sizes.heads.dim)?;
    let window = Some(fields.optional_size("sliding_window")?.unwrap_or(4096));
    let every_other = |layer: usize| LayerType::sliding_if(layer.is_multiple_of(2));
    let layer_types = LayerType::read(fields, sizes.n_layers, window, every_other)?;
    let layer = |(layer, layer_type)| SandwichLayer {
        self_attn: RotaryAttention::new(&make, &sizes, layer, &AttentionOptions { layer_type, ..attention }),
        mlp: GatedMlp::new(&make, &sizes, false, activation),
        input_layernorm: norm(),
        post_attention_layernorm: norm(),
        pre_feedforward_layernorm: norm(),
        post_feedforward_layernorm: norm(),
    };
    let layers = layer_types.into_iter().enumerate().map(layer).collect();
    let sight = Sight { window, ..Sight::new(rotary) };
    let decoder = Decoder::new(&make, &sizes, sight, layers, norm()).with_word_scale((sizes.hidden as f64).sqrt());
    let mut model = decoder.into_model("gemma2", class_name("Gemma2", class), fields)?;
    // Norms are stored as their distance from 1.
    model.info.fresh = FreshValues { norm: 0.0, ..FreshValues::default() }
        .with_zero_row("embed_tokens.weight", fields.padding_row(Some(0))?);
    model.tied = fields.flag_or("tie_word_embeddings", true)?;
    model.soft_cap = fields.cap_or("final_logit_softcapping", Some(30.0))?;
    model.with_head(class, &make)
}
