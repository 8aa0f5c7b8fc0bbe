//! Gemma: Llama with scaled words, norms whose weights are stored as their distance from 1, and wide heads.

use burn::tensor::Device;
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, FreshValues, Result, inventory};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, AttentionOptions, Decoder, DecoderSizes, Fields, GatedMlp, Layers, PreNormLayer, Rotary,
    RotaryAttention, Sight, class_name,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "gemma",
        classes: &[
            AutoClass::MODEL,
            AutoClass::CAUSAL_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
        ],
        build,
        summary: "Gemma, the first",
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
        ..AttentionOptions::default()
    };
    let activation = match fields.activation_or("hidden_act", "gelu_pytorch_tanh")? {
        // The first releases say `gelu` and mean its other form.
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    let layer = |layer| PreNormLayer {
        self_attn: RotaryAttention::new(&make, &sizes, layer, &attention),
        mlp: GatedMlp::new(&make, &sizes, false, activation),
        input_layernorm: norm(),
        post_attention_layernorm: norm(),
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let rotary = Rotary::from_config(fields, sizes.heads.dim)?;
    let decoder =
        Decoder::new(&make, &sizes, Sight::new(rotary), layers, norm()).with_word_scale((sizes.hidden as f64).sqrt());
    let mut model = decoder.into_model("gemma", class_name("Gemma", class), fields)?;
    // Norms are stored as their distance from 1.
    model.info.fresh = FreshValues { norm: 0.0, ..FreshValues::default() }
        .with_zero_row("embed_tokens.weight", fields.padding_row(Some(0))?);
    model.tied = fields.flag_or("tie_word_embeddings", true)?;
    model.with_head(class, &make)
}
