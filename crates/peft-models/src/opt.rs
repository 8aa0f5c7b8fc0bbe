//! OPT: a causal decoder with learned positions that do not count padding, and norms before or after each block.

use std::sync::Arc;

use burn::{
    module::Module,
    nn::{Dropout, Embedding, Linear},
    tensor::{Device, Int, Tensor},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Forward, FreshValues, Inputs, ModelInfo, Outputs, PastKeyValues, Result,
    adapted_embedding, inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, AttentionMask, CausalBackbone, CausalModel, Fields, Heads, LayerNorm, Layers, Scores, adapted_linear,
    attend, class_name, dropout, embed, past_length, positions, run_layers,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "opt",
        classes: &[
            AutoClass::MODEL,
            AutoClass::CAUSAL_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "OPT, Galactica",
    }
}

/// The backbone: `OPTModel`.
#[derive(Module, Debug)]
struct Opt {
    decoder: OptDecoder,
}

#[derive(Module, Debug)]
struct OptDecoder {
    embed_tokens: Embedding,
    embed_positions: Embedding,
    project_in: Option<Linear>,
    project_out: Option<Linear>,
    final_layer_norm: Option<LayerNorm>,
    layers: Vec<OptLayer>,
}

#[derive(Module, Debug)]
struct OptLayer {
    self_attn: OptAttention,
    self_attn_layer_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    final_layer_norm: LayerNorm,
    dropout: Dropout,
    #[module(skip)]
    activation: Activation,
    #[module(skip)]
    norm_before: bool,
}

#[derive(Module, Debug)]
struct OptAttention {
    k_proj: Linear,
    v_proj: Linear,
    q_proj: Linear,
    out_proj: Linear,
    dropout: Dropout,
    #[module(skip)]
    layer: usize,
    #[module(skip)]
    heads: Heads,
}

/// The first rows of the table of positions, which no token has.
const OFFSET: usize = 2;

impl CausalBackbone for Opt {
    fn decode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let decoder = &self.decoder;
        let words = embed(&decoder.embed_tokens, inputs)?;
        let words = match &decoder.project_in {
            Some(project) => adapted_linear(project, words),
            None => words,
        };
        let hidden = adapted_embedding(&decoder.embed_positions, places(inputs, &words)) + words;
        let mask = AttentionMask::causal(inputs.attention_mask.as_ref(), &hidden, past_length(inputs));
        let (mask, past) = (Arc::new(mask), inputs.past_key_values.clone());
        let hidden =
            run_layers(&decoder.layers, inputs.checkpointed_layers(), hidden, [], move |layer, _, hidden, []| {
                layer.forward(hidden, &mask, past.as_ref())
            });
        let hidden = match &decoder.final_layer_norm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        };
        Some(match &decoder.project_out {
            Some(project) => adapted_linear(project, hidden),
            None => hidden,
        })
    }

    fn words(&self) -> &Embedding {
        &self.decoder.embed_tokens
    }
}

impl Forward for Opt {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.last_hidden_state(inputs)
    }
}

/// Rows of the table of positions: a token's is the number of tokens before it that are no padding.
fn places(inputs: &Inputs, hidden: &Tensor<3>) -> Tensor<2, Int> {
    let places = match (&inputs.position_ids, inputs.attention_mask_on(&hidden.device().inner())) {
        (None, Some(mask)) => {
            let [batch, keys] = mask.dims();
            let places = mask.clone().cumsum(1) * mask - 1;
            places.slice([0..batch, past_length(inputs).min(keys)..keys])
        }
        _ => positions(inputs, hidden),
    };
    places + OFFSET as i64
}

impl OptLayer {
    fn forward(&self, hidden: Tensor<3>, mask: &AttentionMask, past: Option<&PastKeyValues>) -> Tensor<3> {
        let hidden = self.residual(hidden, &self.self_attn_layer_norm, |x| self.self_attn.forward(x, mask, past));
        self.residual(hidden, &self.final_layer_norm, |x| {
            adapted_linear(&self.fc2, self.activation.forward(adapted_linear(&self.fc1, x)))
        })
    }

    fn residual(&self, hidden: Tensor<3>, norm: &LayerNorm, block: impl Fn(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
        if self.norm_before {
            hidden.clone() + dropout(&self.dropout, block(norm.forward(hidden)))
        } else {
            norm.add(&self.dropout, block(hidden.clone()), hidden)
        }
    }
}

impl OptAttention {
    fn forward(&self, hidden: Tensor<3>, mask: &AttentionMask, past: Option<&PastKeyValues>) -> Tensor<3> {
        let project = |linear| self.heads.split(adapted_linear(linear, hidden.clone()));
        let (q, k, v) = (project(&self.q_proj), project(&self.k_proj), project(&self.v_proj));
        let (k, v) = match past {
            Some(past) => past.extend(self.layer, k, v),
            None => (k, v),
        };
        let attended = attend(q, k, v, mask, &self.dropout, &Scores::default());
        adapted_linear(&self.out_proj, self.heads.merge(attended))
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    fields.only("layer_norm_elementwise_affine", &true.into())?;
    if fields.float_or("layerdrop", 0.0)? != 0.0 {
        return Err(Fields::error("layerdrop", "leaving out whole layers is not supported: set it to 0"));
    }
    let layers = Layers { device, std: fields.deviation_or("init_std", 0.02)? };
    let decoder = decoder(fields, &layers)?;
    let info = ModelInfo {
        model_type: "opt".to_owned(),
        supports_checkpointing: true,
        class_name: class_name("OPT", class),
        config: config.clone(),
        fresh: FreshValues::with_std(layers.std).with_zero_row("embed_tokens.weight", fields.padding_row(Some(1))?),
        past: decoder.layers.first().map(|layer| layer.self_attn.heads.past(decoder.layers.len())),
        max_positions: Some(fields.size("max_position_embeddings")?),
        ..ModelInfo::custom()
    };
    let model = CausalModel {
        backbone: Opt { decoder },
        info,
        words: "decoder.embed_tokens",
        tied: fields.flag_or("tie_word_embeddings", true)?,
        soft_cap: None,
    };
    model.with_head(class, &layers)
}

fn decoder(fields: Fields<'_>, layers: &Layers<'_>) -> Result<OptDecoder> {
    let hidden = fields.size("hidden_size")?;
    let inner = fields.size("ffn_dim")?;
    let count = fields.size("num_attention_heads")?;
    if !hidden.is_multiple_of(count) {
        let problem = format!("{count} heads do not divide the hidden_size {hidden}");
        return Err(Fields::error("num_attention_heads", problem));
    }
    let heads = Heads { count, dim: hidden / count };
    let words = fields.optional_size("word_embed_proj_dim")?.unwrap_or(hidden);
    let bias = fields.flag_or("enable_bias", true)?;
    let norm_before = fields.flag_or("do_layer_norm_before", true)?;
    let norm = || layers.layer_norm(hidden, 1e-5);
    let drop = fields.probability_or("dropout", 0.1)?;
    let attention_drop = fields.probability_or("attention_dropout", 0.0)?;
    let activation = fields.activation_or("activation_function", "relu")?;
    let layer = |layer| OptLayer {
        self_attn: OptAttention {
            k_proj: layers.linear(hidden, hidden, bias),
            v_proj: layers.linear(hidden, hidden, bias),
            q_proj: layers.linear(hidden, hidden, bias),
            out_proj: layers.linear(hidden, hidden, bias),
            dropout: layers.dropout(attention_drop),
            layer,
            heads,
        },
        self_attn_layer_norm: norm(),
        fc1: layers.linear(hidden, inner, bias),
        fc2: layers.linear(inner, hidden, bias),
        final_layer_norm: norm(),
        dropout: layers.dropout(drop),
        activation,
        norm_before,
    };
    Ok(OptDecoder {
        embed_tokens: layers.embedding(fields.size("vocab_size")?, words),
        embed_positions: layers.embedding(fields.size("max_position_embeddings")? + OFFSET, hidden),
        project_in: (words != hidden).then(|| layers.linear(words, hidden, false)),
        project_out: (words != hidden).then(|| layers.linear(hidden, words, false)),
        final_layer_norm: (norm_before && !fields.flag_or("_remove_final_layer_norm", false)?).then(norm),
        layers: (0..fields.layers("num_hidden_layers")?).map(layer).collect(),
    })
}
