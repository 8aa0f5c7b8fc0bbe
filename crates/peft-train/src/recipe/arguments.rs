//! The keys of `[model]`, `[data]` and `[training]`, with their defaults and ranges.

use std::collections::BTreeMap;

use burn::tensor::DType;
use peft_core::data::example::{Overflow, Pooling};
use peft_models::QuantizationConfig;
use serde::{Deserialize, Serialize};

/// A key and what is wrong with its value.
pub(crate) type Wrong = (&'static str, String);

/// `[model]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelArguments {
    /// Folder of the base model, looked for beside the recipe first; or its id on the Hub.
    pub model_name_or_path: String,
    /// Configuration of a new model, in place of the folder's.
    pub config: Option<String>,
    /// Folder of the tokenizer, where it is not the model's.
    pub tokenizer: Option<String>,
    /// `random` for a new model; the weights of the folder when absent.
    pub init: Option<Init>,
    /// Type of the base model's weights in memory; `f32` when absent.
    pub dtype: Option<WeightType>,
    /// Whether a head for other classes than those of the data gives way to a fresh one, in place of an error.
    pub ignore_mismatched_sizes: bool,
    /// Which of them are packed while they are loaded.
    #[serde(flatten)]
    pub quantization: QuantizationConfig,
}

/// Where a model's weights come from, if not from its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// Drawn from the recipe's seed.
    Random,
}

/// Type of a base model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    /// 32 bits.
    #[serde(alias = "float32")]
    F32,
    /// 16 bits, the exponent of `f32`.
    #[serde(alias = "bfloat16")]
    Bf16,
    /// 16 bits, IEEE.
    #[serde(alias = "float16")]
    F16,
}

impl From<WeightType> for DType {
    fn from(value: WeightType) -> Self {
        match value {
            WeightType::F32 => Self::F32,
            WeightType::Bf16 => Self::BF16,
            WeightType::F16 => Self::F16,
        }
    }
}

/// `[data]`, without the columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataArguments {
    /// File with the training rows, or a folder with `train`, `validation` and `test` files.
    pub train: String,
    /// File or folder with the evaluation rows; the folder of `train` when absent, if it has a validation file.
    pub eval: Option<String>,
    /// Share of the training rows that is evaluated on instead, in (0, 1).
    pub eval_split: Option<f64>,
    /// The adapter whose rows alone are taken, of a file with the rows of several.
    pub adapter: Option<String>,
    /// The column that names it; `adapter` when absent.
    pub adapter_column: Option<String>,
    /// Most tokens of an example; the model's positions, at most 1024, when absent.
    pub max_length: Option<usize>,
    /// Most tokens of what is to be written; `max_length` when absent.
    pub max_target_length: Option<usize>,
    /// What is put before each text that is read.
    pub source_prefix: String,
    /// What happens to longer rows.
    pub overflow: Overflow,
    /// Tokens that neighbouring windows of a long context share.
    pub doc_stride: usize,
    /// Whether examples are packed into sequences of `max_length`, each still seeing only itself.
    pub packing: bool,
    /// Whether a prompt is only read, and its completion learnt.
    pub completion_only_loss: bool,
    /// Whether of a conversation only the assistant's turns are learnt.
    pub assistant_only_loss: bool,
    /// How the states of a text's tokens become one vector; what the model's folder says, else the mean, when absent.
    pub pooling: Option<Pooling>,
    /// Whether vectors are answered with length one.
    pub normalize: bool,
    /// What the scores of pairs are divided by, so that they are cosines.
    pub score_scale: f64,
    /// Column names by role, as far as they differ from the role's own name.
    #[serde(flatten)]
    pub columns: BTreeMap<String, String>,
}

impl Default for DataArguments {
    fn default() -> Self {
        Self {
            train: String::new(),
            eval: None,
            eval_split: None,
            adapter: None,
            adapter_column: None,
            max_length: None,
            max_target_length: None,
            source_prefix: String::new(),
            overflow: Overflow::Raise,
            doc_stride: 128,
            packing: false,
            completion_only_loss: true,
            assistant_only_loss: false,
            pooling: None,
            normalize: true,
            score_scale: 1.0,
            columns: BTreeMap::new(),
        }
    }
}

/// When something happens during training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Never.
    No,
    /// Every so many steps.
    Steps,
    /// At the end of each epoch.
    Epoch,
}

/// How the learning rate changes: the names of Transformers' `get_scheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// The same at every step; no warmup.
    Constant,
    /// The same at every step after the warmup.
    ConstantWithWarmup,
    /// Down to zero in a straight line.
    Linear,
    /// Down to zero along half a cosine.
    Cosine,
    /// Down with the inverse square root of the step.
    InverseSqrt,
}

/// `[training]`: the names, meanings and defaults of Transformers' `TrainingArguments`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainingArguments {
    /// Folder of the result, relative to the working directory.
    pub output_dir: String,
    /// Passes over the training data, fractions allowed.
    pub num_train_epochs: f64,
    /// Optimiser steps in place of epochs; -1 for none.
    pub max_steps: i64,
    /// Examples of a training batch.
    pub per_device_train_batch_size: usize,
    /// Examples of an evaluation batch.
    pub per_device_eval_batch_size: usize,
    /// Rows are padded to a multiple of so many positions, as far as `max_length` goes; to the longest of the batch when absent.
    pub pad_to_multiple_of: Option<usize>,
    /// Whether a GPU records the passes forward and back of a shape of batches and repeats them by one command.
    pub captured_steps: bool,
    /// Batches of an optimiser step. The loss is divided by the loss tokens of all of them.
    pub gradient_accumulation_steps: usize,
    /// Whether every layer but the last runs again in the pass back instead of keeping what it computes.
    pub gradient_checkpointing: bool,
    /// The most that layers may keep of a batch, in MB: as many of them run again as that takes.
    pub activation_memory_mb: Option<u64>,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// How the learning rate changes.
    pub lr_scheduler_type: SchedulerType,
    /// Share of the steps in which the learning rate rises; `warmup_steps` goes before.
    pub warmup_ratio: f64,
    /// Steps in which the learning rate rises; below 1 a share of all steps.
    pub warmup_steps: f64,
    /// Decoupled weight decay of AdamW, on every trained tensor.
    pub weight_decay: f64,
    /// AdamW's decay of the first moment.
    pub adam_beta1: f64,
    /// AdamW's decay of the second moment.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Largest norm of all gradients together; 0 for no limit.
    pub max_grad_norm: f64,
    /// Steps between two lines of the log.
    pub logging_steps: usize,
    /// When to evaluate, besides the end; `steps` when absent and `eval_steps` is given, else `no`.
    pub eval_strategy: Option<Strategy>,
    /// Steps between two evaluations; `logging_steps` when absent.
    pub eval_steps: Option<usize>,
    /// Whether to evaluate before the first step too: what the base model does with a fresh adapter and head.
    pub eval_on_start: bool,
    /// Whether the model writes its answers when it is evaluated, to be compared with those that are wanted.
    pub predict_with_generate: bool,
    /// Most tokens of an answer; of a decoder, of prompt and answer together. What the model's own options say when absent.
    pub generation_max_length: Option<usize>,
    /// Continuations that a beam search follows; what the model's own options say when absent.
    pub generation_num_beams: Option<usize>,
    /// When to write a checkpoint.
    pub save_strategy: Strategy,
    /// Steps between two checkpoints.
    pub save_steps: usize,
    /// Most checkpoints that are kept.
    pub save_total_limit: Option<usize>,
    /// Whether the best adapter is the result, not the last.
    pub load_best_model_at_end: bool,
    /// The metric that says which is best; the task's first when absent.
    pub metric_for_best_model: Option<String>,
    /// Whether more of it is better; follows from the metric when absent.
    pub greater_is_better: Option<bool>,
    /// Seed of initial values, order and dropout.
    pub seed: u64,
}

impl Default for TrainingArguments {
    fn default() -> Self {
        Self {
            output_dir: String::new(),
            num_train_epochs: 3.0,
            max_steps: -1,
            per_device_train_batch_size: 8,
            per_device_eval_batch_size: 8,
            pad_to_multiple_of: None,
            captured_steps: false,
            gradient_accumulation_steps: 1,
            gradient_checkpointing: false,
            activation_memory_mb: None,
            learning_rate: 5e-5,
            lr_scheduler_type: SchedulerType::Linear,
            warmup_ratio: 0.0,
            warmup_steps: 0.0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            logging_steps: 500,
            eval_strategy: None,
            eval_steps: None,
            eval_on_start: false,
            predict_with_generate: false,
            generation_max_length: None,
            generation_num_beams: None,
            save_strategy: Strategy::Steps,
            save_steps: 500,
            save_total_limit: None,
            load_best_model_at_end: false,
            metric_for_best_model: None,
            greater_is_better: None,
            seed: 42,
        }
    }
}

/// Keys of `[training]` that may differ when a run is resumed: they decide what is reported and kept, not the numbers.
pub(crate) const FREE_ON_RESUME: &[&str] = &[
    "output_dir",
    "per_device_eval_batch_size",
    "gradient_checkpointing",
    "activation_memory_mb",
    "logging_steps",
    "eval_strategy",
    "eval_on_start",
    "eval_steps",
    "predict_with_generate",
    "generation_max_length",
    "generation_num_beams",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
];

/// Positions that lengths of captured rows are multiples of, where the recipe does not say: few recordings, and little padding.
const BUCKET: usize = 64;

impl TrainingArguments {
    /// Positions that the lengths of rows are multiples of, where steps are captured and where not.
    pub(crate) fn multiple(&self, captured: bool) -> usize {
        self.pad_to_multiple_of.unwrap_or(if captured { BUCKET } else { 1 })
    }

    /// Steps between two evaluations, and when they happen.
    pub fn evaluation(&self) -> (Strategy, usize) {
        let given = if self.eval_steps.is_some() { Strategy::Steps } else { Strategy::No };
        (self.eval_strategy.unwrap_or(given), self.eval_steps.unwrap_or(self.logging_steps))
    }

    pub(crate) fn check(&self) -> Result<(), Wrong> {
        let wrong = |key, problem: &str, found: &dyn std::fmt::Display| Err((key, format!("{problem}, found {found}")));
        if self.output_dir.is_empty() {
            return Err(("output_dir", "missing; the folder that the adapter is written to".to_owned()));
        }
        if self.max_steps < -1 || self.max_steps == 0 {
            return wrong("max_steps", "must be at least 1, or -1 for none", &self.max_steps);
        }
        if self.num_train_epochs <= 0.0 && self.max_steps < 0 {
            return wrong("num_train_epochs", "must be above 0", &self.num_train_epochs);
        }
        let counts = [
            ("per_device_train_batch_size", Some(self.per_device_train_batch_size)),
            ("per_device_eval_batch_size", Some(self.per_device_eval_batch_size)),
            ("pad_to_multiple_of", self.pad_to_multiple_of),
            ("gradient_accumulation_steps", Some(self.gradient_accumulation_steps)),
            ("logging_steps", Some(self.logging_steps)),
            ("eval_steps", self.eval_steps),
            ("generation_max_length", self.generation_max_length),
            ("generation_num_beams", self.generation_num_beams),
            ("save_steps", Some(self.save_steps)),
            ("save_total_limit", self.save_total_limit),
        ];
        if let Some((key, _)) = counts.into_iter().find(|(_, count)| *count == Some(0)) {
            return wrong(key, "must be at least 1", &0);
        }
        if self.activation_memory_mb == Some(0) {
            return wrong("activation_memory_mb", "must be at least 1", &0);
        }
        if self.gradient_checkpointing && self.activation_memory_mb.is_some() {
            let problem = "gradient_checkpointing has all layers but the last run again already; keep one of the two";
            return Err(("activation_memory_mb", problem.to_owned()));
        }
        let writing = [
            ("generation_max_length", self.generation_max_length.is_some()),
            ("generation_num_beams", self.generation_num_beams.is_some()),
        ];
        if let Some((key, _)) = writing.into_iter().find(|(_, given)| *given && !self.predict_with_generate) {
            return Err((key, "has no effect without predict_with_generate = true".to_owned()));
        }
        if self.learning_rate <= 0.0 {
            return wrong("learning_rate", "must be above 0", &self.learning_rate);
        }
        if self.adam_epsilon <= 0.0 {
            return wrong("adam_epsilon", "must be above 0", &self.adam_epsilon);
        }
        for (key, share) in
            [("warmup_ratio", self.warmup_ratio), ("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)]
        {
            if !(0.0..1.0).contains(&share) {
                return wrong(key, "must be at least 0 and below 1", &share);
            }
        }
        for (key, value) in [
            ("warmup_steps", self.warmup_steps),
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
        ] {
            if value < 0.0 {
                return wrong(key, "must not be negative", &value);
            }
        }
        if self.warmup_steps >= 1.0 && self.warmup_steps.fract() != 0.0 {
            return wrong("warmup_steps", "must be a whole number, or a share below 1", &self.warmup_steps);
        }
        Ok(())
    }
}

impl ModelArguments {
    pub(crate) fn check(&self) -> Result<(), Wrong> {
        if self.config.is_some() && self.init.is_none() {
            let problem = "a model from a configuration has no weights yet: say init = \"random\"";
            return Err(("config", problem.to_owned()));
        }
        if self.model_name_or_path.is_empty() && self.config.is_none() {
            return Err((
                "model_name_or_path",
                "missing; the folder of the base model, or its id on the Hub".to_owned(),
            ));
        }
        Ok(())
    }
}

impl DataArguments {
    /// The column that names the adapter of a row.
    pub(crate) fn column_of_adapters(&self) -> &str {
        self.adapter_column.as_deref().unwrap_or("adapter")
    }

    pub(crate) fn check(&self) -> Result<(), Wrong> {
        if self.train.is_empty() {
            return Err(("train", "missing; the file with the training rows".to_owned()));
        }
        if self.eval.is_some() && self.eval_split.is_some() {
            return Err(("eval_split", "`eval` names a file already; keep one of the two".to_owned()));
        }
        if let Some(share) = self.eval_split.filter(|share| !(*share > 0.0 && *share < 1.0)) {
            return Err(("eval_split", format!("must be above 0 and below 1, found {share}")));
        }
        let lengths = [("max_length", self.max_length), ("max_target_length", self.max_target_length)];
        if let Some((key, _)) = lengths.into_iter().find(|(_, length)| *length == Some(0)) {
            return Err((key, "must be at least 1, found 0".to_owned()));
        }
        if !(self.score_scale.is_finite() && self.score_scale > 0.0) {
            return Err(("score_scale", format!("must be a number above 0, found {}", self.score_scale)));
        }
        Ok(())
    }
}
