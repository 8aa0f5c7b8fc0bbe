//! What a model says of itself: its Hugging Face configuration and the names that rules need.

pub mod shift_right;

use std::{borrow::Cow, fmt};

use serde_json::{Map, Value};

use crate::tensor::fresh::{FreshValues, is_ending};
pub use shift_right::{DecoderStart, ShiftRight};

/// Which head a model is built with, by the name of Transformers' auto class; open, so that a plugin can add its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AutoClass(Cow<'static, str>);

impl AutoClass {
    /// The backbone without a head.
    pub const MODEL: Self = Self::new("AutoModel");
    /// A sequence classification head.
    pub const SEQUENCE_CLASSIFICATION: Self = Self::new("AutoModelForSequenceClassification");
    /// A token classification head.
    pub const TOKEN_CLASSIFICATION: Self = Self::new("AutoModelForTokenClassification");
    /// A span head.
    pub const QUESTION_ANSWERING: Self = Self::new("AutoModelForQuestionAnswering");
    /// A next-token head.
    pub const CAUSAL_LM: Self = Self::new("AutoModelForCausalLM");
    /// A decoder's output embedding.
    pub const SEQ2SEQ_LM: Self = Self::new("AutoModelForSeq2SeqLM");

    /// A class known at compile time.
    pub const fn new(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// The auto class's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AutoClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a model says of itself: its Hugging Face configuration and the names that rules need.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// `model_type` of `config.json`; `custom` for a model without a configuration.
    pub model_type: String,
    /// The Transformers class that this is: `BertForSequenceClassification`.
    pub class_name: String,
    /// The auto class that it was built as: `AutoModelForSequenceClassification`.
    pub class: AutoClass,
    /// `config.json`, with what was set since (labels, problem type).
    pub config: Map<String, Value>,
    /// The module that turns hidden states into logits over the vocabulary, if the class has one: `lm_head`.
    pub output_embedding: Option<String>,
    /// The module that turns ids into vectors: `model.embed_tokens`.
    pub input_embedding: Option<String>,
    /// Parameters that are another parameter: `(lm_head.weight, model.embed_tokens.weight)`.
    pub tied: Vec<(String, String)>,
    /// Renames of path segments, from Rust's field names to checkpoint names; a segment without a name is left out.
    pub segments: &'static [(&'static str, &'static str)],
    /// Path segments that weight files name otherwise, `(lm_head, embed_out)`. Files may have either.
    pub stored_segments: &'static [(&'static str, &'static str)],
    /// The backbone's name inside a model with a head: `bert`, `model`.
    pub base_model_prefix: &'static str,
    /// Modules that a checkpoint may lack, because a task adds them: `classifier`.
    pub head_modules: Vec<String>,
    /// Tensors of checkpoints that are not parameters: name suffixes.
    pub ignored_tensors: &'static [&'static str],
    /// Buffers, stored but not parameters: never trained or counted, and zero where a checkpoint lacks them.
    pub buffers: &'static [&'static str],
    /// Parameters that the model works out by itself, so that checkpoints lack them: name endings.
    pub computed: &'static [&'static str],
    /// How parameters begin that a checkpoint lacks: heads, or all of a new model.
    pub fresh: FreshValues,
    /// The factor that the model applies to its token embeddings: `sqrt(hidden_size)` in Gemma.
    pub embedding_scale: f64,
    /// The shape of its past keys and values; none where the attention takes none.
    pub past: Option<PastShape>,
    /// Whether it supports activation checkpointing ([`Inputs::checkpointed_layers`](crate::Inputs::checkpointed_layers)).
    pub supports_checkpointing: bool,
    /// Whether a training step on `input_ids` alone can be captured as a CUDA graph: forward and backward read no value of the batch
    /// on the host and copy nothing from there.
    pub supports_graph_capture: bool,
    /// Whether it accepts vectors before the embedded input ([`Inputs::prompt`](crate::Inputs::prompt)).
    pub takes_prompt: bool,
    /// Virtual tokens before the text, which take positions from it.
    pub virtual_tokens: usize,
    /// Tasks that a prompt is made for by the rows' own numbers.
    pub num_tasks: Option<usize>,
    /// Virtual tokens at the front of outputs that have one position for each token.
    pub virtual_outputs: usize,
    /// Most tokens the model can take, virtual ones included.
    pub max_positions: Option<usize>,
    /// How many different `position_ids` it can take, where they are not as many: RoBERTa counts from its padding token's on.
    pub position_rows: Option<usize>,
    /// Beyond so many positions the frequencies change for all positions (LongRoPE), so that cached keys are invalid and the text is
    /// processed again.
    pub rereads_after: Option<usize>,
    /// Whether it reads its answer off each row's last token, which padding hides unless `pad_token_id` or the attention mask tells it.
    pub pools_last_token: bool,
    /// The token whose state a classifier reads: each row must have it.
    pub pooled_token: Option<i64>,
    /// How the decoder's input follows from its target; none without a decoder of its own.
    pub shift_right: Option<ShiftRight>,
}

/// The shape of the past keys and values of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastShape {
    /// Layers that have some: a decoder's where there is one.
    pub layers: usize,
    /// Heads of the keys.
    pub heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
}

impl ModelInfo {
    /// For a module without a Hugging Face configuration: `model_type` is `custom`.
    pub fn custom() -> Self {
        Self {
            model_type: "custom".to_owned(),
            class_name: "CustomModel".to_owned(),
            class: AutoClass::MODEL,
            config: Map::new(),
            output_embedding: None,
            input_embedding: None,
            tied: Vec::new(),
            segments: &[],
            stored_segments: &[],
            base_model_prefix: "",
            head_modules: Vec::new(),
            ignored_tensors: &[],
            buffers: &[],
            computed: &[],
            fresh: FreshValues::default(),
            embedding_scale: 1.0,
            past: None,
            supports_checkpointing: false,
            supports_graph_capture: false,
            takes_prompt: false,
            virtual_tokens: 0,
            virtual_outputs: 0,
            num_tasks: None,
            max_positions: None,
            position_rows: None,
            rereads_after: None,
            pools_last_token: false,
            pooled_token: None,
            shift_right: None,
        }
    }

    /// The checkpoint name of a path in the module tree.
    ///
    /// Burn's norm parameters `gamma` and `beta` are `weight` and `bias` in checkpoints; `r#x` is `x`; other segments as in
    /// [`segments`](Self::segments).
    pub fn rename(&self, path: &str) -> String {
        let segment = |segment: &str| {
            let segment = segment.strip_prefix("r#").unwrap_or(segment);
            if let Some((_, name)) = self.segments.iter().find(|(from, _)| *from == segment) {
                return (*name).to_owned();
            }
            match segment {
                "gamma" => "weight".to_owned(),
                "beta" => "bias".to_owned(),
                other => other.to_owned(),
            }
        };
        path.split('.').map(segment).filter(|segment| !segment.is_empty()).collect::<Vec<_>>().join(".")
    }

    /// The name that a parameter has in weight files.
    pub fn stored(&self, name: &str) -> String {
        let stored =
            |segment: &str| self.stored_segments.iter().find(|(own, _)| *own == segment).map(|(_, stored)| *stored);
        name.split('.').map(|segment| stored(segment).unwrap_or(segment)).collect::<Vec<_>>().join(".")
    }

    /// A whole number of the configuration.
    pub fn number(&self, key: &str) -> Option<usize> {
        self.config.get(key)?.as_u64().and_then(|n| usize::try_from(n).ok())
    }

    /// Whether the model works this parameter out by itself.
    pub fn is_computed(&self, parameter: &str) -> bool {
        self.computed.iter().any(|ending| is_ending(parameter, ending))
    }

    /// How many classes a classification head has: from `num_labels`, else from `id2label`, else 2 as Transformers has it.
    pub fn num_labels(&self) -> usize {
        let named = || self.config.get("id2label").and_then(Value::as_object).map(Map::len);
        self.number("num_labels").or_else(named).unwrap_or(2)
    }

    /// How many segments it tells apart; none where it takes no `token_type_ids`, or takes no notice of them.
    pub fn num_types(&self) -> Option<usize> {
        self.number("type_vocab_size").filter(|types| *types > 0)
    }

    /// Most tokens of text that the model can take: its positions without those of virtual tokens.
    pub fn room(&self) -> Option<usize> {
        self.max_positions.map(|most| most.saturating_sub(self.virtual_tokens))
    }

    /// The positions that so many tokens of text do not fit into, in words; none if they fit.
    pub fn exceeded(&self, tokens: usize) -> Option<String> {
        let most = self.room().filter(|most| tokens > *most)?;
        Some(match self.virtual_tokens {
            0 => format!("{most} positions"),
            taken => format!("{most} positions left beside {taken} virtual tokens"),
        })
    }

    /// The name of a class; `LABEL_3` where the configuration has none.
    pub fn label(&self, class: usize) -> String {
        let named = self.config.get("id2label").and_then(|map| map.get(class.to_string()));
        named.and_then(Value::as_str).map_or_else(|| format!("LABEL_{class}"), str::to_owned)
    }

    /// The names of all classes in order.
    pub fn labels(&self) -> Vec<String> {
        (0..self.num_labels()).map(|class| self.label(class)).collect()
    }

    /// `problem_type` of the configuration: `regression`, `single_label_classification`, `multi_label_classification`.
    pub fn problem_type(&self) -> Option<&str> {
        self.config.get("problem_type").and_then(Value::as_str)
    }

    /// The id of the padding token, if the configuration has one.
    pub fn pad_token_id(&self) -> Option<i64> {
        self.config.get("pad_token_id").and_then(Value::as_i64)
    }

    /// Sets the classes of a head and the kind of problem, as a data set has them.
    pub fn set_labels(config: &mut Map<String, Value>, labels: &[String], problem_type: &str) {
        let by_id =
            labels.iter().enumerate().map(|(id, label)| (id.to_string(), Value::from(label.as_str()))).collect();
        let by_label = labels.iter().enumerate().map(|(id, label)| (label.clone(), Value::from(id))).collect();
        config.insert("id2label".to_owned(), Value::Object(by_id));
        config.insert("label2id".to_owned(), Value::Object(by_label));
        config.insert("num_labels".to_owned(), labels.len().into());
        config.insert("problem_type".to_owned(), problem_type.into());
    }
}
