//! Phi 3 and 4: one matrix for queries, keys and values, one for both inputs of the gated feed-forward block.

use burn::{
    module::Module,
    nn::{Dropout, Linear},
    tensor::{Device, Tensor},
};
use peft_core::{ArchitecturePlugin, AutoClass, BaseModel, FreshValues, Result, inventory};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, Decoder, DecoderContext, DecoderLayer, DecoderSizes, Fields, LayerType, Layers, RmsNorm, Rotary,
    RotaryHeads, Scores, Sight, adapted_linear, class_name, dropout,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "phi3",
        classes: &[
            AutoClass::MODEL,
            AutoClass::CAUSAL_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
        ],
        build,
        summary: "Phi 3 and 4",
    }
}

#[derive(Module, Debug)]
struct Phi3Layer {
    self_attn: Phi3Attention,
    mlp: Phi3Mlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    /// `resid_pdrop`, after both blocks.
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct Phi3Attention {
    qkv_proj: Linear,
    o_proj: Linear,
    dropout: Dropout,
    #[module(skip)]
    heads: RotaryHeads,
}

#[derive(Module, Debug)]
struct Phi3Mlp {
    gate_up_proj: Linear,
    down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl DecoderLayer for Phi3Layer {
    fn forward(&self, hidden: Tensor<3>, context: &DecoderContext) -> Tensor<3> {
        let attended = self.self_attn.forward(self.input_layernorm.forward(hidden.clone()), context);
        let hidden = hidden + dropout(&self.dropout, attended);
        let inner = self.mlp.forward(self.post_attention_layernorm.forward(hidden.clone()));
        hidden + dropout(&self.dropout, inner)
    }
}

impl Phi3Attention {
    fn forward(&self, hidden: Tensor<3>, context: &DecoderContext) -> Tensor<3> {
        let [batch, length, _] = hidden.dims();
        let RotaryHeads { queries, keys, .. } = self.heads;
        let fused = adapted_linear(&self.qkv_proj, hidden);
        let fused = fused.reshape([batch, length, queries.count + 2 * keys.count, queries.dim]);
        let part = |from, count| fused.clone().narrow(2, from, count);
        let (q, k) = (part(0, queries.count), part(queries.count, keys.count));
        let v = part(queries.count + keys.count, keys.count);
        adapted_linear(&self.o_proj, self.heads.attend(q, k, v, &self.dropout, context))
    }
}

impl Phi3Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let fused = adapted_linear(&self.gate_up_proj, x);
        let inner = fused.dims()[2] / 2;
        let (gate, up) = (fused.clone().narrow(2, 0, inner), fused.narrow(2, inner, inner));
        adapted_linear(&self.down_proj, self.activation.forward(gate) * up)
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let make = Layers::new(fields, device)?;
    let sizes = DecoderSizes::read(fields, None)?;
    let DecoderSizes { hidden, inner, heads, key_heads, .. } = sizes;
    let epsilon = fields.epsilon_or("rms_norm_eps", 1e-5)?;
    let attention_drop = fields.probability_or("attention_dropout", 0.0)?;
    let residual_drop = fields.probability_or("resid_pdrop", 0.0)?;
    let activation = fields.activation_or("hidden_act", "silu")?;
    let rotary = Rotary::from_config(fields, heads.dim)?;
    let window = fields.optional_size("sliding_window")?;
    let layer = |layer| Phi3Layer {
        self_attn: Phi3Attention {
            qkv_proj: make.linear(hidden, heads.width() + 2 * key_heads.width(), false),
            o_proj: make.linear(heads.width(), hidden, false),
            dropout: make.dropout(attention_drop),
            heads: RotaryHeads {
                layer,
                layer_type: LayerType::sliding_if(window.is_some()),
                queries: heads,
                keys: key_heads,
                scores: Scores::default(),
            },
        },
        mlp: Phi3Mlp {
            gate_up_proj: make.linear(hidden, 2 * inner, false),
            down_proj: make.linear(inner, hidden, false),
            activation,
        },
        input_layernorm: make.rms_norm(hidden, epsilon),
        post_attention_layernorm: make.rms_norm(hidden, epsilon),
        dropout: make.dropout(residual_drop),
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let rereads_after = rotary.switch();
    let sight = Sight { window, ..Sight::new(rotary) };
    let norm = make.rms_norm(hidden, epsilon);
    let decoder = Decoder::new(&make, &sizes, sight, layers, norm);
    let mut model = decoder.into_model("phi3", class_name("Phi3", class), fields)?;
    model.info.fresh = FreshValues::default().with_zero_row("embed_tokens.weight", fields.padding_row(Some(32_000))?);
    model.info.rereads_after = rereads_after;
    model.with_head(class, &make)
}
