//! Bidirectional encoders: what a family implements, and the heads that most of them share.
//!
//! A family writes its backbone, implements [`Encoder`] and [`Forward`] for it, and builds with [`EncoderModel::with_head`].
//! The backbone's field is `backbone` here; what checkpoints call it stands in [`ModelInfo::segments`]: `[("backbone", "bert")]`.

use burn::{
    module::{Module, ModuleDisplay},
    nn::{Dropout, Linear},
    tensor::Tensor,
};
use peft_core::{AutoClass, BaseModel, DynModule, Forward, Inputs, ModelInfo, Outputs, PastKeyValues};

use super::{
    Activation, AttentionMask, Heads, Layers, Scores, adapted_linear, attend, class_name, dropout, first_token,
    split_span_logits,
};

/// An encoder without a head.
pub trait Encoder: Module + ModuleDisplay + Forward + 'static {
    /// The last hidden state, `[batch, sequence, hidden]`; none without input.
    fn encode(&self, inputs: &Inputs) -> Option<Tensor<3>>;

    /// The last hidden state of each row's first token, `[batch, 1, hidden]` or with other tokens behind it; none without
    /// input. For heads that read no other: a backbone may leave out what the last layer does for the rest.
    fn encode_first(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        self.encode(inputs)
    }

    /// One vector for each row of the last hidden state, `[batch, hidden]`, where the backbone has a pooler.
    fn pool(&self, _hidden: &Tensor<3>) -> Option<Tensor<2>> {
        None
    }

    /// What the backbone gives as a model by itself.
    fn outputs(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.encode(inputs) else { return Outputs::new() };
        let pooled = self.pool(&hidden);
        let outputs = Outputs::new().with("last_hidden_state", hidden);
        match pooled {
            Some(pooled) => outputs.with("pooler_output", pooled),
            None => outputs,
        }
    }
}

/// A backbone and what its family says of it, to be given a head.
#[derive(Debug)]
pub struct EncoderModel<E> {
    /// What the names of its classes begin with: `Bert`.
    pub family: &'static str,
    /// The encoder.
    pub backbone: E,
    /// The family's facts; those that follow from the head are filled in with it.
    pub info: ModelInfo,
    /// Dimensions of a hidden state.
    pub width: usize,
    /// Dropout before the classifier of tokens.
    pub token_dropout: f64,
    /// Dropout before the classifier of spans; most families have none.
    pub span_dropout: f64,
}

impl<E: Encoder> EncoderModel<E> {
    /// The model with the head of `class`; the backbone itself for a class that is none of the three heads.
    ///
    /// `sequence` puts the family's own sequence classification head on the backbone, with that many labels, and `added`
    /// names the modules that come with it.
    pub fn with_head<M: Module + ModuleDisplay + Forward + 'static>(
        self,
        class: &AutoClass,
        layers: &Layers<'_>,
        added: &[&str],
        sequence: impl FnOnce(E, usize) -> M,
    ) -> BaseModel {
        let Self { family, backbone, info, width, token_dropout, span_dropout } = self;
        let labels = info.num_labels();
        if *class == AutoClass::SEQUENCE_CLASSIFICATION {
            of_class(info, family, class, added, sequence(backbone, labels))
        } else if *class == AutoClass::TOKEN_CLASSIFICATION {
            let (dropout, classifier) = (layers.dropout(token_dropout), layers.linear(width, labels, true));
            of_class(info, family, class, &["classifier"], TokenClassifier { backbone, dropout, classifier })
        } else if *class == AutoClass::QUESTION_ANSWERING {
            let (dropout, qa_outputs) = (layers.dropout(span_dropout), layers.linear(width, 2, true));
            of_class(info, family, class, &["qa_outputs"], SpanClassifier { backbone, dropout, qa_outputs })
        } else {
            of_class(info, family, class, &["pooler"], backbone)
        }
    }
}

/// The model with the names that follow from its class.
///
/// `info` has the input embedding as named inside the backbone; `heads` are the modules that a checkpoint may lack.
pub fn of_class(
    info: ModelInfo,
    family: &str,
    class: &AutoClass,
    heads: &[&str],
    module: impl DynModule + 'static,
) -> BaseModel {
    let words = info.input_embedding.map(|words| match *class == AutoClass::MODEL {
        true => words,
        false => format!("{}.{words}", info.base_model_prefix),
    });
    let info = ModelInfo {
        class_name: class_name(family, class),
        takes_prompt: true,
        input_embedding: words,
        head_modules: heads.iter().map(|head| (*head).to_owned()).collect(),
        ..info
    };
    BaseModel::new(Box::new(module), info)
}

/// Each token through `classifier`.
#[derive(Module, Debug)]
struct TokenClassifier<E: Encoder> {
    backbone: E,
    dropout: Dropout,
    classifier: Linear,
}

/// Each token through `qa_outputs`: is it the first or the last of the answer?
#[derive(Module, Debug)]
struct SpanClassifier<E: Encoder> {
    backbone: E,
    dropout: Dropout,
    qa_outputs: Linear,
}

/// What the backbone pools of a row through `classifier`.
#[derive(Module, Debug)]
pub struct PooledClassifier<E: Encoder> {
    backbone: E,
    dropout: Dropout,
    classifier: Linear,
}

/// Each row's first token through a `classifier` of two layers.
#[derive(Module, Debug)]
pub struct FirstTokenClassifier<E: Encoder> {
    backbone: E,
    classifier: ClassificationHead,
}

/// `out_proj(activation(dense(x)))` with dropout before both.
#[derive(Module, Debug)]
struct ClassificationHead {
    dense: Linear,
    dropout: Dropout,
    out_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl<E: Encoder> PooledClassifier<E> {
    /// A head on a backbone with a pooler of this width.
    pub fn new(backbone: E, layers: &Layers<'_>, width: usize, labels: usize, drop: f64) -> Self {
        Self { backbone, dropout: layers.dropout(drop), classifier: layers.linear(width, labels, true) }
    }
}

impl<E: Encoder> FirstTokenClassifier<E> {
    /// A head on a backbone of this width.
    pub fn new(
        backbone: E,
        layers: &Layers<'_>,
        width: usize,
        labels: usize,
        drop: f64,
        activation: Activation,
    ) -> Self {
        let classifier = ClassificationHead {
            dense: layers.linear(width, width, true),
            dropout: layers.dropout(drop),
            out_proj: layers.linear(width, labels, true),
            activation,
        };
        Self { backbone, classifier }
    }
}

impl ClassificationHead {
    fn forward(&self, first: Tensor<2>) -> Tensor<2> {
        let inner = adapted_linear(&self.dense, dropout(&self.dropout, first));
        adapted_linear(&self.out_proj, dropout(&self.dropout, self.activation.forward(inner)))
    }
}

impl<E: Encoder> Forward for TokenClassifier<E> {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.backbone.encode(inputs) else { return Outputs::new() };
        Outputs::new().with("logits", adapted_linear(&self.classifier, dropout(&self.dropout, hidden)))
    }
}

impl<E: Encoder> Forward for SpanClassifier<E> {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.backbone.encode(inputs) else { return Outputs::new() };
        let (start, end) = split_span_logits(adapted_linear(&self.qa_outputs, dropout(&self.dropout, hidden)));
        Outputs::new().with("start_logits", start).with("end_logits", end)
    }
}

impl<E: Encoder> Forward for PooledClassifier<E> {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let pooled = self.backbone.encode_first(inputs).and_then(|hidden| self.backbone.pool(&hidden));
        let Some(pooled) = pooled else { return Outputs::new() };
        Outputs::new().with("logits", adapted_linear(&self.classifier, dropout(&self.dropout, pooled)))
    }
}

impl<E: Encoder> Forward for FirstTokenClassifier<E> {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.backbone.encode_first(inputs) else { return Outputs::new() };
        Outputs::new().with("logits", self.classifier.forward(first_token(&hidden)))
    }
}

/// Attention of the tokens to one another, from their projections `[query, key, value]`.
///
/// `past` is what stands before the input, and the layer that it is taken from.
///
/// # Shapes
/// - `hidden`: `[batch, sequence, hidden]`
/// - returned: `[batch, sequence, heads · dim]`
pub fn self_attention(
    hidden: Tensor<3>,
    projections: [&Linear; 3],
    heads: Heads,
    mask: &AttentionMask,
    drop: &Dropout,
    past: Option<(&PastKeyValues, usize)>,
) -> Tensor<3> {
    attention_of(hidden.clone(), hidden, projections, heads, mask, drop, past)
}

/// [`self_attention`] of which only some tokens ask: `asking` are their hidden states, and the mask is theirs.
///
/// # Shapes
/// - `asking`: `[batch, queries, hidden]`
/// - `hidden`: `[batch, sequence, hidden]`
/// - returned: `[batch, queries, heads · dim]`
pub fn attention_of(
    asking: Tensor<3>,
    hidden: Tensor<3>,
    [query, key, value]: [&Linear; 3],
    heads: Heads,
    mask: &AttentionMask,
    drop: &Dropout,
    past: Option<(&PastKeyValues, usize)>,
) -> Tensor<3> {
    let project = |linear, hidden| heads.split(adapted_linear(linear, hidden));
    let (q, k, v) = (project(query, asking), project(key, hidden.clone()), project(value, hidden));
    let (k, v) = match past {
        Some((past, layer)) => past.extend(layer, k, v),
        None => (k, v),
    };
    heads.merge(attend(q, k, v, mask, drop, &Scores::default()))
}
