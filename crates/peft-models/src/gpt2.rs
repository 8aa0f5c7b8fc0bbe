//! GPT-2: a causal decoder with learned positions, norms before each block, and linear layers whose files hold `[d_in, d_out]`.

use std::sync::Arc;

use burn::{
    module::Module,
    nn::{Dropout, Embedding},
    tensor::{Device, Tensor},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Conv1D, Forward, Fresh, FreshValues, Inputs, ModelInfo, Outputs,
    PastKeyValues, Result, adapted_embedding, inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, AttentionMask, CausalBackbone, CausalModel, Fields, Heads, LayerNorm, Layers, Scores, adapted_conv1d,
    attend, dropout, embed, past_length, positions, run_layers,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "gpt2",
        classes: &[
            AutoClass::MODEL,
            AutoClass::CAUSAL_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "GPT-2, DistilGPT2, DialoGPT",
    }
}

/// The backbone: `GPT2Model`.
#[derive(Module, Debug)]
struct Gpt2 {
    wte: Embedding,
    wpe: Embedding,
    drop: Dropout,
    h: Vec<Gpt2Block>,
    ln_f: LayerNorm,
}

#[derive(Module, Debug)]
struct Gpt2Block {
    ln_1: LayerNorm,
    attn: Gpt2Attention,
    ln_2: LayerNorm,
    mlp: Gpt2Mlp,
}

#[derive(Module, Debug)]
struct Gpt2Attention {
    c_attn: Conv1D,
    c_proj: Conv1D,
    attn_dropout: Dropout,
    resid_dropout: Dropout,
    #[module(skip)]
    layer: usize,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    scale: f64,
}

#[derive(Module, Debug)]
struct Gpt2Mlp {
    c_fc: Conv1D,
    c_proj: Conv1D,
    dropout: Dropout,
    #[module(skip)]
    activation: Activation,
}

impl CausalBackbone for Gpt2 {
    fn decode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let words = embed(&self.wte, inputs)?;
        let places = adapted_embedding(&self.wpe, positions(inputs, &words));
        let mut hidden = words + places;
        // Segments have no table of their own: their ids are looked up among the words.
        if let Some(types) = inputs.token_type_ids.clone() {
            hidden = hidden + adapted_embedding(&self.wte, types);
        }
        let mask = AttentionMask::causal(inputs.attention_mask.as_ref(), &hidden, past_length(inputs));
        let (mask, past) = (Arc::new(mask), inputs.past_key_values.clone());
        let hidden = dropout(&self.drop, hidden);
        let hidden = run_layers(&self.h, inputs.checkpointed_layers(), hidden, [], move |block, _, hidden, []| {
            block.forward(hidden, &mask, past.as_ref())
        });
        Some(self.ln_f.forward(hidden))
    }

    fn words(&self) -> &Embedding {
        &self.wte
    }
}

impl Forward for Gpt2 {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.last_hidden_state(inputs)
    }
}

impl Gpt2Block {
    fn forward(&self, hidden: Tensor<3>, mask: &AttentionMask, past: Option<&PastKeyValues>) -> Tensor<3> {
        let attended = self.attn.forward(self.ln_1.forward(hidden.clone()), mask, past);
        let hidden = attended + hidden;
        self.mlp.forward(self.ln_2.forward(hidden.clone())) + hidden
    }
}

impl Gpt2Attention {
    fn forward(&self, hidden: Tensor<3>, mask: &AttentionMask, past: Option<&PastKeyValues>) -> Tensor<3> {
        let [batch, length, width] = hidden.dims();
        let joint = adapted_conv1d(&self.c_attn, hidden);
        let part =
            |at: usize| self.heads.split(joint.clone().slice([0..batch, 0..length, at * width..(at + 1) * width]));
        let (q, k, v) = (part(0), part(1), part(2));
        let (k, v) = match past {
            Some(past) => past.extend(self.layer, k, v),
            None => (k, v),
        };
        let scores = Scores { scale: Some(self.scale), ..Scores::default() };
        let attended = self.heads.merge(attend(q, k, v, mask, &self.attn_dropout, &scores));
        dropout(&self.resid_dropout, adapted_conv1d(&self.c_proj, attended))
    }
}

impl Gpt2Mlp {
    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        dropout(
            &self.dropout,
            adapted_conv1d(&self.c_proj, self.activation.forward(adapted_conv1d(&self.c_fc, hidden))),
        )
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    fields.only("add_cross_attention", &false.into())?;
    let layers = Layers::new(fields, device)?;
    let (class_name, segments): (_, &[_]) = if *class == AutoClass::CAUSAL_LM {
        ("GPT2LMHeadModel", &[BACKBONE])
    } else if *class == AutoClass::SEQUENCE_CLASSIFICATION {
        ("GPT2ForSequenceClassification", &[BACKBONE])
    } else if *class == AutoClass::TOKEN_CLASSIFICATION {
        ("GPT2ForTokenClassification", &[BACKBONE, ("score", "classifier")])
    } else if *class == AutoClass::QUESTION_ANSWERING {
        ("GPT2ForQuestionAnswering", &[BACKBONE])
    } else {
        ("GPT2Model", &[BACKBONE])
    };
    let backbone = backbone(fields, &layers)?;
    let info = ModelInfo {
        model_type: "gpt2".to_owned(),
        supports_checkpointing: true,
        class_name: class_name.to_owned(),
        config: config.clone(),
        segments,
        // The causal mask, which older files hold.
        ignored_tensors: &[".attn.bias", ".attn.masked_bias"],
        // What each layer adds to the sum of all: two blocks a layer.
        fresh: FreshValues {
            others: vec![(
                "c_proj.weight",
                Fresh::Normal(layers.std / (2.0 * fields.layers("n_layer")? as f64).sqrt()),
            )],
            ..FreshValues::default()
        },
        past: backbone.h.first().map(|block| block.attn.heads.past(backbone.h.len())),
        max_positions: Some(fields.size("n_positions")?),
        ..ModelInfo::custom()
    };
    let model = CausalModel {
        backbone,
        info,
        words: "wte",
        tied: fields.flag_or("tie_word_embeddings", true)?,
        soft_cap: None,
    };
    model.with_head(class, &layers)
}

const BACKBONE: (&str, &str) = ("model", "transformer");

fn backbone(fields: Fields<'_>, layers: &Layers<'_>) -> Result<Gpt2> {
    let hidden = fields.size("n_embd")?;
    let count = fields.size("n_head")?;
    if !hidden.is_multiple_of(count) {
        return Err(Fields::error("n_head", format!("{count} heads do not divide the n_embd {hidden}")));
    }
    let heads = Heads { count, dim: hidden / count };
    let inner = fields.optional_size("n_inner")?.unwrap_or(4 * hidden);
    let epsilon = fields.epsilon_or("layer_norm_epsilon", 1e-5)?;
    let drop = fields.probability_or("resid_pdrop", 0.1)?;
    let attention_drop = fields.probability_or("attn_pdrop", 0.1)?;
    let activation = fields.activation_or("activation_function", "gelu_new")?;
    let scale = if fields.flag_or("scale_attn_weights", true)? { (heads.dim as f64).powf(-0.5) } else { 1.0 };
    let by_depth = fields.flag_or("scale_attn_by_inverse_layer_idx", false)?;
    let block = |layer| Gpt2Block {
        ln_1: layers.layer_norm(hidden, epsilon),
        attn: Gpt2Attention {
            c_attn: layers.conv1d(hidden, 3 * hidden),
            c_proj: layers.conv1d(hidden, hidden),
            attn_dropout: layers.dropout(attention_drop),
            resid_dropout: layers.dropout(drop),
            layer,
            heads,
            scale: if by_depth { scale / (layer + 1) as f64 } else { scale },
        },
        ln_2: layers.layer_norm(hidden, epsilon),
        mlp: Gpt2Mlp {
            c_fc: layers.conv1d(hidden, inner),
            c_proj: layers.conv1d(inner, hidden),
            dropout: layers.dropout(drop),
            activation,
        },
    };
    Ok(Gpt2 {
        wte: layers.embedding(fields.size("vocab_size")?, hidden),
        wpe: layers.embedding(fields.size("n_positions")?, hidden),
        drop: layers.dropout(fields.probability_or("embd_pdrop", 0.1)?),
        h: (0..fields.layers("n_layer")?).map(block).collect(),
        ln_f: layers.layer_norm(hidden, epsilon),
    })
}
