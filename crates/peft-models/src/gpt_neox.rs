//! GPT-NeoX: a causal decoder with rotary positions on part of each head and, mostly, attention beside the feed-forward block.

use std::sync::Arc;

use burn::{
    module::Module,
    nn::{Dropout, Embedding, Linear},
    tensor::{Device, Tensor},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Forward, Inputs, ModelInfo, Outputs, PastKeyValues, Result, inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, AttentionMask, CausalBackbone, CausalModel, Fields, Heads, LayerNorm, Layers, Rotary, RotaryTables,
    Scores, adapted_linear, attend, class_name, dropout, embed, past_length, positions, positions_end, run_layers,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "gpt_neox",
        classes: &[
            AutoClass::MODEL,
            AutoClass::CAUSAL_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "GPT-NeoX, Pythia, Dolly",
    }
}

/// The backbone: `GPTNeoXModel`.
#[derive(Module, Debug)]
struct GptNeoX {
    embed_in: Embedding,
    emb_dropout: Dropout,
    layers: Vec<GptNeoXLayer>,
    final_layer_norm: LayerNorm,
    #[module(skip)]
    rotary: Rotary,
}

#[derive(Module, Debug)]
struct GptNeoXLayer {
    input_layernorm: LayerNorm,
    post_attention_layernorm: LayerNorm,
    attention: GptNeoXAttention,
    mlp: GptNeoXMlp,
    dropout: Dropout,
    #[module(skip)]
    parallel: bool,
}

#[derive(Module, Debug)]
struct GptNeoXAttention {
    query_key_value: Linear,
    dense: Linear,
    dropout: Dropout,
    #[module(skip)]
    layer: usize,
    #[module(skip)]
    heads: Heads,
}

#[derive(Module, Debug)]
struct GptNeoXMlp {
    dense_h_to_4h: Linear,
    dense_4h_to_h: Linear,
    #[module(skip)]
    activation: Activation,
}

/// What all layers of one forward pass share.
struct Context {
    mask: AttentionMask,
    tables: RotaryTables,
    past: Option<PastKeyValues>,
}

impl CausalBackbone for GptNeoX {
    fn decode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let hidden = dropout(&self.emb_dropout, embed(&self.embed_in, inputs)?);
        let (places, end) = (positions(inputs, &hidden), || positions_end(inputs, &hidden));
        let context = Arc::new(Context {
            mask: AttentionMask::causal(inputs.attention_mask.as_ref(), &hidden, past_length(inputs)),
            tables: self.rotary.tables(places, end, hidden.dtype(), &hidden.device().inner()),
            past: inputs.past_key_values.clone(),
        });
        let hidden = run_layers(&self.layers, inputs.checkpointed_layers(), hidden, [], move |layer, _, hidden, []| {
            layer.forward(hidden, &context)
        });
        Some(self.final_layer_norm.forward(hidden))
    }

    fn words(&self) -> &Embedding {
        &self.embed_in
    }
}

impl Forward for GptNeoX {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.last_hidden_state(inputs)
    }
}

impl GptNeoXLayer {
    fn forward(&self, hidden: Tensor<3>, context: &Context) -> Tensor<3> {
        let attended = self.attention.forward(self.input_layernorm.forward(hidden.clone()), context);
        let attended = dropout(&self.dropout, attended) + hidden.clone();
        let source = if self.parallel { hidden } else { attended.clone() };
        dropout(&self.dropout, self.mlp.forward(self.post_attention_layernorm.forward(source))) + attended
    }
}

impl GptNeoXAttention {
    fn forward(&self, hidden: Tensor<3>, context: &Context) -> Tensor<3> {
        let [batch, length, _] = hidden.dims();
        let Heads { count, dim } = self.heads;
        // Query, key and value of one head lie beside each other.
        let joint = adapted_linear(&self.query_key_value, hidden).reshape([batch, length, count, 3 * dim]);
        let part = |at: usize| joint.clone().slice([0..batch, 0..length, 0..count, at * dim..(at + 1) * dim]);
        let (q, k) = (context.tables.rotate(part(0)).swap_dims(1, 2), context.tables.rotate(part(1)).swap_dims(1, 2));
        let v = part(2).swap_dims(1, 2);
        let (k, v) = match &context.past {
            Some(past) => past.extend(self.layer, k, v),
            None => (k, v),
        };
        let attended = attend(q, k, v, &context.mask, &self.dropout, &Scores::default());
        adapted_linear(&self.dense, self.heads.merge(attended))
    }
}

impl GptNeoXMlp {
    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let inner = self.activation.forward(adapted_linear(&self.dense_h_to_4h, hidden));
        adapted_linear(&self.dense_4h_to_h, inner)
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let layers = Layers::new(fields, device)?;
    let is_tagger = *class == AutoClass::TOKEN_CLASSIFICATION;
    let backbone = backbone(fields, &layers)?;
    let info = ModelInfo {
        model_type: "gpt_neox".to_owned(),
        supports_checkpointing: true,
        class_name: class_name("GPTNeoX", class),
        config: config.clone(),
        segments: if is_tagger { &[BACKBONE, ("score", "classifier")] } else { &[BACKBONE] },
        stored_segments: &[("lm_head", "embed_out")],
        ignored_tensors: &["attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"],
        past: backbone.layers.first().map(|layer| layer.attention.heads.past(backbone.layers.len())),
        max_positions: Some(fields.size("max_position_embeddings")?),
        ..ModelInfo::custom()
    };
    let model = CausalModel {
        backbone,
        info,
        words: "embed_in",
        tied: fields.flag_or("tie_word_embeddings", false)?,
        soft_cap: None,
    };
    model.with_head(class, &layers)
}

const BACKBONE: (&str, &str) = ("model", "gpt_neox");

fn backbone(fields: Fields<'_>, layers: &Layers<'_>) -> Result<GptNeoX> {
    let hidden = fields.size("hidden_size")?;
    let inner = fields.size("intermediate_size")?;
    let count = fields.size("num_attention_heads")?;
    if !hidden.is_multiple_of(count) {
        let problem = format!("{count} heads do not divide the hidden_size {hidden}");
        return Err(Fields::error("num_attention_heads", problem));
    }
    let heads = Heads { count, dim: hidden / count };
    let epsilon = fields.epsilon_or("layer_norm_eps", 1e-5)?;
    let bias = fields.flag_or("attention_bias", true)?;
    let drop = fields.probability_or("hidden_dropout", 0.0)?;
    let attention_drop = fields.probability_or("attention_dropout", 0.0)?;
    let activation = fields.activation_or("hidden_act", "gelu")?;
    let parallel = fields.flag_or("use_parallel_residual", true)?;
    let layer = |layer| GptNeoXLayer {
        input_layernorm: layers.layer_norm(hidden, epsilon),
        post_attention_layernorm: layers.layer_norm(hidden, epsilon),
        attention: GptNeoXAttention {
            query_key_value: layers.linear(hidden, 3 * hidden, bias),
            dense: layers.linear(hidden, hidden, bias),
            dropout: layers.dropout(attention_drop),
            layer,
            heads,
        },
        mlp: GptNeoXMlp {
            dense_h_to_4h: layers.linear(hidden, inner, true),
            dense_4h_to_h: layers.linear(inner, hidden, true),
            activation,
        },
        dropout: layers.dropout(drop),
        parallel,
    };
    Ok(GptNeoX {
        embed_in: layers.embedding(fields.size("vocab_size")?, hidden),
        emb_dropout: layers.dropout(drop),
        layers: (0..fields.layers("num_hidden_layers")?).map(layer).collect(),
        final_layer_norm: layers.layer_norm(hidden, epsilon),
        rotary: rotary(fields, heads.dim)?,
    })
}

/// The family has its own names for the base and for the share of a head that is turned.
fn rotary(fields: Fields<'_>, dim: usize) -> Result<Rotary> {
    let mut config = fields.0.clone();
    for (key, own, default) in
        [("rope_theta", "rotary_emb_base", 10_000.0), ("partial_rotary_factor", "rotary_pct", 0.25)]
    {
        let value = fields.float_or(key, fields.float_or(own, default)?)?;
        config.insert(key.to_owned(), value.into());
    }
    Rotary::from_config(Fields(&config), dim)
}
