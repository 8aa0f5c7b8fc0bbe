//! Models of an encoder and a decoder that looks at the encoder's states, and their heads, one for all families.
//!
//! A family writes its two halves, implements [`Seq2SeqBackbone`] and [`Forward`] for them, and builds with
//! [`Seq2SeqModel::with_head`]. The heads hold the halves in a field `model`, which
//! [`ModelInfo::segments`] renames or leaves out; `output` is `out_proj` there.

use burn::{
    module::{Module, ModuleDisplay, Param},
    nn::{Dropout, Embedding, Initializer, Linear},
    tensor::{Int, Tensor},
};
use peft_core::{AutoClass, BaseModel, Forward, Inputs, ModelInfo, Outputs, PastKeyValues, Result, ShiftRight};

use super::{
    AttentionMask, Fields, Layers, adapted_linear, dropout, last_token, past_length, split_span_logits, word_logits,
};

/// An encoder and a decoder without a head.
pub trait Seq2SeqBackbone: Module + ModuleDisplay + Forward + 'static {
    /// The encoder's states of the source, `[batch, sequence, hidden]`; none without a source.
    fn encode(&self, inputs: &Inputs) -> Option<Tensor<3>>;

    /// The table of the decoder's words: a tied output layer shares it.
    fn target_words(&self) -> &Embedding;

    /// The decoder's last hidden state, `[batch, target, hidden]`; none without anything to decode.
    fn decode(&self, inputs: &Inputs, states: &Tensor<3>) -> Option<Tensor<3>>;

    /// What a head makes of the decoder's last hidden state, and the encoder's states as `encoder_last_hidden_state`.
    ///
    /// Given as [`Inputs::encoder_outputs`] they spare the encoder another run.
    fn outputs(&self, inputs: &Inputs, head: impl FnOnce(Tensor<3>) -> Outputs) -> Outputs {
        let Some(states) = inputs.encoder_outputs.clone().or_else(|| self.encode(inputs)) else {
            return Outputs::new();
        };
        let outputs = self.decode(inputs, &states).map_or_else(Outputs::new, head);
        outputs.with("encoder_last_hidden_state", states)
    }

    /// What the backbone gives as a model by itself.
    fn last_hidden_state(&self, inputs: &Inputs) -> Outputs {
        self.outputs(inputs, |hidden| Outputs::new().with("last_hidden_state", hidden))
    }
}

/// What a decoder's layers share in one forward pass.
#[derive(Debug)]
pub struct CrossContext {
    /// What a position of the target sees of the target.
    pub own: AttentionMask,
    /// What it sees of the source.
    pub across: AttentionMask,
    /// What was decoded before.
    pub past: Option<PastKeyValues>,
}

impl CrossContext {
    /// For a decoder whose embedded input is `hidden` and that looks at these states.
    pub fn new(inputs: &Inputs, hidden: &Tensor<3>, states: &Tensor<3>) -> Self {
        Self {
            own: AttentionMask::causal(inputs.decoder_attention_mask.as_ref(), hidden, past_length(inputs)),
            across: AttentionMask::cross(inputs.attention_mask.as_ref(), hidden, states.dims()[1]),
            past: inputs.past_key_values.clone(),
        }
    }
}

/// The tokens that the decoder reads: `decoder_input_ids`, else the source one place later where `shift` says that the model
/// reads it twice; none if both are absent.
pub fn target_ids(inputs: &Inputs, shift: Option<&ShiftRight>) -> Option<Tensor<2, Int>> {
    inputs.decoder_input_ids.clone().or_else(|| Some(shift?.apply(inputs.input_ids.clone()?)))
}

/// Two halves and what their family says of them, to be given a head.
#[derive(Debug)]
pub struct Seq2SeqModel<B> {
    /// The encoder and the decoder.
    pub backbone: B,
    /// The family's facts; those that follow from the head are filled in with it.
    pub info: ModelInfo,
    /// What class names begin with: `Bart`.
    pub family: &'static str,
    /// The class that says words; most families call it `ForConditionalGeneration`.
    pub conditional_generation: &'static str,
    /// The table of words.
    pub words: &'static str,
    /// What the class gives as its input embedding.
    pub input_words: &'static str,
    /// The tables that are the table of words.
    pub copies: &'static [&'static str],
    /// The table that the output layer is.
    pub output_words: &'static str,
    /// Whether the output layer is a table of words: `tie_word_embeddings`.
    pub tied: bool,
    /// What hidden states are multiplied with before the output layer.
    pub scale: f64,
    /// Whether a stored bias is added to the logits of words.
    pub logits_bias: bool,
    /// The token whose last state is classified: `eos_token_id`.
    pub eos_token_id: i64,
}

/// `model` and `lm_head`.
#[derive(Module, Debug)]
struct ConditionalGeneration<B: Seq2SeqBackbone> {
    model: B,
    final_logits_bias: Option<Param<Tensor<2>>>,
    lm_head: Linear,
    #[module(skip)]
    scale: f64,
}

/// `model` and `classification_head`, which reads the state of each row's last end-of-text token.
#[derive(Module, Debug)]
struct SequenceClassification<B: Seq2SeqBackbone> {
    model: B,
    classification_head: ClassificationHead,
    #[module(skip)]
    eos_token_id: i64,
}

#[derive(Module, Debug)]
struct ClassificationHead {
    dense: Linear,
    dropout: Dropout,
    output: Linear,
}

/// `model` and `qa_outputs`.
#[derive(Module, Debug)]
struct QuestionAnswering<B: Seq2SeqBackbone> {
    model: B,
    qa_outputs: Linear,
}

impl<B: Seq2SeqBackbone> Seq2SeqModel<B> {
    /// The model with the head of `class`; the halves themselves for a class that is none of the three heads.
    ///
    /// # Errors
    /// [`peft_core::Error::Config`] if the head's dropout is none.
    pub fn with_head(self, class: &AutoClass, layers: &Layers<'_>) -> Result<BaseModel> {
        let Self { backbone: model, mut info, family, words, copies, scale, .. } = self;
        let is_head = [AutoClass::SEQ2SEQ_LM, AutoClass::SEQUENCE_CLASSIFICATION, AutoClass::QUESTION_ANSWERING];
        let renamed = info.segments.iter().find(|(field, _)| *field == "model").map_or("model", |(_, name)| name);
        info.base_model_prefix = if is_head.contains(class) { renamed } else { "" };
        let full = |name: &str| match info.base_model_prefix {
            "" => name.to_owned(),
            prefix => format!("{prefix}.{name}"),
        };
        let mut tied: Vec<_> =
            copies.iter().map(|copy| (format!("{}.weight", full(copy)), format!("{}.weight", full(words)))).collect();
        let output_words = format!("{}.weight", full(self.output_words));
        info.input_embedding = Some(full(self.input_words));
        info.takes_prompt = true;
        let [vocab, width] = model.target_words().weight.lazy_shape().dims();
        let class_name = |tail: &str| format!("{family}{tail}");
        if *class == AutoClass::SEQ2SEQ_LM {
            info.class_name = class_name(self.conditional_generation);
            info.output_embedding = Some("lm_head".to_owned());
            let lm_head = if self.tied {
                tied.push(("lm_head.weight".to_owned(), output_words));
                layers.tied_linear(model.target_words())
            } else {
                layers.linear(width, vocab, false)
            };
            info.tied = tied;
            let zeros = || Initializer::Zeros.init([1, vocab], layers.device).set_require_grad(false);
            let final_logits_bias = self.logits_bias.then(zeros);
            info.buffers = if self.logits_bias { &["final_logits_bias"] } else { &[] };
            let module = ConditionalGeneration { model, final_logits_bias, lm_head, scale };
            return Ok(BaseModel::new(Box::new(module), info));
        }
        info.tied = tied;
        if *class == AutoClass::SEQUENCE_CLASSIFICATION {
            info.class_name = class_name("ForSequenceClassification");
            info.head_modules = vec!["classification_head".to_owned()];
            info.pooled_token = Some(self.eos_token_id);
            let classification_head = ClassificationHead {
                dense: layers.linear(width, width, true),
                dropout: layers.dropout(Fields(&info.config).probability_or("classifier_dropout", 0.0)?),
                output: layers.linear(width, info.num_labels(), true),
            };
            let module = SequenceClassification { model, classification_head, eos_token_id: self.eos_token_id };
            Ok(BaseModel::new(Box::new(module), info))
        } else if *class == AutoClass::QUESTION_ANSWERING {
            info.class_name = class_name("ForQuestionAnswering");
            info.head_modules = vec!["qa_outputs".to_owned()];
            let module = QuestionAnswering { model, qa_outputs: layers.linear(width, 2, true) };
            Ok(BaseModel::new(Box::new(module), info))
        } else {
            info.class_name = class_name("Model");
            Ok(BaseModel::new(Box::new(model), info))
        }
    }
}

impl<B: Seq2SeqBackbone> Forward for ConditionalGeneration<B> {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.model.outputs(inputs, |hidden| {
            let hidden = if self.scale == 1.0 { hidden } else { hidden * self.scale };
            match &self.final_logits_bias {
                None => word_logits(&self.lm_head, hidden, None),
                Some(bias) => {
                    Outputs::new().with("logits", adapted_linear(&self.lm_head, hidden) + bias.val().unsqueeze())
                }
            }
        })
    }
}

impl<B: Seq2SeqBackbone> Forward for SequenceClassification<B> {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.model.outputs(inputs, |hidden| match &inputs.input_ids {
            Some(ids) => {
                let pooled = last_token(hidden, Some(ids.clone().equal_scalar(self.eos_token_id)));
                Outputs::new().with("logits", self.classification_head.forward(pooled))
            }
            None => Outputs::new(),
        })
    }
}

impl<B: Seq2SeqBackbone> Forward for QuestionAnswering<B> {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.model.outputs(inputs, |hidden| {
            let (start, end) = split_span_logits(adapted_linear(&self.qa_outputs, hidden));
            Outputs::new().with("start_logits", start).with("end_logits", end)
        })
    }
}

impl ClassificationHead {
    fn forward(&self, pooled: Tensor<2>) -> Tensor<2> {
        let inner = adapted_linear(&self.dense, dropout(&self.dropout, pooled)).tanh();
        adapted_linear(&self.output, dropout(&self.dropout, inner))
    }
}
