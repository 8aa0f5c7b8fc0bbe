//! Feature extraction: a vector for a text, the mean of its last hidden states.
//!
//! There is no loss: Transformers defines none for a bare backbone. Rows with `text_pair` and `score` can be evaluated: how
//! well the cosine of the two vectors goes along with the score.

use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use peft_core::{
    AutoClass, Error, Labels, ModelInfo, Outputs, Result, Task, TaskPlugin,
    example::{EncodeContext, Example, Label, Row},
    inventory,
    metrics::correlation::{pearson, spearman},
    task::{Column, Judged, Metrics, Scores},
};
use serde_json::{Value, json};

inventory::submit! {
    TaskPlugin {
        name: "FEATURE_EXTRACTION",
        wrapper: "PeftModelForFeatureExtraction",
        auto_class: AutoClass::MODEL,
        heads: &[],
        num_transformer_submodules: 1,
        task: &FeatureExtraction,
        summary: "a vector for a text",
    }
}

/// The task `FEATURE_EXTRACTION`.
#[derive(Debug, Clone, Copy)]
pub struct FeatureExtraction;

impl Task for FeatureExtraction {
    fn columns(&self) -> &'static [Column] {
        &[
            Column { role: "text", required: true, holds: "the text" },
            Column { role: "text_pair", required: false, holds: "a text to compare it with" },
            Column { role: "score", required: false, holds: "how alike the two are, a number" },
        ]
    }

    /// One example, or two for a row with `text_pair`.
    fn encode(&self, row: &Row, context: &EncodeContext<'_>) -> Result<Vec<Example>> {
        let pair = context.optional("text_pair", row);
        let score = match (pair, context.optional("score", row)) {
            (Some(_), Some(column)) if context.labelled => Some(Label::Float(number(row, column)?)),
            _ => None,
        };
        let mut examples = Vec::new();
        for column in [Some(context.column("text")), pair].into_iter().flatten() {
            let encoding = context.tokenizer.encode(row.text(column)?, None, context.max_length)?;
            // A pair of which one half is dropped is no pair.
            let Some(mut example) = context.example(row, &encoding)? else { return Ok(Vec::new()) };
            example.labels.extend(score.clone().map(|score| ("labels", score)));
            examples.push(example);
        }
        Ok(examples)
    }

    /// Always an error, which says what to use for training instead.
    fn check_trainable(&self) -> Result<()> {
        Err(no_loss())
    }

    /// Always the error of [`check_trainable`](Task::check_trainable).
    fn loss(&self, _outputs: &Outputs, _labels: &Labels, _info: &ModelInfo) -> Result<Tensor<1>> {
        Err(no_loss())
    }

    /// Zero: no label counts for a loss, so that an evaluation goes without one.
    fn loss_weight(&self, _labels: &Labels) -> Result<f64> {
        Ok(0.0)
    }

    /// One vector: the mean of the hidden states of the example's tokens.
    fn scores(&self, outputs: &Outputs, examples: &[&Example], _info: &ModelInfo) -> Result<Vec<Scores>> {
        let hidden = outputs.get::<3>("last_hidden_state")?;
        let [batch, length, width] = hidden.dims();
        if examples.len() != batch {
            return Err(Error::Data(format!("{} examples for {batch} rows of hidden states", examples.len())));
        }
        // The batch is as long as its longest example; what the hidden states have more are virtual tokens in front.
        let longest = examples.iter().map(|example| example.input_ids.len()).max().unwrap_or(0);
        let front = length.saturating_sub(longest);
        let own = |example: &&Example| front..front + example.input_ids.len();
        let mask = examples.iter().flat_map(|e| (0..length).map(move |at| i64::from(own(e).contains(&at))));
        let mask = TensorData::new(mask.collect::<Vec<_>>(), [batch, 1, length]);
        let mask = Tensor::<3, Int>::from_data(mask, &hidden.device()).cast(FloatDType::F32);
        let sums = mask.matmul(hidden.cast(FloatDType::F32));
        let sums = sums.try_into_vec_as::<f32>();
        let sums = sums.map_err(|error| Error::Data(format!("cannot read the hidden states: {error}")))?;
        let means = sums.chunks(width.max(1)).zip(examples).map(|(sums, example)| {
            let tokens = example.input_ids.len().max(1) as f32;
            vec![sums.iter().map(|sum| sum / tokens).collect()]
        });
        Ok(means.collect())
    }

    /// `pearson` and `spearman` of the pairs' cosines with their scores; nothing for data without scored pairs.
    fn metrics(&self, rows: &[Judged<'_>], _context: &EncodeContext<'_>) -> Result<Metrics> {
        let (mut truth, mut predicted) = (Vec::new(), Vec::new());
        for row in rows {
            let [(first, left), (_, right)] = row.examples.as_slice() else { continue };
            let Some(Label::Float(score)) = first.labels.get("labels") else { continue };
            truth.push(f64::from(*score));
            predicted.push(unit(left).iter().zip(unit(right)).map(|(a, b)| a * b).sum());
        }
        if truth.is_empty() {
            return Ok(Metrics::new());
        }
        let metrics = [("pearson", pearson(&truth, &predicted)), ("spearman", spearman(&truth, &predicted))];
        Ok(metrics.map(|(name, value)| (name.to_owned(), value)).into())
    }

    /// `{"vector"}`, of length one; `{"vector", "vector_pair", "cosine"}` for a row with `text_pair`.
    fn answer(&self, row: &Judged<'_>, _context: &EncodeContext<'_>) -> Result<Value> {
        Ok(match row.examples.as_slice() {
            [(_, left), (_, right)] => {
                let (left, right) = (unit(left), unit(right));
                let cosine: f64 = left.iter().zip(&right).map(|(a, b)| a * b).sum();
                json!({ "vector": left, "vector_pair": right, "cosine": cosine })
            }
            [(_, scores)] => json!({ "vector": unit(scores) }),
            _ => Value::Null,
        })
    }
}

fn no_loss() -> Error {
    Error::config(
        "task_type",
        "FEATURE_EXTRACTION has no loss to train with, because Transformers defines none for a bare backbone: \
         use SEQ_CLS with `text_pair` and a number as label, or a task of your own",
    )
}

fn number(row: &Row, column: &str) -> Result<f32> {
    let value = row.fields.get(column).ok_or_else(|| row.missing(column))?;
    let number = match value {
        Value::String(text) => text.trim().parse::<f32>().ok(),
        other => other.as_f64().map(|number| number as f32),
    };
    let finite = number.filter(|number| number.is_finite());
    finite.ok_or_else(|| row.error(format!("column `{column}` should be a number, found {value}")))
}

/// A vector made one long; a zero vector stays.
fn unit(scores: &Scores) -> Vec<f64> {
    let values = || scores.iter().flatten().copied().map(f64::from);
    let length = values().map(|value| value * value).sum::<f64>().sqrt();
    values().map(|value| if length == 0.0 { 0.0 } else { value / length }).collect()
}

#[cfg(test)]
mod tests;
