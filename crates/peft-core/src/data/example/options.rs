//! What a recipe says about how rows become examples.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How rows become examples; each task looks at what concerns it.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodeOptions {
    /// Column names by role: `text`, `text_pair`, `label`, `tokens`, `tags`, `question`, `context`, `answers`, `prompt`, …
    pub columns: BTreeMap<String, String>,
    /// Most tokens of an example.
    pub max_length: usize,
    /// Most tokens of what is to be written; [`max_length`](Self::max_length) when absent.
    pub max_target_length: Option<usize>,
    /// What is put before each text that is read: `translate English to German: `.
    pub source_prefix: String,
    /// What happens to longer rows.
    pub overflow: Overflow,
    /// Tokens that neighbouring windows of a long context share.
    pub doc_stride: usize,
    /// Compute the loss on completions only.
    pub completion_only_loss: bool,
    /// Compute the loss on assistant turns only.
    pub assistant_only_loss: bool,
    /// How the states of a text's tokens become one vector.
    pub pooling: Pooling,
    /// Whether texts are lower-cased before they are tokenised, as some sentence encoders have it.
    pub lower_case: bool,
    /// Whether vectors are answered with length one.
    pub normalize: bool,
    /// What the scores of pairs are divided by, so that they are cosines.
    pub score_scale: f64,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self {
            columns: BTreeMap::new(),
            max_length: 1024,
            max_target_length: None,
            source_prefix: String::new(),
            overflow: Overflow::Raise,
            doc_stride: 128,
            completion_only_loss: true,
            assistant_only_loss: false,
            pooling: Pooling::Mean,
            lower_case: false,
            normalize: true,
            score_scale: 1.0,
        }
    }
}

/// What happens to a row with more tokens than `max_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// An error that names the row.
    Raise,
    /// The row is cut.
    Truncate,
    /// The row is left out.
    Drop,
}

/// How the states of a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean of all.
    Mean,
    /// The state of the first.
    Cls,
    /// The state of the last.
    Last,
    /// The largest value of each dimension.
    Max,
}
