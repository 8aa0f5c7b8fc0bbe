//! Feature extraction: a vector for a text, pooled from its last hidden states.
//!
//! Transformers defines no loss for a bare backbone. What is learnt here is what sentence-transformers'
//! `CosineSimilarityLoss` learns: rows with `text_pair` and `score` teach that the cosine of the two vectors is the score.

use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use peft_core::{
    AutoClass, BadRows, Error, Labels, ModelInfo, Outputs, Result, Task, TaskPlugin,
    batch::IGNORE,
    data::{
        example::{EncodeContext, Example, Label, Pooling, Row, collate_labels},
        loss::{self, Loss},
    },
    inventory,
    metrics::{
        Metrics, Scores,
        correlation::{pearson, spearman},
    },
    plugins::task::{Column, Scored},
    tensor::finite::check_finite,
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
            Column { role: "text", required: true, learnt: false, holds: "the text" },
            Column { role: "text_pair", required: false, learnt: false, holds: "a text to compare it with" },
            Column { role: "score", required: false, learnt: true, holds: "how alike the two are, a number" },
        ]
    }

    /// Either every row is a pair or none is.
    fn check_rows(&self, rows: &[Row], context: &EncodeContext<'_>) -> Result<()> {
        let column = context.column("text_pair");
        let is_pair = |row: &Row| row.fields.contains_key(column);
        let mut bad = BadRows::default();
        if rows.iter().any(is_pair) {
            for row in rows.iter().filter(|row| !is_pair(row)) {
                bad.push(row.error(format!("no column `{column}`, which other rows have")));
            }
        }
        bad.finish()
    }

    /// One example, or two for a row with `text_pair`.
    fn encode(&self, row: &Row, context: &EncodeContext<'_>) -> Result<Vec<Example>> {
        let pair = context.optional("text_pair", row);
        let score = match (pair, context.optional("score", row)) {
            (Some(_), Some(column)) if context.labelled => {
                Some(Label::Float((number(row, column)? / context.options.score_scale) as f32))
            }
            _ => None,
        };
        let mut examples = Vec::new();
        for column in [Some(context.column("text")), pair].into_iter().flatten() {
            let text = row.text(column)?;
            let lowered = context.options.lower_case.then(|| text.to_lowercase());
            let text = lowered.as_deref().unwrap_or(text);
            let encoding = context.tokenizer.encode(text, None, context.options.max_length)?;
            // A pair of which one half is dropped is no pair.
            let Some(mut example) = context.example(row, &encoding)? else { return Ok(Vec::new()) };
            let pooled = Pooled::of(context.options.pooling, example.input_ids.len());
            example.labels.insert(pooled.name(), Label::Tokens(pooled.tokens));
            example.labels.extend(score.clone().map(|score| ("labels", score)));
            examples.push(example);
        }
        Ok(examples)
    }

    /// There must be scored pairs, and their scores must be what a cosine can be.
    fn check_examples(&self, examples: &[Example], context: &EncodeContext<'_>) -> Result<()> {
        let scores: Vec<f32> = examples.iter().filter_map(score).collect();
        if scores.is_empty() {
            let columns = [context.column("text_pair"), context.column("score")].join("` and `");
            return Err(Error::Data(format!(
                "no row has `{columns}`, how alike two texts are: there is nothing to compare with"
            )));
        }
        let largest = scores.iter().fold(0.0_f32, |largest, score| largest.max(score.abs()));
        if largest > 1.0 {
            let scale = context.options.score_scale;
            let right = f64::from(largest) * scale;
            return Err(Error::config(
                "score_scale",
                format!("scores divided by {scale} reach {largest}, and a cosine at most 1: use score_scale = {right}"),
            ));
        }
        Ok(())
    }

    fn pools(&self) -> bool {
        true
    }

    /// The two texts of a pair.
    fn group_size(&self) -> usize {
        2
    }

    /// The mean squared difference of the cosines of pairs and their scores.
    /// A pair without a score counts for nothing.
    fn loss<'a>(&self, labels: &'a Labels, _info: &'a ModelInfo) -> Result<Loss<'a>> {
        let all = if labels.0.contains_key("labels") { labels.floats("labels")? } else { Vec::new() };
        let scores: Vec<f32> = all.into_iter().step_by(2).collect();
        let scored = scores.iter().filter(|score| !score.is_nan()).count();
        Ok(Loss::of_mean(scored as f64, move |outputs| {
            let cosines = cosines(outputs, labels, scores.len())?;
            if scored == scores.len() {
                return loss::mse(cosines, &scores);
            }
            let (places, scores): (Vec<i64>, Vec<f32>) =
                (0_i64..).zip(&scores).filter(|(_, score)| !score.is_nan()).unzip();
            let places = Tensor::from_data(TensorData::new(places, [scored]), &cosines.device().inner());
            loss::mse(cosines.select(0, places), &scores)
        }))
    }

    /// One vector.
    fn scores(&self, outputs: &Outputs, examples: &[&Example], _info: &ModelInfo) -> Result<Vec<Scores>> {
        let vectors = pool(outputs, &collate_labels(examples))?;
        let width = vectors.dims()[1];
        let values = vectors.try_into_vec_as::<f32>();
        let values = values.map_err(|error| Error::Data(format!("cannot read the hidden states: {error}")))?;
        check_finite(&values, "last_hidden_state")?;
        Ok(values.chunks(width.max(1)).map(|vector| vec![vector.to_vec()]).collect())
    }

    /// `pearson` and `spearman` of the pairs' cosines with their scores.
    fn metrics(&self, rows: &[Scored<'_>], context: &EncodeContext<'_>) -> Result<Metrics> {
        let (mut truth, mut predicted) = (Vec::new(), Vec::new());
        for row in rows {
            let [(first, left), (_, right)] = row.examples.as_slice() else { continue };
            let Some(score) = score(first) else { continue };
            truth.push(f64::from(score));
            predicted.push(cosine(left, right));
        }
        if truth.is_empty() {
            let columns = [context.column("text_pair"), context.column("score")].join("` and `");
            let problem =
                format!("no row has `{columns}`, how alike the two texts are: there is nothing to compare with");
            return match rows.first() {
                Some(judged) => Err(judged.row.error(problem)),
                None => Ok(Metrics::new()),
            };
        }
        let metrics = [("pearson", pearson(&truth, &predicted)), ("spearman", spearman(&truth, &predicted))];
        Ok(metrics.map(|(name, value)| (name.to_owned(), value)).into())
    }

    /// `{"vector"}`; `{"vector", "vector_pair", "cosine"}` for a row with `text_pair`.
    fn answer(&self, row: &Scored<'_>, context: &EncodeContext<'_>) -> Result<Value> {
        let vector = |scores: &Scores| if context.options.normalize { unit(scores) } else { values(scores).collect() };
        Ok(match row.examples.as_slice() {
            [(_, left), (_, right)] => {
                json!({ "vector": vector(left), "vector_pair": vector(right), "cosine": cosine(left, right) })
            }
            [(_, scores)] => json!({ "vector": vector(scores) }),
            _ => Value::Null,
        })
    }
}

/// A product of lengths below which two vectors have no angle.
const SHORTEST: f64 = 1e-8;

const MEAN: &str = "mean_pooling";
const MAX: &str = "max_pooling";

/// The tokens of an example that its vector is made of, kept beside its labels so that loss and answer pool alike.
struct Pooled {
    by_max: bool,
    /// 1 at tokens that count, else [`IGNORE`].
    tokens: Vec<i64>,
}

impl Pooled {
    fn of(pooling: Pooling, length: usize) -> Self {
        let counted = match pooling {
            Pooling::Mean | Pooling::Max => 0..length,
            Pooling::Cls => 0..length.min(1),
            Pooling::Last => length.saturating_sub(1)..length,
        };
        let tokens = (0..length).map(|at| if counted.contains(&at) { 1 } else { IGNORE }).collect();
        Self { by_max: pooling == Pooling::Max, tokens }
    }

    fn name(&self) -> &'static str {
        if self.by_max { MAX } else { MEAN }
    }
}

/// The cosine of each pair of texts, `[pairs]`.
fn cosines(outputs: &Outputs, labels: &Labels, pairs: usize) -> Result<Tensor<1>> {
    let vectors = pool(outputs, labels)?;
    let [texts, width] = vectors.dims();
    if pairs * 2 != texts {
        return Err(Error::Data(format!("{pairs} scores for {texts} texts, two for each")));
    }
    let vectors = vectors.reshape([pairs, 2, width]);
    let side = |at: usize| vectors.clone().slice([0..pairs, at..at + 1, 0..width]);
    let product = |a: Tensor<3>, b: Tensor<3>| (a * b).sum_dim(2).reshape([pairs]);
    let (left, right) = (side(0), side(1));
    let lengths = product(left.clone(), left.clone()).sqrt() * product(right.clone(), right.clone()).sqrt();
    Ok(product(left, right) / lengths.clamp_min(SHORTEST))
}

/// One vector a text, `[texts, width]`, in single precision or better.
fn pool(outputs: &Outputs, labels: &Labels) -> Result<Tensor<2>> {
    let hidden = outputs.get::<3>("last_hidden_state")?;
    let hidden = match hidden.dtype() {
        DType::F16 | DType::BF16 => hidden.cast(FloatDType::F32),
        _ => hidden,
    };
    let [texts, length, width] = hidden.dims();
    let by_max = labels.0.contains_key(MAX);
    let name = if by_max { MAX } else { MEAN };
    let tokens = labels.integers(name)?;
    let shape = labels.get(name)?.shape();
    let longest = shape.last().copied().unwrap_or(0);
    if shape.first() != Some(&texts) || longest > length {
        return Err(Error::Data(format!("tokens {shape:?} for hidden states {:?}", hidden.dims())));
    }
    // The batch is as long as its longest text; what the hidden states have more are virtual tokens in front.
    let front = length - longest;
    let rows = tokens.chunks(longest.max(1));
    let cell = |counted: &dyn Fn(&[i64]) -> f32, other: f32| -> Vec<f32> {
        let row = |row: &[i64]| {
            let value = counted(row);
            let cells = row.iter().map(move |token| if *token == 1 { value } else { other });
            std::iter::repeat_n(other, front).chain(cells).collect::<Vec<_>>()
        };
        rows.clone().flat_map(row).collect()
    };
    let on_device = |cells: Vec<f32>, shape: [usize; 3]| {
        Tensor::<3>::from_data(TensorData::new(cells, shape), (&hidden.device(), hidden.dtype()))
    };
    let pooled = if by_max {
        let hide = on_device(cell(&|_| 0.0, f32::MIN), [texts, length, 1]);
        (hidden.clone() + hide).max_dim(1)
    } else {
        let share = |row: &[i64]| 1.0 / row.iter().filter(|token| **token == 1).count().max(1) as f32;
        on_device(cell(&share, 0.0), [texts, 1, length]).matmul(hidden.clone())
    };
    Ok(pooled.reshape([texts, width]))
}

fn score(example: &Example) -> Option<f32> {
    if let Some(Label::Float(score)) = example.labels.get("labels") { Some(*score) } else { None }
}

fn number(row: &Row, column: &str) -> Result<f64> {
    let value = row.fields.get(column).ok_or_else(|| row.missing(column))?;
    let number = match value {
        Value::String(text) => text.trim().parse::<f64>().ok(),
        other => other.as_f64(),
    };
    let finite = number.filter(|number| number.is_finite());
    finite.ok_or_else(|| row.error(format!("column `{column}` should be a number, found {value}")))
}

fn values(scores: &Scores) -> impl Iterator<Item = f64> {
    scores.iter().flatten().copied().map(f64::from)
}

/// A vector made one long; a zero vector stays.
fn unit(scores: &Scores) -> Vec<f64> {
    let length = values(scores).map(|value| value * value).sum::<f64>().sqrt();
    values(scores).map(|value| if length == 0.0 { 0.0 } else { value / length }).collect()
}

fn cosine(left: &Scores, right: &Scores) -> f64 {
    unit(left).iter().zip(unit(right)).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests;
