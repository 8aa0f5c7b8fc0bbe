//! The heads of causal decoders, one for all families.
//!
//! A family writes its backbone, implements [`CausalBackbone`] and [`Forward`] for it, and builds with
//! [`CausalModel::with_head`]. The heads' fields are named as Llama's are; a family whose checkpoints name them differently
//! says so in [`ModelInfo::segments`]: `[("model", "gpt_neox"), ("score", "classifier")]`.

use burn::{
    module::{Module, ModuleDisplay},
    nn::{Dropout, Embedding, Linear},
    tensor::{Bool, Device, Tensor},
};
use peft_core::{AutoClass, BaseModel, Forward, Inputs, ModelInfo, Outputs, Result};

use super::{Fields, Layers, adapted_linear, dropout, last_token, past_length, split_span_logits, word_logits};

/// A decoder without a head.
pub trait CausalBackbone: Module + ModuleDisplay + Forward + 'static {
    /// The last hidden state, `[batch, sequence, hidden]`; none without input.
    ///
    /// What it computes of `input_ids` alone follows from their shape ([`ModelInfo::supports_graph_capture`]).
    fn decode(&self, inputs: &Inputs) -> Option<Tensor<3>>;

    /// The table of words, as wide as what [`decode`](Self::decode) gives: a tied output layer shares it.
    fn words(&self) -> &Embedding;

    /// What the backbone gives as a model by itself.
    fn last_hidden_state(&self, inputs: &Inputs) -> Outputs {
        match self.decode(inputs) {
            Some(hidden) => Outputs::new().with("last_hidden_state", hidden),
            None => Outputs::new(),
        }
    }
}

/// The name of a class as most families have it: the family's name, then `Model`, `ForCausalLM`, ….
pub fn class_name(family: &str, class: &AutoClass) -> String {
    match class.as_str().strip_prefix("AutoModel") {
        Some(head) if !head.is_empty() => format!("{family}{head}"),
        _ => format!("{family}Model"),
    }
}

/// A backbone and what its family says of it, to be given a head.
#[derive(Debug)]
pub struct CausalModel<B> {
    /// The decoder.
    pub backbone: B,
    /// The family's facts; those that follow from the head are filled in with it.
    pub info: ModelInfo,
    /// The table of words, as named inside the backbone: `embed_tokens`.
    pub words: &'static str,
    /// Whether the output layer is the table of words: `tie_word_embeddings`.
    pub tied: bool,
    /// Logits of words become `cap · tanh(logits / cap)`: `final_logit_softcapping`.
    pub soft_cap: Option<f64>,
}

/// `model` and `lm_head`.
#[derive(Module, Debug)]
struct CausalLM<B: CausalBackbone> {
    model: B,
    lm_head: Linear,
    #[module(skip)]
    soft_cap: Option<f64>,
}

/// `model` and `score`, which reads each row's last token.
#[derive(Module, Debug)]
struct SequenceClassification<B: CausalBackbone> {
    model: B,
    score: Linear,
    #[module(skip)]
    pad_token_id: Option<i64>,
}

/// `model` and `score`, which reads each token.
#[derive(Module, Debug)]
struct TokenClassification<B: CausalBackbone> {
    model: B,
    dropout: Dropout,
    score: Linear,
}

/// `model` and `qa_outputs`.
#[derive(Module, Debug)]
struct QuestionAnswering<B: CausalBackbone> {
    model: B,
    qa_outputs: Linear,
}

impl<B: CausalBackbone> CausalModel<B> {
    /// The model with the head of `class`; the backbone itself for a class that is none of the four heads.
    ///
    /// # Errors
    /// [`peft_core::Error::Config`] if the head's dropout is none.
    pub fn with_head(self, class: &AutoClass, layers: &Layers<'_>) -> Result<BaseModel> {
        let Self { backbone: model, mut info, words, tied, soft_cap } = self;
        let renamed = info.segments.iter().find(|(field, _)| *field == "model");
        info.base_model_prefix = renamed.map_or("model", |(_, name)| name);
        info.input_embedding = Some(format!("{}.{words}", info.base_model_prefix));
        info.takes_prompt = true;
        let [vocab, width] = model.words().weight.lazy_shape().dims();
        let labels = info.num_labels();
        if *class == AutoClass::CAUSAL_LM {
            let head = info.rename("lm_head");
            let lm_head = if tied {
                info.tied = vec![(format!("{head}.weight"), format!("{}.{words}.weight", info.base_model_prefix))];
                layers.tied_linear(model.words())
            } else {
                layers.linear(width, vocab, false)
            };
            info.output_embedding = Some(head);
            info.supports_graph_capture = true;
            Ok(BaseModel::new(Box::new(CausalLM { model, lm_head, soft_cap }), info))
        } else if *class == AutoClass::SEQUENCE_CLASSIFICATION {
            info.head_modules = vec![info.rename("score")];
            info.pools_last_token = true;
            let (score, pad_token_id) = (layers.linear(width, labels, false), info.pad_token_id());
            let module = SequenceClassification { model, score, pad_token_id };
            Ok(BaseModel::new(Box::new(module), info))
        } else if *class == AutoClass::TOKEN_CLASSIFICATION {
            info.head_modules = vec![info.rename("score")];
            let fields = Fields(&info.config);
            let drop = fields.probability_or("classifier_dropout", fields.probability_or("hidden_dropout", 0.1)?)?;
            let (dropout, score) = (layers.dropout(drop), layers.linear(width, labels, true));
            let module = TokenClassification { model, dropout, score };
            Ok(BaseModel::new(Box::new(module), info))
        } else if *class == AutoClass::QUESTION_ANSWERING {
            info.head_modules = vec![info.rename("qa_outputs")];
            let module = QuestionAnswering { model, qa_outputs: layers.linear(width, 2, true) };
            Ok(BaseModel::new(Box::new(module), info))
        } else {
            info.input_embedding = Some(words.to_owned());
            Ok(BaseModel::new(Box::new(model), info))
        }
    }
}

impl<B: CausalBackbone> SequenceClassification<B> {
    /// Which tokens are no padding. By their ids, as Transformers has it, which takes the last place where the input is
    /// embedded already, as it is behind a prompt; a model without a padding token, which
    /// Transformers runs one row at a time, goes by the attention mask.
    fn counted(&self, inputs: &Inputs, device: &Device) -> Option<Tensor<2, Bool>> {
        let Some(pad) = self.pad_token_id else {
            let mask = inputs.attention_mask_on(device)?.not_equal_scalar(0);
            // The mask is of what stands before the input as well.
            let past = past_length(inputs);
            return Some(mask.clone().narrow(1, past, mask.dims()[1].saturating_sub(past)));
        };
        let ids = inputs.input_ids.clone().filter(|_| inputs.inputs_embeds.is_none() && inputs.prompt.is_none());
        ids.map(|ids| ids.not_equal_scalar(pad))
    }
}

impl<B: CausalBackbone> Forward for CausalLM<B> {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.model.decode(inputs) else { return Outputs::new() };
        word_logits(&self.lm_head, hidden, self.soft_cap)
    }
}

impl<B: CausalBackbone> Forward for SequenceClassification<B> {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.model.decode(inputs) else { return Outputs::new() };
        let counted = self.counted(inputs, &hidden.device().inner());
        let pooled = last_token(hidden, counted);
        Outputs::new().with("logits", adapted_linear(&self.score, pooled))
    }
}

impl<B: CausalBackbone> Forward for TokenClassification<B> {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.model.decode(inputs) else { return Outputs::new() };
        Outputs::new().with("logits", adapted_linear(&self.score, dropout(&self.dropout, hidden)))
    }
}

impl<B: CausalBackbone> Forward for QuestionAnswering<B> {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.model.decode(inputs) else { return Outputs::new() };
        let (start, end) = split_span_logits(adapted_linear(&self.qa_outputs, hidden));
        Outputs::new().with("start_logits", start).with("end_logits", end)
    }
}
