//! Llama: a causal decoder with rotary positions, grouped key heads, a gated feed-forward and norms before each block.

use std::sync::Arc;

use burn::{
    module::{Module, Param},
    nn::{Dropout, Embedding, Linear, RmsNorm},
    tensor::{Device, Tensor},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Forward, Inputs, ModelInfo, Outputs, PastKeyValues, Result,
    adapted_linear, inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, AttentionMask, Fields, Heads, Layers, Rotary, RotaryTables, Scores, attend, dropout, embed, last_token,
    past_length, positions, split_span_logits,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "llama",
        classes: &[
            AutoClass::MODEL,
            AutoClass::CAUSAL_LM,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "Llama and what is built like it: SmolLM, TinyLlama",
    }
}

/// The backbone: `LlamaModel`.
#[derive(Module, Debug)]
struct Llama {
    embed_tokens: Embedding,
    layers: Vec<LlamaLayer>,
    norm: RmsNorm,
    #[module(skip)]
    rotary: Rotary,
}

#[derive(Module, Debug)]
struct LlamaLayer {
    self_attn: LlamaAttention,
    mlp: LlamaMlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
}

#[derive(Module, Debug)]
struct LlamaAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    dropout: Dropout,
    #[module(skip)]
    layer: usize,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    key_heads: Heads,
}

#[derive(Module, Debug)]
struct LlamaMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

#[derive(Module, Debug)]
struct LlamaForCausalLM {
    model: Llama,
    lm_head: Linear,
}

#[derive(Module, Debug)]
struct LlamaForSequenceClassification {
    model: Llama,
    score: Linear,
    #[module(skip)]
    pad_token_id: Option<i64>,
}

#[derive(Module, Debug)]
struct LlamaForTokenClassification {
    model: Llama,
    dropout: Dropout,
    score: Linear,
}

#[derive(Module, Debug)]
struct LlamaForQuestionAnswering {
    transformer: Llama,
    qa_outputs: Linear,
}

/// What all layers of one forward pass share.
struct Context<'a> {
    mask: AttentionMask,
    tables: RotaryTables,
    past: Option<&'a PastKeyValues>,
}

impl Llama {
    /// The last hidden state, `[batch, sequence, hidden]`; none without input.
    fn decode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let hidden = embed(&self.embed_tokens, inputs)?;
        let context = Context {
            mask: AttentionMask::causal(inputs.attention_mask.as_ref(), &hidden, past_length(inputs)),
            tables: self.rotary.tables(positions(inputs, &hidden), hidden.dtype(), &hidden.device().inner()),
            past: inputs.past_key_values.as_ref(),
        };
        let hidden = self.layers.iter().fold(hidden, |hidden, layer| layer.forward(hidden, &context));
        Some(self.norm.forward(hidden))
    }
}

impl LlamaLayer {
    fn forward(&self, hidden: Tensor<3>, context: &Context<'_>) -> Tensor<3> {
        let attended = self.self_attn.forward(self.input_layernorm.forward(hidden.clone()), context);
        let hidden = hidden + attended;
        hidden.clone() + self.mlp.forward(self.post_attention_layernorm.forward(hidden))
    }
}

impl LlamaAttention {
    fn forward(&self, hidden: Tensor<3>, context: &Context<'_>) -> Tensor<3> {
        let [batch, length, _] = hidden.dims();
        let rotated = |linear, heads: Heads| {
            let x = adapted_linear(linear, hidden.clone()).reshape([batch, length, heads.count, heads.dim]);
            context.tables.rotate(x).swap_dims(1, 2)
        };
        let (q, k) = (rotated(&self.q_proj, self.heads), rotated(&self.k_proj, self.key_heads));
        let v = self.key_heads.split(adapted_linear(&self.v_proj, hidden));
        let (k, v) = match context.past {
            Some(past) => past.extend(self.layer, k, v),
            None => (k, v),
        };
        let attended = attend(q, k, v, &context.mask, &self.dropout, &Scores::default());
        adapted_linear(&self.o_proj, self.heads.merge(attended))
    }
}

impl LlamaMlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = self.activation.forward(adapted_linear(&self.gate_proj, x.clone()));
        adapted_linear(&self.down_proj, gate * adapted_linear(&self.up_proj, x))
    }
}

impl Forward for Llama {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.decode(inputs) else { return Outputs::new() };
        Outputs::new().with("last_hidden_state", hidden)
    }
}

impl Forward for LlamaForCausalLM {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.model.decode(inputs) else { return Outputs::new() };
        Outputs::new().with("logits", adapted_linear(&self.lm_head, hidden))
    }
}

impl Forward for LlamaForSequenceClassification {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.model.decode(inputs) else { return Outputs::new() };
        let ids = inputs.input_ids.as_ref().filter(|_| inputs.inputs_embeds.is_none());
        let pooled = last_token(hidden, ids, self.pad_token_id);
        Outputs::new().with("logits", adapted_linear(&self.score, pooled))
    }
}

impl Forward for LlamaForTokenClassification {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.model.decode(inputs) else { return Outputs::new() };
        Outputs::new().with("logits", adapted_linear(&self.score, dropout(&self.dropout, hidden)))
    }
}

impl Forward for LlamaForQuestionAnswering {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.transformer.decode(inputs) else { return Outputs::new() };
        let (start, end) = split_span_logits(adapted_linear(&self.qa_outputs, hidden));
        Outputs::new().with("start_logits", start).with("end_logits", end)
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let layers = Layers { device, std: fields.float_or("initializer_range", 0.02)? };
    let backbone = backbone(fields, &layers)?;
    let hidden = fields.size("hidden_size")?;
    let mut info = ModelInfo {
        model_type: "llama".to_owned(),
        config: config.clone(),
        base_model_prefix: "model",
        ignored_tensors: &["rotary_emb.inv_freq"],
        max_positions: Some(fields.size("max_position_embeddings")?),
        ..ModelInfo::custom()
    };
    let labels = info.num_labels();
    let mut finish = |class_name: &str, prefix: &str, heads: &[&str]| {
        info.class_name = class_name.to_owned();
        info.input_embedding = Some(format!("{prefix}embed_tokens"));
        info.head_modules = heads.iter().map(|head| (*head).to_owned()).collect();
        info.clone()
    };
    if *class == AutoClass::CAUSAL_LM {
        let mut info =
            ModelInfo { output_embedding: Some("lm_head".to_owned()), ..finish("LlamaForCausalLM", "model.", &[]) };
        let lm_head = if fields.flag_or("tie_word_embeddings", false)? {
            info.tied = vec![("lm_head.weight".to_owned(), "model.embed_tokens.weight".to_owned())];
            tied(&backbone.embed_tokens, device)
        } else {
            layers.linear(hidden, fields.size("vocab_size")?, false)
        };
        Ok(BaseModel { module: Box::new(LlamaForCausalLM { model: backbone, lm_head }), info: Arc::new(info) })
    } else if *class == AutoClass::SEQUENCE_CLASSIFICATION {
        let info =
            ModelInfo { pools_last_token: true, ..finish("LlamaForSequenceClassification", "model.", &["score"]) };
        let module = LlamaForSequenceClassification {
            model: backbone,
            score: layers.linear(hidden, labels, false),
            pad_token_id: info.pad_token_id(),
        };
        Ok(BaseModel { module: Box::new(module), info: Arc::new(info) })
    } else if *class == AutoClass::TOKEN_CLASSIFICATION {
        let drop = fields.probability_or("classifier_dropout", fields.probability_or("hidden_dropout", 0.1)?)?;
        let module = LlamaForTokenClassification {
            model: backbone,
            dropout: layers.dropout(drop),
            score: layers.linear(hidden, labels, true),
        };
        let info = finish("LlamaForTokenClassification", "model.", &["score"]);
        Ok(BaseModel { module: Box::new(module), info: Arc::new(info) })
    } else if *class == AutoClass::QUESTION_ANSWERING {
        let module = LlamaForQuestionAnswering { transformer: backbone, qa_outputs: layers.linear(hidden, 2, true) };
        // Transformers names this one backbone differently from all others of the family.
        let info = finish("LlamaForQuestionAnswering", "transformer.", &["qa_outputs"]);
        let info = ModelInfo { base_model_prefix: "transformer", ..info };
        Ok(BaseModel { module: Box::new(module), info: Arc::new(info) })
    } else {
        Ok(BaseModel { module: Box::new(backbone), info: Arc::new(finish("LlamaModel", "", &[])) })
    }
}

/// An output layer whose weight is the embedding's table, of the same identity and in the same memory.
fn tied(embedding: &Embedding, device: &Device) -> Linear {
    let table = embedding.weight.clone();
    let [entries, dimensions] = table.lazy_shape().dims();
    let id = table.id;
    let shape = [dimensions, entries].into();
    let weight = Param::uninitialized(id, move |_, _| table.base().transpose(), device.clone(), false, shape);
    Linear { weight, bias: None }
}

fn backbone(fields: Fields<'_>, layers: &Layers<'_>) -> Result<Llama> {
    let hidden = fields.size("hidden_size")?;
    let inner = fields.size("intermediate_size")?;
    let count = fields.size("num_attention_heads")?;
    let key_count = fields.optional_size("num_key_value_heads")?.unwrap_or(count);
    if !count.is_multiple_of(key_count) {
        let problem = format!("{key_count} key heads do not divide the {count} num_attention_heads");
        return Err(Fields::error("num_key_value_heads", problem));
    }
    let dim = match fields.optional_size("head_dim")? {
        Some(dim) => dim,
        None if hidden.is_multiple_of(count) => hidden / count,
        None => {
            let problem = format!("{count} heads do not divide the hidden_size {hidden}, and there is no head_dim");
            return Err(Fields::error("num_attention_heads", problem));
        }
    };
    let (heads, key_heads) = (Heads { count, dim }, Heads { count: key_count, dim });
    let epsilon = fields.float_or("rms_norm_eps", 1e-6)?;
    let attention_bias = fields.flag_or("attention_bias", false)?;
    let mlp_bias = fields.flag_or("mlp_bias", false)?;
    let attention_drop = fields.probability_or("attention_dropout", 0.0)?;
    let activation = fields.activation_or("hidden_act", "silu")?;
    let rotary = Rotary::from_config(fields, dim)?;
    let layer = |layer| LlamaLayer {
        self_attn: LlamaAttention {
            q_proj: layers.linear(hidden, count * dim, attention_bias),
            k_proj: layers.linear(hidden, key_count * dim, attention_bias),
            v_proj: layers.linear(hidden, key_count * dim, attention_bias),
            o_proj: layers.linear(count * dim, hidden, attention_bias),
            dropout: layers.dropout(attention_drop),
            layer,
            heads,
            key_heads,
        },
        mlp: LlamaMlp {
            gate_proj: layers.linear(hidden, inner, mlp_bias),
            up_proj: layers.linear(hidden, inner, mlp_bias),
            down_proj: layers.linear(inner, hidden, mlp_bias),
            activation,
        },
        input_layernorm: layers.rms_norm(hidden, epsilon),
        post_attention_layernorm: layers.rms_norm(hidden, epsilon),
    };
    Ok(Llama {
        embed_tokens: layers.embedding(fields.size("vocab_size")?, hidden),
        layers: (0..fields.size("num_hidden_layers")?).map(layer).collect(),
        norm: layers.rms_norm(hidden, epsilon),
        rotary,
    })
}
